"""What is installed from here works: the wheel, the pins of the platform, Procfile and .env.example."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution, files, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.constants import NOW_MS, ROOT
from support.documents import named_blocks
from support.events import clerk_event
from support.relay import run_relay

from service.dev.embedded import EmbeddedRedis

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"service": ROOT, "clerk_session_feed": ROOT / "clients" / "python"}
"""The folder of each package."""
PLUGIN = "clerk_session_feed.pytest_plugin"


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that sees nothing of this folder and of this test run; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
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
    scripts = make_environment(directory)
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", *wheels.values(), cwd=directory)

    return lambda name, *arguments: run(scripts / name, *arguments, cwd=directory)


def make_environment(directory: Path) -> Path:
    """Make a virtual environment that sees our dependencies, and not this project; return the folder of its programs."""
    venv.create(directory / "venv", symlinks=os.name != "nt")
    scripts = directory / "venv" / "bin"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run(scripts / "python", "-c", where, cwd=directory).strip())
    # .pth files of a folder that is added like this are not followed: our editable install stays out.
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(ours)))
    return scripts


@pytest.fixture(scope="module")
def consumers_python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that has clerk-session-feed, and no more than that needs."""
    return make_consumers_python(wheels, tmp_path_factory.mktemp("consumer"))


@pytest.fixture(scope="module")
def testers_python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that has pytest, too."""
    return make_consumers_python(wheels, tmp_path_factory.mktemp("tester"), "pytest")


def make_consumers_python(wheels: dict[str, Path], directory: Path, *more: str) -> Path:
    """Make an environment with clerk-session-feed and other distributions, and no more than these need."""
    venv.create(directory / "venv", symlinks=os.name != "nt")
    python = directory / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheels["clerk_session_feed"], cwd=directory)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run(python, "-c", where, cwd=directory).strip())
    for name in set(more).union(*map(_needed, ["clerk-session-feed", *more])):
        for top in {path.parts[0] for path in files(name) or () if path.parts[0] not in {"..", "__pycache__"}}:
            (site_packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return python


def _needed(name: str) -> set[str]:
    """Return the distributions that one needs, directly or not."""
    needed: set[str] = set()
    for requirement in map(Requirement, requires(name) or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed |= {requirement.name} | _needed(requirement.name)
    return needed


SESS_1 = ["sess_1", "active", True]
SESS_2 = ["sess_2", "ended", False]
EXPECTED = {
    "get": [[*SESS_1, False], None],
    "is_live": [True, False],
    "live_sessions": [[*SESS_1, False]],
    "history": [["sess_2", "active", True, False], [*SESS_2, False]],
    "now": [0],
    "snapshots": [[*SESS_1, True], [*SESS_2, True]],
    "follow": [[*SESS_1, False], ["sess_2", "active", True, False], [*SESS_2, False]],
    "consume": [[*SESS_1, False], ["sess_2", "active", True, False], [*SESS_2, False]],
    "subscribe": [[*SESS_1, False]],
}
"""What tests/support/consumer.py prints of each feed."""


@pytest.mark.parametrize("packages", ["newest", "oldest"])
def test_a_consumer_needs_nothing_of_the_service(
    own_redis: EmbeddedRedis, tmp_path: Path, request: pytest.FixtureRequest, packages: str
) -> None:
    """It may have a package of its own that is called `service`.

    "oldest" is run by hand, with the oldest packages that are allowed: see CONTRIBUTING.md.
    """
    if packages == "newest":
        command = [request.getfixturevalue("consumers_python")]
    elif python := os.environ.get("FEED_FLOOR_PYTHON"):
        command = ["env", f"PYTHONPATH={ROOT / 'clients' / 'python'}", python]
    else:
        pytest.skip("FEED_FLOOR_PYTHON names no Python")
    program = shutil.copy(ROOT / "tests" / "support" / "consumer.py", tmp_path)
    beside_a_service(tmp_path)
    with run_relay(own_redis.url) as relay:
        for session_id in ("sess_1", "sess_2"):
            relay.take(clerk_event(session_id=session_id, expire_at=None), f"msg_{session_id}")
        relay.take(clerk_event("ended", session_id="sess_2", updated_at=NOW_MS, expire_at=None), "msg_end")

    printed = json.loads(run(*command, program, own_redis.url, cwd=tmp_path))

    assert printed["threads"] == printed["asyncio"]
    assert printed["threads"] == EXPECTED
    assert (printed["service"], printed["foreign"]) == ("the user", [])


def beside_a_service(folder: Path) -> None:
    """Put a package of the user's own into the folder, which has the name of ours."""
    (folder / "service").mkdir()
    (folder / "service" / "__init__.py").write_text("OWNER = 'the user'\n")


def test_a_consumer_is_tested_with_what_is_installed(testers_python: Path, tmp_path: Path) -> None:
    """As docs/testing.md does it: the fixtures are there without another word."""
    beside_a_service(tmp_path)
    for name, code in named_blocks(ROOT / "docs" / "testing.md", "python").items():
        (tmp_path / name).write_text(code)

    said = run(testers_python, "-m", "pytest", "-W", "error", "--color", "no", cwd=tmp_path)

    assert re.search(r"^=+ 3 passed in ", said, re.MULTILINE), said


