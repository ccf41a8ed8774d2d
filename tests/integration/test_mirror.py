"""A mirror answers from memory what the feed would, knows how old it is, and answers nothing once it is too old."""

import asyncio
import contextlib
import dataclasses
import math
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, assert_type

import pytest
from clerk_session_feed import (
    AsyncAskingMirror,
    AsyncMirror,
    AsyncSessionFeed,
    FeedClosedError,
    MirrorTooOldError,
    PartitionsError,
    RedisError,
    UnreadableMessageError,
    mirror_reading,
    mirror_table,
    stream,
    transport,
)
from support import mirrors
from support.clock import eventually
from support.constants import DAY_MS, EVENTS_KEY, NO_REDIS, NOW_MS, SESSION_KEY
from support.cutting_proxy import CuttingProxy
from support.events import clerk_event, user_event
from support.feeds import Feed, OpenFeed, Reconnects, refuse
from support.mirrors import mirrored, pass_time, set_clock
from support.network import serving
from support.partitions import fill, take_some
from support.redis_clients import client_of, monitored
from support.redis_servers import frozen
from support.relay import Relay, make_settings, run_relay
from support.topologies import await_sync

from service.dev.embedded import EmbeddedRedis
from service.workers.repartition import repartition

IDS = [f"sess_{number}" for number in range(12)]


def keep_quiet(_: RedisError) -> None:
    pass


@pytest.fixture
def relay_redis(real_redis: EmbeddedRedis) -> EmbeddedRedis:
    """For `client` and `relay`."""
    return real_redis


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of feeds and mirrors shows the frozen time of the events; and they look often, if there is no news."""
    set_clock(monkeypatch, NOW_MS)
    monkeypatch.setattr(transport, "BLOCK_MS", 100)


@pytest.fixture
def reconnects(monkeypatch: pytest.MonkeyPatch) -> Reconnects:
    return Reconnects(monkeypatch)


def asked(feed: Feed, *arguments: Any) -> str:
    status: str = feed.do(feed.feed.status, *arguments)
    return status


def begin_sessions(relay: Relay, *session_ids: str, **data: Any) -> None:
    for session_id in session_ids:
        relay.take(clerk_event(session_id=session_id, **data), f"msg_{session_id}")


def end_session(relay: Relay, session_id: str = "sess_1", **data: Any) -> None:
    relay.take(clerk_event("ended", session_id=session_id, updated_at=NOW_MS, **data), f"msg_{session_id}_end")


STATES: dict[str, tuple[dict[str, Any], str]] = {
    "active": ({}, "live"),
    "active, without an end": ({"expire_at": None}, "live"),
    "pending": ({"status": "pending"}, "ended"),
    "pending, without an end": ({"status": "pending", "expire_at": None}, "ended"),
    "expired": ({"expire_at": NOW_MS}, "ended"),
    "ended": ({"status": "ended"}, "ended"),
    "revoked, without an end": ({"status": "revoked", "expire_at": None}, "ended"),
}


# The same answers as the feed's


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_of_each_state_a_mirror_says_what_the_feed_says(feed: Feed, relay: Relay, state: str, when: str) -> None:
    data, expected = STATES[state]
    if when == "before":
        relay.take(clerk_event(**data), "msg_1")
    with mirrored(feed) as mirror:
        if when == "after":
            relay.take(clerk_event(**data), "msg_1")
            mirror.catch_up()
        assert (mirror.status("sess_1"), asked(feed, "sess_1")) == (expected, expected)
        assert mirror.is_live("sess_1") == (expected == "live")


def test_what_is_not_stored_is_unknown(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, "sess_1")
    with mirrored(feed) as mirror:
        for session_id in ("sess_2", "", "sess_1\n", b"sess_1", 1, None, ["sess_1"], {"a": "b"}):
            assert (mirror.status(session_id), asked(feed, session_id)) == ("unknown", "unknown")


def test_a_session_that_ends_after_all_was_read_is_ended(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, "sess_1")
    with mirrored(feed) as mirror:
        assert mirror.status("sess_1") == "live"
        end_session(relay)
        eventually(lambda: mirror.status("sess_1") == "ended")


def test_a_pending_session_is_live_as_soon_as_it_is_active(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event("pending"), "msg_1")
    with mirrored(feed) as mirror:
        assert (mirror.status("sess_1"), mirror.user_id("sess_1")) == ("ended", "user_1")
        relay.take(clerk_event(updated_at=NOW_MS), "msg_2")
        eventually(lambda: mirror.status("sess_1") == "live")


def test_an_end_that_passes_counts_at_once_and_an_extension_moves_it(
    feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_sessions(relay, "sess_1", expire_at=NOW_MS + 1000)
    with mirrored(feed) as mirror:
        set_clock(monkeypatch, NOW_MS + 999)
        assert (mirror.status("sess_1"), asked(feed, "sess_1")) == ("live", "live")
        set_clock(monkeypatch, NOW_MS + 1000)
        assert (mirror.status("sess_1"), asked(feed, "sess_1")) == ("ended", "ended")
        relay.take(clerk_event(updated_at=NOW_MS, expire_at=NOW_MS + DAY_MS), "msg_2")
        eventually(lambda: mirror.status("sess_1") == "live")


def test_a_clock_that_is_set_back_lets_a_session_live_longer_and_does_not_change_the_age(
    feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the feed does, which looks at the same clock."""
    begin_sessions(relay, "sess_1", expire_at=NOW_MS + 1000)
    with mirrored(feed) as mirror:
        set_clock(monkeypatch, NOW_MS + 3_600_000)
        assert mirror.status("sess_1") == "ended"
        set_clock(monkeypatch, NOW_MS - 3_600_000)
        assert mirror.status("sess_1") == "live"
        assert 0 <= mirror.mirror.age < 3600


