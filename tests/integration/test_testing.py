"""The same happens to sessions in memory and in Redis: feeds give the same of both."""

import contextlib
import dataclasses
import datetime
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from clerk_session_feed import CursorLostError, SessionUpdate
from clerk_session_feed.testing import MemorySessionFeed
from clerk_session_feed.testing.memory_redis import MemoryRedis
from clerk_session_feed.transport import as_dict
from clerk_session_feed.updates import published
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.constants import DAY_MS, EVENTS_KEY
from support.feeds import PATIENCE, EndedError, Feed, Updates, feeds
from support.memory_feeds import MemoryFeed, memory_feeds
from support.redis_clients import client_of, counts_entries, subscribed
from support.relay import Relay, run_relay

from service.clerk.api_sessions import ApiSession
from service.clerk.events import SessionData
from service.dev.embedded import EmbeddedRedis
from service.store.stored import StoredState
from service.workers.expiry_event import expiry_of
from service.workers.mend import Mender

pytestmark = pytest.mark.real_redis

SESSIONS = [("sess_1", "user_1"), ("sess_2", "user_1"), ("sess_3", "user_2")]
PERIODS = [datetime.timedelta(days=7), datetime.timedelta(days=-1), None]


@pytest.fixture
def counting_client(real_client: Any) -> Any:
    """A client of a Redis that can always tell whether something was trimmed, as MemoryRedis can."""
    if not counts_entries(real_client):
        pytest.skip("Redis 6.2 can't always tell whether something was trimmed")
    return real_client


class Both:
    """Lets the same happen in memory, and at a relay on a Redis. Each event of one is a delivery at the other."""

    def __init__(self, memory: MemorySessionFeed, relay: Relay, client: Any) -> None:
        self._memory = memory
        self._relay = relay
        self._client = client
        self._ends: dict[str, int | None] = {}

    def let(self, name: str, *arguments: Any, **fields: Any) -> None:
        """Let something happen, if it can: `name` is of a method of MemorySessionFeed."""
        if name == "expire" and not self._is_due(arguments[0]):
            return
        try:
            update: SessionUpdate = getattr(self._memory, name)(*arguments, **fields)
        except (LookupError, ValueError):
            return
        self._relay.now_ms = time.time_ns() // 1_000_000
        if update.event.source == "synthetic":
            self._expire(update)
        elif update.event.source == "clerk-api":
            self._mend(update)
        else:
            event = {"object": "event", "type": update.event.type, "timestamp": update.event.occurred_at}
            delivery = event | {"instance_id": update.event.instance_id, "data": session_of(update)}
            assert self._relay.take(delivery, update.event.id).outcome == update.outcome
        self._ends[update.session.id] = update.session.expire_at

    def trim(self, keep: int) -> None:
        self._memory.trim(keep)
        for partition in self._relay.store.partitions:
            self._client.xtrim(partition.keys.events, maxlen=keep, approximate=False)

    def flush(self) -> None:
        self._memory.flush()
        self._client.flushall()

    def _is_due(self, session_id: str) -> bool:
        """The relay does not expire a session before its end; a test that calls `expire` may not want to wait for it."""
        end = self._ends.get(session_id)
        return end is not None and end <= time.time_ns() // 1_000_000

    def _expire(self, update: SessionUpdate) -> None:
        store = self._relay.store
        partition = store.partition_of(update.session.user_id)
        (stored,) = self._relay.call(store.read, partition, [update.session.id]).result(30)
        assert isinstance(stored, StoredState)
        new = expiry_of(stored, self._relay.now_ms)
        assert new is not None
        store.replace(partition, new, self._relay.now_ms).result(30)

    def _mend(self, update: SessionUpdate) -> None:
        mender = Mender(self._relay.store, str(update.event.instance_id), clock=lambda: self._relay.now_ms / 1000)
        session = ApiSession(SessionData.model_validate(session_of(update)), update.event.occurred_at)
        self._relay.call(mender.apply, [session]).result(30)


def session_of(update: SessionUpdate) -> Any:
    """Return the session as Clerk sends it."""
    session = json.loads(update.json)["session"]
    del session["live"]
    return session


