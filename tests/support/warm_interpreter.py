"""A program that imports the whole service, and from then on forks: each fork becomes `python -m service …`.

It is started by `warm_start`, and ends when the process that did so has ended.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import socket
import sys
import threading
import time
from typing import Any, Final, TextIO

LARGEST_MESSAGE: Final = 100_000
"""Bytes of one request, with its environment; Linux sends twice as many at once."""


def _import_all() -> None:
    service = importlib.import_module("service")
    for module in pkgutil.walk_packages(service.__path__, "service."):
        if module.name != "service.__main__":
            importlib.import_module(module.name)
    assert threading.active_count() == 1, "a fork has no other thread than the one that forks"
    gc.freeze()  # no fork looks at what was imported, which would copy all of its pages


def _fork_on_demand(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return in each fork: what is asked for, and the files for it. Whoever asks is told its id and its exit status."""
    running: dict[int, tuple[int, int]] = {}  # by pidfd: process ids, and where to tell the exit status
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in running:
                pid, connection = running.pop(descriptor)
                _tell(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                poll.unregister(descriptor)
                os.close(descriptor)
                os.close(connection)
                continue
            message, descriptors, *_ = socket.recv_fds(channel, LARGEST_MESSAGE, 4)
            if not message:
                sys.exit()  # whoever asked has ended
            connection, *files = descriptors
            if not (pid := os.fork()):
                channel.detach()  # _become closes it
                return json.loads(message), files
            _tell(connection, pid)
            for file in files:
                os.close(file)
            end = os.pidfd_open(pid)
            running[end] = pid, connection
            poll.register(end, select.POLLIN)


def _tell(connection: int, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody may want to know any more
        os.write(connection, str(number).encode())


def _become(request: dict[str, Any], files: list[int], path: list[str]) -> None:
    """Make this process what a new interpreter would be with `-m service`."""
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 1 << 20)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.argv = ["-m", *request["arguments"]]
    sys.path = [request["cwd"], *os.environ["PYTHONPATH"].split(os.pathsep), *path]
    unbuffered = "PYTHONUNBUFFERED" in os.environ
    sys.stdin = os.fdopen(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)
    sys.stdout = _writer(sys.stdout, unbuffered=unbuffered, by_lines=False)
    sys.stderr = _writer(sys.stderr, unbuffered=unbuffered, by_lines=True)


def _writer(file: TextIO, *, unbuffered: bool, by_lines: bool) -> TextIO:
    """Return one like Python opens it at its start, when it looks whether it is a terminal."""
    raw = io.FileIO(file.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        file.encoding,
        file.errors,
        line_buffering=by_lines or (raw.isatty() and not unbuffered),
        write_through=unbuffered,
    )


@atexit.register  # before whatever the service registers, so that it is called after all of that
def _leave() -> None:
    """End without taking the interpreter apart: that looks at all that was imported, and takes 80 ms."""
    if _status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status)


_status: int | None = None
"""What a fork exits with; None leaves it to Python to find out, and to say why."""


def _main(descriptor: int) -> None:
    global _status  # noqa: PLW0603
    given = os.environ["PYTHONPATH"].split(os.pathsep)
    path = sys.path[1 + len(given) :]  # the first is the folder of this file, which has modules named like others
    sys.path = [*given, *path]
    _import_all()
    request, files = _fork_on_demand(socket.socket(fileno=descriptor))
    _become(request, files, path)
    try:
        runpy.run_module("service", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        _status = end.code or 0 if isinstance(end.code, int | None) else None
        raise


if __name__ == "__main__":
    _main(int(sys.argv[1]))
