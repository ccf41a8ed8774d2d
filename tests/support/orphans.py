"""Ends what a run of the tests leaves behind when it is killed or interrupted: Redis servers, services, workers.

This is also a program of its own. It waits until pytest has ended, and kills all processes that have the mark of the
run in their environment, which whoever is started inherits. It needs /proc.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "PYTEST_RUNS"
"""The marks of this run and of those around it, since a test may run pytest, too."""


@contextlib.contextmanager
def ended_with_this_process() -> Iterator[None]:
    """Mark all processes that are started from now on; none of them outlives this one, however it ends."""
    mark = uuid.uuid4().hex
    # It sees by the end of its input that this process has ended. In a session of its own, no Ctrl-C ends it before.
    command = [sys.executable, "-I", __file__, mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True):
        os.environ[VARIABLE] = f"{os.environ.get(VARIABLE, '')} {mark}"
        yield


def put_first_on_path(directory: Path, redis_server: Path) -> None:
    """Let all who look for a redis-server find this one, without its title, which would overwrite the mark."""
    program = directory / "redis-server"
    binary = shlex.quote(str(redis_server.absolute()))  # not resolved: Debian's is a link, and goes by its name
    program.write_text(f'#!/bin/sh\n[ $# = 1 ] && exec {binary} "$@"\nexec {binary} "$@" --set-proc-title no\n')
    program.chmod(0o755)
    os.environ["PATH"] = f"{directory}{os.pathsep}{os.environ['PATH']}"


def _marked(mark: str) -> Iterator[int]:
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark.encode() in environment.read_bytes():
                yield int(environment.parent.name)


def _main(mark: str) -> None:
    sys.stdin.read()
    for _ in range(100):  # whoever is killed may just have started another one
        pids = list(_marked(mark))
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    _main(sys.argv[1])