STEPS = st.one_of(
    st.tuples(
        st.just("sign_in"), st.sampled_from(SESSIONS), st.sampled_from(["active", "pending"]), st.sampled_from(PERIODS)
    ),
    st.tuples(st.sampled_from(["end", "remove", "revoke", "expire", "late"]), st.sampled_from(SESSIONS)),
    st.tuples(st.just("update"), st.sampled_from(SESSIONS), st.sampled_from(["active", "pending", "ended"])),
    st.tuples(st.sampled_from(["trim", "flush"]), st.integers(0, 3)),
)
LIVES: list[Any] = [
    ("sign_in", SESSIONS[0], "pending", PERIODS[0]),
    ("sign_in", SESSIONS[1], "active", PERIODS[1]),
    ("update", SESSIONS[0], "active"),
    ("expire", SESSIONS[1]),
    ("late", SESSIONS[1]),
    ("sign_in", SESSIONS[2], "active", PERIODS[2]),
    ("update", SESSIONS[1], "active"),
    ("revoke", SESSIONS[1]),
    ("end", SESSIONS[0]),
]


def let(both: Both, step: tuple[Any, ...]) -> None:
    match step:
        case ["sign_in", [session_id, user_id], status, expires_in]:
            both.let("sign_in", user_id, session_id=session_id, status=status, expires_in=expires_in)
        case ["update", [session_id, _], status]:
            both.let("update", session_id, status=status, expire_at=time.time_ns() // 1_000_000 + DAY_MS)
        case ["trim", keep]:
            both.trim(keep)
        case ["flush", _]:
            both.flush()
        case [name, [session_id, _]]:
            both.let(name, session_id)


def essence(update: SessionUpdate) -> Any:
    """Return an update without what is by chance: its cursor, and an id that is a digest of Clerk's response."""
    event = update.event
    if event.source == "clerk-api":
        event = dataclasses.replace(event, id="api")
    return dataclasses.replace(update, cursor="", json=b"", event=event)


def ordered(updates: list[SessionUpdate]) -> list[Any]:
    """Return the essence of updates; snapshots have no order, and neither have partitions among themselves."""
    by_place = sorted(updates, key=lambda each: (each.partition, each.session.id if each.is_snapshot else ""))
    return [essence(update) for update in by_place]


def assert_same(of_memory: Updates, of_redis: Updates) -> None:
    """Compare what iterators yield until they would wait, or raise."""
    expected: list[SessionUpdate] = []
    try:
        while True:
            expected.append(of_memory.next())
    except EndedError:
        assert ordered(of_redis.take(len(expected))) == ordered(expected)
        of_redis.leave()
    except CursorLostError:
        with pytest.raises(CursorLostError):
            of_redis.take(len(expected) + 1)


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_feed_in_memory_gives_what_a_feed_of_redis_gives(
    real_redis: EmbeddedRedis, counting_client: Any, partitions: int
) -> None:
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(run_relay(real_redis.url, partitions=partitions))
        real = stack.enter_context(feeds(Feed))(real_redis.url, partitions=partitions)

        @given(steps=st.lists(STEPS, max_size=12), place=st.integers(0, 12))
        @example(steps=LIVES, place=1)
        @example(steps=[*LIVES, ("trim", 2)], place=7)
        @example(steps=[*LIVES[:4], ("flush", 0), *LIVES[4:]], place=4)
        @settings(max_examples=20, deadline=None)
        def check(steps: list[Any], place: int) -> None:
            counting_client.flushall()
            with memory_feeds(MemoryFeed) as open_memory:
                memory = open_memory(partitions=partitions)
                both = Both(memory.feed, relay, counting_client)
                cursors = [(memory.now(), real.now())]
                for step in steps:
                    let(both, step)
                    cursors.append((memory.now(), real.now()))
                for user_id in ("user_1", "user_2"):  # what comes last shows where one had too little before
                    both.let("sign_in", user_id)
                memory.feed.finish()
                compare(memory, real, cursors[min(place, len(steps))])

        check()


def compare(memory: Feed, real: Feed, after: tuple[Any, Any]) -> None:
    for session_id, user_id in SESSIONS:
        assert memory.do(memory.feed.status, session_id) == real.do(real.feed.status, session_id)
        assert memory.live_ids(user_id) == real.live_ids(user_id)
        states = [feed.get(session_id) for feed in (memory, real)]
        assert len({state and essence(state) for state in states}) == 1
        assert ordered(memory.history(session_id)) == ordered(real.history(session_id))
    of_memory, of_redis = after
    assert_same(memory.follow(), real.follow())
    assert_same(memory.follow("0-0", stale=True), real.follow("0-0", stale=True))
    assert_same(memory.follow(of_memory, resync=True), real.follow(of_redis, resync=True))
    assert_same(memory.follow(of_memory), real.follow(of_redis))
    assert_same(memory.consume("first", stale=True), real.consume("first", stale=True))
    assert_same(memory.consume("second", after=of_memory), real.consume("second", after=of_redis))


def test_subscribers_get_the_same(real_redis: EmbeddedRedis, real_client: Any) -> None:
    with (
        run_relay(real_redis.url) as relay,
        subscribed(real_client, "clerk:sessions:user:user_1") as subscriber,
        memory_feeds(MemoryFeed) as open_memory,
    ):
        memory = open_memory()
        updates = memory.subscribe("user_1").begin(7)
        memory.wait_until_idle()
        both = Both(memory.feed, relay, real_client)
        for step in LIVES:
            let(both, step)
        real = [essence(published(message.encode())) for _, message in subscriber.rest()]
        assert [essence(update) for update in updates.result(PATIENCE)] == real


# Commands

IDS = ["1-0", "1-1", "2-0", "3-0", "18446744073709551615-1"]
CURSORS = st.sampled_from(["0-0", "0-1", *IDS])
NAMES = st.sampled_from(["one", "two"])
COUNTS = st.integers(1, 3)
OF_GROUP = (EVENTS_KEY, "group")


def with_words(*words: Any) -> "st.SearchStrategy[tuple[Any, ...]]":
    """Return commands; each word is one, or a strategy of some."""
    return st.tuples(*(word if isinstance(word, st.SearchStrategy) else st.just(word) for word in words))


READ = ("BLOCK", 1, "STREAMS", EVENTS_KEY)
COMMANDS = st.one_of(
    st.just(("XADD",)),
    with_words("XTRIM", st.integers(0, 3)),
    with_words("XRANGE", EVENTS_KEY, st.sampled_from(["-", "1-1", "(1-1", "(0-1"]), st.sampled_from(["+", "2-0"])),
    with_words("XRANGE", EVENTS_KEY, "-", "+", "COUNT", COUNTS),
    with_words("XREVRANGE", EVENTS_KEY, "+", "-", "COUNT", 1),
    with_words("XINFO", "STREAM", EVENTS_KEY),
    with_words("XINFO", "GROUPS", EVENTS_KEY),
    with_words("XINFO", "CONSUMERS", *OF_GROUP),
    with_words("XREAD", "COUNT", COUNTS, *READ, "other", CURSORS, "0-0"),
    with_words("XREADGROUP", "GROUP", "group", NAMES, "COUNT", COUNTS, *READ, st.sampled_from([">", ">", "0", "1-1"])),
    with_words("XACK", *OF_GROUP, CURSORS, CURSORS),
    with_words("XPENDING", *OF_GROUP, "IDLE", 0, "-", "+", COUNTS),
    with_words("XAUTOCLAIM", *OF_GROUP, NAMES, 0, CURSORS, "COUNT", COUNTS, "JUSTID"),
    with_words("XGROUP", "CREATE", *OF_GROUP, CURSORS, "MKSTREAM"),
    with_words("XGROUP", "SETID", *OF_GROUP, CURSORS),
    with_words("XGROUP", "DELCONSUMER", *OF_GROUP, NAMES),
)


def compared(command: tuple[Any, ...], response: Any) -> Any:
    """Return a response without what no feed looks at, and without times."""
    match command, response:
        case _, redis.ResponseError():
            return re.match("NOGROUP|BUSYGROUP|no such key|The XGROUP subcommand requires|", str(response))[0]  # type: ignore[index]
        case ("XINFO", "STREAM", *_), _:
            names = ("length", "last-generated-id", "entries-added", "first-entry", "last-entry")
            return [as_dict(response)[name.encode()] for name in names]
        case ("XINFO", "GROUPS", *_), _:
            return [[as_dict(each)[name] for name in (b"name", b"last-delivered-id")] for each in response]
        case ("XINFO", "CONSUMERS", *_), _:
            # From which read on there is a consumer that has got nothing is another matter in Redis 7.2.
            named = [[as_dict(each)[name] for name in (b"name", b"pending")] for each in response]
            return sorted(each for each in named if each[1])
        case ("XPENDING", *_), _:
            return [each[:2] for each in response]
        case ("XAUTOCLAIM", *_), _:
            return response[1:]
    return response or None


@given(commands=st.lists(COMMANDS, max_size=25))
@example(
    [
        ("XGROUP", "CREATE", *OF_GROUP, "0-0", "MKSTREAM"),
        *[("XADD",)] * 4,
        *(("XREADGROUP", "GROUP", "group", name, "COUNT", 2, *READ, ">") for name in ("one", "two")),
        *(("XREADGROUP", "GROUP", "group", name, "COUNT", 9, *READ, "0") for name in ("one", "two")),
        ("XTRIM", 1),
        ("XREADGROUP", "GROUP", "group", "two", "COUNT", 9, *READ, "0"),
        ("XAUTOCLAIM", *OF_GROUP, "one", 0, "1-1", "COUNT", 9, "JUSTID"),
        ("XPENDING", *OF_GROUP, "IDLE", 0, "-", "+", 9),
        ("XGROUP", "DELCONSUMER", *OF_GROUP, "one"),
    ]
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_command_has_the_response_of_redis(
    counting_client: Any, raw_client: Any, commands: list[tuple[Any, ...]]
) -> None:
    counting_client.flushall()
    memory, ids = MemoryRedis(), iter(IDS)
    for command in commands:
        match command:
            case ("XADD",):
                if cursor := next(ids, None):
                    counting_client.xadd(EVENTS_KEY, {"field": cursor}, cursor)
                    memory.add(EVENTS_KEY, cursor, {"field": cursor.encode()})
            case ("XTRIM", keep):
                counting_client.xtrim(EVENTS_KEY, maxlen=keep, approximate=False)
                memory.trim(keep)
            case _:
                imitated, real = (compared(command, run(command)) for run in (of(memory.run), of(raw_client)))
                assert imitated == real, command


def of(run: Callable[..., Any]) -> Callable[[tuple[Any, ...]], Any]:
    """Return what also returns errors."""

    def run_or_fail(command: tuple[Any, ...]) -> Any:
        try:
            return run(command)
        except redis.ResponseError as error:
            return error

    return run_or_fail


@pytest.fixture
def raw_client(real_redis: EmbeddedRedis) -> Iterator[Callable[..., Any]]:
    """Return what sends a command and returns the response as Redis sends it."""
    with client_of(real_redis.url, decode_responses=False) as client:
        client.response_callbacks.clear()
        yield lambda command: client.execute_command(*command)


def test_keys_are_read_as_redis_reads_them(real_client: Any, raw_client: Any) -> None:
    memory = MemoryRedis()
    for key, fields in {
        "{clerk}:session:sess_1": {"state": "1", "live": "1"},
        "other:session:sess_2": {"state": "2"},
    }.items():
        real_client.hset(key, mapping=fields)
        memory.hashes[key] = {name: value.encode() for name, value in fields.items()}
    memory.sorted_sets["set"] = {"d": 7, "b": 5, "a": 5, "c": math.inf, "e": 4}
    real_client.zadd("set", memory.sorted_sets["set"])
    for command in (
        ("HMGET", "{clerk}:session:sess_1", "live", "none", "state"),
        ("HMGET", "{clerk}:session:none", "live"),
        ("SCAN", "0", "MATCH", r"{clerk}:session:*", "COUNT", 500),
        ("SCAN", b"0", "MATCH", r"{clerk}:none:*", "COUNT", 500),
        ("ZRANGEBYSCORE", "set", "(4", "+inf"),
        ("ZRANGEBYSCORE", "none", "(4", "+inf"),
    ):
        assert memory.run(command) == raw_client(command)
