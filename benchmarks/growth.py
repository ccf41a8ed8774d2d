"""How the cost of a delivery grows: `make bench-growth`. The result: docs/benchmarks.md.

By sessions stored, connections, workers and size of the payload; and a worker's memory over many deliveries.
Each figure is the median of several short measurements, interleaved but for the sessions stored.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import click

from benchmarks import compare, deliveries, measure, open_loop, processes, report
from benchmarks.measure import Growth, Saturated, Store
from benchmarks.processes import Server, VoidError
from service.dev import simulator

SESSIONS: Final = (1_000, 10_000, 100_000, 1_000_000)
CONNECTIONS: Final = (1, 4, 16, 64)
WORKERS: Final = (1, 2)
BODY_KB: Final = (2, 4, 8, 16, 32, 64)
MEMORY_DELIVERIES: Final = 1_000_000
MEMORY_STEPS: Final = 20

PREPARED_BYTES: Final = 2 * 10**9
FILLED_AT_ONCE: Final = 2_000
SESSION_BYTES: Final = 3_000
"""Of Redis' memory, with some to spare."""
MORE_SESSIONS: Final = 1.1
"""Times as many as wanted may be there before a measurement."""

# Copies a session, as the relay's script left it, under other ids.
# KEYS: the session, its user's sessions, the expiry set.
# ARGV: ids of the session and its user, first and last number.
FILL: Final = """
local function named(text, number)
  local id = string.format('%027d', number)
  return (text:gsub(ARGV[1], 'sess_' .. id):gsub(ARGV[2], 'user_' .. id))
end
local state, ttl = redis.call('HGETALL', KEYS[1]), redis.call('PTTL', KEYS[1])
local expire_at = redis.call('ZSCORE', KEYS[3], ARGV[1])
local with_ids, copy = {}, {}
for i, text in ipairs(state) do
  copy[i] = text
  if named(text, 0) ~= text then
    with_ids[i] = text
  end
end
for number = ARGV[3], ARGV[4] do
  for i, text in pairs(with_ids) do
    copy[i] = named(text, number)
  end
  local session, user, id = named(KEYS[1], number), named(KEYS[2], number), named(ARGV[1], number)
  redis.call('HSET', session, unpack(copy))
  redis.call('PEXPIRE', session, ttl)
  redis.call('ZADD', user, expire_at, id)
  redis.call('PEXPIRE', user, ttl)
  redis.call('ZADD', KEYS[3], expire_at, id)
end
"""


