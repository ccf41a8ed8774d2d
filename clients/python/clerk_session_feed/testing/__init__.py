"""Feeds without Redis, for the tests of programs that use one: docs/testing.md.

The rules of `SessionFeed` run over what a test lets happen, so a loop gets what it would get from Redis, an error too.
"""

import asyncio
from typing import Any, Final, Unpack

from clerk_session_feed.base import FeedSettings
from clerk_session_feed.feed import AsyncSessionFeed, SessionFeed
from clerk_session_feed.settings import RedisSettings, load
from clerk_session_feed.testing.memory_connection import AsyncMemoryConnection, BlockingMemoryConnection
from clerk_session_feed.testing.memory_redis import MemoryRedis
from clerk_session_feed.testing.simulation import ChangedFields, SessionFields, Simulation

__all__ = ["AsyncMemorySessionFeed", "ChangedFields", "MemorySessionFeed", "SessionFields"]

URL: Final = "redis://memory"
"""Nothing connects to it."""
IDLE_SECONDS: Final = 30.0
"""Seconds after which a test that waits for its loops has failed, even on a busy machine."""


class MemorySessionFeed(Simulation, SessionFeed):
    """A `SessionFeed` without Redis, and what a test lets happen to its sessions.

    def test_a_session_that_is_revoked_is_refused():
        with MemorySessionFeed() as feed:
            session_id = feed.sign_in("user_1").session.id
            feed.revoke(session_id)
            assert not feed.is_live(session_id)
    """

    def __init__(self, settings: RedisSettings | None = None, **options: Unpack[FeedSettings]) -> None:
        """Make a feed without sessions.

        Args:
            settings: As `SessionFeed` takes them; their URL is not used.
            options: Those that differ from their defaults: `partitions=4`, for instance.

        Raises:
            ConfigurationError: With a line for each fault.
        """
        settings, memory = _settings(settings, options), MemoryRedis()
        Simulation.__init__(self, settings, memory)
        SessionFeed.__init__(self, settings)

    def _new_connection(self, key: str, **options: Any) -> BlockingMemoryConnection:
        return BlockingMemoryConnection(self._memory, self._settings, key, **options)

    def wait_until_idle(self, loops: int = 1, timeout: float = IDLE_SECONDS) -> None:
        """Return when the loops over this feed are through with all that happened: they wait for more, or have ended.

        A mirror counts as a loop.

        Args:
            loops: How many have to have begun, at least.
            timeout: Seconds to wait at most.

        Raises:
            TimeoutError: If it takes longer. A loop may have stopped by an error, or not have been begun.
        """
        idle = self._idle(loops)
        try:
            idle.result(timeout)
        except TimeoutError:
            idle.cancel()
            raise self._not_idle(timeout) from None


class AsyncMemorySessionFeed(Simulation, AsyncSessionFeed):
    """An `AsyncSessionFeed` without Redis, and what a test lets happen to its sessions; see `MemorySessionFeed`.

    What lets something happen is not awaited, and may be called from any thread.
    """

    def __init__(self, settings: RedisSettings | None = None, **options: Unpack[FeedSettings]) -> None:
        """See `MemorySessionFeed`."""
        settings, memory = _settings(settings, options), MemoryRedis()
        Simulation.__init__(self, settings, memory)
        AsyncSessionFeed.__init__(self, settings)

    def _new_connection(self, key: str, **options: Any) -> AsyncMemoryConnection:
        return AsyncMemoryConnection(self._memory, self._settings, key, **options)

    async def wait_until_idle(self, loops: int = 1, timeout: float = IDLE_SECONDS) -> None:  # noqa: ASYNC109  # as for threads
        """See `MemorySessionFeed.wait_until_idle`."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wrap_future(self._idle(loops))
        except TimeoutError:
            raise self._not_idle(timeout) from None


def _settings(settings: RedisSettings | None, options: FeedSettings) -> RedisSettings:
    given = {} if settings is None else settings.model_dump()
    return load(RedisSettings, {**given, **options, "redis_url": URL})
