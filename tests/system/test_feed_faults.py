"""What a feed makes of a Redis that goes away, hangs, forgets, or says what it says for a while only."""

import asyncio
import contextlib
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import redis
from clerk_session_feed import AsyncSessionFeed, SessionFeed, SessionUpdate, stream, transport
from clerk_session_feed.errors import CursorLostError
from support.children import started
from support.clock import eventually
from support.constants import EVENTS_KEY, NO_REDIS, NOW_MS
from support.events import clerk_event
from support.feeds import EndedError, Feed, OpenFeed, Reconnects, Updates, block_shortly
from support.killing import SESSIONS, Seen, suffer
from support.network import free_port, unused_port
from support.redis_clients import client_of
from support.redis_servers import durable_redis, frozen, scripted_redis, start_durable_redis
from support.relay import Relay, run_relay

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError

StartRedis = Callable[..., EmbeddedRedis]


@pytest.fixture
def reconnects(monkeypatch: pytest.MonkeyPatch) -> Reconnects:
    return Reconnects(monkeypatch)


@pytest.fixture
def feed(open_feed: OpenFeed, own_redis: EmbeddedRedis) -> Feed:
    """One on a Redis of the test's own."""
    return open_feed(own_redis.url)


@pytest.fixture
def own_intake(own_redis: EmbeddedRedis) -> Iterator[Relay]:
    with run_relay(own_redis.url) as relay:
        yield relay


def begin_sessions(relay: Relay, *numbers: int) -> list[str]:
    """Let each session begin; return the cursors."""
    return [str(relay.take(clerk_event(session_id=f"sess_{number}"), f"msg_{number}").cursor) for number in numbers]


def ids(updates: list[SessionUpdate]) -> list[str]:
    return [update.session.id for update in updates]


def kill(server: EmbeddedRedis) -> None:
    assert server.process is not None
    server.process.kill()
    server.process.wait(10)


# Killed and restarted


def test_every_revision_is_seen_once_and_in_order_while_redis_is_killed(redis_binary: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with durable_redis(redis_binary, tmp_path / "redis") as server:
        seen = suffer(server, tmp_path, events=1500, kills=3)
    everything = Seen(1500, duplicates=0, missed=0, out_of_order=0)
    assert SESSIONS * 30 == 1500
    assert (seen["SessionFeed"], seen["AsyncSessionFeed"]) == (everything, everything)
    assert (seen["consume"].missed, seen["consume"].out_of_order) == (0, 0)


def test_following_goes_on_after_redis_was_restarted(
    open_feed: OpenFeed, start_redis: StartRedis, tmp_path: Path, reconnects: Reconnects
) -> None:
    port = free_port()
    before = start_durable_redis(start_redis, tmp_path / "redis", port)
    updates = open_feed(before.url).follow("0-0", on_reconnect=reconnects)
    with run_relay(before.url) as relay:
        cursors = begin_sessions(relay, 0, 1, 2)
    got = updates.take(2)
    kill(before)
    after = start_durable_redis(start_redis, tmp_path / "redis", port)
    with run_relay(after.url) as relay:
        cursors += begin_sessions(relay, 3, 4)
    got += updates.take(3)
    assert [update.cursor for update in got] == cursors


@pytest.mark.parametrize("how", ["cut", "restart"])
def test_snapshots_that_are_interrupted_come_once_each(
    open_feed: OpenFeed,
    start_redis: StartRedis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reconnects: Reconnects,
    how: str,
) -> None:
    """How far a scan was means nothing to a server that was restarted."""
    monkeypatch.setattr(stream, "BATCH", 4)
    port = free_port()
    server = start_durable_redis(start_redis, tmp_path / "redis", port)
    updates = open_feed(server.url).follow(on_reconnect=reconnects)
    with run_relay(server.url) as relay:
        begin_sessions(relay, *range(40))
    got = updates.take(15)
    if how == "restart":
        kill(server)
        server = start_durable_redis(start_redis, tmp_path / "redis", port)
    else:
        with client_of(server.url) as client:
            cut(client)
    with run_relay(server.url) as relay:
        for number in range(45):
            event = clerk_event(session_id=f"sess_{number}", updated_at=NOW_MS)
            relay.take(event, f"msg_later_{number}")
    last: dict[str, int] = {}
    expected = {f"sess_{number}": 2 if number < 40 else 1 for number in range(45)}
    for update in got:
        last[update.session.id] = update.revision or 0
    while last != expected:
        update = updates.next()
        assert update.session.id not in last if update.is_snapshot else True
        assert update.revision == last.get(update.session.id, 0) + 1 or update.is_snapshot
        last[update.session.id] = update.revision or 0


def test_short_reads_after_redis_was_restarted(open_feed: OpenFeed, start_redis: StartRedis, tmp_path: Path) -> None:
    """The connections that are kept have ended meanwhile: no reason to fail."""
    port = free_port()
    before = start_durable_redis(start_redis, tmp_path / "redis", port)
    with run_relay(before.url) as relay:
        relay.take(clerk_event(expire_at=None), "msg_1")
    feed = open_feed(before.url, redis_timeout=20)
    assert feed.side_by_side(8, feed.feed.is_live, "sess_1") == [True] * 8
    kill(before)
    start_durable_redis(start_redis, tmp_path / "redis", port)
    assert feed.side_by_side(16, feed.feed.is_live, "sess_1") == [True] * 16


# Away


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("get", ["sess_1"]), ("is_live", ["sess_1"]), ("live_sessions", ["user_1"]), ("history", ["sess_1"]), ("now", [])],
)
def test_a_short_read_fails_where_redis_is_away(open_feed: OpenFeed, method: str, arguments: list[str]) -> None:
    feed = open_feed(NO_REDIS)
    with pytest.raises(redis.ConnectionError):
        feed.do(getattr(feed.feed, method), *arguments)


