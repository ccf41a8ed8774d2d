"""What a consumer in Python costs: `python -m benchmarks.feed`. docs/benchmarks.md says how to read it.

Each figure is taken in a process of its own, the builds in turns. Redis runs on the same machine, in a process, too.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import click

from benchmarks import builds, growth, measure, mirror
from benchmarks.measure import Store

EVENTS: Final = "{clerk}:events"
AT_ONCE: Final = 1_000
"""Entries that are written to the stream at once."""
FEW: Final = 1_000
"""Updates after which the memory of a consumer is taken."""
# It also runs with builds in which the feed was a part of the service.
CONSUMER: Final = """
import asyncio, itertools, json, sys, time
way, url, after, count, parser, looks = sys.argv[1:]
if parser == "python":
    sys.modules["hiredis"] = None  # redis-py looks for it when it is imported
try:
    from clerk_session_feed import AsyncSessionFeed, SessionFeed
except ImportError:
    from service.feed import AsyncSessionFeed, SessionFeed

def look(update):
    return update.session.user_id, update.session.status, update.event.type

def follow():
    with SessionFeed.from_url(url) as feed:
        taken = 0
        for update in itertools.islice(feed.follow(after or None), int(count)):
            taken += 1
            if looks == "looks":
                look(update)
        return taken

async def follow_async():
    taken = 0
    async with AsyncSessionFeed.from_url(url) as feed:
        async for update in feed.follow(after or None):
            taken += 1
            if looks == "looks":
                look(update)
            if taken == int(count):
                return taken

begun, cpu = time.monotonic(), time.process_time()
taken = asyncio.run(follow_async()) if way == "asyncio" else follow()
seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
rss = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(json.dumps({"taken": taken, "seconds": seconds, "cpu": cpu, "rss": rss / 1024}))
"""


class Case(NamedTuple):
    """What a consumer does, and how."""

    what: str
    after: str
    """The cursor behind which it begins; nothing: with the snapshots."""
    updates: int
    way: str
    parser: str
    looks: str = "passes"
    """Whether the loop looks at the session and the event, which are not made before."""

    def __str__(self) -> str:
        more = ", without hiredis" * (self.parser == "python") + ", looked at" * (self.looks == "looks")
        return f"{self.what}, {self.way}{more}"


class Figures(NamedTuple):
    """What one consumer took for each update, and its memory."""

    wall_us: float
    cpu_us: float
    redis_cpu_us: float
    rss_mb: float


def is_ours(python: Path) -> bool:
    """Tell whether this Python has the work tree's build."""
    return python == Path(sys.executable)


def run(python: Path, case: Case, store: Store) -> Figures:
    before = store.cpu_seconds()
    arguments = [case.way, store.url, case.after, str(case.updates), case.parser, case.looks]
    program = [str(python), "-c", CONSUMER, *arguments]
    # With PYTHONPATH, another build's Python would import this one.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or is_ours(python)}
    done = subprocess.run(program, cwd=python.parent, env=environment, stdout=subprocess.PIPE, check=True)  # noqa: S603
    said = json.loads(done.stdout)
    if said["taken"] != case.updates:
        raise click.ClickException(f"{case}: {said['taken']} of {case.updates} updates came")
    per_update = 1e6 / case.updates
    redis_cpu = store.cpu_seconds() - before
    return Figures(said["seconds"] * per_update, said["cpu"] * per_update, redis_cpu * per_update, said["rss"])


def fill_stream(store: Store, sessions: int, entries: int) -> None:
    """Append copies of the entry that is there, of one session after the other."""
    ((_, first),) = store.client.xrange(EVENTS, count=1)
    numbers = iter(range(1, entries))
    while batch := list(islice(numbers, AT_ONCE)):
        pipeline = store.client.pipeline(transaction=False)
        for number in batch:
            named = b"_%027d" % (number % sessions + 1)  # the ids of the session and of its user end with it
            pipeline.xadd(EVENTS, {name: value.replace(b"_%027d" % 1, named) for name, value in first.items()})
        pipeline.execute()


def table(taken: Mapping[str, Mapping[Case, Sequence[Figures]]]) -> Iterator[str]:
    """Yield a line for each case: medians; with a second build, also the medians of its figures and of the ratios."""
    yield "| | updates a second | wall µs | CPU µs | Redis: CPU µs | memory, MB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    ours, *others = taken.values()
    for case, rounds in ours.items():
        wall, cpu, redis_cpu, rss = (statistics.median(each) for each in zip(*rounds, strict=True))
        yield f"| {case} | {1e6 / wall:,.0f} | {wall:.1f} | {cpu:.1f} | {redis_cpu:.1f} | {rss:.1f} |"
        for other in others:
            pairs = list(zip(other[case], rounds, strict=True))
            was = (statistics.median(each) for each in zip(*other[case], strict=True))
            ratios = (statistics.median(old[n] / new[n] for old, new in pairs) for n in range(len(Figures._fields)))
            cells = [f"{old:.1f} ({ratio:.2f}×)" for old, ratio in zip(was, ratios, strict=True)]
            yield f"| that build | | {' | '.join(cells)} |"


@click.command()
@click.option("--sessions", default=200_000, show_default=True)
@click.option("--entries", default=200_000, show_default=True, help="Of the stream.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--against", metavar="REV", help="Also the build at this git revision, in turns with the work tree's.")
def main(sessions: int, entries: int, rounds: int, against: str | None) -> None:
    """Measure followers: the snapshots of so many sessions, and a stream that they are behind of."""
    pythons = {"this build": Path(sys.executable)}
    if against:
        pythons[against] = builds.install(against) / "venv" / "bin" / "python"
    reads = [("snapshots", "", sessions), ("stream", "0-0", entries)]
    cases = [Case(*read, way, parser) for read in reads for way in ("threads", "asyncio") for parser in ("c", "python")]
    cases += [Case(*read, way, "c", "looks") for read in reads for way in ("threads", "asyncio")]
    cases.append(Case(f"the first {FEW:,} of the stream", "0-0", FEW, "threads", "c"))
    taken: dict[str, dict[Case, list[Figures]]] = {build: {case: [] for case in cases} for build in pythons}
    with measure.store() as store:
        click.echo(f"{sessions:,} sessions, {entries:,} entries …", err=True)
        mirror.seed(store.url)
        growth.fill(store, 2, sessions)
        fill_stream(store, sessions, entries)
        for number in range(rounds):
            for case in cases:
                for build, python in list(pythons.items())[:: -1 if number % 2 else 1]:
                    taken[build][case].append(run(python, case, store))
                    click.echo(f"  {build}: {case}: {taken[build][case][-1]}", err=True)
    click.echo("\n".join(table(taken)))


if __name__ == "__main__":
    main()
