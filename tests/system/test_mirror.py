"""What a mirror makes of servers that are killed, of a failover, of a cluster, and of a process that forks."""

import contextlib
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from clerk_session_feed import MirrorTooOldError, RedisError
from support.children import started
from support.clock import eventually
from support.constants import NOW_MS
from support.events import clerk_event
from support.feeds import Feed, OpenFeed, Reconnects
from support.killing import begin_round, end_round
from support.mirrors import Mirror, mirrored, set_clock
from support.redis_servers import DurableRedis, durable_redis, frozen
from support.relay import Relay, run_relay
from support.topologies import StartRedis, cluster_of, run_sentinels

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError

KILLS: Final = 3
"""Each takes three seconds. With 20, the test passes as well."""
SESSIONS: Final = [f"sess_{number}" for number in range(50)]

pytestmark = pytest.mark.real_redis


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, NOW_MS)


@pytest.fixture
def reconnects(monkeypatch: pytest.MonkeyPatch) -> Reconnects:
    return Reconnects(monkeypatch, at_most=100_000)


def told(mirror: Mirror, session_id: str) -> str:
    """Return what it says; `too old` if it says nothing."""
    try:
        return mirror.status(session_id)
    except MirrorTooOldError:
        return "too old"


def refusal(mirror: Mirror) -> str:
    with pytest.raises(MirrorTooOldError) as raised:
        mirror.status("sess_1")
    return str(raised.value)


def agrees(feed: Feed, mirror: Mirror, session_ids: list[str]) -> bool:
    try:
        return all(told(mirror, each) == feed.do(feed.feed.status, each) for each in session_ids)
    except RedisError:
        return False


def test_whatever_redis_is_told_while_it_is_killed_the_mirror_knows(
    open_feed: OpenFeed, redis_binary: str, tmp_path: Path, reconnects: Reconnects
) -> None:
    """After each restart some sessions end, of which it says `live` only until it is too old, or has heard of it."""
    (tmp_path / "redis").mkdir()
    with (
        durable_redis(redis_binary, tmp_path / "redis") as server,
        run_relay(server.url) as relay,
        mirrored(open_feed(server.url), max_age=1.0, on_reconnect=reconnects) as mirror,
    ):
        feed = open_feed(server.url)
        for kill in range(KILLS):
            sent = begin_round(relay, kill + 1)
            server.kill()  # in the midst of them
            eventually(lambda: told(mirror, "sess_0") == "too old")
            server.start()
            end_round(relay, sent)
            ended = f"sess_ended_{kill}"
            take(relay, clerk_event(session_id=ended), f"msg_{ended}")
            take(relay, clerk_event("ended", session_id=ended), f"msg_{ended}_2")
            eventually(lambda: agrees(feed, mirror, [*SESSIONS, ended]))  # noqa: B023
        assert {told(mirror, f"sess_ended_{kill}") for kill in range(KILLS)} == {"ended"}
        assert {told(mirror, each) for each in SESSIONS} == {"live"}
    assert len(reconnects.errors) >= KILLS


def take(relay: Relay, event: Any, message_id: str) -> None:
    """Deliver, and again until Redis has it, as the sender does."""

    def is_taken() -> bool:
        with contextlib.suppress(StoreUnavailableError):
            return bool(relay.take(event, message_id))
        return False

    eventually(is_taken)


def test_a_redis_that_comes_back_empty_is_read_again(
    open_feed: OpenFeed, redis_binary: str, tmp_path: Path, reconnects: Reconnects
) -> None:
    (tmp_path / "redis").mkdir()
    with durable_redis(redis_binary, tmp_path / "redis") as server, run_relay(server.url) as relay:
        take(relay, clerk_event(), "msg_1")
        with mirrored(open_feed(server.url), on_reconnect=reconnects) as mirror:
            assert mirror.status("sess_1") == "live"
            _restart_empty(server, tmp_path / "redis")
            eventually(lambda: told(mirror, "sess_1") == "unknown")
            take(relay, clerk_event(session_id="sess_2"), "msg_2")
            eventually(lambda: told(mirror, "sess_2") == "live")


