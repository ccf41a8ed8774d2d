"""Feeds without Redis, for the tests of programs that use one: what a loop gets of what a test lets happen.

That it is what Redis would give is in tests/integration/test_testing.py.
"""

import asyncio
import contextlib
import datetime
import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import redis
from clerk_session_feed import (
    AsyncSessionFeed,
    ConfigurationError,
    CursorLostError,
    FeedClosedError,
    MirrorTooOldError,
    SessionFeed,
    SessionUpdate,
    transport,
)
from clerk_session_feed.mirror_reading import MirrorReading
from clerk_session_feed.models import SessionTask
from clerk_session_feed.testing import AsyncMemorySessionFeed, MemorySessionFeed
from redis.exceptions import NoPermissionError
from support.feeds import PATIENCE, EndedError
from support.memory_feeds import MEMORY_KINDS, MemoryFeed, memory_feeds
from support.mirrors import Mirror
from support.schemas import PUBLISHED, STREAMED, faults

pytest_plugins = ["clerk_session_feed.pytest_plugin"]

OVER = datetime.timedelta(seconds=-1)


@pytest.fixture(autouse=True)
def _waits_for_news_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that looks around after 20 s would find in the end what it has to be told at once."""
    monkeypatch.setattr(transport, "BLOCK_MS", 600_000)


@pytest.fixture(params=MEMORY_KINDS)
def open_feed(request: pytest.FixtureRequest) -> Iterator[Callable[..., MemoryFeed]]:
    with memory_feeds(MEMORY_KINDS[request.param]) as open_feed:
        yield open_feed


@pytest.fixture
def feed(open_feed: Callable[..., MemoryFeed]) -> MemoryFeed:
    return open_feed()


@pytest.fixture
def session_id(feed: MemoryFeed) -> str:
    """A session that has begun."""
    return sign_in(feed)


def sign_in(feed: MemoryFeed, user_id: str = "user_1", **fields: Any) -> str:
    session_id: str = feed.feed.sign_in(user_id, **fields).session.id
    return session_id


def waiting(feed: MemoryFeed, future: "Future[Any]", loops: int = 1) -> "Future[Any]":
    """Return a future of what a loop is asked for, once the loop waits for it."""
    feed.wait_until_idle(loops)
    assert not future.done()
    return future


# What happens to sessions

EVENTS: dict[str, tuple[str, str, str]] = {
    "end": ("ended", "session.ended", "clerk"),
    "remove": ("removed", "session.removed", "clerk"),
    "revoke": ("revoked", "session.revoked", "clerk"),
    "expire": ("expired", "session.expired", "synthetic"),
}
"""What ends a session: the status, the type of the event, and its source."""


@pytest.mark.parametrize("name", EVENTS)
def test_what_ends_a_session_gives_its_loop_the_update_that_the_test_gets(
    feed: MemoryFeed, session_id: str, name: str
) -> None:
    updates = feed.follow()
    assert updates.next().is_snapshot
    update = getattr(feed.feed, name)(session_id)
    assert updates.next() == update
    assert (update.session.status, update.event.type, update.event.source) == EVENTS[name]
    assert (update.previous_status, update.revision, update.is_live) == ("active", 2, False)
    assert feed.do(feed.feed.status, session_id) == "ended"


def test_a_session_that_begins_is_live(feed: MemoryFeed, session_id: str) -> None:
    assert feed.do(feed.feed.status, session_id) == "live"
    assert feed.live_ids() == [session_id]
    assert feed.state(session_id).event.type == "session.created"


def test_a_session_that_never_began_is_unknown(feed: MemoryFeed) -> None:
    assert feed.do(feed.feed.status, "sess_1") == "unknown"


def test_a_pending_session_is_not_live_before_it_is_active(feed: MemoryFeed) -> None:
    session_id = sign_in(feed, status="pending")
    assert feed.do(feed.feed.status, session_id) == "ended"
    feed.feed.update(session_id, status="active", tasks=())
    assert feed.do(feed.feed.status, session_id) == "live"
    assert [update.event.type for update in feed.history(session_id)] == ["session.pending", "session.active"]


def test_a_session_may_be_over_when_it_begins(feed: MemoryFeed) -> None:
    assert feed.do(feed.feed.status, sign_in(feed, expires_in=OVER)) == "ended"


def test_a_session_may_have_no_end(feed: MemoryFeed) -> None:
    assert feed.state(sign_in(feed, expires_in=None)).session.expire_at is None


def test_a_later_end_undoes_that_a_session_expired(feed: MemoryFeed, session_id: str) -> None:
    expired = feed.feed.expire(session_id)
    feed.feed.update(session_id, status="active", expire_at=expired.session.expire_at + 60_000)
    assert feed.is_live(session_id)


def test_what_comes_too_late_is_for_those_who_ask_for_it(feed: MemoryFeed, session_id: str) -> None:
    feed.feed.end(session_id)
    late = feed.feed.late(session_id)
    assert (late.outcome, late.revision) == ("stale", None)
    assert feed.follow("0-0", stale=True).take(3)[-1] == late
    feed.feed.finish()
    with pytest.raises(EndedError):
        feed.follow("0-0").take(3)


def test_a_session_has_the_fields_that_it_is_given(feed: MemoryFeed) -> None:
    fields = {"actor": {"sub": "user_admin"}, "tasks": (SessionTask(key="setup-mfa"),), "client_id": None}
    session = feed.feed.sign_in("user_1", session_id="sess_mine", **fields).session
    assert (session.id, session.actor, session.tasks, session.client_id) == (
        "sess_mine",
        *list(fields.values())[:2],
        None,
    )


def test_messages_keep_to_the_schema(feed: MemoryFeed, session_id: str) -> None:
    updates = [
        feed.feed.sign_in("user_1", status="pending", actor={"sub": "user_admin"}, latest_activity=None),
        feed.feed.update(session_id, expire_at=None),
        feed.feed.late(session_id),
        feed.feed.expire(session_id),
        feed.feed.revoke(sign_in(feed, expires_in=None)),
    ]
    messages = [(update.outcome, json.loads(update.json)) for update in updates]
    assert [faults(PUBLISHED, each) for outcome, each in messages if outcome == "applied"] == [[]] * 4
    assert [faults(STREAMED, each | {"cursor": None}) for _, each in messages] == [[]] * 5


@pytest.mark.parametrize("name", [*EVENTS, "update", "late"])
def test_nothing_happens_to_a_session_that_there_is_not(feed: MemoryFeed, name: str) -> None:
    with pytest.raises(LookupError, match="sess_other"):
        getattr(feed.feed, name)("sess_other")


@pytest.mark.parametrize("name", [*EVENTS, "update"])
def test_a_session_that_is_over_does_not_end_again(feed: MemoryFeed, session_id: str, name: str) -> None:
    feed.feed.end(session_id)
    with pytest.raises(ValueError, match="over: ended"):
        getattr(feed.feed, name)(session_id)


def test_what_is_no_news_to_the_relay_is_refused(feed: MemoryFeed, session_id: str) -> None:
    with pytest.raises(ValueError, match="news"):
        feed.feed.update(session_id, status="active", last_active_at=1)


def test_a_session_does_not_begin_twice(feed: MemoryFeed, session_id: str) -> None:
    with pytest.raises(ValueError, match="already"):
        feed.feed.sign_in("user_1", session_id=session_id)


@pytest.mark.parametrize(
    ("user_id", "fields", "said"),
    [
        ("user 1", {}, "user_id"),
        ("user_1", {"session_id": "sess/1"}, r"session\.id"),
        ("user_1", {"created_at": -1}, "created_at"),
        ("user_1", {"actor": {"name": "admin"}}, "actor"),
    ],
)
def test_what_clerk_does_not_send_is_refused(feed: MemoryFeed, user_id: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        feed.feed.sign_in(user_id, **fields)
    feed.feed.finish()
    with pytest.raises(EndedError):
        feed.follow().next()


# What a loop meets


def test_a_loop_that_waits_is_told_at_once_that_the_stream_was_trimmed(feed: MemoryFeed, session_id: str) -> None:
    updates = feed.follow()
    updates.next()
    news = waiting(feed, updates.begin())
    feed.feed.trim()
    with pytest.raises(CursorLostError):
        news.result(PATIENCE)


def test_a_loop_with_resync_gets_the_snapshots_again(feed: MemoryFeed, session_id: str) -> None:
    updates = feed.follow(resync=True)
    updates.next()
    news = waiting(feed, updates.begin())
    feed.feed.trim()
    (again,) = news.result(PATIENCE)
    assert (again.session.id, again.is_snapshot) == (session_id, True)


def test_a_loop_whose_last_entry_is_kept_misses_nothing(feed: MemoryFeed, session_id: str) -> None:
    updates = feed.follow()
    updates.next()
    news = waiting(feed, updates.begin())
    feed.feed.trim(keep=1)
    ended = feed.feed.end(session_id)
    assert news.result(PATIENCE) == [ended]


def test_of_what_redis_lost_nothing_is_known_until_it_changes(feed: MemoryFeed, session_id: str) -> None:
    sign_in(feed)
    news = waiting(feed, feed.follow(resync=True).begin(3))
    feed.feed.flush()
    assert feed.do(feed.feed.status, session_id) == "unknown"
    for name in ("late", "expire"):
        with pytest.raises(LookupError, match="stored"):
            getattr(feed.feed, name)(session_id)
    ended = feed.feed.end(session_id)
    assert (ended.revision, ended.previous_status) == (1, None)
    assert news.result(PATIENCE)[2].session == ended.session


def test_while_redis_is_away_short_reads_fail_and_loops_wait(feed: MemoryFeed, session_id: str) -> None:
    errors: list[Exception] = []
    updates = feed.follow(on_reconnect=errors.append)
    updates.next()
    news = waiting(feed, updates.begin())
    feed.feed.fail()
    ended = feed.feed.end(session_id)
    feed.wait_until_idle()
    assert [type(error) for error in errors] == [redis.ConnectionError]
    with pytest.raises(redis.ConnectionError):
        feed.is_live(session_id)
    assert not news.done()
    feed.feed.restore()
    assert news.result(PATIENCE) == [ended]
    assert not feed.is_live(session_id)


def test_what_trying_again_can_not_help_ends_a_loop(feed: MemoryFeed) -> None:
    news = waiting(feed, feed.follow().begin())
    feed.feed.fail(NoPermissionError("no permissions to run the 'xread' command"))
    with pytest.raises(NoPermissionError):
        news.result(PATIENCE)


def test_a_subscriber_gets_what_is_published_while_redis_is_there(feed: MemoryFeed, session_id: str) -> None:
    news = waiting(feed, feed.subscribe("user_1", on_reconnect=lambda _: None).begin(2))
    sign_in(feed, "user_2")
    updates = [feed.feed.update(session_id, abandon_at=1)]
    feed.feed.fail()
    feed.feed.update(session_id, abandon_at=2)  # lost
    feed.feed.restore()
    feed.wait_until_idle()
    updates.append(feed.feed.end(session_id))
    assert news.result(PATIENCE) == updates


def test_a_loop_goes_on_behind_a_position(feed: MemoryFeed, session_id: str) -> None:
    ended = feed.feed.end(session_id)
    (begun,) = feed.follow("0-0").take(1)
    assert feed.follow(begun.position).next() == ended


def test_each_partition_has_cursors_of_its_own(open_feed: Callable[..., MemoryFeed]) -> None:
    feed = open_feed(partitions=3)
    ids = [sign_in(feed, f"user_{number}") for number in range(9)]
    held = feed.follow().take(9)
    assert {update.partition for update in held} == {0, 1, 2}
    now = feed.now()
    ended = [feed.feed.end(session_id) for session_id in ids]
    assert sorted(feed.follow(now).take(9), key=lambda each: each.cursor) == ended
    with pytest.raises(ValueError, match="partitions"):
        feed.follow(ended[0].position)


def test_a_feed_has_the_settings_of_other_feeds(open_feed: Callable[..., MemoryFeed]) -> None:
    with pytest.raises(ConfigurationError, match="PARTITIONS"):
        open_feed(partitions=0)


# Groups


def test_a_group_shares_what_happens(feed: MemoryFeed) -> None:
    shares = [feed.consume(name=name, after="0-0").begin() for name in ("one", "two")]
    feed.wait_until_idle(2)
    begun = [[feed.feed.sign_in("user_1")] for _ in shares]
    assert sorted((share.result(PATIENCE) for share in shares), key=begun.index) == begun


def test_what_is_done_is_acknowledged_once_the_loop_waits(feed: MemoryFeed, session_id: str) -> None:
    updates = feed.consume(after="0-0")
    updates.next()
    assert feed.feed.pending("group") == 1
    waiting(feed, updates.begin())
    assert feed.feed.pending("group") == 0


def test_who_leaves_the_loop_in_its_body_gets_the_update_again(feed: MemoryFeed, session_id: str) -> None:
    updates = feed.consume(after="0-0")
    begun = updates.next()
    updates.leave()
    assert feed.consume(after="0-0").next() == begun


def test_another_consumer_takes_over_what_is_not_acknowledged_in_time(feed: MemoryFeed, session_id: str) -> None:
    begun = feed.consume(name="dies", after="0-0").next()
    assert feed.consume(name="lives", after="0-0", claim_after=0.05).next() == begun


def test_a_group_that_redis_lost_gets_what_happens_next(feed: MemoryFeed, session_id: str) -> None:
    updates = feed.consume(after="0-0")
    updates.next()
    news = waiting(feed, updates.begin())
    feed.feed.flush()
    ended = feed.feed.end(session_id)
    taken = news.result(PATIENCE)
    assert ended.session in [update.session for update in taken]


def test_a_group_is_told_that_the_stream_was_trimmed_before_it_got_all(feed: MemoryFeed, session_id: str) -> None:
    updates = feed.consume(after="0-0")
    updates.next()
    updates.leave()
    feed.feed.end(session_id)
    feed.feed.trim()
    sign_in(feed)
    with pytest.raises(CursorLostError):
        feed.consume(after="0-0").take(3)


# Mirrors


@contextlib.contextmanager
def mirrored(feed: MemoryFeed, **options: Any) -> Iterator[Mirror]:
    # However long a busy machine keeps its thread waiting.
    mirror = Mirror(feed, **{"max_age": 600.0} | options)
    try:
        yield mirror
    finally:
        mirror.close()


def test_a_mirror_knows_what_happened_once_its_feed_is_idle(feed: MemoryFeed, session_id: str) -> None:
    with mirrored(feed) as mirror:
        mirror.wait()
        assert mirror.is_live(session_id)
        feed.feed.revoke(session_id)
        feed.wait_until_idle()
        assert mirror.status(session_id) == "ended"


def test_a_mirror_that_begins_while_redis_is_away_is_too_old(feed: MemoryFeed) -> None:
    feed.feed.fail()
    with mirrored(feed, on_reconnect=lambda _: None) as mirror, pytest.raises(MirrorTooOldError):
        mirror.status("sess_1")


def test_a_mirror_that_has_just_read_something_is_told_that_redis_is_away(
    feed: MemoryFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[redis.RedisError] = []

    def fail(*_: Any) -> None:
        feed.feed.fail()

    monkeypatch.setattr(MirrorReading, "entry", fail)
    with mirrored(feed, on_reconnect=told.append) as mirror:
        mirror.wait()
        sign_in(feed)
        feed.wait_until_idle()
        assert len(told) == 1


@pytest.mark.parametrize("max_age", [600.0, math.inf])
def test_a_mirror_goes_on_where_loops_finish(feed: MemoryFeed, session_id: str, max_age: float) -> None:
    with mirrored(feed, max_age=max_age) as mirror:
        mirror.wait()
        feed.feed.finish()
        feed.feed.end(session_id)
        feed.wait_until_idle()
        assert mirror.status(session_id) == "ended"


def test_in_asyncio_nothing_of_a_closed_mirror_goes_on() -> None:
    async def use(wait: float) -> set[Any]:
        async with AsyncMemorySessionFeed() as feed:
            async with feed.mirror() as mirror:
                with contextlib.suppress(TimeoutError):
                    await mirror.wait_until_ready(wait)
            return asyncio.all_tasks() - {asyncio.current_task()}

    assert [asyncio.run(use(wait)) for wait in (PATIENCE, 0.0)] == [set(), set()]


# How a test waits for its loops, and ends them


def test_it_is_idle_only_when_as_many_loops_have_begun(feed: MemoryFeed) -> None:
    with pytest.raises(TimeoutError, match="0 loops have begun"):
        feed.wait_until_idle(1, 0.01)
    waiting(feed, feed.follow().begin())
    with pytest.raises(TimeoutError, match="1 loops have begun, and 0 of them"):
        feed.wait_until_idle(2, 0.01)


def test_it_is_not_idle_while_the_body_of_a_loop_is_at_work(feed: MemoryFeed, session_id: str) -> None:
    updates = feed.follow()
    updates.next()
    with pytest.raises(TimeoutError, match="1 of them are not through"):
        feed.wait_until_idle(1, 0.01)
    updates.leave()
    feed.wait_until_idle()


def test_loops_finish_where_they_would_wait(feed: MemoryFeed, session_id: str) -> None:
    updates, other = feed.follow(), feed.subscribe()
    updates.next()
    futures = [waiting(feed, updates.begin()), other.begin()]
    feed.feed.finish()
    for future in futures:
        with pytest.raises(EndedError):
            future.result(PATIENCE)


def test_a_loop_that_begins_in_the_end_gets_what_happened_before(feed: MemoryFeed, session_id: str) -> None:
    feed.feed.end(session_id)
    feed.feed.finish()
    assert [update.session.status for update in feed.follow().take(1)] == ["ended"]
    updates = feed.consume(after="0-0")
    assert [update.session.status for update in updates.take(2)] == ["active", "ended"]
    with pytest.raises(EndedError):
        updates.next()
    assert feed.feed.pending("group") == 0


def test_a_loop_may_finish_while_redis_is_away(feed: MemoryFeed) -> None:
    news = waiting(feed, feed.follow(on_reconnect=lambda _: None).begin())
    feed.feed.fail()
    feed.wait_until_idle()
    feed.feed.finish()
    with pytest.raises(EndedError):
        news.result(PATIENCE)


def test_closing_the_feed_ends_its_loops(feed: MemoryFeed) -> None:
    news = waiting(feed, feed.follow().begin())
    feed.close()
    with pytest.raises(EndedError):
        news.result(PATIENCE)
    with pytest.raises(FeedClosedError):
        feed.get("sess_1")


# For whom it is


def drop(feed: SessionFeed, dropped: list[str]) -> None:
    """A consumer, typed with the feed that it gets in production."""
    for update in feed.follow():
        if not update.is_live:
            dropped.append(update.session.id)  # noqa: PERF401  # as people write it


async def drop_async(feed: AsyncSessionFeed, dropped: list[str]) -> None:
    async for update in feed.follow():
        if not update.is_live:
            dropped.append(update.session.id)  # noqa: PERF401


def test_a_consumer_runs_in_the_thread_of_the_test(session_feed: MemorySessionFeed) -> None:
    ended = session_feed.end(session_feed.sign_in("user_1").session.id)
    session_feed.finish()
    dropped: list[str] = []
    drop(session_feed, dropped)
    assert dropped == [ended.session.id]


def test_a_consumer_runs_beside_the_test(session_feed: MemorySessionFeed) -> None:
    dropped: list[str] = []
    thread = threading.Thread(target=drop, args=(session_feed, dropped))
    thread.start()
    session = session_feed.sign_in("user_1").session
    session_feed.wait_until_idle()
    assert dropped == []
    session_feed.revoke(session.id)
    session_feed.wait_until_idle()
    assert dropped == [session.id]
    session_feed.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_consumer_in_asyncio_runs_in_the_loop_of_the_test(async_session_feed: AsyncMemorySessionFeed) -> None:
    async def main() -> None:
        dropped: list[str] = []
        task = asyncio.create_task(drop_async(async_session_feed, dropped))
        session = async_session_feed.sign_in("user_1").session
        await async_session_feed.wait_until_idle()
        async_session_feed.revoke(session.id)
        await async_session_feed.wait_until_idle()
        assert dropped == [session.id]
        async_session_feed.finish()
        await task

    asyncio.run(main())


def test_a_consumer_of_another_event_loop_is_driven_from_here(async_session_feed: AsyncMemorySessionFeed) -> None:
    """As an application under a test client."""
    dropped: list[str] = []
    thread = threading.Thread(target=lambda: asyncio.run(drop_async(async_session_feed, dropped)))
    thread.start()
    ended = async_session_feed.end(async_session_feed.sign_in("user_1").session.id)
    asyncio.run(async_session_feed.wait_until_idle())
    assert dropped == [ended.session.id]
    async_session_feed.finish()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_where_a_program_makes_its_feed_a_test_makes_one_in_memory() -> None:
    with MemorySessionFeed.from_url("redis://127.0.0.1:1/0", partitions=2) as feed:
        assert len(feed.now()) == 2
        assert not feed.is_live("sess_1")


def test_loops_in_many_threads_get_all_that_many_threads_let_happen(session_feed: MemorySessionFeed) -> None:
    seen: list[list[SessionUpdate]] = [[] for _ in range(4)]
    shared: list[SessionUpdate] = []

    def consume(number: int) -> None:
        shared.extend(session_feed.consume("group", f"name_{number}", after="0-0"))

    readers = [threading.Thread(target=lambda to=to: to.extend(session_feed.follow("0-0"))) for to in seen]
    readers += [threading.Thread(target=consume, args=(number,)) for number in range(4)]
    writers = [threading.Thread(target=lambda: [session_feed.sign_in("user_1") for _ in range(50)]) for _ in range(4)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join(PATIENCE)
    session_feed.wait_until_idle(len(readers), 2 * PATIENCE)
    session_feed.finish()
    for thread in readers:
        thread.join(PATIENCE)
    assert len(seen[0]) == 200
    assert seen[0] == sorted(seen[0], key=lambda each: tuple(map(int, each.cursor.split("-"))))
    assert seen[1:] == [seen[0]] * 3
    assert sorted(update.session.id for update in shared) == sorted(update.session.id for update in seen[0])
