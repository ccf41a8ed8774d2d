"""That pins, settings and versions agree in the files that name them."""

import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.constants import ROOT

from service.config import ReconcileSettings, Settings, load
from service.dev import simulator

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SECRET = simulator.new_secret()
LOCAL = ["./clients/python", "."]
"""What is installed from this folder: on no index yet."""


def _pins(name: str) -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line not in {"", *LOCAL} and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


def _versions(pins: list[Requirement]) -> list[str]:
    return [specifier.version for pin in pins for specifier in pin.specifier]


def test_requirements_txt_installs_the_project_and_pins_what_it_needs() -> None:
    """Heroku's buildpack installs from it alone."""
    pins = _pins("requirements.txt")
    lines = (ROOT / "requirements.txt").read_text().splitlines()

    assert [line for line in lines if line in LOCAL] == LOCAL
    assert all(specifier.operator == "==" for pin in pins.values() for each in pin for specifier in each.specifier)
    for needed in map(Requirement, PROJECT["dependencies"]):
        if needed.name == "clerk-session-feed":
            continue
        assert all(v in needed.specifier for v in _versions(pins[canonicalize_name(needed.name)])), needed


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-run.txt"])
def test_the_suite_runs_on_the_versions_that_are_deployed(name: str) -> None:
    runtime, development = _pins(name), _pins("requirements-dev.txt")

    assert {name: _versions(pins) for name, pins in runtime.items()} == {
        name: _versions(development[name]) for name in runtime
    }


def test_what_make_run_installs_is_the_service_its_stand_in_for_redis_and_no_linter() -> None:
    pins = set(_pins("requirements-run.txt"))

    assert pins >= set(_pins("requirements.txt")) | {"fakeredis", "lupa", "hatchling"}
    assert pins & {"pytest", "hypothesis", "mypy", "ruff", "granian", "fastapi", "import-linter"} == set()


@pytest.mark.skipif(Path(sys.prefix).name != ".lowest", reason="of `make test-lowest`")
def test_each_floor_is_a_version_that_there_is_and_that_is_tried() -> None:
    groups = [*PROJECT["optional-dependencies"].values(), *PYPROJECT["dependency-groups"].values()]
    named = [Requirement(line) for line in sum(groups, PROJECT["dependencies"]) if isinstance(line, str)]
    floors = [(need.name, floor) for need in named for floor in need.specifier if floor.operator in {">=", "~="}]

    assert len(floors) > 30
    assert [(name, version(name)) for name, floor in floors if Version(version(name)) != Version(floor.version)] == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-run.txt", "requirements-dev.txt", "pyproject.toml"])
def test_no_registry_is_named(name: str) -> None:
    """Which one is used is the machine's business."""
    text = (ROOT / name).read_text()

    assert not re.search(r"index-url|find-links|index\.url|simple/|@ (?:https?|file):", text)


@pytest.mark.parametrize(("folder", "package"), [(ROOT, "service"), (ROOT / "clients/python", "clerk_session_feed")])
def test_uv_looks_at_every_file_that_it_installs(folder: Path, package: str) -> None:
    """Where none of these changed, it installs what it built before."""
    keys = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["uv"]["cache-keys"]
    seen = {path for key in keys if "file" in key for path in folder.glob(key["file"]) if path.is_file()}
    installed = {path for path in (folder / package).rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert {".py", ".typed"} <= {path.suffix for path in installed}
    assert installed | {folder / name for name in ("pyproject.toml", "README.md", "LICENSE")} <= seen


def _example() -> list[tuple[str, str, str]]:
    """Return each setting of .env.example: the comment above it, its name and its value."""
    found = []
    comment: list[str] = []
    for line in (ROOT / ".env.example").read_text().splitlines():
        if setting := re.fullmatch(r"(?:# )?([A-Z][A-Z_]+)=(.*)", line):
            found.append((" ".join(comment), setting[1], setting[2]))
        else:
            comment = [*comment, line.removeprefix("# ")] if line else []
    return found


def test_env_example_explains_every_setting() -> None:
    settings = {*Settings.model_fields, *ReconcileSettings.model_fields}
    assert sorted(name for _, name, _ in _example()) == sorted(name.upper() for name in settings)
    assert all(len(comment) > 20 for comment, _, _ in _example())
    assert "CLERK_WEBHOOK_SECRET" in (ROOT / ".env.example").read_text()


def _settings_from(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("CLERK_WEBHOOK_SECRET", *(name.upper() for name in Settings.model_fields)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(env)
    return load(Settings)


def test_env_example_works_once_the_required_settings_are_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the defaults that it shows are the defaults."""
    required = f"CLERK_WEBHOOK_SIGNING_SECRET={SECRET}\nREDIS_URL=redis://127.0.0.1/0\n"
    example = (ROOT / ".env.example").read_text()
    for line in required.splitlines():
        example, count = re.subn(rf"(?m)^{line.partition('=')[0]}=$", line, example)
        assert count == 1
    every_setting = re.sub(r"(?m)^# ([A-Z][A-Z_]+=)", r"\1", example)

    defaults = _settings_from(required, tmp_path, monkeypatch)

    assert _settings_from(example, tmp_path, monkeypatch) == defaults
    assert _settings_from(every_setting, tmp_path, monkeypatch) == defaults


def test_the_version_is_the_changelog_s() -> None:
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert version(PROJECT["name"]) == PROJECT["version"]