def _restart_empty(server: DurableRedis, directory: Path) -> None:
    server.kill()
    for path in directory.rglob("*"):
        if path.is_file():
            path.unlink()
    server.start()


def test_after_a_failover_it_follows_the_new_primary(
    open_feed: OpenFeed, redis_binary: str, start_redis: StartRedis, reconnects: Reconnects
) -> None:
    with (
        run_sentinels(redis_binary, start_redis) as sentinels,
        run_relay(sentinels.url, redis_min_replicas=1) as relay,
        mirrored(open_feed(sentinels.url), on_reconnect=reconnects) as mirror,
    ):
        take(relay, clerk_event(), "msg_1")
        eventually(lambda: told(mirror, "sess_1") == "live")
        first = sentinels.primary()
        assert first is not None
        assert first.process is not None
        first.process.kill()
        take(relay, clerk_event("ended"), "msg_2")
        eventually(lambda: told(mirror, "sess_1") == "ended")


def test_on_a_cluster_it_is_as_old_as_its_oldest_partition(
    open_feed: OpenFeed, redis_binary: str, reconnects: Reconnects
) -> None:
    with cluster_of(redis_binary, replicas=0) as cluster, run_relay(cluster.url, partitions=6) as relay:
        for number in range(12):
            take(relay, clerk_event(session_id=f"sess_{number}", user_id=f"user_{number}"), f"msg_{number}")
        feed = open_feed(cluster.url, partitions=6)
        with mirrored(feed, max_age=2.0, on_reconnect=reconnects) as mirror:
            assert agrees(feed, mirror, SESSIONS[:12])
            take(relay, clerk_event("ended", session_id="sess_7", user_id="user_7"), "msg_end")
            eventually(lambda: told(mirror, "sess_7") == "ended")
            with frozen(cluster.shards[1][0]):
                # Also of sessions on the other nodes: nobody knows where a session is.
                eventually(lambda: {told(mirror, each) for each in SESSIONS[:12]} == {"too old"})
                eventually(lambda: "Redis has been away for" in refusal(mirror))
            eventually(lambda: agrees(feed, mirror, SESSIONS[:12]))


FORKING: Final = """
import os, sys, time
from clerk_session_feed import MirrorTooOldError, SessionFeed

def refusal(mirror):
    while True:
        try:
            mirror.status("sess_1")
        except MirrorTooOldError as error:
            return str(error)
        time.sleep(0.01)

def unready(mirror):
    try:
        mirror.wait_until_ready()
    except TimeoutError as error:
        return str(error)

def answer(mirror):
    while True:
        try:
            return mirror.status("sess_1")
        except MirrorTooOldError:
            time.sleep(0.01)

with SessionFeed.from_url(sys.argv[1]) as feed:
    mirror = feed.mirror(max_age=1.0)
    mirror.wait_until_ready(30)
    if os.fork() == 0:
        print("child:", refusal(mirror), flush=True)
        print("ready:", mirror.is_ready, unready(mirror), flush=True)
        with feed.mirror() as own:
            own.wait_until_ready(30)
            print("own:", answer(own), flush=True)
        os._exit(0)
    os.wait()
    print("parent:", answer(mirror), flush=True)
"""


def test_in_a_forked_process_a_mirror_grows_old_and_says_why(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    with run_relay(own_redis.url) as relay:
        take(relay, clerk_event(expire_at=None), "msg_1")
    with started([sys.executable, "-c", FORKING, own_redis.url], tmp_path) as program:
        assert program.end() == 0, program.stderr
        child, ready, own, parent = program.stdout.splitlines()
    why = "this process was forked from the one that follows: make a mirror in each process."
    assert child.startswith("child: The mirror is ")
    assert child.endswith(why)
    assert ready == f"ready: False The mirror is not ready: {why}"
    assert (own, parent) == ("own: live", "parent: live")
