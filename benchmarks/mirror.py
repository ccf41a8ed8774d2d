"""What a mirror of a million sessions costs, and how fast it is: `python -m benchmarks.mirror`. docs/mirror.md has it.

Each figure is taken in a process of its own, so that memory is the mirror's alone; what is compared with each other is
taken in the same process, in turns. Redis, and what sends it events, have processes of their own.
"""

import asyncio
import concurrent.futures
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import click
from clerk_session_feed import AsyncSessionFeed, SessionFeed

from benchmarks import growth, measure, processes
from service.config import Settings, load
from service.dev import simulator
from service.ingest import Ingest
from service.models import Delivery
from service.store.sessions import SessionStore

ASKED: Final = 200_000
"""Sessions that are looked up in one measurement."""
ROUNDS: Final = 7
IS_LIVE_CALLS: Final = 3_000
ENDED_EVERY: Final = 20
"""Of so many events, one ends a session."""
READY_SECONDS: Final = 600.0
PACE_SECONDS: Final = 0.0005
"""Between two looks for whether sessions are refused."""
# As for those who installed the consumers' package alone. redis-py looks for hiredis when it is imported.
WITHOUT_HIREDIS: Final = """
import sys, time
sys.modules["hiredis"] = None
from clerk_session_feed import SessionFeed
begun = time.monotonic()
with SessionFeed.from_url(sys.argv[1]) as feed, feed.mirror() as mirror:
    mirror.wait_until_ready(float(sys.argv[2]))
    print(time.monotonic() - begun)
"""


def named(number: int) -> str:
    """Return the id of a session; a new text each time, as it comes from a token."""
    return f"sess_{number:027d}"


def shuffled(count: int) -> list[int]:
    return random.Random(0).sample(range(1, count + 1), min(ASKED, count))  # noqa: S311


# What is measured, each in a process of its own


def plain_dict(_: str, count: int) -> dict[str, float]:
    """Memory of a dict of ids."""
    gc.collect()
    before = processes.memory_bytes(os.getpid())
    ids = {named(number): True for number in range(1, count + 1)}
    after = processes.memory_bytes(os.getpid())
    return {"dict_rss": (after - before) / len(ids)}


def traced(url: str, count: int) -> dict[str, float]:
    """Memory of both, as Python counts it."""
    with SessionFeed.from_url(url) as feed:
        feed.status("sess_1")
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        with feed.mirror(max_age=60) as mirror:
            mirror.wait_until_ready(READY_SECONDS)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            sessions = len(mirror)
        gc.collect()
        between, _ = tracemalloc.get_traced_memory()
        ids = {named(number): True for number in range(1, count + 1)}
        return {
            "mirror_traced": (after - before) / sessions,
            "dict_traced": (tracemalloc.get_traced_memory()[0] - between) / len(ids),
        }


def threads(url: str, count: int) -> dict[str, float]:
    """A mirror of a SessionFeed: until it is ready, its memory, lookups, and how soon a session is refused."""
    with SessionFeed.from_url(url) as feed:
        feed.status(named(1))
        gc.collect()
        before, cpu, begun = processes.memory_bytes(os.getpid()), time.process_time(), time.monotonic()
        with feed.mirror() as mirror:
            mirror.wait_until_ready(READY_SECONDS)
            ready, cpu = time.monotonic() - begun, time.process_time() - cpu
            gc.collect()
            grown = processes.memory_bytes(os.getpid()) - before
            figures = {"ready": ready, "ready_cpu": cpu, "mirror_rss": grown / len(mirror), "sessions": len(mirror)}
            return figures | lookups(feed, mirror.status, count) | refusals(url, mirror.status, count)


def ready_in_asyncio(url: str, _: int) -> dict[str, float]:
    async def begin() -> float:
        begun = time.monotonic()
        async with AsyncSessionFeed.from_url(url) as feed, feed.mirror() as mirror:
            await mirror.wait_until_ready(READY_SECONDS)
            return time.monotonic() - begun

    return {"ready_async": asyncio.run(begin())}