class Bench:
    """The service, with what is sent to it and where that goes."""

    def __init__(self, store: Store, folder: Path, rounds: int, seconds: int, at_most: int, most_sessions: int) -> None:
        self.store = store
        self.folder = folder
        self.rounds = rounds
        self.most_sessions = most_sessions
        self.secret = simulator.new_secret()
        self._seconds = seconds
        self._at_most = at_most
        self._seed = 0

    @contextlib.contextmanager
    def serving(self, workers: int = 1) -> Iterator[Server]:
        """Run it from its Procfile, each worker with a core, as far as there are that many."""
        environment = {
            **compare.THIS.environment,
            "CLERK_WEBHOOK_SIGNING_SECRET": self.secret,
            "REDIS_URL": self.store.url,
            "WEB_CONCURRENCY": str(workers),
        }
        cores = processes.CORES[:workers]
        with processes.running(compare.THIS.command, environment, self.folder, cores) as server:
            measure.warm_up(server, self.store, self.prepare())
            yield server

    def prepare(self, body_bytes: range = deliveries.BODY_BYTES) -> Path:
        """Sign deliveries that were not sent before, enough of them for one measurement."""
        self._seed += 1
        path = self.folder / "deliveries"
        count = min(self._at_most * self._seconds, PREPARED_BYTES // body_bytes.stop)
        deliveries.prepare(path, self.secret, count, body_bytes, seed=self._seed)
        return path

    def saturate(
        self, server: Server, connections: int = measure.CONNECTIONS, body_bytes: range = deliveries.BODY_BYTES
    ) -> list[Saturated]:
        """Return what was measured; nothing, if it is void."""
        requests = self.prepare(body_bytes)
        try:
            measured = measure.saturate(server, self.store, requests, self._seconds, connections)
        except VoidError as error:
            click.echo(f"  void: {error.message}", err=True)
            return []
        click.echo(
            f"  {measured.cpu_us:.0f} µs CPU, Redis {measured.redis_cpu_us:.0f}, {measured.per_second:.0f}/s", err=True
        )
        return [measured]


def by_sessions(bench: Bench) -> Growth:
    """Stored at the start of a measurement, which adds as many as it delivers."""
    growth = Growth("sessions stored", {})
    with bench.serving() as server:
        for wanted in (number for number in SESSIONS if number <= bench.most_sessions):
            if (free := _free_bytes()) < wanted * SESSION_BYTES:
                click.echo(f"{wanted:,} sessions do not fit into the {free / 1e9:.1f} GB left", err=True)
                break
            click.echo(f"sessions stored: {wanted:,}", err=True)
            growth.measured[f"{wanted:,}"] = []
            for _ in range(bench.rounds):
                if not wanted <= bench.store.sessions() <= wanted * MORE_SESSIONS:
                    bench.store.empty()
                    open_loop.send(server.port, bench.store.port, deliveries.read(bench.prepare(), 1), rate=1)
                    fill(bench.store, 2, wanted)
                growth.measured[f"{wanted:,}"] += bench.saturate(server)
    bench.store.empty()
    return growth


def by_connections(bench: Bench) -> Growth:
    with bench.serving() as server:
        cases = {str(number): partial(bench.saturate, server, number) for number in CONNECTIONS}
        return _interleaved(bench, "connections", cases)


def by_workers(bench: Bench) -> Growth:
    def measured(workers: int) -> list[Saturated]:
        with bench.serving(workers) as server:
            return bench.saturate(server)

    return _interleaved(bench, "workers", {str(number): partial(measured, number) for number in WORKERS})


def by_payload(bench: Bench) -> Growth:
    with bench.serving() as server:
        # Lengths vary a little: deliveries.py says why.
        sizes = {kilobytes: range(kilobytes * 975, kilobytes * 1025) for kilobytes in BODY_KB}
        cases = {str(kilobytes): partial(bench.saturate, server, body_bytes=size) for kilobytes, size in sizes.items()}
        return _interleaved(bench, "payload, KB", cases)


def _interleaved(bench: Bench, title: str, cases: Mapping[str, Callable[[], list[Saturated]]]) -> Growth:
    growth = Growth(title, {name: [] for name in cases})
    for _ in range(bench.rounds):
        for name, measured in cases.items():
            bench.store.empty()
            click.echo(f"{title}: {name}", err=True)
            growth.measured[name] += measured()
    return growth


def fill(store: Store, first: int, last: int) -> None:
    """Copy a session that the store holds, with its place in every index, under as many other ids."""
    client = store.client
    message = client.xrevrange("{clerk}:events", count=1)[0][1]
    session_id, user_id = message[b"session_id"].decode(), message[b"user_id"].decode()
    keys = (f"{{clerk}}:session:{session_id}", f"{{clerk}}:user:{user_id}:sessions", "{clerk}:expiry")
    script = client.register_script(FILL)
    for number in range(first, last + 1, FILLED_AT_ONCE):
        script(keys, (session_id, user_id, number, min(number + FILLED_AT_ONCE - 1, last)))


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def memory(bench: Bench, count: int, body_bytes: range = deliveries.BODY_BYTES) -> list[tuple[int, float]]:
    """Return a worker's resident memory, in MB, after so many deliveries; at least `count` in the end.

    Deliveries are signed while they are sent, through a pipe: a signature is good for five minutes only.
    """
    samples = []
    sent = 0
    pipe = bench.folder / "pipe"
    with bench.serving() as server, deliveries.endless(pipe, bench.secret, body_bytes):
        samples.append((sent, server.worker_bytes() / 1e6))
        seconds = 2
        while sent < count:
            bench.store.empty()
            said = measure.wrk(server.port, pipe, seconds)
            time.sleep(measure.SETTLE_SECONDS)
            applied = bench.store.applied()
            if said["failed"] or not 0 <= applied - said["requests"] <= measure.CONNECTIONS:
                raise VoidError(f"{said}, {applied} applied")
            sent += applied
            samples.append((sent, server.worker_bytes() / 1e6))
            click.echo(f"memory: {sent:,} deliveries, {samples[-1][1]:.1f} MB", err=True)
            # A step's length follows from the first, short one.
            seconds = max(1, min(30, round(count / MEMORY_STEPS / (said["requests"] / said["seconds"]))))
    return samples


PARTS: Final[dict[str, Callable[[Bench], Growth]]] = {
    "sessions": by_sessions,
    "connections": by_connections,
    "workers": by_workers,
    "payload": by_payload,
}


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Measurements of each figure.")
@click.option("--seconds", default=3, show_default=True, help="Of each measurement.")
@compare.at_most
@click.option("--sessions", default=SESSIONS[-1], show_default=True, help="Stored at most; 1,000,000 take 3 GB.")
@click.option("--deliveries", "count", default=MEMORY_DELIVERIES, show_default=True, help="For the memory.")
@click.option("--only", multiple=True, type=click.Choice([*PARTS, "memory"]), help="Parts; may be repeated.")
@click.option("--write/--no-write", default=True, help="Into docs/benchmarks.md, that is.")
def main(rounds: int, seconds: int, at_most: int, sessions: int, count: int, only: Sequence[str], write: bool) -> None:
    """Measure how the cost of a delivery grows."""
    measure.find_wrk()
    surroundings = report.Surroundings()
    parts = only or [*PARTS, "memory"]
    grown: list[Growth] = []
    samples: list[tuple[int, float]] = []
    with processes.scratch() as folder, measure.store() as store:
        bench = Bench(store, folder, rounds, seconds, at_most, sessions)
        for part in parts:
            if part == "memory":
                samples = memory(bench, count)
            else:
                grown.append(PARTS[part](bench))
        redis_version = store.version()
    shown = [*report.growth_tables(grown), *report.memory_table(samples)]
    described = [*surroundings.lines("make bench-growth", redis_version)]
    click.echo("\n".join([*shown, "", *described]))
    if write:
        path = report.DOCS.with_name("benchmarks-growth.png")
        report.growth_chart(grown, samples, path)
        report.write("growth", [f"![CPU time as things grow]({path.name})", "", *shown, "", *described])


if __name__ == "__main__":
    main()
