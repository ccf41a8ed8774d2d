"""The service against what one would otherwise write: `make bench`. The result: docs/benchmarks.md."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from benchmarks import builds, deliveries, measure, processes, report
from benchmarks.measure import Round, Store
from benchmarks.processes import BUN, NODE_MODULES, ROOT, VoidError
from service.dev import simulator


@dataclass(frozen=True)
class Contender:
    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    npm_packages: tuple[str, ...] = ()
    """It is left out where one of these is missing; what pip installs has to be there."""


def _procfile(root: Path = ROOT) -> tuple[str, ...]:
    """What the platform runs."""
    commands = dict(line.split(": ", 1) for line in (root / "Procfile").read_text().splitlines())
    return tuple(shlex.split(commands["web"]))


def _python(arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments.split())


def _javascript(program: str, file: str) -> tuple[str, ...]:
    return (program, str(ROOT / "benchmarks" / "contenders" / file))


THIS: Final = Contender(report.THIS, _procfile(), {"WEB_CONCURRENCY": "1"})
CONTENDERS: Final = (
    THIS,
    Contender(
        "(a) Flask, gunicorn",
        _python(
            "gunicorn --worker-class gthread --workers 1 --threads 16 --keep-alive 75 "
            "--bind 127.0.0.1:{port} --log-level warning benchmarks.contenders.flask_gunicorn:app"
        ),
    ),
    Contender(
        "(b) FastAPI, uvicorn",
        _python(
            "uvicorn --loop uvloop --http httptools --no-access-log --timeout-keep-alive 75 --port {port} "
            "--log-level warning benchmarks.contenders.fastapi_uvicorn:app"
        ),
    ),
    Contender(
        "(c) Fastify, Node",
        _javascript("node", "fastify.mjs"),
        {"NODE_ENV": "production"},
        ("fastify", "ioredis", "svix"),
    ),
    Contender("(d) Bun", _javascript(BUN, "bun.mjs"), {"NODE_ENV": "production"}, ("bun", "svix")),
)


at_most: Final = click.option(
    "--at-most", default=12_000, show_default=True, help="Deliveries per second to prepare for."
)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--seconds",
    type=click.IntRange(1, 60),  # a signature is good for five minutes, for all measurements
    default=5,
    show_default=True,
    help="Of each measurement, per contender and round.",
)
@click.option(
    "--rate",
    "rates",
    type=click.IntRange(10),
    multiple=True,
    default=(500, 50),
    show_default=True,
    help="Deliveries per second where it is fixed; several times for several.",
)
@click.option("--connections", default=measure.CONNECTIONS, show_default=True, help="Of wrk, at saturation.")
@click.option(
    "--body-bytes",
    type=deliveries.ByteRange(),
    default=deliveries.BODY_BYTES,
    show_default="2000-8000",
    help="Sizes of payloads: FROM-TO, or one size; about 1,450 at least.",
)
@click.option("--only", multiple=True, help="Contenders whose name contains this; several times for several.")
@at_most
@click.option(
    "--against",
    metavar="REV",
    help="In place of the other contenders: the build at this git revision, with what it pins. "
    "The work tree's is measured twice, by its fast lane and through Flask. Nothing is written.",
)
@click.option("--write/--no-write", default=True, help="Into docs/benchmarks.md, that is.")
def main(
    rounds: int,
    seconds: int,
    rates: Sequence[int],
    connections: int,
    body_bytes: range,
    only: Sequence[str],
    at_most: int,
    against: str | None,
    write: bool,
) -> None:
    """Measure this service and its contenders, in interleaved rounds."""
    measure.find_wrk()
    builds_compared = builds_against(against) if against else []
    contenders = [
        each for each in builds_compared or available() if not only or any(part in each.name for part in only)
    ]
    surroundings = report.Surroundings()
    by_round: dict[str, dict[int, Round]] = {contender.name: {} for contender in contenders}
    void: list[str] = []
    secret = simulator.new_secret()
    with processes.scratch() as folder, measure.store() as store:
        for number in range(rounds):
            first = number % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                # The same for all of a round, but signed anew: a signature is good for five minutes.
                path = folder / "deliveries"
                deliveries.prepare(path, secret, max(at_most, *rates) * seconds, body_bytes, seed=number)
                said = f"round {number + 1}: {contender.name:25} "
                try:
                    measured = _measure(contender, path, store, secret, seconds, rates, connections)
                except VoidError as error:
                    void.append(f"{said}void: {error.message}")
                    click.echo(void[-1], err=True)
                else:
                    by_round[contender.name][number] = measured
                    click.echo(said + report.in_one_line(measured), err=True)
        redis_version = store.version()
    by_round = {name: of for name, of in by_round.items() if of}
    figures = {name: list(of.values()) for name, of in by_round.items()}
    if not figures:
        raise click.ClickException("every figure is void")
    described = [*(f"- {each}" for each in void), "", *surroundings.lines("make bench", redis_version)]
    if builds_compared:
        compared = report.against(by_round, builds_compared[-1].name)
        click.echo("\n".join([*compared, "", *report.table(figures), *described]))
        return
    shown = [*report.table(figures), "", report.summary(figures)]
    drawn = [*report.bars(report.CPU, figures), "", *report.bars(report.THROUGHPUT, figures)]
    click.echo("\n".join([*shown, "", *drawn, "", *described]))
    if write:
        report.chart(figures, report.DOCS.with_suffix(".png"))
        image = f"![The two figures that matter most]({report.DOCS.with_suffix('.png').name})"
        report.write("compare", [image, "", *shown, "", "```", *drawn, "```", "", *described])


def available(node_modules: Path = NODE_MODULES) -> list[Contender]:
    """Return the contenders that can run here; say which can't."""
    there = []
    for each in CONTENDERS:
        missing = [name for name in each.npm_packages if not (node_modules / name).exists()]
        if missing:
            reason = f"npm has not installed {', '.join(missing)} (apt-get install nodejs npm; make bench)"
        elif each.npm_packages and not processes.can_run(each.command[0]):
            reason = f"{each.command[0]} does not run here"
        else:
            there.append(each)
            continue
        click.echo(f"{each.name} is left out: {reason}.", err=True)
    return there


def builds_against(revision: str) -> list[Contender]:
    """Return the work tree's build, twice, and that of a revision."""
    folder = builds.install(revision)
    program, *arguments = _procfile(folder / "tree")
    return [
        *(
            Contender(f"this build, {way}", THIS.command, {**THIS.environment, "SERVE_FAST_LANE": is_fast})
            for way, is_fast in (("fast lane", "true"), ("through Flask", "false"))
        ),
        Contender(
            folder.name[:7],
            (str(folder / "venv" / "bin" / program), *arguments),
            {**THIS.environment, "PYTHONPATH": str(folder / "tree")},
        ),
    ]


def _measure(
    contender: Contender, path: Path, store: Store, secret: str, seconds: int, rates: Sequence[int], connections: int
) -> Round:
    environment = {"CLERK_WEBHOOK_SIGNING_SECRET": secret, "REDIS_URL": store.url, **contender.environment}
    store.empty()
    with processes.running(contender.command, environment, path.parent) as server:
        measure.warm_up(server, store, path, connections)
        saturated = measure.saturate(server, store, path, seconds, connections)
        steady = {}
        for rate in rates:
            store.empty()
            steady[rate] = measure.steady(server, store, path, seconds, rate)
        return Round(saturated, steady)


if __name__ == "__main__":
    main()
