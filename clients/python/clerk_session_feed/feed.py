"""What Redis holds of sessions, for programs: read a state, and follow what happens without missing anything.

    from clerk_session_feed.feed import SessionFeed

    with SessionFeed.from_url("redis://…") as feed:
        if feed.is_live("sess_…"): ...
        for update in feed.follow():
            print(update.session.user_id, update.session.status, update.is_live)

`AsyncSessionFeed` has the same methods for asyncio. No Flask and no Svix is imported on this path.

Errors: `RedisError` (redis-py's) for what trying again does not mend (a wrong password, a right that is
missing), and from the short reads for a Redis that is away; `CursorLostError`; `UnreadableMessageError`;
`FeedClosedError`. The iterators ride out restarts, failovers and cuts: `on_reconnect` is told why, before
each new try; without it, the log is.

A long module, since each method stands twice, with its types and promises; what it does is in `feed_base`.
"""

from collections.abc import AsyncGenerator, Generator
from typing import Self

from redis import RedisError

from clerk_session_feed import feed_steps
from clerk_session_feed.errors import (
    ConfigurationError,
    CursorLostError,
    FeedClosedError,
    FeedError,
    UnreadableMessageError,
)
from clerk_session_feed.feed_base import After, Feed
from clerk_session_feed.feed_group import Group
from clerk_session_feed.feed_lines import AsyncLine, Line, OnReconnect, log_reconnect
from clerk_session_feed.feed_merge import merge, merge_async
from clerk_session_feed.models import (
    Event,
    EventWithRequest,
    HttpRequest,
    Session,
    SessionActivity,
    SessionTask,
    Status,
)
from clerk_session_feed.updates import SessionUpdate

__all__ = [
    "AsyncSessionFeed",
    "ConfigurationError",
    "CursorLostError",
    "Event",
    "EventWithRequest",
    "FeedClosedError",
    "FeedError",
    "HttpRequest",
    "RedisError",
    "Session",
    "SessionActivity",
    "SessionFeed",
    "SessionTask",
    "SessionUpdate",
    "Status",
    "UnreadableMessageError",
]


class SessionFeed(Feed[Line]):
    """Thread-safe. Short reads share a few connections; each iterator has its own."""

    _kind = Line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. Iterators end, also those that wait in other threads.

        Not for signal handlers, which may come while a lock is held: raise there (`sys.exit()`).
        """
        for line in self._end():
            line.close()

    def get(self, session_id: str, user_id: str | None = None) -> SessionUpdate | None:
        """Return what was applied to the session last; None if nothing is held of it.

        user_id: whose session it is, if that is known; with partitions, it saves asking all of them.
        Raises RedisError if Redis does not say; UnreadableMessageError.
        """
        for lane, partitions in self._lanes(user_id):
            if (update := self._readers[lane].run(feed_steps.get(partitions, session_id))) is not None:
                return update
        return None

    def is_live(self, session_id: str, user_id: str | None = None) -> bool:
        """Tell whether the session is active and has not run out; False if nothing is held of it.

        One HMGET. user_id: as for `get`. Raises RedisError if Redis does not say: nobody knows, then.
        """
        for lane, partitions in self._lanes(user_id):
            if (answer := self._readers[lane].run(feed_steps.is_live(partitions, session_id))) is not None:
                return answer
        return False

    def live_sessions(self, user_id: str) -> list[SessionUpdate]:
        """Return the user's sessions that are live now, those that run out first, first. Raises as `get`."""
        ((lane, (partition,)),) = self._lanes(user_id)
        return self._readers[lane].run(feed_steps.live_sessions(partition, user_id))

    def history(self, session_id: str, user_id: str | None = None) -> list[SessionUpdate]:
        """Return what the stream still holds about the session, stale events too. Raises as `get`.

        Reads the whole stream.
        """
        return [
            update
            for lane, partitions in self._lanes(user_id)
            for partition in partitions
            for update in self._readers[lane].run(feed_steps.history(partition, session_id))
        ]

    def now(self) -> dict[int, str]:
        """Return the cursor at the end of each partition: `follow(after=feed.now())` is what comes later.

        Raises RedisError if Redis does not say.
        """
        return {
            partition.number: self._readers[lane].run(feed_steps.newest(partition))
            for lane, partitions in self._lanes()
            for partition in partitions
        }

    def follow(
        self,
        after: After = None,
        *,
        stale: bool = False,
        resync: bool = False,
        on_reconnect: OnReconnect = log_reconnect,
    ) -> Generator[SessionUpdate, None, None]:
        """Yield every applied update, in the order of the stream, until the feed is closed.

        after: a cursor (`SessionUpdate.position`): what comes behind it; "0-0": all that the stream holds;
        with partitions `{number: cursor}`. Without one, the state of each session comes first (`is_snapshot`;
        ended ones, too), then what happened since: nothing is left out, and nothing of it comes twice.
        stale: yield, too, what came too late to change anything.
        resync: begin again from the snapshots, instead of raising CursorLostError, when the stream was
        trimmed past what was read last, or Redis lost it.
        Raises ValueError for an `after` that is none; CursorLostError; UnreadableMessageError; RedisError for
        what trying again does not mend.
        """
        return merge(self._following(after, stale=stale, resync=resync), on_reconnect)

    def consume(
        self,
        group: str,
        name: str,
        *,
        after: After = None,
        stale: bool = False,
        resync: bool = False,
        claim_after: float = 60.0,
        on_reconnect: OnReconnect = log_reconnect,
    ) -> Generator[SessionUpdate, None, None]:
        """Yield this consumer's share of what the group gets: each update at least once, whoever dies.

        An update is acknowledged when the next one is asked for: after the loop's body. Whoever leaves the
        loop in the middle gets it again. Between the consumers of a group there is no order: an older update
        of a session may come after a newer one; their cursors tell, compared as pairs of numbers.

        name: of this consumer, the same after a restart. after: where the group begins if there is none.
        claim_after: seconds after which what a consumer has not acknowledged goes to another; at least twice
        what the loop's body ever takes. stale, resync: as for `follow`.
        A group that Redis lost is made again, and gets all that the stream holds. Raises as `follow`.
        """
        share = Group(group, name, claim_after)
        return merge(self._consuming(share, after, stale=stale, resync=resync), on_reconnect)

    def subscribe(
        self, user_id: str | None = None, *, on_reconnect: OnReconnect = log_reconnect
    ) -> Generator[SessionUpdate, None, None]:
        """Yield what is published from now on, of all users or of one; what comes during a cut is lost.

        Raises as `follow`.
        """
        return merge(self._subscribing(user_id), on_reconnect)


