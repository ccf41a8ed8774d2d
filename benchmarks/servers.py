"""Which server runs this application best: `python -m benchmarks.servers`. The result: docs/server.md.

The same application, one process, pinned to core 0; wrk and a Redis of its own on core 1. Deliveries are
genuine, each with ids of its own, 2 to 8 KB. What counts is the CPU time per delivery of the server's whole
process tree: other programs on the machine disturb it least. Rounds are interleaved; medians are printed.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import redis
from flask import Flask

from service import embedded, log, simulator
from service.app import create_app
from service.config import Settings, load

SERVER_CORE: Final = 0
LOAD_CORE: Final = 1
CONNECTIONS: Final = 64
WARM_UP_SECONDS: Final = 2
START_SECONDS: Final = 20
SETTLE_SECONDS: Final = 0.5
"""For what was under way when wrk stopped."""
BODY_BYTES: Final = range(2_000, 8_001)

SERVE: Final = "granian, ASGI (`serve`)"
_HERE: Final = Path(__file__).parent
_SERVE: Final = (
    "from service import config, log, server;"
    "settings = config.load(config.Settings); log.configure(settings); server.serve(settings)"
)


def wsgi() -> Flask:
    """Build the application for a WSGI server, in its worker process."""
    settings = load(Settings)
    log.configure(settings)
    return create_app(settings)


@dataclass(frozen=True)
class Contender:
    name: str
    command: str
    """Arguments of `python`; {port} and {serve} are filled in."""
    log_level: str = "warning"

    def arguments(self, port: int) -> list[str]:
        return [word.format(port=port, serve=_SERVE) for word in self.command.split()]


CONTENDERS: Final = (
    Contender(
        "gunicorn gthread, WSGI, 16 threads",
        "-m gunicorn --worker-class gthread --workers 1 --threads 16 --bind 127.0.0.1:{port} "
        "--log-level warning benchmarks.servers:wsgi()",
    ),
    Contender(
        "granian, WSGI, 16 threads",
        "-m granian --interface wsgi --blocking-threads 16 --http 1 --no-ws --port {port} "
        "--log-level warning --factory benchmarks.servers:wsgi",
    ),
    Contender(
        "uvicorn, ASGI (uvloop, httptools)",
        "-m uvicorn --loop uvloop --http httptools --no-access-log --port {port} "
        "--log-level warning --factory service.server:application",
    ),
    Contender(SERVE, "-c {serve}"),
    Contender("the same, LOG_LEVEL=info", "-c {serve}", log_level="info"),
)


@dataclass(frozen=True)
class Figures:
    per_second: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    core: float
    """Part of its core that the server had; other programs took the rest, or it waited for Redis and wrk."""


class VoidError(click.ClickException):
    """Not every delivery was applied: the figure says nothing."""


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=6, show_default=True, help="Of measuring, per contender and round.")
@click.option("--at-most", default=4_000, show_default=True, help="Deliveries per second to prepare for.")
@click.option("--only", default="", help="Contenders whose name contains this.")
def main(rounds: int, seconds: int, at_most: int, only: str) -> None:
    """Measure this application under several servers."""
    contenders = [contender for contender in CONTENDERS if only in contender.name]
    figures: dict[str, list[Figures]] = {contender.name: [] for contender in contenders}
    secret = simulator.new_secret()
    os.sched_setaffinity(0, {LOAD_CORE})  # wrk and Redis inherit it
    with tempfile.TemporaryDirectory(prefix="session-relay-bench-") as directory, embedded.run() as store:
        folder = Path(directory)
        for number in range(1, rounds + 1):
            # Signed anew for each round: a signature is good for five minutes.
            deliveries = prepare(folder, secret, at_most * seconds)
            for contender in contenders:
                measured = measure(contender, deliveries, store.url, secret, seconds)
                figures[contender.name].append(measured)
                click.echo(f"round {number}: {contender.name:36} {measured}", err=True)
    for row in table(figures):
        click.echo(row)


def prepare(folder: Path, secret: str, count: int) -> Path:
    """Write that many signed requests to a file, as deliveries.lua reads them."""
    chance = random.Random(20261123)  # noqa: S311  # for sizes and filling
    filling = chance.randbytes(BODY_BYTES.stop).hex()
    path = folder / "deliveries"
    with path.open("wb") as file:
        for _ in range(count):
            request = _request(secret, chance, filling)
            file.write(b"%d\n%b" % (len(request), request))
    return path


def _request(secret: str, chance: random.Random, filling: str) -> bytes:
    event = simulator.sample()
    metadata = event["data"]["user"]["private_metadata"]
    size = chance.choice(BODY_BYTES) - len(simulator.encode(event))
    start = chance.randrange(len(filling) // 2)
    metadata["filling"] = filling[start : start + max(size, 0)]
    # wrk's LuaJIT tells strings apart by their length and a few characters, the last ones among them.
    event["data"]["created_at"] -= chance.randrange(10_000)
    body = simulator.encode(event)
    headers = simulator.sign(secret, body)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /webhooks/clerk HTTP/1.1\r\nhost: relay.example\r\n{head}content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def measure(contender: Contender, deliveries: Path, redis_url: str, secret: str, seconds: int) -> Figures:
    """Run one contender under full load.

    Raises VoidError.
    """
    client: Any = redis.Redis.from_url(redis_url)
    client.flushall()
    with running(contender, redis_url, secret, deliveries.parent) as (port, pid):
        _load(port, deliveries, WARM_UP_SECONDS)
        time.sleep(SETTLE_SECONDS)
        client.flushall()
        before = cpu_seconds(pid)
        said = _load(port, deliveries, seconds)
        time.sleep(SETTLE_SECONDS)
        used = cpu_seconds(pid) - before
        # The stream counts what was applied; what was sent twice, and what failed, is not in it.
        applied = client.xinfo_stream("{clerk}:events")["entries-added"]
        sessions = client.dbsize() // 2  # each has a user of its own
    under_way = applied - said["requests"]
    if said["failed"] or not 0 <= under_way <= CONNECTIONS or abs(sessions - applied) > 1:
        raise VoidError(f"{contender.name}: {said}, {applied} applied, {sessions} sessions")
    return Figures(
        per_second=round(said["requests"] / said["seconds"]),
        cpu_us=round(used / applied * 1e6, 1),
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        core=round(used / said["seconds"], 2),
    )


@contextlib.contextmanager
def running(contender: Contender, redis_url: str, secret: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Run a contender; yields its port and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=folder) as metrics, (folder / "server.log").open("wb") as said:
        environment = os.environ | {
            "CLERK_WEBHOOK_SIGNING_SECRET": secret,
            "REDIS_URL": redis_url,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "WEB_CONCURRENCY": "1",
            "LOG_LEVEL": contender.log_level,
            "PROMETHEUS_MULTIPROC_DIR": metrics,
        }
        command = ["taskset", "-c", str(SERVER_CORE), sys.executable]
        command += contender.arguments(port)
        with subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process:  # noqa: S603
            try:
                _await_start(process, port)
                yield port, process.pid
            finally:
                process.terminate()
                process.wait(START_SECONDS)


def _await_start(process: subprocess.Popen[bytes], port: int) -> None:
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
            raise click.ClickException(f"{process.args!r} did not start")
        time.sleep(0.05)


def _load(port: int, deliveries: Path, seconds: int) -> dict[str, Any]:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise click.ClickException("wrk is missing: apt-get install wrk")
    command = [wrk, "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"]
    command += ["--timeout", "10s", "--script", str(_HERE / "deliveries.lua")]
    command += [f"http://127.0.0.1:{port}", "--", str(deliveries)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    said: dict[str, Any] = json.loads(output.splitlines()[-1])
    return said


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants."""
    # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: after the name come the state, the parent …
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stats[int(path.parent.name)] = path.read_text().rpartition(") ")[2].split()
    tree = {pid}
    while more := {child for child, stat in stats.items() if int(stat[1]) in tree} - tree:
        tree |= more
    ticks = sum(int(stats[each][11]) + int(stats[each][12]) for each in tree)
    return ticks / os.sysconf("SC_CLK_TCK")


def table(figures: dict[str, list[Figures]]) -> Iterator[str]:
    """Medians, as Markdown. The last column compares within each round: noise comes and goes."""
    yield "| server | CPU µs per delivery | (rounds) | per second | p50 ms | p99 ms | core | `serve` takes |"
    yield "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |"
    for name, rounds in figures.items():
        per_second, cpu_us, p50_ms, p99_ms, core = (
            statistics.median(getattr(each, field) for each in rounds)
            for field in ("per_second", "cpu_us", "p50_ms", "p99_ms", "core")
        )
        spread = ", ".join(f"{each.cpu_us:.0f}" for each in rounds)
        cells = (
            f"{name} | {cpu_us:.0f} | {spread} | {per_second:.0f} | {p50_ms:.0f} | {p99_ms:.0f} | {core:.0%}"
        )
        ratios = [a.cpu_us / b.cpu_us for a, b in zip(figures.get(SERVE, ()), rounds, strict=False)]
        compared = ""
        if ratios and name != SERVE:
            less = sum(ratio < 1 for ratio in ratios)
            compared = f"{statistics.median(ratios):.2f} of it (less in {less} of {len(ratios)})"
        yield f"| {cells} | {compared} |"


if __name__ == "__main__":
    main()