def test_a_short_read_fails_where_redis_hangs(feed: Feed, own_redis: EmbeddedRedis, open_feed: OpenFeed) -> None:
    feed = open_feed(own_redis.url, redis_timeout=1)
    with frozen(own_redis), pytest.raises(redis.TimeoutError):
        feed.get("sess_1")
    assert feed.get("sess_1") is None


def test_following_tells_why_it_tries_again_while_redis_is_away(
    open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconnects = Reconnects(monkeypatch, at_most=3)
    with unused_port() as port:
        feed = open_feed(f"redis://relay:hunter-two@127.0.0.1:{port}/0")
        with pytest.raises(AssertionError):
            feed.follow("0-0", on_reconnect=reconnects).next()
    assert all("refused" in str(error) or "111" in str(error) for error in reconnects.errors)
    assert "hunter" not in str(reconnects.errors)


def test_without_anybody_to_tell_it_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Reconnects(monkeypatch)
    with SessionFeed.from_url(NO_REDIS) as feed:
        updates = Updates(feed.follow())
        waiting = updates.begin()
        eventually(lambda: "trying again" in caplog.text)
        feed.close()
        with pytest.raises(EndedError):
            waiting.result(30)


@pytest.mark.parametrize(
    "reply",
    [
        b"-LOADING Redis is loading the dataset in memory",
        b"-BUSY Redis is busy running a script.",
        b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        b"-MOVED 1234 127.0.0.1:1",
        b"-ASK 1234 127.0.0.1:1",
        b"-TRYAGAIN Multiple keys request during rehashing of slot",
        b"-CLUSTERDOWN The cluster is down",
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        b"-READONLY You can't write against a read only replica.",
        b"-MISCONF Errors writing to the AOF file",
        b"-OOM command not allowed when used memory > 'maxmemory'.",
        b"-NOREPLICAS Not enough good replicas to write.",
    ],
)
def test_iterators_wait_for_what_passes(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_redis(lambda _: reply) as server, SessionFeed.from_url(server.url) as feed:
        for begin in (feed.follow, lambda **named: feed.consume("group", "name", **named)):
            reconnects = Reconnects(monkeypatch, at_most=2)
            with pytest.raises(AssertionError):
                next(begin(on_reconnect=reconnects))
            assert len(reconnects.errors) == 2


@pytest.mark.parametrize("reply", [b"-WRONGPASS no", b"-NOAUTH no", b"-NOPERM no", b"-ERR unknown command"])
def test_what_stays_wrong_is_an_error_at_once(open_feed: OpenFeed, reply: bytes) -> None:
    with scripted_redis(lambda _: reply) as server:
        feed = open_feed(server.url)
        for updates in (feed.follow(), feed.consume(), feed.subscribe()):
            with pytest.raises(redis.RedisError):
                updates.next()


def test_a_stream_that_is_none_is_an_error_at_once(feed: Feed, own_client: Any) -> None:
    own_client.set(EVENTS_KEY, "not a stream")
    for updates in (feed.follow(), feed.follow("0-0"), feed.consume()):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            updates.next()


def test_a_wrong_password_is_an_error_at_once(open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any) -> None:
    own_client.config_set("requirepass", "hunter-two")
    feed = open_feed(own_redis.url.replace("//", "//:hunter-three@"))
    for updates in (feed.follow(), feed.consume(), feed.subscribe()):
        with pytest.raises(redis.AuthenticationError):
            updates.next()
    with pytest.raises(redis.AuthenticationError):
        feed.get("sess_1")


# Cut, hung, demoted


def cut(client: Any) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub", skipme=True)


def demote_and_promote(client: Any) -> None:
    with unused_port() as port:
        client.replicaof("127.0.0.1", port)
        client.replicaof("NO", "ONE")


def follow(feed: Feed, reconnects: Reconnects) -> Updates:
    return feed.follow("0-0", on_reconnect=reconnects)


def consume(feed: Feed, reconnects: Reconnects) -> Updates:
    return feed.consume(after="0-0", on_reconnect=reconnects)


def subscribe(feed: Feed, reconnects: Reconnects) -> Updates:
    return feed.subscribe(on_reconnect=reconnects)


Begin = Callable[[Feed, Reconnects], Updates]


def has_subscribers(client: Any) -> bool:
    ((_, count),) = client.pubsub_numsub("clerk:sessions")
    return bool(count)


def wait_for_one(client: Any, updates: Updates) -> "Future[list[SessionUpdate]]":
    """Ask for an update; return when Redis knows that somebody waits."""
    waiting = updates.begin()

    def waits() -> bool:
        return has_subscribers(client) or client.info("clients")["blocked_clients"] == 1

    eventually(waits)
    return waiting


@pytest.mark.parametrize("begin", [follow, consume])
@pytest.mark.parametrize("disturb", [cut, demote_and_promote])
def test_an_iterator_goes_on_after_a_disturbance(
    feed: Feed, own_intake: Relay, own_client: Any, reconnects: Reconnects, begin: Begin, disturb: Callable[[Any], None]
) -> None:
    waiting = wait_for_one(own_client, begin(feed, reconnects))
    disturb(own_client)
    assert reconnects.first.wait(10)
    eventually(lambda: taken(own_intake))
    assert ids(waiting.result(30)) == ["sess_1"]


def taken(relay: Relay, number: int = 1) -> bool:
    """Tell whether the event got through; the relay's own connection may have been cut, too."""
    with contextlib.suppress(StoreUnavailableError):
        return begin_sessions(relay, number) != []
    return False


def test_a_subscription_goes_on_after_a_cut(
    feed: Feed, own_intake: Relay, own_client: Any, reconnects: Reconnects
) -> None:
    updates = subscribe(feed, reconnects)
    waiting = wait_for_one(own_client, updates)
    cut(own_client)
    assert reconnects.first.wait(10)
    # redis-py subscribes once more before it raises, on a connection that the feed closes: Redis may still count that
    # one when the first event is published. So there are more.
    numbers = itertools.count(1)
    eventually(lambda: taken(own_intake, next(numbers)) and waiting.done())
    assert len(waiting.result()) == 1


def test_a_subscription_goes_on_after_a_restart(
    open_feed: OpenFeed, start_redis: StartRedis, reconnects: Reconnects
) -> None:
    port = free_port()
    before = start_redis(port=port)
    with client_of(before.url) as client:
        waiting = wait_for_one(client, open_feed(before.url).subscribe(on_reconnect=reconnects))
    kill(before)
    after = start_redis(port=port)
    with client_of(after.url) as client, run_relay(after.url) as relay:
        eventually(lambda: has_subscribers(client))
        begin_sessions(relay, 1)
    assert ids(waiting.result(30)) == ["sess_1"]


@pytest.mark.parametrize("begin", [follow, consume, subscribe])
def test_a_connection_on_which_nothing_comes_is_given_up(
    open_feed: OpenFeed,
    own_redis: EmbeddedRedis,
    own_client: Any,
    own_intake: Relay,
    monkeypatch: pytest.MonkeyPatch,
    reconnects: Reconnects,
    begin: Begin,
) -> None:
    block_shortly(monkeypatch)
    feed = open_feed(own_redis.url, redis_timeout=0.3)
    waiting = wait_for_one(own_client, begin(feed, reconnects))
    with frozen(own_redis):
        assert reconnects.first.wait(10)
        assert isinstance(reconnects.errors[0], redis.TimeoutError)
    # Subscribed again, by a connection that lasts: one that was made while Redis hung is given up later.
    numbers = itertools.count()

    def has_got_one() -> bool:
        with contextlib.suppress(StoreUnavailableError):
            begin_sessions(own_intake, next(numbers))
        return waiting.done()

    eventually(has_got_one)
    assert waiting.result(0)


@pytest.mark.parametrize("begin", [follow, consume, subscribe])
def test_closing_does_not_wait_for_a_redis_that_hangs(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, reconnects: Reconnects, begin: Begin
) -> None:
    feed = open_feed(own_redis.url, redis_timeout=60)
    waiting = wait_for_one(own_client, begin(feed, reconnects))
    with frozen(own_redis):
        feed.close()
        with pytest.raises(EndedError):
            waiting.result(30)


def test_closing_does_not_wait_for_the_next_try(open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clerk_session_feed.transport.FIRST_PAUSE", 600.0)
    told = threading.Event()
    feed = open_feed(NO_REDIS)
    waiting = feed.follow(on_reconnect=lambda _: told.set()).begin()
    assert told.wait(10)
    feed.close()
    with pytest.raises(EndedError):
        waiting.result(30)


def test_closing_at_any_moment_is_an_end_and_no_error(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, own_intake: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "BLOCK_MS", 60_000)
    begin_sessions(own_intake, *range(20))
    for moment in range(15):
        feed = open_feed(own_redis.url)
        iterators = [feed.follow(), feed.follow("0-0"), feed.consume(f"group_{moment}"), feed.subscribe()]
        waiting = [updates.begin(1000) for updates in iterators]
        time.sleep(moment / 1000)  # whatever they are at by then
        feed.close()
        for each in waiting:
            with pytest.raises(EndedError):
                each.result(30)
    eventually(lambda: len(own_client.client_list()) == 2)


@pytest.mark.parametrize("begin", ["follow", "consume", "subscribe"])
def test_a_task_that_is_cancelled_ends(
    own_redis: EmbeddedRedis, own_intake: Relay, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    """Whatever it is at. What redis-py awaits on Python 3.11 may swallow it."""
    block_shortly(monkeypatch)
    begin_sessions(own_intake, *range(10))

    async def cancel() -> None:
        async with AsyncSessionFeed.from_url(own_redis.url) as feed:
            arguments = ["group", "name"] if begin == "consume" else []

            async def follow() -> None:
                async for _ in getattr(feed, begin)(*arguments):
                    pass

            for moments in range(60):
                task = asyncio.create_task(follow())
                for _ in range(moments):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task], timeout=10)
                assert task.cancelled()

    asyncio.run(cancel())


PROGRAM = """
import sys
from clerk_session_feed import SessionFeed

with SessionFeed.from_url(sys.argv[1]) as feed:
    print("begun", flush=True)
    for update in getattr(feed, sys.argv[2])(*sys.argv[3:]):
        print(update.session.id, flush=True)
"""


@pytest.mark.parametrize("call", [["follow"], ["subscribe"]])
def test_ctrl_c_ends_a_program(own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path, call: list[str]) -> None:
    with started([sys.executable, "-c", PROGRAM, own_redis.url, *call], tmp_path) as program:
        program.wait_for("begun")
        eventually(lambda: len(own_client.client_list()) == 2)
        program.process.send_signal(signal.SIGINT)
        assert program.end(10) == -signal.SIGINT
    assert program.stderr.rstrip().endswith("KeyboardInterrupt")


# Lost


def forget_everything(client: Any) -> None:
    client.flushall()


def trim_everything(client: Any) -> None:
    client.xtrim(EVENTS_KEY, maxlen=0, approximate=False)


@pytest.mark.parametrize("lose", [forget_everything, trim_everything])
def test_following_a_stream_that_lost_the_cursor(
    feed: Feed, own_intake: Relay, own_client: Any, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Any], None]
) -> None:
    block_shortly(monkeypatch)
    (cursor,) = begin_sessions(own_intake, 1)
    updates = feed.follow("0-0")
    updates.next()
    waiting = wait_for_one(own_client, updates)
    lose(own_client)
    with pytest.raises(CursorLostError, match=cursor) as lost:
        waiting.result(30)
    assert (lost.value.cursor, lost.value.partition) == (cursor, 0)


