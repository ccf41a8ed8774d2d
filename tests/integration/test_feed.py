"""What a feed reads: states, the stream, the channel. docs/contract.md, sections 4 and 5."""

import asyncio
import gc
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from clerk_session_feed import (
    AsyncSessionFeed,
    CursorLostError,
    EventWithRequest,
    FeedClosedError,
    HttpRequest,
    SessionFeed,
    SessionUpdate,
    UnreadableMessageError,
    stream,
    transport,
)
from clerk_session_feed.keys import partition_of
from clerk_session_feed.transport import as_dict
from support.clock import eventually
from support.constants import DAY_MS, EVENTS_KEY, NOW_MS, ROOT, SESSION_KEY, USER_KEY
from support.events import clerk_event
from support.feeds import PATIENCE, EndedError, Feed, OpenFeed, Updates, block_shortly
from support.redis_clients import client_of, counts_entries, monitored, subscribed
from support.redis_servers import scripted_redis
from support.relay import Relay, run_relay

from service.dev.embedded import EmbeddedRedis


@pytest.fixture
def relay_redis(real_redis: EmbeddedRedis) -> EmbeddedRedis:
    """For `client` and `relay`."""
    return real_redis


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed's clock shows the frozen time of the events."""
    set_clock(monkeypatch, NOW_MS)


def set_clock(monkeypatch: pytest.MonkeyPatch, now_ms: int) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: now_ms * 1_000_000)


def take_several(relay: Relay, *session_ids: str) -> list[str]:
    """Let each session begin; return the cursors."""
    return [str(relay.take(clerk_event(session_id=each), f"msg_{each}").cursor) for each in session_ids]


def sessions(updates: list[SessionUpdate]) -> list[str]:
    return [update.session.id for update in updates]


# The state of a session


def test_the_state_of_a_session_is_what_was_published_last(feed: Feed, relay: Relay, client: Any) -> None:
    with subscribed(client, "clerk:sessions") as subscriber:
        relay.take(clerk_event(), "msg_1")
        relay.take(clerk_event("ended", updated_at=NOW_MS), "msg_2")
        _, (_, last) = subscriber.rest()
    assert feed.state().json == last.encode()


def test_an_update_has_every_field_of_its_message(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event(), "msg_1")
    actor = {"sub": "user_boss", "big": 10**200, "nested": [{"deep": [1, None]}]}
    outcome = relay.take(clerk_event("ended", updated_at=NOW_MS, actor=actor), "msg_2")
    update = feed.state()
    assert (update.outcome, update.revision, update.previous_status) == ("applied", 2, "active")
    assert (update.cursor, update.position) == (outcome.cursor, outcome.cursor)
    assert (update.partition, update.is_snapshot) == (0, False)
    assert (update.event.id, update.event.type, update.event.source) == ("msg_2", "session.ended", "clerk")
    assert update.event.occurred_at == update.session.updated_at == NOW_MS
    assert (update.session.status, update.session.live, update.is_live) == ("ended", False, False)
    assert update.session.actor == actor
    assert update.session.latest_activity is not None
    assert update.session.latest_activity.is_mobile is False
    held = json.loads(update.json)["session"]
    assert {name: held[name] for name in held if isinstance(held[name], str | int | None)} == {
        name: getattr(update.session, name) for name in held if isinstance(held[name], str | int | None)
    }


def test_tasks_are_typed(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event("pending", tasks=[{"key": "choose-organization"}]), "msg_1")
    assert [task.key for task in feed.state().session.tasks] == ["choose-organization"]


def test_a_session_that_is_not_held_has_no_state(feed: Feed) -> None:
    assert feed.get("sess_1") is None


def test_a_late_event_leaves_the_state_as_it_is(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event("ended"), "msg_1")
    before = feed.get("sess_1")
    assert relay.take(clerk_event(), "msg_2").outcome == "stale"
    assert feed.get("sess_1") == before


