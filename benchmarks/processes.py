"""Servers under test: started, pinned to a core, and what their process tree uses."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

ROOT: Final = Path(__file__).parents[1]
START_SECONDS: Final = 20

NODE_MODULES: Final = ROOT / "benchmarks" / "node_modules"
"""What `make bench` installs from npm, if it is there; Bun is one of its packages."""
BUN: Final = str(NODE_MODULES / ".bin" / "bun")

CORES: Final = sorted(os.sched_getaffinity(0))
"""The first is the server's, the last for wrk, Redis and the benchmark itself."""


class VoidError(click.ClickException):
    """Not every delivery was applied, or something else makes a figure say nothing."""


@dataclass(frozen=True)
class Server:
    port: int
    pid: int

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def memory_bytes(self) -> int:
        return memory_bytes(self.pid)

    def worker_bytes(self) -> int:
        """Resident memory of that of its processes which did most."""
        return busiest_bytes(self.pid)


def can_run(program: str) -> bool:
    """Tell whether a program says its version. What npm installs for Bun fails at that if npm may not run scripts."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0  # noqa: S603
    except OSError:
        return False


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, cores: Sequence[int] = CORES[:1]
) -> Iterator[Server]:
    """Run a server that listens on PORT and answers at /healthz.

    command: `{port}` in it is filled in. environment: nothing else is in it but PATH, PYTHONPATH and PORT.
    What it prints, logs among it, goes to the file `server.log` in the folder.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    scripts = Path(sys.executable).parent
    variables = {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PORT": str(port),
        **environment,
    }
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *(word.format(port=port) for word in command)]
    log = folder / "server.log"
    with (
        log.open("wb") as said,
        subprocess.Popen(pinned, env=variables, cwd=folder, stdout=said, stderr=said) as process,  # noqa: S603
    ):
        try:
            _await_start(process, port, log)
            yield Server(port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_start(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n")
                if connection.recv(64).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(f"{process.args!r} did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder for logs and deliveries, and leave the first core to the server under test."""
    os.sched_setaffinity(0, {CORES[-1]})  # wrk and Redis inherit it
    with tempfile.TemporaryDirectory(prefix="session-relay-bench-") as directory:
        yield Path(directory)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, those that have ended included."""
    tree, total = _tree(pid), 0.0
    for each, stat in tree.items():
        with contextlib.suppress(OSError):
            # The clock of a process (clock_getcpuclockid(3)): /proc counts in hundredths of a second.
            total += time.clock_gettime((~each << 3) | 2)
        # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: cutime, cstime
        total += (int(stat[13]) + int(stat[14])) / os.sysconf("SC_CLK_TCK")
    return total


def memory_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; what several share is counted once (PSS)."""
    total = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def busiest_bytes(pid: int) -> int:
    """Resident memory (RSS) of that process, of these and its descendants, which used most CPU time."""
    stats = _tree(pid).values()
    busiest = max(stats, key=lambda stat: int(stat[11]) + int(stat[12]))
    return int(busiest[21]) * os.sysconf("SC_PAGE_SIZE")


def _tree(pid: int) -> dict[int, list[str]]:
    """Return what /proc says of a process and its descendants: the fields after the name."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stats[int(path.parent.name)] = path.read_text().rpartition(") ")[2].split()
    tree = {pid}
    while more := {child for child, stat in stats.items() if int(stat[1]) in tree} - tree:
        tree |= more
    return {each: stats[each] for each in tree if each in stats}
