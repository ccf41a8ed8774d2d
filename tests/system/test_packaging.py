"""What is installed from here works: the wheel, the pins of the platform, Procfile and .env.example."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.constants import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"service": ROOT, "clerk_session_feed": ROOT / "clients" / "python"}
"""The folder of each package."""


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


@pytest.mark.parametrize("kind", ["web", "worker"])
def test_procfile_names_commands_that_exist(installed: Callable[..., str], kind: str) -> None:
    commands = dict(line.split(": ") for line in (ROOT / "Procfile").read_text().splitlines())

    command = commands[kind]
    assert installed(*command.split(), "--help").startswith(f"Usage: {command} ")
