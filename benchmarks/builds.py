"""The service as it is at a git revision, installed beside the work tree."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from benchmarks.processes import ROOT

_PIP: Final = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--quiet", "--python")
_INSTALL: Final = ("install", "--requirement", "requirements.txt")
"""It names the revision's own packages, too: `.` and, where there is one, `./clients/python`."""


def install(revision: str, root: Path = ROOT) -> Path:
    """Return a folder with the `tree` of that revision, and a `venv` of what it pins; it is made once."""
    named = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options"]
    found = subprocess.run([*named, f"{revision}^{{commit}}"], capture_output=True, text=True, check=False)  # noqa: S603
    if found.returncode:
        raise click.ClickException(f"{revision} is no revision of {root}")
    commit = found.stdout.strip()
    folder = root / ".bench" / "builds" / commit
    if not (folder / ".installed").exists():
        click.echo(f"Installing {commit[:7]} and what it pins: a minute, the first time …", err=True)
        shutil.rmtree(folder, ignore_errors=True)
        tree, archive, venv = folder / "tree", folder / "tree.tar", folder / "venv"
        tree.mkdir(parents=True)
        _run(root, "git", "archive", "--output", str(archive), commit)
        _run(tree, "tar", "--extract", "--file", str(archive))
        archive.unlink()
        # Of the Python that runs this, and so the work tree's build.
        _run(root, sys.executable, "-m", "venv", "--without-pip", str(venv))
        _run(tree, sys.executable, *_PIP, f"{venv}/bin/python", *_INSTALL)
        (folder / ".installed").touch()
    return folder


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True)  # noqa: S603
