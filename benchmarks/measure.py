"""One server under load, with its figures. Every one is checked: what was answered 2xx has to be in Redis."""

import contextlib
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import redis

from benchmarks import deliveries, open_loop, processes
from benchmarks.processes import Server, VoidError
from service.dev import embedded

CONNECTIONS: Final = 64
WARM_UP_SECONDS: Final = 2
SETTLE_SECONDS: Final = 0.5
"""For what was under way when wrk stopped."""

_LUA: Final = Path(__file__).parent / "deliveries.lua"


@dataclass(frozen=True)
class Store:
    """The Redis of a benchmark, on the core of the load."""

    client: Any
    url: str
    port: int
    pid: int

    def empty(self) -> None:
        self.client.flushall()

    def applied(self) -> int:
        """Events applied since it was empty; what was sent twice, and what failed, is not in it."""
        if not self.client.exists("{clerk}:events"):
            return 0
        added: int = self.client.xinfo_stream("{clerk}:events")["entries-added"]
        return added

    def sessions(self) -> int:
        """Each has a key, and its user has one; besides, there are the stream and the expiry set."""
        size: int = self.client.dbsize()
        return max(size - 2, 0) // 2

    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(self.pid)

    def data_bytes(self) -> int:
        """Memory used, but for the stream, which STREAM_MAXLEN bounds."""
        used: int = self.client.info("memory")["used_memory"]
        return used - (self.client.memory_usage("{clerk}:events", samples=0) or 0)

    def version(self) -> str:
        return str(self.client.info("server")["redis_version"])


@contextlib.contextmanager
def store() -> Iterator[Store]:
    binary = shutil.which("redis-server")
    if binary is None:
        raise click.ClickException("redis-server is missing: apt-get install redis-server")
    with embedded.run_server(binary) as server:
        assert server.process is not None  # noqa: S101  # it is no stand-in
        client = redis.Redis.from_url(server.url, socket_timeout=60)
        with client:
            yield Store(client, server.url, server.port, server.process.pid)


@dataclass(frozen=True)
class Saturated:
    """Under as much as wrk sends over its connections, one request after another on each."""

    per_second: float
    cpu_us: float
    """Per delivery, of the whole process tree."""
    redis_cpu_us: float
    p50_ms: float
    p99_ms: float
    core: float
    """Part of its core that the server had; other programs took the rest, or it waited for Redis and wrk."""
    memory_mb: float
    worker_mb: float
    session_bytes: float
    """Of Redis' memory per session, the stream left out."""


@dataclass(frozen=True)
class Steady:
    """At a fixed rate."""

    cpu_us: float
    p50_ms: float
    p99_ms: float
    receipt_p50_ms: float
    """From when the request was due to the subscriber's receipt of the message."""
    receipt_p99_ms: float
    late_p99_ms: float
    """By how much the sender was late: a part of all latencies here."""


@dataclass(frozen=True)
class Round:
    saturated: Saturated
    steady: Mapping[int, Steady]
    """By its rate per second."""


@dataclass(frozen=True)
class Growth:
    """What a delivery costs as one thing grows."""

    what: str
    measured: dict[str, list[Saturated]]
    """By its size, several times each."""


def warm_up(server: Server, into: Store, requests: Path, connections: int = CONNECTIONS) -> None:
    """Let a server load, compile and connect; the store is empty afterwards."""
    wrk(server.port, requests, WARM_UP_SECONDS, connections)
    time.sleep(SETTLE_SECONDS)
    into.empty()


def saturate(server: Server, into: Store, requests: Path, seconds: int, connections: int = CONNECTIONS) -> Saturated:
    """Put a server under full load.

    Raises VoidError.
    """
    applied_before, sessions_before, bytes_before = into.applied(), into.sessions(), into.data_bytes()
    server_before, redis_before = server.cpu_seconds(), into.cpu_seconds()
    said = wrk(server.port, requests, seconds, connections)
    time.sleep(SETTLE_SECONDS)
    used, redis_used = server.cpu_seconds() - server_before, into.cpu_seconds() - redis_before
    applied = into.applied() - applied_before
    sessions = into.sessions() - sessions_before
    under_way = applied - said["requests"]
    if not applied or said["failed"] or not 0 <= under_way <= connections or sessions != applied:
        raise VoidError(f"{said}, {applied} applied, {sessions} sessions; sent twice? then raise --at-most")
    return Saturated(
        per_second=said["requests"] / said["seconds"],
        cpu_us=used / applied * 1e6,
        redis_cpu_us=redis_used / applied * 1e6,
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        core=used / said["seconds"],
        memory_mb=server.memory_bytes() / 1e6,
        worker_mb=server.worker_bytes() / 1e6,
        session_bytes=(into.data_bytes() - bytes_before) / applied,
    )


def steady(server: Server, into: Store, requests: Path, seconds: int, rate: int) -> Steady:
    """Send at a fixed rate to a server whose store is empty, and watch the channel.

    Raises VoidError.
    """
    to_send = deliveries.read(requests, rate * seconds)
    before = server.cpu_seconds()
    run = open_loop.send(server.port, into.port, to_send, rate)
    used = server.cpu_seconds() - before
    if not into.applied() == into.sessions() == run.sent:
        raise VoidError(f"{run.sent} sent, {into.applied()} applied, {into.sessions()} sessions")
    answers, receipts = _percentiles_ms(run.answers), _percentiles_ms(run.receipts)
    return Steady(
        cpu_us=used / run.sent * 1e6,
        p50_ms=answers[49],
        p99_ms=answers[98],
        receipt_p50_ms=receipts[49],
        receipt_p99_ms=receipts[98],
        late_p99_ms=_percentiles_ms(run.late)[98],
    )


def _percentiles_ms(seconds: list[float]) -> list[float]:
    return [value * 1000 for value in statistics.quantiles(seconds, n=100, method="inclusive")]


def wrk(port: int, requests: Path, seconds: int, connections: int = CONNECTIONS) -> dict[str, Any]:
    """Run wrk; return what deliveries.lua says at its end."""
    program = find_wrk()
    command = [program, "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", "10s", "--script", str(_LUA)]
    command += [f"http://127.0.0.1:{port}", "--", str(requests)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    said: dict[str, Any] = json.loads(output.splitlines()[-1])
    return said


def find_wrk() -> str:
    program = shutil.which("wrk")
    if program is None:
        raise click.ClickException("wrk is missing: apt-get install wrk")
    return program
