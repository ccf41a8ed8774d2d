"""A run of the tests that is killed or interrupted, or started in the background."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from support.children import Program, descendants, running, started
from support.clock import eventually
from support.constants import PROC, ROOT

SYSTEM: Final = ROOT / "tests" / "system"
PYTEST: Final = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")

pytestmark = pytest.mark.real_redis


@contextmanager
def run_of(
    directory: Path, *arguments: str | Path, before: Sequence[str] = (), **environment: str
) -> Iterator[Program]:
    """Run tests as `make test` does, with a command in front."""
    command = (*before, *PYTEST, "-n", "1", f"--basetemp={directory / 'run'}", *arguments)
    with started(command, ROOT, environment) as program:
        yield program


@pytest.mark.skipif(not PROC.is_dir(), reason="needs /proc to see which processes are there")
@pytest.mark.parametrize(
    ("send", "number"), [(os.kill, signal.SIGKILL), (os.killpg, signal.SIGINT)], ids=["killed", "interrupted"]
)
def test_nothing_of_a_run_outlives_it(
    tmp_path: Path, send: Callable[[int, signal.Signals], None], number: signal.Signals
) -> None:
    runs = tmp_path / "runs"
    with run_of(tmp_path, SYSTEM / "endless.py", ENDLESS_RUNS=str(runs)) as program:
        eventually(runs.exists, within=180)
        started_by_it = descendants(program.process.pid)
        send(program.process.pid, number)
        program.process.wait(60)

        eventually(lambda: not running(started_by_it), within=60)

    commands = 1 + 2 + 3 + 1 + 3  # pytest's worker, Redis and its sentinel, serve, expire, dev with Redis and serve
    assert len(started_by_it) >= commands


def test_a_run_in_the_background_takes_no_signal_and_passes_the_tests_that_send_it(tmp_path: Path) -> None:
    ignoring = ("sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh")
    command = ("tests/system/test_dev.py", "-k", "terminal_is_closed or ctrl_c_twice")
    with run_of(tmp_path, *command, before=ignoring) as program:
        program.wait_for("2 items", within=180)
        for number in (signal.SIGINT, signal.SIGHUP):
            os.killpg(program.process.pid, number)

        assert program.end(within=180) == 0, program.stdout
