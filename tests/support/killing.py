"""Redis killed and restarted, again and again, while events pass and programs follow: nothing is lost.

By hand, for long: python -m support.killing EVENTS KILLS    (in tests/)
"""

import collections
import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from service.errors import StoreUnavailableError
from service.models import Outcome
from support.children import started
from support.constants import NOW_MS, ROOT
from support.events import clerk_event
from support.redis_clients import client_of
from support.redis_servers import DurableRedis, durable_redis
from support.relay import Relay, run_relay

SESSIONS: Final = 50
KINDS: Final = ("SessionFeed", "AsyncSessionFeed", "consume")


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What one program saw."""

    updates: int
    duplicates: int
    missed: int
    out_of_order: int
    """Revisions that did not come right after the one before, duplicates aside."""


def seen_in(path: Path, revisions: int) -> Seen:
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    last: collections.Counter[str] = collections.Counter()
    known: set[tuple[str, str]] = set()
    out_of_order = 0
    for session_id, revision, _ in lines:
        if (session_id, revision) not in known:
            known.add((session_id, revision))
            out_of_order += int(revision) != last[session_id] + 1
            last[session_id] = max(last[session_id], int(revision))
    return Seen(len(lines), len(lines) - len(known), SESSIONS * revisions - len(known), out_of_order)


def suffer(server: DurableRedis, directory: Path, *, events: int, kills: int) -> dict[str, Seen]:
    """Let programs of each kind follow so many events and kills; return what they saw."""
    revisions = events // SESSIONS
    paths = {kind: directory / kind for kind in KINDS}
    with contextlib.ExitStack() as stack:
        for kind, path in paths.items():
            program = (sys.executable, ROOT / "tests" / "support" / "follower.py", kind, server.url, path)
            stack.enter_context(started(program, directory))
        relay = stack.enter_context(run_relay(server.url, stream_maxlen=1_000_000))
        for revision in range(1, revisions + 1):
            futures = begin_round(relay, revision)
            if revision * (kills + 1) // (revisions + 1) > (revision - 1) * (kills + 1) // (revisions + 1):
                server.kill()  # in the midst of them
                server.start()
            end_round(relay, futures)
        with client_of(server.url) as client:
            assert client.xlen("{clerk}:events") == SESSIONS * revisions
        fed = time.monotonic()
        await_end(paths, revisions)
        print(f"behind the last event by {time.monotonic() - fed:.1f} s")
    return {kind: seen_in(path, revisions) for kind, path in paths.items()}


def await_end(paths: dict[str, Path], revisions: int) -> None:
    """Return when all have seen everything, or nobody has seen more for a while; the caller has the counts."""
    seen, deadline = -1, 0.0
    while seen < len(paths) * SESSIONS * revisions and (seen == -1 or time.monotonic() < deadline):
        counts = [seen_in(path, revisions) for path in paths.values()]
        now = sum(count.updates - count.duplicates for count in counts)
        if now > seen:
            seen, deadline = now, time.monotonic() + 30
        time.sleep(0.05)


Sent = dict[Future[Outcome], tuple[dict[str, Any], str]]


def begin_round(relay: Relay, revision: int) -> Sent:
    """Send the next event of each session."""
    sent: Sent = {}
    for number in range(SESSIONS):
        event = clerk_event(session_id=f"sess_{number}", updated_at=NOW_MS - 1_000_000 + revision)
        message_id = f"msg_{number}_{revision}"
        sent[relay.begin(event, message_id)] = (event, message_id)
    return sent


def end_round(relay: Relay, sent: Sent) -> None:
    """Wait, and send again what was refused, as the sender would, until all is taken."""
    for future, (event, message_id) in sent.items():
        deadline = time.monotonic() + 60
        while True:
            try:
                outcome = future.result(30)
            except StoreUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                future = relay.begin(event, message_id)  # noqa: PLW2901
            else:
                assert outcome.outcome in {"applied", "duplicate"}
                break


def main() -> None:
    events, kills = int(sys.argv[1]), int(sys.argv[2])
    binary = shutil.which("redis-server")
    assert binary is not None
    with tempfile.TemporaryDirectory(prefix="session-relay-killing-") as name:
        directory = Path(name)
        (directory / "redis").mkdir()
        began = time.monotonic()
        with durable_redis(binary, directory / "redis") as server:
            counts = suffer(server, directory, events=events, kills=kills)
        seconds = time.monotonic() - began
    print(f"{events} events, {kills} kills, {seconds:.1f} s")
    for kind, seen in counts.items():
        print(f"{kind}: {seen}")


if __name__ == "__main__":
    main()