def lookups(feed: SessionFeed, status: Callable[[str], str], count: int) -> dict[str, float]:
    """Nanoseconds, in random order: a dict, the mirror and `is_live`, in turns."""
    ids = {named(number): True for number in range(1, count + 1)}
    numbers = shuffled(count)
    asked: dict[str, list[float]] = {"dict": [], "mirror": [], "is_live": []}
    gc.collect()
    for _ in range(ROUNDS):
        asked["dict"].append(nanoseconds(ids.get, map(named, numbers)))
        asked["mirror"].append(nanoseconds(status, map(named, numbers)))
        asked["is_live"].append(nanoseconds(feed.is_live, map(named, numbers[:IS_LIVE_CALLS])))
    if {status(named(number)) for number in numbers[:1000]} != {"live"}:
        raise click.ClickException("the mirror does not have what was stored")
    return {name: statistics.median(each) for name, each in asked.items()}


def nanoseconds(ask: Callable[[str], Any], session_ids: Iterable[str]) -> float:
    ids = list(session_ids)
    begun = time.perf_counter_ns()
    for each in ids:
        ask(each)
    return (time.perf_counter_ns() - begun) / len(ids)


def refusals(url: str, status: Callable[[str], str], count: int) -> dict[str, float]:
    """Milliseconds from when Redis is told that a session ended, while events pass, until the mirror refuses it."""
    taken: list[float] = []
    ended: dict[str, float] = {}
    program = [sys.executable, "-m", "benchmarks.mirror", "--part", "traffic", "--url", url, "--sessions", str(count)]
    cpu, begun = time.process_time(), time.monotonic()
    with subprocess.Popen(program, cwd=processes.ROOT, stdout=subprocess.PIPE, text=True) as traffic:  # noqa: S603
        reader = threading.Thread(target=_collect, args=(traffic.stdout, ended))
        reader.start()
        while reader.is_alive() or ended:
            refused = [session_id for session_id in list(ended) if status(session_id) == "ended"]
            taken += [(time.monotonic() - ended.pop(session_id)) * 1000 for session_id in refused]
            time.sleep(PACE_SECONDS)
    seconds = time.monotonic() - begun
    taken.sort()
    return {
        "refused_p50": taken[len(taken) // 2],
        "refused_p99": taken[len(taken) * 99 // 100],
        "refused_max": taken[-1],
        "refused": len(taken),
        "cpu_under_load": (time.process_time() - cpu) / seconds,
    }


def _collect(lines: Any, ended: dict[str, float]) -> None:
    for line in lines:
        session_id, at = line.split()
        ended[session_id] = float(at)


def traffic(url: str, count: int, rate: int = 1000, seconds: int = 20) -> dict[str, float]:
    """Send events through the relay's own code; print the sessions that end, and when Redis was told."""
    settings = load(Settings, _env_file=None, redis_url=url, clerk_webhook_signing_secret=simulator.new_secret())
    store = SessionStore(settings)
    ingest = Ingest(store)

    def send(number: int) -> None:
        session = (number * 7919) % count + 1
        ends = number % ENDED_EVERY == 0
        type_ = "session.ended" if ends else "session.updated"
        body = simulator.encode(simulator.sample(type_, session_id=named(session), user_id=f"user_{session:027d}"))
        at = time.monotonic()
        outcome = ingest(Delivery(f"msg_{os.getpid()}_{number}", int(time.time()), body))
        if ends and outcome.outcome == "applied":
            print(named(session), at, flush=True)  # noqa: T201

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for number in range(rate * seconds):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            pool.submit(send, number)
    store.close()
    return {}


PARTS: Final[dict[str, Callable[[str, int], dict[str, float]]]] = {
    "plain_dict": plain_dict,
    "threads": threads,
    "ready_in_asyncio": ready_in_asyncio,
    "traced": traced,
}


# All of it


def measured(url: str, count: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for part in PARTS:
        click.echo(f"{part} …", err=True)
        program = [sys.executable, "-m", "benchmarks.mirror", "--part", part, "--url", url, "--sessions", str(count)]
        said = subprocess.run(program, cwd=processes.ROOT, stdout=subprocess.PIPE, check=True)  # noqa: S603
        figures |= json.loads(said.stdout)
    click.echo("ready without hiredis …", err=True)
    program = [sys.executable, "-c", WITHOUT_HIREDIS, url, str(READY_SECONDS)]
    said = subprocess.run(program, cwd=processes.ROOT, stdout=subprocess.PIPE, check=True)  # noqa: S603
    return figures | {"ready_plain": float(said.stdout)}


def rows(of: dict[str, float]) -> Iterator[tuple[str, str, str]]:
    yield "open sessions", f"{of['sessions']:,.0f}", ""
    yield "lookup in a plain dict of the ids", f"{of['dict']:.0f} ns", ""
    yield "mirror.status()", f"{of['mirror']:.0f} ns", f"{of['mirror'] / of['dict']:.1f} times the dict (at most 10)"
    times = of["is_live"] / of["mirror"]
    yield (
        "feed.is_live() over loopback",
        f"{of['is_live'] / 1000:.0f} µs",
        f"{times:.0f} times the mirror (at least 50)",
    )
    yield "memory of a plain dict", f"{of['dict_rss']:.0f} bytes", f"{of['dict_traced']:.0f} by tracemalloc"
    yield (
        "memory of the mirror, a session",
        f"{of['mirror_rss']:.0f} bytes",
        (f"{of['mirror_traced']:.0f} by tracemalloc (at most 250)"),
    )
    yield "ready, SessionFeed", f"{of['ready']:.1f} s", f"{of['ready_cpu']:.1f} s of CPU time (at most 30)"
    yield "ready, AsyncSessionFeed", f"{of['ready_async']:.1f} s", ""
    yield "ready, SessionFeed without hiredis", f"{of['ready_plain']:.1f} s", ""
    yield "refused after it ended, median", f"{of['refused_p50']:.0f} ms", f"{of['refused']:.0f} sessions"
    yield (
        "refused after it ended, p99",
        f"{of['refused_p99']:.0f} ms",
        (f"longest {of['refused_max']:.0f} ms (at most 250)"),
    )
    yield "CPU of the process, 1,000 events a second", f"{of['cpu_under_load']:.0%}", "with what asks it meanwhile"


def table(lines: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    yield "| | | |"
    yield "| --- | ---: | --- |"
    for line in lines:
        yield f"| {' | '.join(line)} |"


@click.command()
@click.option("--sessions", default=1_000_000, show_default=True)
@click.option("--url", help="A Redis that has these sessions already.", hidden=True)
@click.option("--part", type=click.Choice([*PARTS, "traffic"]), hidden=True)
def main(sessions: int, url: str | None, part: str | None) -> None:
    """Measure a mirror of so many sessions; print a table in Markdown."""
    if part == "traffic" and url:
        traffic(url, sessions)
    elif part and url:
        click.echo(json.dumps(PARTS[part](url, sessions)))
    else:
        with measure.store() as store:
            click.echo(f"{sessions:,} sessions …", err=True)
            seed(store.url)
            growth.fill(store, 2, sessions)
            lines = list(rows(measured(store.url, sessions)))
        click.echo("\n".join(table(lines)))


def seed(url: str) -> None:
    """Let the relay store the session that is copied."""
    settings = load(Settings, _env_file=None, redis_url=url, clerk_webhook_signing_secret=simulator.new_secret())
    store = SessionStore(settings)
    body = simulator.encode(simulator.sample("session.created", session_id=named(1), user_id=f"user_{1:027d}"))
    Ingest(store)(Delivery("msg_seed", int(time.time()), body))
    store.close()


if __name__ == "__main__":
    main()
