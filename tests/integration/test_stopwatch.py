"""Limits of time in the tests: what is slow by itself breaks them, a busy machine does not."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from support.children import started
from support.clock import in_time
from support.constants import TESTS

MEASURING = """
import signal
from support.clock import stopwatch

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with stopwatch() as measured:
    print("begun", flush=True)
    signal.sigwait({signal.SIGUSR1})
print("seconds", measured.seconds)
"""


def test_what_is_slow_by_itself_is_not_in_time() -> None:
    with pytest.raises(AssertionError), in_time(0.1):
        threading.Event().wait(1)


def test_what_the_machine_keeps_a_process_waiting_does_not_count(tmp_path: Path) -> None:
    with started([sys.executable, "-c", MEASURING], tmp_path, {"PYTHONPATH": str(TESTS)}) as program:
        program.wait_for("begun")
        os.kill(program.process.pid, signal.SIGSTOP)
        threading.Event().wait(2)
        os.kill(program.process.pid, signal.SIGUSR1)
        os.kill(program.process.pid, signal.SIGCONT)

        assert program.end() == 0

    assert float(program.wait_for(r"^seconds (\S+)$")[1]) < 1
