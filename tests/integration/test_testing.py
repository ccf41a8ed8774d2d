"""The same happens to sessions in memory and in Redis: feeds give the same of both."""

import contextlib
import dataclasses
import datetime
import json
import time
from typing import Any

import pytest
from clerk_session_feed import CursorLostError, SessionUpdate
from clerk_session_feed.testing import MemorySessionFeed
from clerk_session_feed.updates import published
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.constants import DAY_MS
from support.feeds import PATIENCE, EndedError, Feed, Updates, feeds
from support.memory_feeds import MemoryFeed, memory_feeds
from support.redis_clients import subscribed
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
    real_redis: EmbeddedRedis, real_client: Any, partitions: int
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
            real_client.flushall()
            with memory_feeds(MemoryFeed) as open_memory:
                memory = open_memory(partitions=partitions)
                both = Both(memory.feed, relay, real_client)
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