@pytest.mark.parametrize(
    ("files", "options"),
    [
        ({"conftest.py": f"pytest_plugins = [{PLUGIN!r}]\n"}, ()),
        ({}, ("-p", PLUGIN)),
        ({"conftest.py": "import clerk_session_feed.testing\n"}, ("-W", "error")),
    ],
    ids=["in a conftest.py", "on the command line", "beside an import"],
)
def test_the_plugin_may_be_named_as_well(
    testers_python: Path, tmp_path: Path, files: dict[str, str], options: tuple[str, ...]
) -> None:
    test = "def test_it(session_feed):\n    session_feed.sign_in('user_1')\n"
    for name, code in (files | {"test_it.py": test}).items():
        (tmp_path / name).write_text(code)

    assert " 1 passed in " in run(testers_python, "-m", "pytest", *options, cwd=tmp_path)


def test_the_plugin_may_be_left_out(testers_python: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(session_feed):\n    pass\n")
    left_out = ["-p", f"no:{PLUGIN}"]
    code = f"import pytest, sys; sys.exit(pytest.main({left_out!r}) != pytest.ExitCode.TESTS_FAILED)"

    assert "fixture 'session_feed' not found" in run(testers_python, "-c", code, cwd=tmp_path)


def test_pytest_does_not_load_what_no_test_uses(testers_python: Path, tmp_path: Path) -> None:
    loaded = "{'redis', 'pydantic', 'clerk_session_feed.testing'} & set(sys.modules)"
    test = f"import sys\ndef test_it(pytestconfig):\n    assert pytestconfig.pluginmanager.has_plugin({PLUGIN!r})"
    (tmp_path / "test_it.py").write_text(f"{test}\n    assert not {loaded}\n")

    assert " 1 passed in " in run(testers_python, "-m", "pytest", cwd=tmp_path)


@pytest.mark.parametrize(("package", "folder"), PACKAGES.items())
def test_a_wheel_holds_its_package_and_nothing_else(wheels: dict[str, Path], package: str, folder: Path) -> None:
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
        "import json, pathlib, service.store.scripts as store\n"
        "folder = pathlib.Path(store.__file__).parent\n"
        "print(json.dumps([str(folder), (folder.parent / 'py.typed').is_file(), len(store.APPLY_SESSION.source)]))"
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


def test_uv_installs_code_that_was_changed(tmp_path: Path) -> None:
    """It keeps what it built of a local folder, as long as nothing changed that [tool.uv] in pyproject.toml names."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if uv is None:
        pytest.skip("needs uv on PATH: `pip install uv`")
    clone = tmp_path / "clone"
    for folder in ("service", "clients/python"):
        shutil.copytree(ROOT / folder, clone / folder)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, clone)
    python = make_environment(tmp_path) / "python"
    (site_packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--cache-dir", tmp_path / "cache")
    (clone / "local.txt").write_text("./clients/python\n.\n")  # folders on its command line are always built anew
    install = (uv, "--no-config", "pip", "install", "--python", python, *options, "--requirement", "local.txt")
    run(*install, cwd=clone)

    changed = {name: clone / name for name in ("service/errors.py", "service/store/apply_session.lua")}
    changed["clerk_session_feed/errors.py"] = clone / "clients/python/clerk_session_feed/errors.py"
    for source in changed.values():
        source.write_text(source.read_text() + "\n")
    run(*install, cwd=clone)

    for name, source in changed.items():
        assert (site_packages / name).read_text() == source.read_text(), name


@pytest.mark.parametrize("kind", ["web", "worker"])
def test_procfile_names_commands_that_exist(installed: Callable[..., str], kind: str) -> None:
    commands = dict(line.split(": ") for line in (ROOT / "Procfile").read_text().splitlines())

    command = commands[kind]
    assert installed(*command.split(), "--help").startswith(f"Usage: {command} ")


def made(directory: Path, python: str) -> Path:
    """Return the `.venv` that `make` makes with this Python, before anything is installed in it."""
    for name in ("Makefile", "pyproject.toml", "requirements-run.txt"):
        shutil.copy(ROOT / name, directory)
    run("make", ".venv/.made", f"PYTHON={python}", cwd=directory)
    return directory / ".venv"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_old_pip_of_the_machine_is_not_used(tmp_path: Path) -> None:
    """Before 22.3, pip does not know `--python`."""
    old = tmp_path / "python3"
    refuses = '[ "$1 $2 $3" = "-m pip --python" ] && exit 2'
    old.write_text(f'#!/bin/sh\n{refuses}\nexec {sys.executable} "$@"\n')
    old.chmod(0o755)

    assert (made(tmp_path, str(old)) / "bin" / "pip").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_pip_that_can_install_elsewhere_saves_the_one_of_the_environment(tmp_path: Path) -> None:
    new = tmp_path / "python3"
    new.write_text(f'#!/bin/sh\n[ "$1 $2" = "-m pip" ] && exit 0\nexec {sys.executable} "$@"\n')
    new.chmod(0o755)

    assert not (made(tmp_path, str(new)) / "bin" / "pip").exists()
