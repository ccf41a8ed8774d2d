"""docs/testing.md: the consumer's test in TypeScript passes. That in Python is in test_packaging.py."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.constants import ROOT
from support.documents import named_blocks

CLIENT = ROOT / "clients" / "typescript"
TESTING = ROOT / "docs" / "testing.md"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of a user's own, with the package as it is published, and Vitest."""
    for needed in (CLIENT / "dist" / "testing.js", CLIENT / "node_modules" / "vitest"):
        if not needed.exists():
            reason = f"there is no {needed.relative_to(ROOT)}: `make test` makes it, where there is npm"
            assert os.environ.get("CI") != "true", reason
            pytest.skip(reason)
    modules = tmp_path / "node_modules"
    (modules / "clerk-session-feed").mkdir(parents=True)
    shutil.copy(CLIENT / "package.json", modules / "clerk-session-feed")
    shutil.copytree(CLIENT / "dist", modules / "clerk-session-feed" / "dist")
    for name in ("vitest", "typescript"):
        (modules / name).symlink_to(CLIENT / "node_modules" / name)
    (tmp_path / "package.json").write_text('{ "private": true, "type": "module" }')
    for name, code in named_blocks(TESTING, "ts").items():
        (tmp_path / name).write_text(code)
    return tmp_path


def run(program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["node", f"node_modules/{program}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_test_in_typescript_passes(project: Path) -> None:
    done = run("vitest/vitest.mjs", "run", "--no-color", cwd=project)
    assert re.search(r"Tests +1 passed \(1\)", done.stdout), done.stdout + done.stderr


def test_the_test_in_typescript_has_the_types_of_the_package(project: Path) -> None:
    options = ("--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck")
    done = run("typescript/bin/tsc", *options, "sockets.ts", "sockets.test.ts", cwd=project)
    assert done.returncode == 0, done.stdout