def test_where_the_users_request_came_from(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> None:
    event = clerk_event() | {"event_attributes": {"http_request": {"client_ip": "192.0.2.1", "user_agent": "UA"}}}
    with run_relay(relay_redis.url, publish_http_request=True) as relay:
        relay.take(event, "msg_1")
    feed = open_feed(relay_redis.url)
    for update in (feed.state(), feed.follow("0-0").next()):
        assert isinstance(update.event, EventWithRequest)
        assert update.event.http_request == HttpRequest(client_ip="192.0.2.1", user_agent="UA")


def test_what_a_later_relay_adds_is_passed_over(feed: Feed, relay: Relay, client: Any) -> None:
    """Adding a key is no new version of the schema."""
    relay.take(clerk_event(), "msg_1")
    expected = feed.state().session
    message = json.loads(client.hget(SESSION_KEY, "state"))
    for part in (message, message["event"], message["session"], message["session"]["latest_activity"]):
        part["of_tomorrow"] = {"any": ["thing"]}
    client.hset(SESSION_KEY, "state", json.dumps(message))
    client.xadd(EVENTS_KEY, entry_of(message | {"cursor": None}) | {"of_tomorrow": "1"})
    assert feed.state().session == expected
    assert feed.follow("0-0").take(2)[1].session == expected
    client.flushall()  # `client` looks whether what is left keeps to the schema


def entry_of(message: object) -> dict[str, str]:
    text = message if isinstance(message, str) else json.dumps(message)
    return {"outcome": "applied", "session_id": "sess_1", "user_id": "user_1", "message": text}


def of_another_version(message: dict[str, Any]) -> object:
    return message | {"schema_version": 2}


def without_a_session(message: dict[str, Any]) -> object:
    return {name: value for name, value in message.items() if name != "session"}


def garbage(_: object) -> object:
    return "\x00{"


def empty(_: object) -> object:
    return ""


@pytest.mark.parametrize("spoil", [of_another_version, without_a_session, garbage, empty])
def test_what_is_no_message_is_an_error_that_names_it(
    feed: Feed, relay: Relay, client: Any, spoil: Callable[[dict[str, Any]], object]
) -> None:
    relay.take(clerk_event(), "msg_1")
    state = json.loads(client.hget(SESSION_KEY, "state"))
    entry = client.xadd(EVENTS_KEY, entry_of(spoil(state | {"cursor": None})))
    client.hset(SESSION_KEY, "state", entry_of(spoil(state))["message"])
    updates = feed.follow("0-0")
    updates.next()
    with pytest.raises(UnreadableMessageError, match=re.escape(f"{EVENTS_KEY} {entry}")):
        updates.next()
    with pytest.raises(UnreadableMessageError):
        feed.get("sess_1")
    with pytest.raises(UnreadableMessageError, match=re.escape(SESSION_KEY)):
        feed.follow().next()
    client.flushall()


# Whether a session is live


def status_of(feed: Feed, *arguments: str) -> str:
    """Return what `status` tells, with which `is_live` agrees."""
    status: str = feed.do(feed.feed.status, *arguments)
    assert feed.is_live(*arguments) is (status == "live")
    return status


def test_a_session_is_live_until_it_ends(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event(), "msg_1")
    assert status_of(feed, "sess_1") == "live"
    relay.take(clerk_event("revoked", updated_at=NOW_MS), "msg_2")
    assert status_of(feed, "sess_1") == "ended"


@pytest.mark.parametrize(("past_the_end_ms", "expected"), [(-1, "live"), (0, "ended"), (1, "ended")])
@pytest.mark.parametrize("omitted", ["", "expire_at"])
def test_a_session_is_live_until_it_expires_though_nobody_has_told_so(
    open_feed: OpenFeed,
    relay_redis: EmbeddedRedis,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    past_the_end_ms: int,
    expected: str,
    omitted: str,
) -> None:
    with run_relay(relay_redis.url, omit_fields=omitted) as relay:
        relay.take(clerk_event(expire_at=NOW_MS + DAY_MS), "msg_1")
    set_clock(monkeypatch, NOW_MS + DAY_MS + past_the_end_ms)
    feed = open_feed(relay_redis.url)
    assert status_of(feed, "sess_1") == expected
    assert feed.live_ids() == (["sess_1"] if expected == "live" else [])
    if not omitted:
        assert feed.state().is_live is (expected == "live")


def test_a_session_without_an_end_is_live(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event(expire_at=None), "msg_1")
    assert status_of(feed, "sess_1") == "live"


def test_a_session_that_is_pending_counts_as_ended(feed: Feed, relay: Relay) -> None:
    """Its user is not let in before the tasks are done."""
    relay.take(clerk_event("pending"), "msg_1")
    assert status_of(feed, "sess_1") == "ended"


def test_a_session_that_is_not_stored_is_unknown(feed: Feed, relay: Relay) -> None:
    take_several(relay, "sess_other")
    assert status_of(feed, "sess_1") == "unknown"


NO_IDS = ["", "\ud800", "\x00", "sess_1\n", "sess 1", "s" * 129, None, 17]
"""What the claim `sid` of a token could be, but no id of a session is."""


@pytest.mark.parametrize("text", NO_IDS, ids=repr)
def test_what_is_no_id_is_unknown(feed: Feed, text: Any) -> None:
    assert status_of(feed, text) == "unknown"
    assert feed.get(text) is None
    assert feed.history(text) == []


@pytest.mark.parametrize("text", [each for each in NO_IDS if isinstance(each, str)], ids=repr)
def test_what_is_no_id_of_a_user_has_no_sessions(spread: Feed, text: str) -> None:
    assert spread.live_ids(text) == []
    assert status_of(spread, "sess_unknown", text) == "unknown"


def test_whether_a_session_is_live_needs_nothing_but_the_state(feed: Feed, relay: Relay, client: Any) -> None:
    """docs/contract.md, section 5: fields that begin with `_` may be others in another version."""
    relay.take(clerk_event(), "msg_1")
    stored = client.hgetall(SESSION_KEY)
    client.hdel(SESSION_KEY, *(name for name in stored if name.startswith("_")))
    assert status_of(feed, "sess_1") == "live"
    client.hset(SESSION_KEY, "state", stored["state"].replace('"expire_at":', '"expire_at":1,"was":'))
    assert status_of(feed, "sess_1") == "ended"
    client.hset(SESSION_KEY, mapping=stored)


def test_a_session_that_is_forgotten_between_two_reads_is_unknown(open_feed: OpenFeed) -> None:
    replies = {b"live": b"*2\r\n$1\r\n1\r\n$-1", b"state": b"*1\r\n$-1", b"partitions": b"*1\r\n$-1"}
    with scripted_redis(lambda words: replies.get(words[2]) if words[0] == b"HMGET" else None) as server:
        feed = open_feed(server.url)
        assert feed.do(feed.feed.status, "sess_1") == "unknown"


@pytest.mark.parametrize("method", ["status", "is_live"])
def test_whether_a_session_is_live_costs_one_command(feed: Feed, relay: Relay, client: Any, method: str) -> None:
    relay.take(clerk_event(), "msg_1")
    feed.is_live("sess_1")
    with monitored(client) as commands:
        feed.do(getattr(feed.feed, method), "sess_1")
    assert commands == [f"HMGET {SESSION_KEY} live _expire_at"]


PARTITIONS = 4


@pytest.fixture
def spread(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> Feed:
    """A feed of several partitions, in which each of eight users has a session: `sess_0` of `user_0`, and so on."""
    with run_relay(relay_redis.url, partitions=PARTITIONS) as relay:
        for number in range(8):
            relay.take(clerk_event(session_id=f"sess_{number}", user_id=f"user_{number}"), f"msg_{number}")
        relay.take(clerk_event("ended", session_id="sess_0", user_id="user_0", updated_at=NOW_MS), "msg_end")
    assert {partition_of(f"user_{number}", PARTITIONS) for number in range(8)} == {*range(PARTITIONS)}
    return open_feed(relay_redis.url, partitions=PARTITIONS)


def test_a_session_is_found_in_any_partition(spread: Feed) -> None:
    expected = {"sess_0": "ended", "sess_unknown": "unknown"} | {f"sess_{number}": "live" for number in range(1, 8)}
    assert {each: status_of(spread, each) for each in expected} == expected
    for number in range(8):
        assert spread.state(f"sess_{number}").session.user_id == f"user_{number}"


def test_who_knows_the_user_asks_one_partition(spread: Feed, client: Any) -> None:
    assert status_of(spread, "sess_1", "user_1") == "live"
    with monitored(client) as commands:
        spread.do(spread.feed.status, "sess_1", "user_1")
    prefix = f"{{clerk:{partition_of('user_1', PARTITIONS)}}}"
    assert commands == [f"HMGET {prefix}:session:sess_1 live _expire_at"]


def round_trips(client: Any, call: Callable[[], object]) -> int:
    """Return how often Redis read from its clients meanwhile, but for this one."""
    before = int(client.info("stats")["total_reads_processed"])
    call()
    return int(client.info("stats")["total_reads_processed"]) - before - 1


@pytest.mark.parametrize("method", ["status", "is_live", "get"])
@pytest.mark.parametrize("session_id", ["sess_0", "sess_1", "sess_unknown"])
def test_all_partitions_are_asked_in_one_round_trip(spread: Feed, client: Any, method: str, session_id: str) -> None:
    spread.get("sess_1")  # connects
    read = getattr(spread.feed, method)
    assert round_trips(client, lambda: spread.do(read, session_id)) == 1
    with monitored(client) as commands:
        spread.do(read, session_id)
    assert [command.split()[0] for command in commands] == ["HMGET"] * PARTITIONS


# A user's live sessions


def test_a_session_that_ends_while_it_is_read_is_not_among_the_live_ones(feed: Feed, relay: Relay, client: Any) -> None:
    relay.take(clerk_event(), "msg_1")
    relay.take(clerk_event("ended", updated_at=NOW_MS), "msg_2")
    client.zadd(USER_KEY, {"sess_1": "+inf"})  # as it was when the first of the two reads saw it
    assert feed.live_ids() == []
    client.delete(USER_KEY)


def test_live_sessions_are_those_of_the_user(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event(session_id="sess_1"), "msg_1")
    relay.take(clerk_event(session_id="sess_2", user_id="user_2"), "msg_2")
    assert feed.live_ids() == ["sess_1"]


def test_a_user_without_sessions_has_no_live_ones(feed: Feed) -> None:
    assert feed.live_ids() == []


@pytest.mark.parametrize("status", ["pending", "ended"])
def test_a_session_that_is_not_active_is_not_among_them(status: str, feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event(status), "msg_1")
    assert feed.live_ids() == []


def test_the_longest_lived_session_comes_last(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event(session_id="sess_for_ever", expire_at=None), "msg_1")
    relay.take(clerk_event(session_id="sess_long", expire_at=NOW_MS + 2 * DAY_MS), "msg_2")
    relay.take(clerk_event(session_id="sess_short", expire_at=NOW_MS + DAY_MS), "msg_3")
    assert feed.live_ids() == ["sess_short", "sess_long", "sess_for_ever"]


def test_an_id_whose_session_is_gone_is_left_out(feed: Feed, relay: Relay, client: Any) -> None:
    take_several(relay, "sess_1", "sess_2")
    client.delete(SESSION_KEY)
    assert client.zcard(USER_KEY) == 2
    assert feed.live_ids() == ["sess_2"]


# What is still known of a session


def test_the_history_of_a_session_has_its_late_events_too(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event("ended"), "msg_1")
    relay.take(clerk_event("ended", session_id="sess_2"), "msg_other")
    late = relay.take(clerk_event(), "msg_2")
    first, second = feed.history("sess_1")
    assert (first.outcome, first.event.id, first.revision) == ("applied", "msg_1", 1)
    assert (second.outcome, second.event.id, second.revision, second.cursor) == (*("stale", "msg_2", None), late.cursor)


def test_the_history_goes_on_past_what_one_read_returns(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clerk_session_feed.reads.BATCH", 2)
    for number in range(5):
        relay.take(clerk_event(updated_at=NOW_MS - 100 + number), f"msg_{number}")
    assert [update.revision for update in feed.history("sess_1")] == [1, 2, 3, 4, 5]


# The stream


def test_an_update_is_the_message_published_with_its_cursor(feed: Feed, relay: Relay, client: Any) -> None:
    with subscribed(client, "clerk:sessions") as subscriber:
        outcome = relay.take(clerk_event(), "msg_1")
        ((_, published),) = subscriber.rest()
    update = feed.follow("0-0").next()
    assert (update.outcome, update.cursor, update.position) == ("applied", outcome.cursor, outcome.cursor)
    assert update.json == published.encode()


@pytest.mark.parametrize(("stale", "expected"), [(False, ["msg_1", "msg_3"]), (True, ["msg_1", "msg_2", "msg_3"])])
def test_late_events_are_left_out_unless_asked_for(feed: Feed, relay: Relay, stale: bool, expected: list[str]) -> None:
    relay.take(clerk_event("ended"), "msg_1")
    relay.take(clerk_event(), "msg_2")
    relay.take(clerk_event("ended", session_id="sess_2"), "msg_3")
    updates = feed.follow("0-0", stale=stale).take(len(expected))
    assert [update.event.id for update in updates] == expected
    assert [update.outcome for update in updates] == [
        "stale" if event_id == "msg_2" else "applied" for event_id in expected
    ]


def test_a_duplicate_is_no_update(feed: Feed, relay: Relay, client: Any) -> None:
    for message_id in ("msg_1", "msg_1", "msg_2"):
        relay.take(clerk_event(), message_id)
    assert [update.event.id for update in feed.follow("0-0").take(2)] == ["msg_1", "msg_2"]
    assert client.xlen(EVENTS_KEY) == 2


def test_following_begins_after_the_cursor(feed: Feed, relay: Relay) -> None:
    cursors = take_several(relay, "sess_0", "sess_1", "sess_2")
    assert [update.cursor for update in feed.follow(cursors[0]).take(2)] == cursors[1:]
    assert [update.cursor for update in feed.follow({0: cursors[0]}).take(2)] == cursors[1:]


def server_ms(client: Any) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


def test_following_begins_after_a_cursor_that_is_only_a_time(feed: Feed, relay: Relay, client: Any) -> None:
    first, second = take_several(relay, "sess_1", "sess_2")
    after = feed.follow(str(int(first.partition("-")[0]) - 1))
    if counts_entries(client):
        assert [update.cursor for update in after.take(2)] == [first, second]
    else:
        with pytest.raises(CursorLostError):  # others may have been there before
            after.next()
    now_ms = int(second.partition("-")[0]) + 1
    eventually(lambda: server_ms(client) > now_ms)
    later = feed.follow(str(now_ms)).begin()
    await_waiting(client)
    third = relay.take(clerk_event(session_id="sess_3"), "msg_3").cursor
    assert [update.cursor for update in later.result(30)] == [third]


@pytest.mark.parametrize("held", [0, 2], ids=["nothing is there", "what is there is left out"])
def test_following_from_now_on(feed: Feed, relay: Relay, client: Any, held: int) -> None:
    take_several(relay, *(f"sess_{number}" for number in range(held)))
    updates = feed.follow(feed.now())
    waiting = feed.follow(feed.now()).begin(2)
    await_waiting(client)
    later = take_several(relay, "sess_later", "sess_last")
    assert [update.cursor for update in waiting.result(30)] == later
    if held or counts_entries(client):
        assert [update.cursor for update in updates.take(2)] == later
    else:
        with pytest.raises(CursorLostError):  # others may have been there before
            updates.next()


def test_a_cursor_that_no_entry_has_is_lost(feed: Feed, relay: Relay) -> None:
    """Redis may have been restarted with an older dump: then others are missing, too."""
    (cursor,) = take_several(relay, "sess_1")
    of_another_stream = f"{int(cursor.partition('-')[0]) - 1}-7"
    with pytest.raises(CursorLostError, match=of_another_stream) as lost:
        feed.follow(of_another_stream).next()
    assert (lost.value.cursor, lost.value.partition) == (of_another_stream, 0)


def test_following_goes_on_past_what_one_read_returns(feed: Feed, relay: Relay, client: Any) -> None:
    relay.take(clerk_event(), "msg_1")
    ((_, entry),) = client.xrange(EVENTS_KEY)
    pipeline = client.pipeline(transaction=False)
    for _ in range(1200):
        pipeline.xadd(EVENTS_KEY, entry)
    pipeline.execute()
    cursors = [update.cursor for update in feed.follow("0-0").take(1201)]
    assert cursors == [cursor for cursor, _ in client.xrange(EVENTS_KEY)]


def await_waiting(client: Any, count: int = 1) -> None:
    eventually(lambda: client.info("clients")["blocked_clients"] == count)


def test_following_waits_for_what_comes_later(feed: Feed, relay: Relay, client: Any) -> None:
    before = relay.take(clerk_event(), "msg_1")
    later = feed.follow(str(before.cursor)).begin()
    await_waiting(client)
    after = relay.take(clerk_event("ended", updated_at=NOW_MS), "msg_2")
    (update,) = later.result(30)
    assert update.cursor == after.cursor


def test_waiting_longer_than_one_read_blocks_is_no_failure(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "BLOCK_MS", 10)
    reads = client.info("commandstats").get("cmdstat_xread", {"calls": 0})["calls"]
    later = feed.follow("0-0").begin()
    eventually(lambda: client.info("commandstats")["cmdstat_xread"]["calls"] > reads + 3)
    relay.take(clerk_event(), "msg_1")
    assert sessions(later.result(30)) == ["sess_1"]


def test_names_are_those_that_are_set(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> None:
    names = {"redis_key_prefix": "{other*[x]?}", "redis_channel": "other"}
    feed = open_feed(relay_redis.url, **names)
    published = feed.subscribe().begin()
    eventually(lambda: client.pubsub_numsub("other") == [("other", 1)])
    with run_relay(relay_redis.url, **names) as relay:
        relay.take(clerk_event(), "msg_1")
    assert feed.is_live("sess_1")
    assert feed.live_ids() == ["sess_1"]
    assert feed.follow("0-0").next().session == feed.follow().next().session == feed.state().session
    assert sessions(published.result(30)) == ["sess_1"]


def test_a_feed_from_the_environment(relay_redis: EmbeddedRedis, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", relay_redis.url)
    relay.take(clerk_event(), "msg_1")
    with SessionFeed.from_env() as feed:
        assert feed.is_live("sess_1")


def test_the_stand_in_of_dev_is_read_like_a_redis(open_feed: OpenFeed, stand_in: EmbeddedRedis) -> None:
    with client_of(stand_in.url) as client:
        client.flushall()
    feed = open_feed(stand_in.url)
    with run_relay(stand_in.url) as relay:
        begin_sessions(relay, 1)
        assert feed.is_live("sess_0")
        assert feed.live_ids() == ["sess_0"]
        iterators = [feed.follow(), feed.follow("0-0"), feed.consume()]
        held = [updates.next() for updates in iterators]
        assert sessions(held) == ["sess_0"] * 3
        begin_sessions(relay, 2)
    assert sessions([updates.next() for updates in iterators]) == ["sess_1"] * 3
    assert feed.now() == {0: feed.history("sess_1")[0].cursor}


# The snapshots, then the stream


class Whole:
    """What a consumer makes of the updates it gets; each must follow the one before it."""

    def __init__(self) -> None:
        self.revisions: dict[str, int] = {}

    def note(self, updates: list[SessionUpdate]) -> None:
        for update in updates:
            session_id, revision = update.session.id, update.revision
            assert revision is not None
            if update.is_snapshot:
                assert session_id not in self.revisions, "a second snapshot"
            else:
                assert revision == self.revisions.get(session_id, 0) + 1, f"{session_id} {revision}"
            self.revisions[session_id] = revision


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few keys in one reply, so that the snapshots take several."""
    monkeypatch.setattr(stream, "SCANNED", 4)
    monkeypatch.setattr(stream, "BATCH", 4)


def begin_sessions(relay: Relay, count: int) -> None:
    for number in range(count):
        relay.take(clerk_event(session_id=f"sess_{number}"), f"msg_{number}")


def test_the_state_of_every_session_comes_first(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, 3)
    relay.take(clerk_event("ended", session_id="sess_2", updated_at=NOW_MS), "msg_end")
    updates = feed.follow()
    held = updates.take(3)
    later = relay.take(clerk_event("ended", session_id="sess_0", updated_at=NOW_MS), "msg_later")
    assert {(u.session.id, u.session.status, u.revision) for u in held} == {
        *(("sess_0", "active", 1), ("sess_1", "active", 1), ("sess_2", "ended", 2))
    }
    assert {(update.is_snapshot, update.position) for update in held} == {(True, None)}
    news = updates.next()
    assert (news.is_snapshot, news.position) == (False, later.cursor)


def test_without_a_session_there_are_no_snapshots(feed: Feed, relay: Relay, client: Any) -> None:
    first = feed.follow().begin()
    await_waiting(client)
    relay.take(clerk_event(), "msg_1")
    assert [update.is_snapshot for update in first.result(30)] == [False]


@pytest.mark.usefixtures("small_batches")
def test_what_happens_while_the_snapshots_are_read_is_neither_missed_nor_told_twice(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, 30)
    updates, whole = feed.follow(), Whole()
    for change in range(4):  # six snapshots in between, and the last ones after all changes
        whole.note(updates.take(6))
        for number in range(35):
            event = clerk_event(session_id=f"sess_{number}", updated_at=NOW_MS - 900 + change)
            relay.take(event, f"msg_{number}_{change}")
    expected = {f"sess_{number}": 5 if number < 30 else 4 for number in range(35)}
    while whole.revisions != expected:
        whole.note(updates.take(1))
    take_several(relay, "sess_later")
    assert sessions(updates.take(1)) == ["sess_later"]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("grows", [True, False], ids=["grows", "shrinks"])
def test_snapshots_come_once_each_while_redis_rearranges_its_keys(
    feed: Feed, relay: Relay, client: Any, grows: bool
) -> None:
    begin_sessions(relay, 30)
    others = {f"other:{number}": "" for number in range(5_000)}
    if not grows:
        client.mset(others)
    updates, whole = feed.follow(), Whole()
    whole.note(updates.take(10))
    if grows:
        client.mset(others)
    else:
        client.delete(*others)
    whole.note(updates.take(20))
    assert set(whole.revisions) == {f"sess_{number}" for number in range(30)}
    take_several(relay, "sess_later")
    assert sessions([updates.next()]) == ["sess_later"]


def bulk(*parts: bytes) -> bytes:
    return b"*%d" % len(parts) + b"".join(b"\r\n$%d\r\n%s" % (len(part), part) for part in parts)


def test_a_key_that_a_scan_returns_twice_is_one_snapshot(
    open_feed: OpenFeed, feed: Feed, relay: Relay, client: Any
) -> None:
    relay.take(clerk_event(), "msg_1")
    state = feed.state().json
    pages = {b"0": b"*2\r\n$1\r\n7\r\n", b"7": b"*2\r\n$1\r\n9\r\n", b"9": b"*2\r\n$1\r\n0\r\n"}

    def say(words: list[bytes]) -> bytes | None:
        match words[0]:
            case b"XINFO":
                return b"-ERR no such key"
            case b"SCAN":
                return pages[words[1]] + bulk(*[SESSION_KEY.encode()] * 2)
            case b"EVAL":
                return bulk(state)
            case b"HMGET":
                return b"*1\r\n$-1"
            case _:
                return None

    with scripted_redis(say) as server:
        updates = open_feed(server.url).follow()
        assert updates.next().is_snapshot
        with pytest.raises(redis.ConnectionError):  # it hangs up where the stream would be read
            updates.next()
    assert [words[1] for words in server.commands if words[0] == b"SCAN"] == [b"0", b"7", b"9"]


def test_who_begins_at_a_stream_that_was_emptied_misses_nothing(feed: Feed, relay: Relay, client: Any) -> None:
    """The stream counts what was removed before, too."""
    relay.take(clerk_event(), "msg_1")
    client.xtrim(EVENTS_KEY, maxlen=0, approximate=False)
    updates = feed.follow()
    assert updates.next().is_snapshot
    waiting = updates.begin()
    relay.take(clerk_event(session_id="sess_2"), "msg_2")
    assert waiting.result(30)[0].session.id == "sess_2"


# What is published


def await_subscribed(client: Any, channel: str, count: int = 1) -> None:
    eventually(lambda: client.pubsub_numsub(channel) == [(channel, count)])


def test_subscribing_to_all(feed: Feed, relay: Relay, client: Any) -> None:
    published = feed.subscribe().begin(2)
    await_subscribed(client, "clerk:sessions")
    relay.take(clerk_event("ended"), "msg_1")
    relay.take(clerk_event(), "msg_late")
    relay.take(clerk_event(session_id="sess_2", user_id="user_2"), "msg_2")
    first, second = published.result(30)
    assert first == feed.get("sess_1")
    assert second == feed.get("sess_2")


def test_subscribing_to_one_user(feed: Feed, relay: Relay, client: Any) -> None:
    published = feed.subscribe("user_2").begin()
    await_subscribed(client, "clerk:sessions:user:user_2")
    relay.take(clerk_event(), "msg_1")
    relay.take(clerk_event(session_id="sess_2", user_id="user_2"), "msg_2")
    assert sessions(published.result(30)) == ["sess_2"]


def test_a_channel_on_which_nothing_happens_is_no_failure(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_shortly(monkeypatch)
    pings = client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"]
    published = feed.subscribe().begin()
    eventually(lambda: client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"] > pings + 2)
    relay.take(clerk_event(), "msg_1")
    assert sessions(published.result(30)) == ["sess_1"]


# The end


def followed(feed: Feed) -> Updates:
    return feed.follow("0-0")


def followed_by_snapshots(feed: Feed) -> Updates:
    return feed.follow()


def consumed(feed: Feed) -> Updates:
    return feed.consume()


def subscribed_to(feed: Feed) -> Updates:
    return feed.subscribe()


EACH_ITERATOR = pytest.mark.parametrize("begin", [followed, followed_by_snapshots, consumed, subscribed_to])


def connections(client: Any) -> int:
    """Return how many there are besides this client's, once those that were closed are gone."""
    return len(client.client_list()) - 1


@EACH_ITERATOR
def test_closing_ends_what_waits(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, begin: Callable[[Feed], Updates]
) -> None:
    feed = open_feed(own_redis.url)
    updates = begin(feed)
    waiting = updates.begin()
    eventually(lambda: connections(own_client) == 1)
    feed.close()
    with pytest.raises(EndedError):
        waiting.result(30)
    with pytest.raises(EndedError):
        updates.next()
    eventually(lambda: connections(own_client) == 0)


@EACH_ITERATOR
def test_a_feed_that_was_closed_does_nothing_any_more(
    feed: Feed, relay: Relay, begin: Callable[[Feed], Updates]
) -> None:
    updates = begin(feed)
    feed.close()
    feed.close()
    with pytest.raises(FeedClosedError):
        begin(feed)
    with pytest.raises(FeedClosedError):
        feed.get("sess_1")
    with pytest.raises(EndedError):
        updates.next()


def test_closing_ends_the_loop_at_its_next_turn(feed: Feed, relay: Relay) -> None:
    """Not when all that was read is done with: that may take a while."""
    take_several(relay, "sess_0", "sess_1", "sess_2")
    updates = feed.follow("0-0")
    updates.next()
    feed.close()
    with pytest.raises(EndedError):
        updates.next()


@EACH_ITERATOR
def test_leaving_the_loop_leaves_no_connection(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, begin: Callable[[Feed], Updates]
) -> None:
    feed = open_feed(own_redis.url)
    updates = begin(feed)
    first = updates.begin()
    if begin is subscribed_to:
        await_subscribed(own_client, "clerk:sessions")
    else:
        await_waiting(own_client)
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event(), "msg_1")
    first.result(30)
    updates.leave()
    eventually(lambda: connections(own_client) == 0)


def test_a_read_that_is_under_way_when_the_feed_is_closed(open_feed: OpenFeed) -> None:
    end = threading.Event()

    def never(_: list[bytes]) -> None:
        end.wait(PATIENCE)

    with scripted_redis(never) as server, ThreadPoolExecutor(1) as thread:
        feed = open_feed(server.url, redis_timeout=PATIENCE)
        reading = thread.submit(feed.side_by_side, 3, feed.feed.get, "sess_1")
        eventually(lambda: len(server.commands) == 3)
        feed.close()
        outcomes = reading.result(30)
        end.set()
    assert [type(each) for each in outcomes] == [FeedClosedError] * 3


def test_a_context_manager_closes(real_redis: EmbeddedRedis) -> None:
    with SessionFeed.from_url(real_redis.url) as feed:
        assert feed.get("sess_unknown") is None
    with pytest.raises(FeedClosedError):
        feed.get("sess_1")


# In a thread whose event loop runs


def test_a_blocking_feed_has_no_part_in_an_event_loop_that_runs(relay_redis: EmbeddedRedis, relay: Relay) -> None:
    """Its generators are asynchronous inside: the loop must not close them when it ends, nor warn of them."""
    take_several(relay, "sess_1", "sess_2", "sess_3")
    with SessionFeed.from_url(relay_redis.url) as feed:

        async def begin() -> Iterator[SessionUpdate]:
            kept, dropped = feed.follow("0-0"), feed.follow()
            assert [next(kept).session.id, next(dropped).is_snapshot] == ["sess_1", True]
            del dropped
            gc.collect()
            assert feed.is_live("sess_1")
            assert not list(asyncio.get_running_loop()._asyncgens)  # type: ignore[attr-defined]
            return kept

        kept = asyncio.run(begin(), debug=True)
        assert [next(kept).session.id, next(kept).session.id] == ["sess_2", "sess_3"]


def test_a_feed_that_is_dropped_without_being_closed_leaves_no_connection(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    with run_relay(own_redis.url) as relay:
        take_several(relay, "sess_1", "sess_2")
    eventually(lambda: connections(own_client) == 0)
    for update in SessionFeed.from_url(own_redis.url).follow("0-0"):
        assert update.session.id == "sess_1"
        break
    gc.collect()
    eventually(lambda: connections(own_client) == 0)


# Many at once


def test_short_reads_share_eight_connections(open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any) -> None:
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event(), "msg_1")
    feed = open_feed(own_redis.url, redis_timeout=20)
    count = 16 if type(feed) is Feed else 500
    eventually(lambda: connections(own_client) == 0)
    assert feed.side_by_side(count, feed.feed.is_live, "sess_1") == [True] * count
    assert 1 <= connections(own_client) <= 8


def test_a_read_that_is_given_up_costs_the_others_nothing(relay_redis: EmbeddedRedis, relay: Relay) -> None:
    """Its connection has a reply underway that must not be taken for another's."""
    take_several(relay, "sess_1", "sess_2")

    async def give_up() -> None:
        async with AsyncSessionFeed.from_url(relay_redis.url) as feed:
            for moments in range(30):
                given_up = asyncio.ensure_future(feed.get("sess_1"))
                for _ in range(moments):
                    await asyncio.sleep(0)
                given_up.cancel()
                update = await feed.get("sess_2")
                assert update is not None
                assert update.session.id == "sess_2"

    asyncio.run(give_up())


# What is imported, and how it is typed


def test_neither_flask_nor_svix_is_imported() -> None:
    program = "import clerk_session_feed, sys; print({'flask', 'svix', 'werkzeug', 'uvicorn'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "set()\n"


PROGRAM = """
import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Literal

from clerk_session_feed import AsyncSessionFeed, CursorLostError, LiveStatus, SessionFeed, SessionUpdate


def main() -> None:
    with SessionFeed.from_url("redis://localhost", redis_timeout=1.5) as feed:
        update: SessionUpdate | None = feed.get("sess_1")
        live: bool = feed.is_live("sess_1", user_id="user_1")
        status: LiveStatus = feed.status("sess_1", user_id="user_1")
        held: list[SessionUpdate] = feed.live_sessions("user_1")
        updates: Iterator[SessionUpdate] = feed.follow({0: "0-0"}, stale=True, on_reconnect=print)
        try:
            for update in updates:
                who: str = update.session.user_id
                end: int | None = update.session.expire_at
                if update.session.latest_activity is not None:
                    city: str | None = update.session.latest_activity.city
        except CursorLostError as lost:
            where: str = lost.cursor
        for update in feed.consume("group", "name", claim_after=5):
            print(update.event.type, update.position)


async def main_async() -> None:
    async with AsyncSessionFeed.from_env() as feed:
        update: SessionUpdate | None = await feed.get("sess_1")
        live: bool = await feed.is_live("sess_1")
        status: Literal["live", "ended", "unknown"] = await feed.status("sess_1")
        updates: AsyncIterator[SessionUpdate] = feed.follow(await feed.now())
        async for update in feed.subscribe("user_1"):
            print(update.is_live)


main()
asyncio.run(main_async())
"""


def test_a_program_that_uses_it_passes_a_strict_type_check(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), str(program)],
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("Success: no issues found in 1 source file\n", 0)


def test_a_position_that_is_none_is_that_of_the_snapshots(feed: Feed, relay: Relay) -> None:
    relay.take(clerk_event(), "msg_1")
    assert feed.follow({0: None}).next().is_snapshot


@pytest.mark.parametrize("counts", [True, False], ids=["as this server", "as Redis 6.2"])
def test_a_time_before_what_an_emptied_stream_had_is_lost(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    """Also if it is read before there is an entry again: Redis 6.2 can't tell afterwards."""
    if not counts:
        monkeypatch.setattr(
            stream,
            "as_dict",
            lambda reply: {name: each for name, each in as_dict(reply).items() if name != b"entries-added"},
        )
    first, _ = take_several(relay, "sess_1", "sess_2")
    client.xtrim(EVENTS_KEY, maxlen=0, approximate=False)
    waiting = feed.follow(str(int(first.partition("-")[0]) - 1)).begin()
    eventually(lambda: waiting.done() or client.info("clients")["blocked_clients"])
    take_several(relay, "sess_3")
    with pytest.raises(CursorLostError):
        waiting.result(30)