class AsyncSessionFeed(Feed[AsyncLine]):
    """The methods of `SessionFeed`, for one event loop."""

    _kind = AsyncLine

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See SessionFeed."""
        for line in self._end():
            await line.close()

    async def get(self, session_id: str, user_id: str | None = None) -> SessionUpdate | None:
        """See SessionFeed."""
        for lane, partitions in self._lanes(user_id):
            update = await self._readers[lane].run(feed_steps.get(partitions, session_id))
            if update is not None:
                return update
        return None

    async def is_live(self, session_id: str, user_id: str | None = None) -> bool:
        """See SessionFeed."""
        for lane, partitions in self._lanes(user_id):
            answer = await self._readers[lane].run(feed_steps.is_live(partitions, session_id))
            if answer is not None:
                return answer
        return False

    async def live_sessions(self, user_id: str) -> list[SessionUpdate]:
        """See SessionFeed."""
        ((lane, (partition,)),) = self._lanes(user_id)
        return await self._readers[lane].run(feed_steps.live_sessions(partition, user_id))

    async def history(self, session_id: str, user_id: str | None = None) -> list[SessionUpdate]:
        """See SessionFeed."""
        return [
            update
            for lane, partitions in self._lanes(user_id)
            for partition in partitions
            for update in await self._readers[lane].run(feed_steps.history(partition, session_id))
        ]

    async def now(self) -> dict[int, str]:
        """See SessionFeed."""
        return {
            partition.number: await self._readers[lane].run(feed_steps.newest(partition))
            for lane, partitions in self._lanes()
            for partition in partitions
        }

    def follow(
        self,
        after: After = None,
        *,
        stale: bool = False,
        resync: bool = False,
        on_reconnect: OnReconnect = log_reconnect,
    ) -> AsyncGenerator[SessionUpdate, None]:
        """See SessionFeed."""
        return merge_async(self._following(after, stale=stale, resync=resync), on_reconnect)

    def consume(
        self,
        group: str,
        name: str,
        *,
        after: After = None,
        stale: bool = False,
        resync: bool = False,
        claim_after: float = 60.0,
        on_reconnect: OnReconnect = log_reconnect,
    ) -> AsyncGenerator[SessionUpdate, None]:
        """See SessionFeed."""
        share = Group(group, name, claim_after)
        return merge_async(self._consuming(share, after, stale=stale, resync=resync), on_reconnect)

    def subscribe(
        self, user_id: str | None = None, *, on_reconnect: OnReconnect = log_reconnect
    ) -> AsyncGenerator[SessionUpdate, None]:
        """See SessionFeed."""
        return merge_async(self._subscribing(user_id), on_reconnect)
