"""One AsyncSessionFeed in several event loops: one after the other, as `asyncio.run` makes them, or side by side."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clerk_session_feed import AsyncSessionFeed, FeedClosedError, FeedError, SessionUpdate, transport
from clerk_session_feed.settings import RedisSettings, load
from support.clock import eventually
from support.constants import EVENTS_KEY, NO_REDIS
from support.events import clerk_event
from support.feeds import PATIENCE
from support.relay import run_relay

from service.dev.embedded import EmbeddedRedis

pytestmark = pytest.mark.real_redis


@pytest.fixture
def feed(own_redis: EmbeddedRedis, own_client: Any) -> AsyncSessionFeed:
    """One on a Redis in which `sess_1` is live, and to which nobody else is connected."""
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event(expire_at=None), "msg_1")
    eventually(lambda: connections(own_client) == 0)
    return AsyncSessionFeed.from_url(own_redis.url)


def connections(client: Any) -> int:
    return len(client.client_list()) - 1


@pytest.fixture
def loops() -> Iterator[Callable[[], asyncio.AbstractEventLoop]]:
    """Make event loops, which are ended afterwards as `asyncio.run` does."""
    made: list[asyncio.AbstractEventLoop] = []

    def make() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[-1]

    yield make
    for loop in made:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def test_each_run_of_asyncio_has_its_own_connection_and_leaves_none(feed: AsyncSessionFeed, own_client: Any) -> None:
    for _ in range(4):
        assert asyncio.run(feed.status("sess_1"), debug=True) == "live"
        gc.collect()  # a connection that was left open is a ResourceWarning now
        eventually(lambda: connections(own_client) == 0)


def test_a_loop_that_goes_on_keeps_its_connection(
    feed: AsyncSessionFeed, own_client: Any, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    first, second = loops(), loops()
    for loop in (first, second, first, second):
        assert loop.run_until_complete(feed.is_live("sess_1"))
    assert connections(own_client) == 2


def test_loops_in_several_threads_at_once(feed: AsyncSessionFeed, own_client: Any) -> None:
    ready = threading.Barrier(4)

    async def read() -> list[bool]:
        ready.wait(PATIENCE)
        return [await feed.is_live("sess_1") for _ in range(30)]

    with ThreadPoolExecutor(4) as threads:
        outcomes = [threads.submit(asyncio.run, read()) for _ in range(4)]
    assert [each.result() for each in outcomes] == [[True] * 30] * 4
    gc.collect()
    eventually(lambda: connections(own_client) == 0)


def test_an_iterator_that_is_left_with_its_loop_leaves_nothing(feed: AsyncSessionFeed, own_client: Any) -> None:
    async def first() -> SessionUpdate:
        async for update in feed.follow("0-0"):
            return update
        raise AssertionError

    for _ in range(3):
        assert asyncio.run(first(), debug=True).session.id == "sess_1"
        gc.collect()
        eventually(lambda: connections(own_client) == 0)


def test_a_consumer_that_leaves_with_its_loop_acknowledges_what_it_did(
    feed: AsyncSessionFeed, own_redis: EmbeddedRedis, own_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with run_relay(own_redis.url) as relay:
        for number in range(5):
            relay.take(clerk_event(session_id=f"sess_other_{number}", expire_at=None), f"msg_other_{number}")

    async def leave_at(number: int) -> None:
        count = 0
        async for _ in feed.consume("mirror", "consumer", after="0-0"):
            count += 1
            if count == number:
                return

    asyncio.run(leave_at(4))
    gc.collect()

    assert own_client.xpending(EVENTS_KEY, "mirror")["pending"] == 3  # the one at which it left, and two behind it
    assert caplog.records == []


def test_closing_ends_what_waits_in_the_loop_of_another_thread(feed: AsyncSessionFeed, own_client: Any) -> None:
    async def wait() -> list[SessionUpdate]:
        return [update async for update in feed.subscribe()]

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(asyncio.run, wait())
        eventually(lambda: own_client.pubsub_numsub("clerk:sessions") == [("clerk:sessions", 1)])
        asyncio.run(feed.close())
        assert waiting.result(PATIENCE) == []
    eventually(lambda: connections(own_client) == 0)


def test_a_feed_that_was_closed_in_one_loop_is_closed_in_all(feed: AsyncSessionFeed) -> None:
    assert asyncio.run(feed.is_live("sess_1"))
    asyncio.run(feed.close())
    with pytest.raises(FeedClosedError):
        asyncio.run(feed.status("sess_1"))


def test_closing_ends_what_rests_with_a_loop_that_does_not_run(
    feed: AsyncSessionFeed, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    resting = loops()
    updates = feed.follow("0-0")
    resting.run_until_complete(anext(updates))
    assert resting.run_until_complete(feed.is_live("sess_1"))
    asyncio.run(feed.close())
    with pytest.raises(StopAsyncIteration):
        resting.run_until_complete(anext(updates))
    with pytest.raises(FeedClosedError):
        resting.run_until_complete(feed.is_live("sess_1"))


def test_an_iterator_says_that_it_belongs_to_another_loop(
    feed: AsyncSessionFeed, own_client: Any, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    updates, first = feed.follow("0-0"), loops()
    first.run_until_complete(anext(updates))
    with pytest.raises(FeedError, match="another event loop"):
        loops().run_until_complete(anext(updates))

    def is_left_alone() -> bool:
        first.run_until_complete(asyncio.sleep(0))  # its connection is closed where it was made
        return connections(own_client) == 0

    gc.collect()
    eventually(is_left_alone)


def test_a_cancellation_that_redis_py_swallows_is_repeated() -> None:
    """Otherwise a program that was told to end would wait for Redis until something happens there."""

    async def swallow_one() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    async def main() -> None:
        settings = load(RedisSettings, {"redis_url": NO_REDIS})
        connection = transport.AsyncConnection(settings, "", blocks=True)
        task = asyncio.create_task(connection.resolve(swallow_one()))
        for _ in range(5):  # until it sleeps
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 30)
        assert task.cancelled()

    asyncio.run(main())
