"""The two feeds: SessionFeed for threads, and AsyncSessionFeed with the same methods for asyncio.

A long module, since each method stands twice, with its types; what it does stands once, in `reads`, `stream`
and `group`.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Literal, Self, overload

from clerk_session_feed import reads, stream
from clerk_session_feed.base import After, Feed
from clerk_session_feed.errors import FeedClosedError
from clerk_session_feed.group import Group, consume
from clerk_session_feed.mirror import (
    KEEP_ENDED,
    MAX_AGE,
    AsyncAskingMirror,
    AsyncMirror,
    Mirror,
    MirrorOptions,
    PastMaxAge,
)
from clerk_session_feed.models import LiveStatus
from clerk_session_feed.settings import RedisSettings
from clerk_session_feed.transport import (
    AsyncConnection,
    BlockingConnection,
    OnReconnect,
    iterate,
    iterate_async,
    log_retry,
    run,
)
from clerk_session_feed.updates import SessionUpdate


class SessionFeed(Feed[BlockingConnection]):
    """Reads the state of sessions, and follows what happens to them, in threads.

        with SessionFeed.from_url("redis://…") as feed:
            if feed.is_live("sess_…"): ...
            for update in feed.follow():
                print(update.session.user_id, update.session.status, update.is_live)

    Thread-safe. Short reads share a few connections; each iterator has its own.

    The iterators survive restarts and failovers of Redis and connect again. `on_reconnect` is called with the error
    before each new attempt; without it, the error is logged. They raise `redis.RedisError` only for what another
    attempt can't help: a wrong password, a missing right. Short reads raise it, too, while Redis is away.
    """

    _connection = BlockingConnection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. Iterators end, also those that wait in other threads.

        Not for signal handlers, which may run while a lock is held: raise there (`sys.exit()`).
        """
        for connection in self._end():
            run(connection.close)

    def get(self, session_id: str, user_id: str | None = None) -> SessionUpdate | None:
        """Return what was applied to the session last; None if nothing is stored of it.

        Args:
            session_id: Clerk's id of the session.
            user_id: Whose session it is, if that is known. With partitions, it saves asking all of them.

        Raises:
            redis.RedisError: If Redis can't say.
            UnreadableMessageError: If another version of the relay has written it.
            FeedClosedError: If the feed is closed.
        """
        return run(reads.get, self._sources(user_id), session_id)

    def is_live(self, session_id: str, user_id: str | None = None) -> bool:
        """Tell whether the session's `status` is `live`. False also means that nothing is stored of the session.

        Args:
            session_id: Clerk's id of the session.
            user_id: See `get`.

        Raises:
            redis.RedisError: If Redis can't say: the session may be live or not.
            FeedClosedError: If the feed is closed.
        """
        return self.status(session_id, user_id) == "live"

    def status(self, session_id: str, user_id: str | None = None) -> LiveStatus:
        """Tell whether the session is live, in one round trip (on a cluster, one for each partition that is asked).

        - `live`: it is active and has not expired.
        - `ended`: it is stored and not live. It ended or expired, or it is `pending`: Clerk does not let the user
          in before some tasks are done.
        - `unknown`: nothing is stored of it. It began a moment ago and its webhook is on the way, or it began
          before the relay received webhooks, or it ended so long ago that it was forgotten; or there can be no
          session with such an id. docs/feed.md says what to do.

        Arguments and errors are those of `is_live`.
        """
        return run(reads.status, self._sources(user_id), session_id)

    def live_sessions(self, user_id: str) -> list[SessionUpdate]:
        """Return the user's sessions that are live now, the first to expire first. Raises like `get`."""
        return run(reads.live_sessions, self._sources(user_id), user_id)

    def history(self, session_id: str, user_id: str | None = None) -> list[SessionUpdate]:
        """Return what the stream still holds about the session, stale events too. Raises like `get`.

        Reads the whole stream.
        """
        return run(reads.history, self._sources(user_id), session_id)

    def now(self) -> dict[int, str]:
        """Return the cursor at the end of each partition: `follow(after=feed.now())` yields what comes later.

        Raises:
            redis.RedisError: If Redis can't say.
            FeedClosedError: If the feed is closed.
        """
        return run(reads.now, self._sources())

    def follow(
        self,
        after: After = None,
        *,
        stale: bool = False,
        resync: bool = False,
        rest: float = 0.0,
        on_reconnect: OnReconnect = log_retry,
    ) -> Generator[SessionUpdate, None, None]:
        """Yield every applied update, in the order of the stream, until the feed is closed.

        Without `after`, the state of each session comes first (`is_snapshot`), also of sessions that ended,
        then what has happened since: nothing is left out, and nothing of it comes twice.

        Args:
            after: A cursor (`SessionUpdate.position`), to begin behind it; "0-0", to begin with all that the
                stream holds. With partitions, `{number: cursor}`.
            stale: Yield events, too, that came too late to change anything.
            resync: Begin again with the snapshots, instead of raising CursorLostError.
            rest: Seconds to wait after updates, once there are no more, before it reads again. What comes meanwhile
                is read together, which takes less CPU time; an update that comes after a silence does not wait.
            on_reconnect: Called with the error before each new attempt to connect.

        Raises:
            ValueError: If `after` is no cursor.
            CursorLostError: If the stream was trimmed past what was read last, or Redis lost it.
            UnreadableMessageError: If another version of the relay has written a message.
            redis.RedisError: If another attempt can't help.
            FeedClosedError: If the feed is closed already.
        """
        reading = stream.UpdateReading(stale=stale, rest=rest)
        return iterate(self._begin(stream.follow, self._by_slot(after), on_reconnect, reading=reading, resync=resync))

    def consume(
        self,
        group: str,
        name: str,
        *,
        after: After = None,
        stale: bool = False,
        resync: bool = False,
        claim_after: float = 60.0,
        on_reconnect: OnReconnect = log_retry,
    ) -> Generator[SessionUpdate, None, None]:
        """Yield this consumer's share of what the group gets: each update at least once, whoever dies.

        An update counts as done when the next one is asked for, after the loop's body. Who leaves the loop
        in the body gets it again. What is done is acknowledged together: with the next read, after a second at
        the latest if the body is quick, and when the iterator is closed. After a crash, what was done since comes
        again. Between the consumers of a group there is no order: an older update of a session may come after a
        newer one. Compare their cursors, as pairs of numbers.

        A group that Redis lost is made again, and gets all that the stream holds.

        Args:
            group: The group's name.
            name: This consumer's name, the same after a restart. One that is not used for a day (or ten times
                claim_after, if that is longer) leaves the group.
            after: Where the group begins if it does not exist; see `follow`.
            stale: See `follow`.
            resync: See `follow`.
            on_reconnect: See `follow`.
            claim_after: Seconds after which what a consumer has not acknowledged goes to another; at least
                twice what the loop's body ever takes. Below 40, waiting takes more commands.

        Raises:
            ValueError: If a name is empty, or `after` or `claim_after` can't be used.
            Exception: The errors of `follow`.
        """
        share = Group(group, name, claim_after)
        return iterate(
            self._begin(consume, self._by_slot(after), on_reconnect, group=share, stale=stale, resync=resync)
        )

    def subscribe(
        self, user_id: str | None = None, *, on_reconnect: OnReconnect = log_retry
    ) -> Generator[SessionUpdate, None, None]:
        """Yield what is published from now on, for all users or for one; what comes during a cut is lost.

        Raises like `follow`, CursorLostError aside.
        """
        return iterate(self._begin(stream.subscribe, self._by_slot()[:1], on_reconnect, channel=self._channel(user_id)))

    def mirror(
        self,
        *,
        max_age: float = MAX_AGE,
        past_max_age: PastMaxAge = "raise",
        keep_ended: float = KEEP_ENDED,
        on_reconnect: OnReconnect = log_retry,
    ) -> Mirror:
        """Keep the state of all sessions in memory, and return what answers from there; it begins at once.

        Args:
            max_age: Seconds that an answer may be old. Redis is asked twice in that time, if there is no news.
            past_max_age: What becomes of a question when the mirror is older: `raise` MirrorTooOldError; `ask` Redis;
                `allow` any age, once the mirror was ready.
            keep_ended: Seconds that the ids of sessions are kept after their end: SESSION_RETENTION of the relay.
            on_reconnect: See `follow`.

        Raises:
            ValueError: If an argument can't be used.
            FeedClosedError: If the feed is closed already.
        """
        options = MirrorOptions(max_age, past_max_age, keep_ended, on_reconnect)
        return Mirror(self._connect, self._by_slot(), options, self.status, self.get)