def test_open_sessions_are_counted_and_have_a_user(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, "sess_1", "sess_2")
    relay.take(clerk_event("pending", session_id="sess_3", user_id="user_2"), "msg_3")
    relay.take(clerk_event("ended", session_id="sess_4"), "msg_4")
    with mirrored(feed) as mirror:
        assert len(mirror.mirror) == 3
        assert [mirror.user_id(f"sess_{number}") for number in range(1, 6)] == [
            "user_1",
            "user_1",
            "user_2",
            None,
            None,
        ]
        end_session(relay, "sess_1")
        eventually(lambda: len(mirror.mirror) == 2)


def test_when_a_user_is_deleted_all_sessions_end(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, *IDS)
    with mirrored(feed) as mirror:
        relay.take(user_event(), "msg_user")
        eventually(lambda: {mirror.status(each) for each in IDS} == {"ended"})


def test_an_event_that_came_too_late_changes_nothing(feed: Feed, relay: Relay) -> None:
    with mirrored(feed) as mirror:
        relay.take(clerk_event("ended", updated_at=NOW_MS), "msg_1")
        assert relay.take(clerk_event(updated_at=NOW_MS - 5000), "msg_2").outcome == "stale"
        mirror.catch_up()
        assert mirror.status("sess_1") == "ended"


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_end_that_the_relay_leaves_out_of_its_messages_counts(
    feed: Feed, relay_redis: EmbeddedRedis, client: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    with run_relay(relay_redis.url, omit_fields="expire_at") as relay:
        if when == "before":
            begin_sessions(relay, "sess_1", expire_at=NOW_MS + 1000)
        with mirrored(feed) as mirror:
            if when == "after":
                begin_sessions(relay, "sess_1", expire_at=NOW_MS + 1000)
                mirror.catch_up()
            assert mirror.status("sess_1") == "live"
            set_clock(monkeypatch, NOW_MS + 1000)
            assert (mirror.status("sess_1"), asked(feed, "sess_1")) == ("ended", "ended")


def test_what_was_looked_up_about_a_session_is_not_undone_by_what_came_before(
    feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash is newer than the entry on whose account it was read: the entries up to there must not count."""
    states = []
    put = mirror_table.Table.put

    def noted(table: Any, session_id: str, *arguments: Any, **named: Any) -> None:
        put(table, session_id, *arguments, **named)
        states.append("open" if session_id in table.exact else "ended")

    monkeypatch.setattr(stream, "BATCH", 1)
    monkeypatch.setattr(mirror_table.Table, "put", noted)
    settle = mirror_reading.MirrorReading._settle

    async def settle_late(reading: Any, connection: Any, partition: Any) -> None:
        if reading._unsure[0] and len(states) == 1:
            relay.take(clerk_event(expire_at=None, updated_at=NOW_MS - 500), "msg_2")
            end_session(relay, expire_at=None)
        await settle(reading, connection, partition)

    with mirrored(feed) as mirror:
        monkeypatch.setattr(mirror_reading.MirrorReading, "_settle", settle_late)
        monkeypatch.setattr(stream, "BATCH", 2)
        begin_sessions(relay, "sess_1", expire_at=None)
        eventually(lambda: mirror.status("sess_1") == "ended")
        mirror.catch_up()
        assert mirror.status("sess_1") == "ended"
    assert states[:2] == ["open", "ended"]
    assert set(states[2:]) <= {"ended"}


def test_where_the_end_is_not_where_this_version_has_it_the_message_tells(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only `state`, `status`, `live`, `user_id`, `revision` and `cursor` are promised."""
    begin_sessions(relay, "sess_1", expire_at=NOW_MS + 1000)
    begin_sessions(relay, "sess_2", expire_at=None)
    for session_id in ("sess_1", "sess_2"):
        client.hdel(f"{{clerk}}:session:{session_id}", "_expire_at")
    with mirrored(feed) as mirror:
        assert [mirror.status(each) for each in ("sess_1", "sess_2")] == ["live", "live"]
        set_clock(monkeypatch, NOW_MS + 1000)
        assert [mirror.status(each) for each in ("sess_1", "sess_2")] == ["ended", "live"]


def test_a_hash_that_is_no_session_is_an_error(feed: Feed, client: Any) -> None:
    client.hset(SESSION_KEY, "live", "1")
    client.expire(SESSION_KEY, 600)
    with pytest.raises(UnreadableMessageError, match="sess_1"), mirrored(feed):
        pass
    client.delete(SESSION_KEY)


def test_a_message_of_a_later_version_ends_it(feed: Feed, relay: Relay, client: Any) -> None:
    begin_sessions(relay, "sess_1")
    with mirrored(feed, past_max_age="allow") as mirror:
        client.xadd(EVENTS_KEY, {"outcome": "applied", "session_id": "sess_1", "message": '{"schema_version":2}'})
        eventually(lambda: not mirror.mirror.is_ready)
        with pytest.raises(MirrorTooOldError, match="it has ended") as raised:
            mirror.status("sess_1")
        assert isinstance(raised.value.__cause__, UnreadableMessageError)
        client.delete(EVENTS_KEY)


@pytest.mark.parametrize("partitions", [1, 3])
def test_whatever_happens_the_answers_are_the_feeds(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, partitions: int
) -> None:
    """One mirror is there from the beginning, others come later, while events pass."""
    pick = random.Random(partitions)
    feed = open_feed(relay_redis.url, partitions=partitions)
    statuses = ["active", "active", "pending", "ended", "revoked", "abandoned"]
    ends = [NOW_MS - 1, NOW_MS + 1, NOW_MS + DAY_MS, None]
    with run_relay(relay_redis.url, partitions=partitions) as relay, mirrored(feed) as first:
        for turn in range(4):
            later = mirrors.Mirror(feed)
            for number in range(25):
                session = pick.randrange(12)
                event = clerk_event(
                    pick.choice(statuses),
                    session_id=f"sess_{session}",
                    user_id=f"user_{session % 5}",
                    updated_at=NOW_MS - pick.randrange(100_000),
                    expire_at=pick.choice(ends),
                )
                relay.take(event, f"msg_{turn}_{number}")
            later.wait()
            for mirror in (first, later):
                mirror.catch_up()
                assert {each: mirror.status(each) for each in IDS} == {each: asked(feed, each) for each in IDS}
            later.close()


# Partitions


def test_with_partitions_the_user_may_be_given(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> None:
    take_some(relay_redis.url, 3)
    with mirrored(open_feed(relay_redis.url, partitions=3)) as mirror:
        for number in range(20):
            session_id, user_id = f"sess_{number}", f"user_{number}"
            assert mirror.status(session_id) == mirror.status(session_id, user_id) == "live"
            assert mirror.user_id(session_id) == user_id
        assert len(mirror.mirror) == 20
        assert "unknown" in {mirror.status("sess_1", f"user_{number}") for number in range(20)}


@pytest.mark.parametrize("past_max_age", ["raise", "allow", "ask"])
def test_with_another_number_of_partitions_it_says_so(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, past_max_age: str
) -> None:
    take_some(relay_redis.url, 3)
    mirror = mirrors.Mirror(open_feed(relay_redis.url, partitions=2), past_max_age=past_max_age)
    with pytest.raises(PartitionsError, match="PARTITIONS=3"):
        mirror.wait()
    with pytest.raises((MirrorTooOldError, PartitionsError), match="PARTITIONS=3") as raised:
        mirror.status("sess_1")
    assert isinstance(raised.value, PartitionsError) or isinstance(raised.value.__cause__, PartitionsError)


def test_data_that_is_moved_to_other_partitions_ends_it(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, reconnects: Reconnects
) -> None:
    fill(relay_redis.url, 1)
    mirror = mirrors.Mirror(open_feed(relay_redis.url), max_age=0.5, past_max_age="allow", on_reconnect=reconnects)
    mirror.wait()
    repartition(make_settings(relay_redis.url), 3)
    with pytest.raises(MirrorTooOldError, match="PARTITIONS=3"):
        eventually(lambda: mirror.status("sess_1_live") != "live")


# Its age


def test_while_nothing_happens_it_looks_twice_in_max_age(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_relay(own_redis.url) as relay:
        begin_sessions(relay, "sess_1")
    monkeypatch.setattr(transport, "BLOCK_MS", 20_000)
    with mirrored(open_feed(own_redis.url), max_age=0.5) as mirror:
        mirror.catch_up()
        with monitored(own_client) as commands:
            mirror.catch_up()
            mirror.catch_up()
    assert {command.split()[0] for command in commands} == {"XREAD", "XRANGE"}
    assert {"BLOCK 250 " in command for command in commands if command.startswith("XREAD")} == {True}


@pytest.mark.parametrize("partitions", [1, 3])
def test_at_an_empty_stream_it_keeps_young_too(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, partitions: int
) -> None:
    with mirrored(open_feed(relay_redis.url, partitions=partitions), max_age=0.4) as mirror:
        for _ in range(3):
            mirror.catch_up()
        assert mirror.mirror._reading.known_at > -math.inf


def test_a_partition_without_news_keeps_young_beside_a_busy_one(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any
) -> None:
    feed = open_feed(relay_redis.url, partitions=3)
    with run_relay(relay_redis.url, partitions=3) as relay, mirrored(feed, max_age=1.0) as mirror, flooded(relay):
        for _ in range(3):
            mirror.catch_up()


def test_while_events_pass_all_the_time_it_keeps_young(
    feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read finds something new, so no response shows that nothing is behind."""
    monkeypatch.setattr(stream, "BATCH", 20)
    reads: list[int] = []
    read_on = stream._read_on

    async def noted(connection: Any, partition: Any, **options: Any) -> Any:
        take(f"msg_before_{len(reads)}")
        entries = await read_on(connection, partition, **options)
        take(f"msg_after_{len(reads)}")
        reads.append(len(entries))
        return entries

    def take(message_id: str) -> None:
        relay.take(clerk_event(updated_at=NOW_MS + len(reads)), message_id)

    with mirrored(feed, max_age=1000.0) as mirror:
        monkeypatch.setattr(stream, "_read_on", noted)
        relay.take(clerk_event(updated_at=NOW_MS - 5000), "msg_first")
        for _ in range(5):
            mirror.catch_up()
    assert min(reads) > 0


@contextlib.contextmanager
def flooded(relay: Relay) -> Iterator[None]:
    """Let events of one user pass until the block ends."""
    ending = threading.Event()

    def flood() -> None:
        number = 0
        while not ending.is_set():
            relay.take(clerk_event(session_id="sess_busy", updated_at=NOW_MS - 100_000 + number), f"msg_{number}")
            number += 1

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        yield
    finally:
        ending.set()
        flooding.join(30)


def test_sessions_are_refused_in_the_order_in_which_they_ended(feed: Feed, relay: Relay) -> None:
    """Many end while somebody asks, without a lock: whoever sees one as ended sees all before it as ended."""
    begin_sessions(relay, *(f"sess_{number}" for number in range(200)))
    with mirrored(feed) as mirror:

        def end_all() -> None:
            for number in range(200):
                end_session(relay, f"sess_{number}")

        ending = threading.Thread(target=end_all)
        ending.start()
        last = -1
        while last < 199:
            last = next((number for number in reversed(range(200)) if mirror.status(f"sess_{number}") == "ended"), -1)
            assert {mirror.status(f"sess_{number}") for number in range(last + 1)} <= {"ended"}
        ending.join(30)


def test_past_max_age_it_raises(feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_sessions(relay, "sess_1")
    with mirrored(feed) as mirror:
        pass_time(monkeypatch, 5.0)
        for ask in (mirror.status, mirror.is_live, mirror.user_id):
            with pytest.raises(
                MirrorTooOldError, match=r"^The mirror is \d+\.\d s old, and max_age is 5 s: "
            ) as raised:
                ask("sess_1")
            assert raised.value.age >= 5
        monkeypatch.undo()


def test_past_max_age_it_answers_from_memory_if_any_age_is_allowed(
    feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_sessions(relay, "sess_1", expire_at=NOW_MS + 1000)
    with mirrored(feed, past_max_age="allow") as mirror:
        pass_time(monkeypatch, 1e6)
        assert (mirror.status("sess_1"), mirror.user_id("sess_1")) == ("live", "user_1")
        assert mirror.mirror.age > 1e5
        set_clock(monkeypatch, NOW_MS + 1000)
        assert mirror.status("sess_1") == "ended"


def test_past_max_age_it_asks_redis_in_one_round_trip_if_it_may(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_sessions(relay, "sess_1")
    relay.take(clerk_event("ended", session_id="sess_2"), "msg_2")
    asked(feed, "sess_1")  # the connection is there
    with mirrored(feed, past_max_age="ask", max_age=1000.0) as mirror:
        with monitored(client) as commands:
            assert mirror.status("sess_1") == "live"
        assert short_reads(commands) == []
        pass_time(monkeypatch, 1000.0)
        with monitored(client) as commands:
            assert [mirror.status(f"sess_{number}") for number in (1, 2, 3)] == ["live", "ended", "unknown"]
        assert short_reads(commands) == [f"HMGET {{clerk}}:session:sess_{number}" for number in (1, 2, 3)]
        assert [mirror.user_id(f"sess_{number}") for number in (1, 2, 3)] == ["user_1", None, None]
        assert mirror.is_live("sess_1")


def short_reads(commands: list[str]) -> list[str]:
    """Return them without what follows the key; not those by which a mirror follows."""
    return [" ".join(command.split()[:2]) for command in commands if not command.startswith("X")]


def test_before_it_is_ready_it_asks_if_it_may(feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_sessions(relay, "sess_1")
    with held_up(monkeypatch) as reading:
        mirror = mirrors.Mirror(feed, past_max_age="ask")
        assert not mirror.mirror.is_ready
        assert mirror.status("sess_1") == "live"
        reading.may_go_on.set()
        mirror.wait()
        mirror.close()


# Before it is ready, and after the stream has lost its place


@contextlib.contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator["Reading"]:
    """Let mirrors stop in the middle of the snapshots, after the first response, until they may go on."""
    reading = Reading()
    read = mirror_reading.MirrorReading.read

    async def slow(self: Any, connection: Any, *arguments: Any) -> Any:
        result = await read(self, connection, *arguments)
        reading.has_begun.set()
        while not reading.may_go_on.is_set() and not connection.is_closed:
            await connection.pause(0.01)
        return result

    monkeypatch.setattr(mirror_reading.MirrorReading, "read", slow)
    monkeypatch.setattr(stream, "SCANNED", 5)
    try:
        yield reading
    finally:
        reading.may_go_on.set()


@dataclasses.dataclass
class Reading:
    has_begun: threading.Event = dataclasses.field(default_factory=threading.Event)
    may_go_on: threading.Event = dataclasses.field(default_factory=threading.Event)


def test_it_is_ready_only_when_all_is_read(feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_sessions(relay, *IDS)
    with held_up(monkeypatch) as reading:
        mirror = mirrors.Mirror(feed, past_max_age="allow")
        assert reading.has_begun.wait(30)
        with pytest.raises(
            TimeoutError, match=r"^The mirror is not ready: the sessions are still being read, \d+ so far"
        ):
            mirror.wait(0.05)
        with pytest.raises(MirrorTooOldError, match="not ready"):
            mirror.status("sess_1")
        reading.may_go_on.set()
        mirror.wait()
        assert {mirror.status(each) for each in IDS} == {"live"}
        mirror.close()


LOSSES: dict[str, tuple[Callable[[Any], object], str]] = {
    "trimmed": (lambda client: client.xtrim(EVENTS_KEY, 0, approximate=False), "live"),
    "flushed": (lambda client: client.flushall(), "unknown"),
    "stream deleted": (lambda client: client.delete(EVENTS_KEY), "live"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_after_a_loss_all_is_read_again_and_what_was_read_before_is_answered_until_then(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    lose, status = LOSSES[loss]
    begin_sessions(relay, *IDS)
    end_session(relay, "sess_0")
    with mirrored(feed, max_age=1000.0) as mirror, held_up(monkeypatch) as reading:
        relay.take(clerk_event(session_id="sess_new"), "msg_new")
        mirror.catch_up()
        known_at = mirror.mirror._reading.known_at
        lose(client)
        if loss != "flushed":
            client.hdel("{clerk}:session:sess_1", "live")  # as if it had been removed
        relay.take(clerk_event(session_id="sess_later"), "msg_later")
        if loss != "flushed":
            assert reading.has_begun.wait(30)
            for _ in range(20):
                assert mirror.status("sess_1") == "live"
                assert mirror.status("sess_0") == "ended"
            assert mirror.mirror._reading.known_at >= known_at
            pass_time(monkeypatch, 1001)
            with pytest.raises(MirrorTooOldError, match=r"the sessions are again, .* being read, \d+ so far"):
                mirror.status("sess_1")
            pass_time(monkeypatch, 0)
        reading.may_go_on.set()
        eventually(lambda: mirror.status("sess_later") == "live")
        assert mirror.status("sess_1") == "unknown"
        assert mirror.status("sess_2") == status
        assert mirror.status("sess_0") == ("unknown" if loss == "flushed" else "ended")
        if loss != "flushed":
            client.hset("{clerk}:session:sess_1", "live", "1")


def test_sessions_whose_events_are_in_no_stream_any_more_are_read_twice_at_most(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_sessions(relay, *IDS)
    client.delete(EVENTS_KEY)
    begun: list[int] = []
    begin = mirror_reading.MirrorReading.begin

    def noted(reading: Any, partition: stream.Partition) -> None:
        begun.append(partition.number)
        begin(reading, partition)

    monkeypatch.setattr(mirror_reading.MirrorReading, "begin", noted)
    with mirrored(feed) as mirror:
        for _ in range(3):
            mirror.catch_up()
        assert {mirror.status(each) for each in IDS} == {"live"}
        end_session(relay)
        eventually(lambda: mirror.status("sess_1") == "ended")
    assert begun == [0, 0]


def test_what_happens_while_the_snapshots_are_read_is_not_lost(
    feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_sessions(relay, *IDS)
    with held_up(monkeypatch) as reading:
        mirror = mirrors.Mirror(feed)
        assert reading.has_begun.wait(30)
        for session_id in IDS[::2]:
            end_session(relay, session_id)
        reading.may_go_on.set()
        mirror.wait()
        assert {each: mirror.status(each) for each in IDS} == {each: asked(feed, each) for each in IDS}
        mirror.close()


def test_snapshots_of_a_server_that_went_away_do_not_count(
    open_feed: OpenFeed,
    start_redis: Callable[..., EmbeddedRedis],
    monkeypatch: pytest.MonkeyPatch,
    reconnects: Reconnects,
) -> None:
    """The first server had a session that the second, on which the scan begins again, does not know."""
    first, second = start_redis(), start_redis()
    with run_relay(first.url) as relay:
        begin_sessions(relay, *(f"sess_lost_{number}" for number in range(12)))
    with run_relay(second.url) as relay:
        begin_sessions(relay, *IDS)
    with CuttingProxy(first.port, b"") as proxy, serving(proxy), held_up(monkeypatch) as reading:
        mirror = mirrors.Mirror(open_feed(proxy.url), on_reconnect=reconnects)
        assert reading.has_begun.wait(30)
        switch(proxy, first, second)
        reading.may_go_on.set()
        mirror.wait()
        assert {mirror.status(each) for each in IDS} == {"live"}
        assert {mirror.status(f"sess_lost_{number}") for number in range(12)} == {"unknown"}
        mirror.close()


def switch(proxy: CuttingProxy, before: EmbeddedRedis, after: EmbeddedRedis) -> None:
    """Let connections lead to another server from now on."""
    proxy.redis_port = after.port
    with client_of(before.url) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")


def test_what_only_the_former_primary_had_when_it_was_read_counts_no_more(
    open_feed: OpenFeed,
    start_redis: Callable[..., EmbeddedRedis],
    monkeypatch: pytest.MonkeyPatch,
    reconnects: Reconnects,
) -> None:
    """The cursor with which it began is on both servers. The snapshots are of the first, the stream of the second."""
    primary = start_redis("--repl-diskless-sync-delay", "0")
    with run_relay(primary.url) as relay, CuttingProxy(primary.port, b"") as proxy, serving(proxy):
        begin_sessions(relay, *IDS)
        replica = start_redis("--replicaof", "127.0.0.1", str(primary.port))
        await_sync(replica)
        with client_of(replica.url) as client:
            eventually(lambda: client.xlen(EVENTS_KEY) == len(IDS))
            client.replicaof("NO", "ONE")
        read_on, reads = stream._read_on, []

        async def switch_first(*arguments: Any, **options: Any) -> Any:
            reads.append(arguments)
            if len(reads) == 1:
                switch(proxy, primary, replica)
            return await read_on(*arguments, **options)

        monkeypatch.setattr(stream, "_read_on", switch_first)
        with held_up(monkeypatch) as reading:
            mirror = mirrors.Mirror(open_feed(proxy.url), on_reconnect=reconnects)
            assert reading.has_begun.wait(30)
            for session_id in IDS:
                end_session(relay, session_id)
            reading.may_go_on.set()
            mirror.wait()
        assert {mirror.status(each) for each in IDS} == {"live"}
        mirror.close()


def test_what_a_promoted_replica_did_not_get_counts_no_more(
    open_feed: OpenFeed, start_redis: Callable[..., EmbeddedRedis], reconnects: Reconnects
) -> None:
    primary = start_redis("--repl-diskless-sync-delay", "0")
    with run_relay(primary.url) as relay:
        begin_sessions(relay, "sess_1", "sess_2")
        replica = start_redis("--replicaof", "127.0.0.1", str(primary.port))
        await_sync(replica)
        with (
            CuttingProxy(primary.port, b"") as proxy,
            serving(proxy),
            mirrored(open_feed(proxy.url), on_reconnect=reconnects) as mirror,
        ):
            with client_of(replica.url) as client:
                eventually(lambda: client.xlen(EVENTS_KEY) == 2)
                client.replicaof("NO", "ONE")
            end_session(relay, "sess_1")
            begin_sessions(relay, "sess_3")
            eventually(lambda: [mirror.status(f"sess_{number}") for number in (1, 3)] == ["ended", "live"])
            switch(proxy, primary, replica)
            eventually(lambda: [mirror.status(f"sess_{number}") for number in (1, 2, 3)] == ["live", "live", "unknown"])


# Redis away, and the end


def test_while_redis_hangs_it_grows_old_and_says_why(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, reconnects: Reconnects
) -> None:
    with run_relay(own_redis.url) as relay:
        begin_sessions(relay, "sess_1")
        with mirrored(open_feed(own_redis.url, redis_timeout=0.3), max_age=1.0, on_reconnect=reconnects) as mirror:
            with frozen(own_redis):
                assert reconnects.first.wait(30)
                with pytest.raises(MirrorTooOldError, match=r"Redis has been away for \d+\.\d s: "):
                    eventually(lambda: mirror.status("sess_1") != "live")
            eventually(lambda: is_live(mirror, "sess_1"))
            end_session(relay)
            eventually(lambda: not is_live(mirror, "sess_1"))


def is_live(mirror: mirrors.Mirror, session_id: str) -> bool:
    try:
        return mirror.status(session_id) == "live"
    except MirrorTooOldError:
        return False


@pytest.mark.parametrize("past_max_age", ["raise", "allow"])
def test_before_it_is_ready_a_mirror_says_nothing_even_if_any_age_is_allowed(
    open_feed: OpenFeed, past_max_age: str
) -> None:
    """Every session would be unknown, and unknown ones are let in."""
    mirror = mirrors.Mirror(open_feed(NO_REDIS), past_max_age=past_max_age, on_reconnect=keep_quiet)
    it = mirror.mirror
    assert (it.is_ready, it.age, len(it), bool(it)) == (False, math.inf, 0, True)
    for ask in (mirror.status, mirror.is_live, mirror.user_id):
        with pytest.raises(MirrorTooOldError, match="not ready") as raised:
            ask("sess_1")
        assert (raised.value.age, raised.value.max_age) == (math.inf, 5.0)


def test_it_says_since_when_redis_is_away(open_feed: OpenFeed) -> None:
    mirror = mirrors.Mirror(open_feed(NO_REDIS), on_reconnect=keep_quiet)
    eventually(lambda: mirror.mirror._away)
    with pytest.raises(TimeoutError, match=r"not ready: Redis has been away for \d+\.\d s: .*nonexistent"):
        mirror.wait(0.01)


def test_a_closed_mirror_says_so_and_asks_nobody(feed: Feed) -> None:
    for past_max_age in ("raise", "ask", "allow"):
        with mirrored(feed, past_max_age=past_max_age) as mirror:
            pass
        for use in (mirror.wait, lambda: mirror.status("sess_1"), lambda: mirror.user_id("sess_1")):
            with pytest.raises(FeedClosedError, match=r"^The mirror is closed\.$"):
                use()
        assert not mirror.mirror.is_ready


def test_it_ends_with_the_feed(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> None:
    feed = open_feed(relay_redis.url)
    with mirrored(feed) as mirror:
        feed.close()
        with pytest.raises(FeedClosedError):
            eventually(lambda: mirror.status("sess_1") != "unknown")


def test_closing_it_leaves_the_feed_open(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, "sess_1")
    with mirrored(feed):
        pass
    assert asked(feed, "sess_1") == "live"


def test_what_ended_it_is_raised(open_feed: OpenFeed, caplog: pytest.LogCaptureFixture) -> None:
    mirror = mirrors.Mirror(open_feed(NO_REDIS), past_max_age="allow", on_reconnect=refuse)
    with pytest.raises(RedisError):
        mirror.wait()
    with pytest.raises(MirrorTooOldError, match=r"it has ended, since .*nonexistent") as raised:
        mirror.status("sess_1")
    assert isinstance(raised.value.__cause__, RedisError)
    assert not mirror.mirror.is_ready
    (said,) = caplog.messages
    assert said.startswith("The mirror has ended: ")


def test_a_mirror_that_has_ended_still_asks_if_it_may(feed: Feed, relay: Relay, client: Any) -> None:
    begin_sessions(relay, "sess_1")
    with mirrored(feed, past_max_age="ask") as mirror:
        client.xadd(EVENTS_KEY, {"outcome": "applied", "session_id": "sess_1", "message": "no JSON"})
        eventually(lambda: not mirror.mirror.is_ready)
        assert mirror.status("sess_1") == "live"
        client.delete(EVENTS_KEY)


def test_in_asyncio_a_mirror_that_is_left_open_ends_with_the_loop() -> None:
    async def use() -> Any:
        mirror = AsyncSessionFeed.from_url(NO_REDIS).mirror(on_reconnect=keep_quiet)
        with pytest.raises(TimeoutError):
            await mirror.wait_until_ready(0.01)
        return mirror

    mirror = asyncio.run(use())
    with pytest.raises(FeedClosedError):
        mirror.status("sess_1")


def test_in_asyncio_only_what_may_ask_is_awaited() -> None:
    async def use() -> None:
        async with AsyncSessionFeed.from_url(NO_REDIS) as feed:
            plain = assert_type(feed.mirror(on_reconnect=keep_quiet), AsyncMirror)
            asking = assert_type(feed.mirror(past_max_age="ask", on_reconnect=keep_quiet), AsyncAskingMirror)
            with pytest.raises(MirrorTooOldError):
                plain.status("sess_1")
            for ask in (asking.status, asking.is_live, asking.user_id):
                with pytest.raises(RedisError):
                    await ask("sess_1")

    asyncio.run(use())
