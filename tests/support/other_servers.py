"""`make test-servers`: the tests that need a real Redis, on other servers than the redis-server on PATH.

Not in CI: that would take it half an hour for each server. docs/redis.md has the results.
"""

import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import click

ROOT: Final = Path(__file__).parents[2]
INSTALLED: Final = ROOT / ".servers"
"""Where `make` installs the Python packages that bring the servers along."""
TESTS: Final = ["tests/integration", "tests/system", "--ignore=tests/system/test_benchmarks.py"]
"""The benchmark asks Redis what only 7.0 and newer tell."""


def servers() -> dict[str, Path]:
    """Return the servers by name and version, like `Redis 6.2.14`; only the first one of a kind."""
    found: dict[str, Path] = {}
    for binary in sorted(itertools.chain(INSTALLED.rglob("redis-server"), INSTALLED.rglob("valkey-server"))):
        binary.chmod(0o755)
        said = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout
        if version := re.match(r"(\w+) server v=([\d.]+)", said):
            found.setdefault(" ".join(version.groups()), binary)
    return found


def run(binary: Path, arguments: list[str]) -> dict[str, int]:
    """Run the tests on a server; return how many there were of each kind of result."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "real_redis", f"--junitxml={report}", *arguments]
        done = subprocess.run(command, check=False, cwd=ROOT, env=os.environ | {"REDIS_SERVER": str(binary)})
        if not report.exists():
            return {"tests": 0, "failures": 1, "errors": 0, "skipped": 0}
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
        counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        # Not only tests fail: so do pytest itself, a plugin, a run that was interrupted.
        if done.returncode != (1 if counts["failures"] + counts["errors"] else 0):
            counts["errors"] += 1
        return counts


def main() -> None:
    """Print a table; exit with status 1 if a test failed, or none ran, on any of them."""
    rows, is_bad = [], False
    for name, binary in servers().items():
        click.echo(f"\n{name}: {binary}")
        began = time.monotonic()
        counts = run(binary, sys.argv[1:] or TESTS)
        failed = counts["failures"] + counts["errors"]
        passed = counts["tests"] - failed - counts["skipped"]
        is_bad = is_bad or failed > 0 or passed == 0
        minutes = (time.monotonic() - began) / 60
        rows.append(f"{name:<16}{passed:>8}{failed:>8}{counts['skipped']:>9}{minutes:>9.1f}")
    click.echo(f"\n{'server':<16}{'passed':>8}{'failed':>8}{'skipped':>9}{'minutes':>9}")
    click.echo("\n".join(rows))
    sys.exit(is_bad or not rows)


if __name__ == "__main__":
    main()
