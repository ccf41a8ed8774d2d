"""`python -m service …` as a fork of a process that has imported it: there in 30 ms, not in half a second of CPU.

A fork does what the command does, in the working directory, environment and files that it is given, in an interpreter
that has run nothing of the service yet: only the imports were done before. So a test whose subject is the start, or
what is imported when, has to start a new interpreter.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from support import warm_interpreter
from support.constants import RELAY, ROOT

_READ_AT_START: Final = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "PROMETHEUS_", "OTEL_")
"""How variables begin that are read when Python starts, or when the service is imported."""
_TAKEN_OVER: Final = {"PYTHONPATH", "PYTHONUNBUFFERED"}


class WarmProcess:
    """A fork, with what tests use of subprocess.Popen."""

    def __init__(self, connection: socket.socket) -> None:
        self.pid = int(connection.recv(100))
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return its exit status as Popen has it, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status.

        Raises:
            subprocess.TimeoutExpired: It still runs after so many seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self.returncode is None:
                self._connection.settimeout(None if deadline is None else max(0.0, deadline - time.monotonic()))
                try:
                    self.returncode = int(self._connection.recv(100))
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired(RELAY, timeout or 0) from None
                self._connection.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_warm(
    command: Sequence[str | Path],
    cwd: str | Path,
    environment: Mapping[str, str],
    files: Sequence[int],
    *,
    new_session: bool,
) -> WarmProcess | None:
    """Start a command as a fork; return None if it needs a new interpreter.

    Args:
        command: as Popen takes it.
        cwd: its working directory.
        environment: all of it.
        files: file descriptors for its standard input, output and error output.
        new_session: whether it leads a session, and with it a process group, of its own.
    """
    words = [os.fspath(word) for word in command]
    request = {
        "arguments": words[len(RELAY) :],
        "cwd": os.fspath(cwd),
        "environment": dict(environment),
        "new_session": new_session,
    }
    message = json.dumps(request).encode()
    if not _can_be_forked(words, environment) or len(message) > warm_interpreter.LARGEST_MESSAGE:
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(_interpreter(), [message], [theirs.fileno(), *files])
    return WarmProcess(ours)


def _can_be_forked(words: list[str], environment: Mapping[str, str]) -> bool:
    return (
        hasattr(os, "pidfd_open")  # Linux has it
        and tuple(words[: len(RELAY)]) == RELAY
        and "--app" not in words  # what somebody else's application imports may have to come first
        and environment.get("PYTHONPATH", "").split(os.pathsep)[0] == str(ROOT)
        and not any(
            name.upper().startswith(_READ_AT_START) and name not in _TAKEN_OVER and os.environ.get(name) != value
            for name, value in environment.items()
        )
    )


@functools.cache
def _interpreter() -> socket.socket:
    """Start the interpreter that is forked, one for all tests of this process; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, warm_interpreter.__file__, str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours
