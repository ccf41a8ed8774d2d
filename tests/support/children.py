"""Programs in processes of their own: what they print is waited for, and they are ended by their id."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from support.constants import PROC, ROOT
from support.warm_start import WarmProcess, start_warm

Process = subprocess.Popen[bytes] | WarmProcess


class Program:
    """A running program. What it prints is collected, so that it never waits for a reader."""

    def __init__(self, process: Process, stdout: IO[str], stderr: IO[str]) -> None:
        self.process = process
        self._printed = threading.Condition()
        self._text = {"stdout": "", "stderr": ""}
        self._ended: set[str] = set()
        self._readers = [
            threading.Thread(target=self._collect, args=("stdout", stdout), daemon=True),
            threading.Thread(target=self._collect, args=("stderr", stderr), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _collect(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            with self._printed:
                self._text[name] += line
                self._printed.notify_all()
        stream.close()
        with self._printed:
            self._ended.add(name)
            self._printed.notify_all()

    @property
    def stdout(self) -> str:
        with self._printed:
            return self._text["stdout"]

    @property
    def stderr(self) -> str:
        with self._printed:
            return self._text["stderr"]

    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    def wait_for(self, pattern: str, within: float = 30.0, stream: str = "stdout") -> re.Match[str]:
        """Return the first match in what it printed, as soon as there is one."""
        deadline = time.monotonic() + within
        with self._printed:
            while (match := re.search(pattern, self._text[stream], re.MULTILINE)) is None:
                left = deadline - time.monotonic()
                assert self._ended != set(self._text), f"it ended without {pattern!r}:\n{self._text}"
                assert left > 0, f"no {pattern!r} after {within} s in:\n{self._text}"
                self._printed.wait(left)
        return match

    def end(self, within: float = 25.0) -> int:
        """Return its exit status, once it and all that hold its output have ended."""
        status = self.process.wait(within)
        for reader in self._readers:
            reader.join(within)
            assert not reader.is_alive(), "a process that it started is still there"
        return status

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.end()

    def interrupt(self) -> int:
        """Press Ctrl-C: the terminal sends SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.end()


@contextlib.contextmanager
def started(
    command: Sequence[str | Path], cwd: Path, environment: dict[str, str] | None = None, *, anew: bool = False
) -> Iterator[Program]:
    """Run a command in a process group of its own; nothing of it is left afterwards.

    anew: in a new interpreter, where the relay's command would be forked from a warm one.
    """
    outputs = os.pipe(), os.pipe()
    with contextlib.ExitStack() as stack:
        for _, written in outputs:
            stack.callback(os.close, written)
        process = start(
            command,
            cwd,
            os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"} | (environment or {}),
            [written for _, written in outputs],
            new_session=True,
            anew=anew,
        )
    stdout, stderr = (os.fdopen(read, encoding="utf-8") for read, _ in outputs)
    program = Program(process, stdout, stderr)
    try:
        yield program
    finally:
        if process.poll() is None:
            children = descendants(process.pid)
            process.terminate()
            try:
                program.end()
            except (subprocess.TimeoutExpired, AssertionError):
                for pid in {process.pid, *children}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()


def finished(
    command: Sequence[str | Path], cwd: Path, environment: Mapping[str, str], *, anew: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in just this environment; `anew` as above."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        files = [stdout.fileno(), stderr.fileno()]
        process = start(command, cwd, environment, files, new_session=False, anew=anew)
        try:
            status = process.wait(60)
        finally:
            process.kill()
            process.wait()
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(command, status, stdout.read(), stderr.read())


def start(
    command: Sequence[str | Path],
    cwd: Path,
    environment: Mapping[str, str],
    outputs: Sequence[int],
    *,
    new_session: bool,
    anew: bool = False,
) -> Process:
    """Start a command without an input, with the file descriptors of its output and error output."""
    with Path(os.devnull).open() as nothing:
        files = (nothing.fileno(), *outputs)
        warm = None if anew else start_warm(command, cwd, environment, files, new_session=new_session)
        return warm or subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            start_new_session=new_session,
        )


def descendants(pid: int) -> set[int]:
    """Return the ids of a process's children, their children and so on; none without /proc."""
    found = {pid}
    parents = {int(stat.parent.name): parent for stat, parent in _parents()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def running(pids: set[int]) -> set[int]:
    """Return those that still run; one that only waits to be reaped does not."""
    return {int(stat.parent.name) for stat, _ in _parents()} & pids


def _parents() -> Iterator[tuple[Path, int]]:
    for stat in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                yield stat, int(parent)