class AsyncSessionFeed(Feed[AsyncConnection]):
    """The methods of `SessionFeed`, for asyncio. They are described there.

    One feed serves any number of event loops, one after the other (`asyncio.run`) or in several threads. Short reads
    have connections in each, which are closed with the loop. An iterator belongs to the loop in which it began.
    """

    _connection = AsyncConnection

    def __init__(self, settings: RedisSettings) -> None:
        """Make a feed; it connects when it is first used."""
        super().__init__(settings)
        self._by_loop: dict[asyncio.AbstractEventLoop, dict[int, AsyncConnection]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _readers_here(self) -> dict[int, AsyncConnection]:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_closed:
                raise FeedClosedError("The feed is closed.")
            if loop not in self._by_loop:
                open_ones = {each: readers for each, readers in self._by_loop.items() if not each.is_closed()}
                self._by_loop = open_ones | {loop: self._make_readers()}
            return self._by_loop[loop]

    def _end(self) -> list[AsyncConnection]:
        ended = super()._end()
        return ended + [reader for readers in self._by_loop.values() for reader in readers.values()]

    async def close(self) -> None:
        """See `SessionFeed.close`."""
        for connection in self._end():
            await connection.close()

    async def get(self, session_id: str, user_id: str | None = None) -> SessionUpdate | None:
        """See `SessionFeed.get`."""
        return await reads.get(self._sources(user_id), session_id)

    async def is_live(self, session_id: str, user_id: str | None = None) -> bool:
        """See `SessionFeed.is_live`."""
        return await self.status(session_id, user_id) == "live"

    async def status(self, session_id: str, user_id: str | None = None) -> LiveStatus:
        """See `SessionFeed.status`."""
        return await reads.status(self._sources(user_id), session_id)

    async def live_sessions(self, user_id: str) -> list[SessionUpdate]:
        """See `SessionFeed.live_sessions`."""
        return await reads.live_sessions(self._sources(user_id), user_id)

    async def history(self, session_id: str, user_id: str | None = None) -> list[SessionUpdate]:
        """See `SessionFeed.history`."""
        return await reads.history(self._sources(user_id), session_id)

    async def now(self) -> dict[int, str]:
        """See `SessionFeed.now`."""
        return await reads.now(self._sources())

    def follow(
        self,
        after: After = None,
        *,
        stale: bool = False,
        resync: bool = False,
        rest: float = 0.0,
        on_reconnect: OnReconnect = log_retry,
    ) -> AsyncGenerator[SessionUpdate, None]:
        """See `SessionFeed.follow`."""
        reading = stream.UpdateReading(stale=stale, rest=rest)
        return iterate_async(
            self._begin(stream.follow, self._by_slot(after), on_reconnect, reading=reading, resync=resync)
        )

    def consume(
        self,
        group: str,
        name: str,
        *,
        after: After = None,
        stale: bool = False,
        resync: bool = False,
        claim_after: float = 60.0,
        on_reconnect: OnReconnect = log_retry,
    ) -> AsyncGenerator[SessionUpdate, None]:
        """See `SessionFeed.consume`."""
        share = Group(group, name, claim_after)
        return iterate_async(
            self._begin(consume, self._by_slot(after), on_reconnect, group=share, stale=stale, resync=resync)
        )

    def subscribe(
        self, user_id: str | None = None, *, on_reconnect: OnReconnect = log_retry
    ) -> AsyncGenerator[SessionUpdate, None]:
        """See `SessionFeed.subscribe`."""
        return iterate_async(
            self._begin(stream.subscribe, self._by_slot()[:1], on_reconnect, channel=self._channel(user_id))
        )

    @overload
    def mirror(
        self,
        *,
        max_age: float = MAX_AGE,
        past_max_age: Literal["raise", "allow"] = "raise",
        keep_ended: float = KEEP_ENDED,
        on_reconnect: OnReconnect = log_retry,
    ) -> AsyncMirror: ...

    @overload
    def mirror(
        self,
        *,
        max_age: float = MAX_AGE,
        past_max_age: Literal["ask"],
        keep_ended: float = KEEP_ENDED,
        on_reconnect: OnReconnect = log_retry,
    ) -> AsyncAskingMirror: ...

    def mirror(
        self,
        *,
        max_age: float = MAX_AGE,
        past_max_age: PastMaxAge = "raise",
        keep_ended: float = KEEP_ENDED,
        on_reconnect: OnReconnect = log_retry,
    ) -> AsyncMirror | AsyncAskingMirror:
        """See `SessionFeed.mirror`; call it in the event loop that is to follow."""
        asyncio.get_running_loop()
        options = MirrorOptions(max_age, past_max_age, keep_ended, on_reconnect)
        kind = AsyncAskingMirror if past_max_age == "ask" else AsyncMirror
        return kind(self._connect, self._by_slot(), options, self.status, self.get)
