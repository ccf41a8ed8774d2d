"""What is installed from here works: the wheel, the pins of the platform, Procfile and .env.example."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.constants import ROOT

from service.config import Settings, load
from service.dev import simulator

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"service": ROOT, "clerk_session_feed": ROOT / "clients" / "python"}
"""The folder of each package."""
SECRET = simulator.new_secret()


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that sees nothing of this folder and of this test run; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the wheels by the name of what they install."""
    directory = tmp_path_factory.mktemp("wheel")
    for folder in (ROOT, ROOT / "clients" / "python"):
        command = (sys.executable, "-m", "hatchling", "build", "--target", "wheel")
        run(*command, "--directory", directory, cwd=folder)
    return {"service": next(directory.glob("*relay*")), "clerk_session_feed": next(directory.glob("*feed*"))}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return what runs a program of an environment that has the wheel, and our dependencies to look at."""
    directory = tmp_path_factory.mktemp("clean")
    venv.create(directory / "venv", symlinks=os.name != "nt")
    scripts = directory / "venv" / "bin"
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", *wheels.values(), cwd=directory)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run(scripts / "python", "-c", where, cwd=directory).strip())
    # .pth files of a folder that is added like this are not followed: our editable install stays out.
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(ours)))

    return lambda name, *arguments: run(scripts / name, *arguments, cwd=directory)


@pytest.mark.parametrize(("package", "folder"), PACKAGES.items())
def test_a_wheel_holds_its_package_and_nothing_else(
    wheels: dict[str, Path], package: str, folder: Path
) -> None:
    files = {
        path.relative_to(folder).as_posix()
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".pyo"}
    }
    names = zipfile.ZipFile(wheels[package]).namelist()

    assert {name for name in names if ".dist-info/" not in name} == files
    assert f"{package}/py.typed" in files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_wheel_loads_its_lua(installed: Callable[..., str]) -> None:
    program = (
        "import json, pathlib, service.store.sessions as store\n"
        "folder = pathlib.Path(store.__file__).parent\n"
        "print(json.dumps([str(folder), (folder.parent / 'py.typed').is_file(), len(store._APPLY_SESSION.source)]))"
    )

    folder, typed, size = json.loads(installed("python", "-c", program))

    assert not Path(folder).is_relative_to(ROOT)
    assert "clean" in folder
    assert typed
    assert size == (ROOT / "service" / "store" / "apply_session.lua").stat().st_size


def test_the_installed_package_runs(installed: Callable[..., str]) -> None:
    said = installed("python", "-m", "service", "--help")

    assert said.startswith("Usage: python -m service ")
    assert " serve " in said
    assert " dev " in said


def test_the_installed_command_tells_its_version(installed: Callable[..., str]) -> None:
    assert PROJECT["version"] in installed("session-relay", "--version")


@pytest.mark.parametrize("kind", ["web", "worker"])
def test_procfile_names_commands_that_exist(installed: Callable[..., str], kind: str) -> None:
    commands = dict(line.split(": ") for line in (ROOT / "Procfile").read_text().splitlines())

    command = commands[kind]
    assert installed(*command.split(), "--help").startswith(f"Usage: {command} ")


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

    assert LOCAL == [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line in LOCAL]
    assert all(
        specifier.operator == "==" for pin in pins.values() for each in pin for specifier in each.specifier
    )
    for needed in map(Requirement, PROJECT["dependencies"]):
        if needed.name == "clerk-session-feed":
            continue
        assert all(v in needed.specifier for v in _versions(pins[canonicalize_name(needed.name)])), needed


def test_the_suite_runs_on_the_versions_that_are_deployed() -> None:
    runtime, development = _pins("requirements.txt"), _pins("requirements-dev.txt")

    assert {name: _versions(pins) for name, pins in runtime.items()} == {
        name: _versions(development[name]) for name in runtime
    }


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "pyproject.toml"])
def test_no_registry_is_named(name: str) -> None:
    """Which one is used is the machine's business."""
    text = (ROOT / name).read_text()

    assert not re.search(r"index-url|find-links|index\.url|simple/|@ (?:https?|file):", text)


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
    assert sorted(name for _, name, _ in _example()) == sorted(name.upper() for name in Settings.model_fields)
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