def test_following_a_stream_that_lost_the_cursor_can_begin_again(
    feed: Feed, own_intake: Relay, own_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_shortly(monkeypatch)
    begin_sessions(own_intake, 1)
    updates = feed.follow("0-0", resync=True)
    updates.next()
    begin_sessions(own_intake, 2)
    own_client.delete(EVENTS_KEY)
    held = updates.take(2)
    assert sorted(ids(held)) == ["sess_1", "sess_2"]
    assert {update.is_snapshot for update in held} == {True}
    waiting = wait_for_one(own_client, updates)
    begin_sessions(own_intake, 3)
    assert ids(waiting.result(30)) == ["sess_3"]


def test_a_consumer_that_was_held_up_is_told_what_it_missed(feed: Feed, own_redis: EmbeddedRedis) -> None:
    """STREAM_MAXLEN is about how far behind one may be."""
    with run_relay(own_redis.url, stream_maxlen=1) as relay:
        (cursor,) = begin_sessions(relay, 0)
        updates = feed.follow("0-0")
        updates.next()
        begin_sessions(relay, *range(1, 250))
        with pytest.raises(CursorLostError, match=cursor):
            updates.next()


def test_a_consumer_that_was_held_up_is_told_nothing_as_long_as_its_entry_is_there(
    feed: Feed, own_intake: Relay, own_client: Any
) -> None:
    begin_sessions(own_intake, 0, 1)
    updates = feed.follow("0-0")
    updates.take(2)
    begin_sessions(own_intake, *range(2, 9))
    own_client.xtrim(EVENTS_KEY, maxlen=8, approximate=False)
    assert ids(updates.take(7)) == [f"sess_{number}" for number in range(2, 9)]


def test_a_consumer_that_was_held_up_can_begin_again(feed: Feed, own_intake: Relay, own_client: Any) -> None:
    begin_sessions(own_intake, 0)
    updates = feed.follow("0-0", resync=True)
    last = {"sess_0": updates.next().revision}
    for number in range(3):
        own_intake.take(clerk_event(session_id="sess_0", updated_at=NOW_MS - 900 + number), f"msg_more_{number}")
    begin_sessions(own_intake, 1, 2)
    own_client.xtrim(EVENTS_KEY, maxlen=1, approximate=False)
    for update in updates.take(3):
        assert update.is_snapshot
        last[update.session.id] = update.revision
    assert last == {"sess_0": 4, "sess_1": 1, "sess_2": 1}
    begin_sessions(own_intake, 3)
    assert ids(updates.take(1)) == ["sess_3"]


def test_a_stream_that_began_and_was_trimmed_meanwhile(feed: Feed, own_intake: Relay, own_client: Any) -> None:
    updates = feed.follow(feed.now())
    begin_sessions(own_intake, 1, 2)
    own_client.xtrim(EVENTS_KEY, maxlen=1, approximate=False)
    with pytest.raises(CursorLostError, match="0-1"):
        updates.next()


def test_a_time_before_what_was_trimmed(feed: Feed, own_intake: Relay, own_client: Any) -> None:
    first, *_ = begin_sessions(own_intake, 1, 2)
    own_client.xtrim(EVENTS_KEY, maxlen=1, approximate=False)
    with pytest.raises(CursorLostError):
        feed.follow(str(int(first.partition("-")[0]) - 1)).next()
    assert ids(feed.follow("0-0").take(1)) == ["sess_2"]


def test_a_redis_that_was_restarted_from_an_older_dump(
    open_feed: OpenFeed, start_redis: StartRedis, tmp_path: Path, reconnects: Reconnects
) -> None:
    port = free_port()
    before = start_redis("--dir", str(tmp_path), port=port)
    with run_relay(before.url) as relay, client_of(before.url) as client:
        begin_sessions(relay, 1)
        client.save()
        _, cursor = begin_sessions(relay, 2, 3)
    feed = open_feed(before.url)
    updates = feed.follow("0-0", on_reconnect=reconnects)
    updates.take(3)
    kill(before)
    after = start_redis("--dir", str(tmp_path), port=port)
    with run_relay(after.url) as relay:
        begin_sessions(relay, 4)
    with pytest.raises(CursorLostError, match=cursor):
        updates.next()
    assert sorted(ids(feed.follow().take(2))) == ["sess_1", "sess_4"]


# Where Redis is
