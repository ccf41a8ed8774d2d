"""What 2,000 idle streams of /events cost a worker: `python -m benchmarks.streams`. docs/read.md has the figures.

Two services with the same settings, each with a prefix of its own in one Redis; one of them has the streams. Deliveries
go to both in turns, at a fixed rate. The streams are held by a process of its own, and each is of another user, so that
no delivery is told to any; with `--everything` each delivery is told to all.
"""

import contextlib
import itertools
import selectors
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import click

from benchmarks import deliveries, measure, open_loop, processes
from service.dev import simulator

TOKEN: Final = "a-token-for-the-benchmark"  # noqa: S105  # of a server that this starts
READY_SECONDS: Final = 60.0


def _hold(port: int, count: int, *, everything: bool) -> None:
    """Open streams, say so when each has begun, and read what comes until the input ends."""
    selector = selectors.DefaultSelector()
    for number in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        query = "" if everything else f"?user=user_{number}"
        head = f"GET /events{query} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
        connection.sendall(head.encode())
        arrived = b""
        while b"id: " not in arrived:
            arrived += connection.recv(4096)
        selector.register(connection, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin or not key.fileobj.recv(1 << 16):  # type: ignore[union-attr]
                return


@contextlib.contextmanager
def _streams(port: int, count: int, *, everything: bool) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.streams", "--hold", str(port), "--streams", str(count)]
    command += ["--everything"] if everything else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:  # noqa: S603
        try:
            assert holder.stdout is not None  # noqa: S101  # it is a pipe
            if holder.stdout.readline() != "ready\n":
                raise processes.VoidError("the streams did not begin")
            yield
        finally:
            holder.kill()


def _rss(pid: int) -> int:
    return processes.busiest_bytes(pid)


@click.command()
@click.option("--streams", "count", default=2000, show_default=True, help="How many streams.")
@click.option("--everything", is_flag=True, help="Each stream gets all events.")
@click.option("--rate", default=200, show_default=True, help="Deliveries a second.")
@click.option("--seconds", default=10, show_default=True, help="Of one round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--hold", type=int, hidden=True)
def main(count: int, everything: bool, rate: int, seconds: int, rounds: int, hold: int | None) -> None:
    """Measure memory and latency with and without streams."""
    if hold is not None:
        _hold(hold, count, everything=everything)
        return
    secret = simulator.new_secret()
    signed = deliveries.requests(secret)
    with processes.scratch() as folder, measure.store() as store, contextlib.ExitStack() as stack:
        environment = {
            "CLERK_WEBHOOK_SIGNING_SECRET": secret,
            "REDIS_URL": store.url,
            "HOST": "127.0.0.1",
            "READ_TOKEN": TOKEN,
            "LOG_LEVEL": "warning",
        }
        servers = {}
        for name in ("with", "without"):
            (folder / name).mkdir()
            own = {"REDIS_KEY_PREFIX": f"{{{name}}}", "REDIS_CHANNEL": name}
            command = [sys.executable, "-m", "service", "serve"]
            servers[name] = stack.enter_context(processes.running(command, environment | own, folder / name))
        for name, server in servers.items():  # what the first deliveries load stays
            open_loop.send(server.port, store.port, list(itertools.islice(signed, 2 * rate)), rate, name)
        before = _rss(servers["with"].pid)
        stack.enter_context(_streams(servers["with"].port, count, everything=everything))
        click.echo(f"{count} streams: {(_rss(servers['with'].pid) - before) / 1e6:.1f} MB")
        latencies: dict[str, list[float]] = {"with": [], "without": []}
        used: dict[str, float] = dict.fromkeys(servers, 0.0)
        for number in range(rounds):
            order = list(servers.items())
            for name, server in order if number % 2 else reversed(order):
                begun = server.cpu_seconds()
                requests = list(itertools.islice(signed, rate * seconds))
                run = open_loop.send(server.port, store.port, requests, rate, name)
                used[name] += server.cpu_seconds() - begun
                latencies[name].append(statistics.quantiles(run.answers, n=100)[98])
        for name in servers:
            p99 = ", ".join(f"{1000 * each:.2f}" for each in latencies[name])
            cpu = 1e6 * used[name] / (rounds * rate * seconds)
            click.echo(f"{name:8} p99 {1000 * statistics.median(latencies[name]):.2f} ms ({p99}), {cpu:.0f} µs CPU")
        ratio = statistics.median(latencies["with"]) / statistics.median(latencies["without"])
        grown = _rss(servers["with"].pid) - before
        click.echo(f"ratio of p99: {ratio:.2f}; {grown / 1e6:.1f} MB more than before the streams")


if __name__ == "__main__":
    main()
