"""Which server runs this application best: `python -m benchmarks.servers`. The result: docs/server.md.

The same application, one process, pinned to a core; wrk and a Redis of its own on another. What counts is the
CPU time per delivery of the server's whole process tree: other programs on the machine disturb it least.
Rounds are interleaved; medians are printed.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from flask import Flask

from benchmarks import deliveries, measure, processes
from benchmarks.measure import Saturated, Store
from service.app.factory import create_app
from service.config import Settings, load
from service.dev import simulator
from service.telemetry import log

SERVE: Final = "`serve` (uvicorn's parts)"
_SERVE: Final = (
    "from service.config import Settings, load; from service.server.processes import serve;"
    "from service.telemetry import log;"
    "settings = load(Settings); log.configure(settings); serve(settings)"
)


def wsgi() -> Flask:
    """Build the application for a WSGI server, in its worker process."""
    settings = load(Settings)
    log.configure(settings)
    return create_app(settings)


@dataclass(frozen=True)
class Contender:
    name: str
    arguments: tuple[str, ...]
    """Of `python`; {port} is filled in."""
    log_level: str = "warning"


def _module(arguments: str) -> tuple[str, ...]:
    return ("-m", *arguments.split())


CONTENDERS: Final = (
    Contender(
        "gunicorn gthread, WSGI, 16 threads",
        _module(
            "gunicorn --worker-class gthread --workers 1 --threads 16 --bind 127.0.0.1:{port} "
            "--log-level warning benchmarks.servers:wsgi()"
        ),
    ),
    Contender(
        "granian, ASGI (uvloop)",
        _module(
            "granian --interface asgi --loop uvloop --http 1 --no-ws --port {port} "
            "--log-level warning --factory service.server.processes:application"
        ),
    ),
    Contender(
        "uvicorn as it comes, ASGI (uvloop, httptools)",
        _module(
            "uvicorn --loop uvloop --http httptools --no-access-log --port {port} "
            "--log-level warning --factory service.server.processes:application"
        ),
    ),
    Contender(SERVE, ("-c", _SERVE)),
    Contender("the same, LOG_LEVEL=info", ("-c", _SERVE), log_level="info"),
)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=6, show_default=True, help="Of measuring, per contender and round.")
@click.option("--at-most", default=10_000, show_default=True, help="Deliveries per second to prepare for.")
@click.option("--only", default="", help="Contenders whose name contains this.")
def main(rounds: int, seconds: int, at_most: int, only: str) -> None:
    """Measure this application under several servers."""
    contenders = [contender for contender in CONTENDERS if only in contender.name]
    figures: dict[str, list[Saturated]] = {contender.name: [] for contender in contenders}
    secret = simulator.new_secret()
    with processes.scratch() as folder, measure.store() as store:
        for number in range(1, rounds + 1):
            # Signed anew for each round: a signature is good for five minutes.
            path = folder / "deliveries"
            deliveries.prepare(path, secret, at_most * seconds, seed=number)
            for contender in contenders:
                measured = _measure(contender, path, store, secret, seconds)
                figures[contender.name].append(measured)
                click.echo(f"round {number}: {contender.name:36} {measured}", err=True)
    for row in table(figures):
        click.echo(row)


def _measure(contender: Contender, path: Path, store: Store, secret: str, seconds: int) -> Saturated:
    store.empty()
    with tempfile.TemporaryDirectory(dir=path.parent) as metrics:
        environment = {
            "CLERK_WEBHOOK_SIGNING_SECRET": secret,
            "REDIS_URL": store.url,
            "HOST": "127.0.0.1",
            "WEB_CONCURRENCY": "1",
            "LOG_LEVEL": contender.log_level,
            "PROMETHEUS_MULTIPROC_DIR": metrics,
        }
        command = (sys.executable, *contender.arguments)
        with processes.running(command, environment, path.parent) as server:
            measure.warm_up(server, store, path)
            return measure.saturate(server, store, path, seconds)


def table(figures: dict[str, list[Saturated]]) -> Iterator[str]:
    """Medians, as Markdown. The last column compares within each round: noise comes and goes."""
    yield "| server | CPU µs per delivery | (rounds) | per second | p50 ms | p99 ms | core | `serve` takes |"
    yield "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |"
    for name, rounds in figures.items():
        per_second, cpu_us, p50_ms, p99_ms, core = (
            statistics.median(getattr(each, field) for each in rounds)
            for field in ("per_second", "cpu_us", "p50_ms", "p99_ms", "core")
        )
        spread = ", ".join(f"{each.cpu_us:.0f}" for each in rounds)
        cells = f"{name} | {cpu_us:.0f} | {spread} | {per_second:.0f} | {p50_ms:.0f} | {p99_ms:.0f} | {core:.0%}"
        ratios = [a.cpu_us / b.cpu_us for a, b in zip(figures.get(SERVE, ()), rounds, strict=False)]
        compared = ""
        if ratios and name != SERVE:
            less = sum(ratio < 1 for ratio in ratios)
            compared = f"{statistics.median(ratios):.2f} of it (less in {less} of {len(ratios)})"
        yield f"| {cells} | {compared} |"


if __name__ == "__main__":
    main()
