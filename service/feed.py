"""What Redis holds of sessions, for programs: read a state, and follow what happens without missing anything.

    from service.feed import SessionFeed

    with SessionFeed.from_url("redis://…") as feed:
        if feed.is_live("sess_…"): ...
        for update in feed.follow():
            print(update.session.user_id, update.session.status, update.is_live)

`AsyncSessionFeed` has the same methods for asyncio. No Flask and no Svix is imported on this path.

Errors: `RedisError` (redis-py's) for what trying again does not mend (a wrong password, a right that is
missing), and from the short reads for a Redis that is away; `CursorLostError`; `UnreadableMessageError`;
`FeedClosedError`. The iterators ride out restarts, failovers and cuts: `on_reconnect` is told why, before
each new try; without it, the log is.
"""

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Generic, Self, TypedDict, TypeVar, Unpack

from redis import RedisError

from service import connections, feed_group, feed_steps, feed_stream
from service.config import ExplicitRedisSettings, RedisSettings, load
from service.contract import Event, EventWithRequest, HttpRequest, Session, SessionActivity, SessionTask
from service.errors import CursorLostError, FeedClosedError, FeedError, UnreadableMessageError
from service.feed_group import Group
from service.feed_lines import AsyncLine, Line, OnReconnect, log_reconnect
from service.feed_merge import merge, merge_async
from service.feed_steps import Partition, Steps
from service.keys import Keys, partition_of
from service.update import SessionUpdate

__all__ = [
    "AsyncSessionFeed",
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
    "UnreadableMessageError",
]

After = str | Mapping[int, str] | None
"""Where to begin: behind a cursor; behind that of each partition, by its number; None: with the snapshots."""

L = TypeVar("L", Line, AsyncLine)


class FeedSettings(TypedDict, total=False):
    """What the relay has set otherwise than by default."""

    redis_tls_verify: bool
    redis_key_prefix: str
    redis_channel: str
    redis_timeout: float
    """Seconds, for connecting and for one command."""
    partitions: int


class _Feed(Generic[L]):
    """Which keys there are, and which connection leads to them."""

    _kind: type[L]

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._url = settings.redis_url.get_secret_value()
        self._channels = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._keys = self._channels.split(settings.partitions)
        self._is_closed = False
        self._lock = threading.Lock()
        """Held while it is decided whether an iterator begins before the feed is closed, or not at all."""
        self._readers: dict[int, L] = {
            lane: self._kind(settings, keys.events, blocks=False) for lane, keys in self._by_lane()
        }
        self._followers: weakref.WeakSet[L] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: str, **settings: Unpack[FeedSettings]) -> Self:
        """Make a feed; it connects when it is first used. The environment is not read.

        url: in any of the forms that the service takes. settings: those of the service, where it has others
        than the defaults.
        Raises ConfigurationError, with a line for each fault.
        """
        return cls(load(ExplicitRedisSettings, redis_url=url, **settings))

    @classmethod
    def from_env(cls) -> Self:
        """Make a feed from the settings that the service reads: REDIS_URL and so on, also from `.env`.

        Raises ConfigurationError, with a line for each fault.
        """
        return cls(load(RedisSettings))

    def _by_lane(self) -> list[tuple[int, Keys]]:
        return [(connections.lane(self._url, keys.events), keys) for keys in self._keys]

    def _lanes(self, user_id: str | None = None, after: After = None) -> list[tuple[int, list[Partition]]]:
        """Return the partitions, or that of the user, by the connection that serves them."""
        partitions = [Partition(number, keys) for number, keys in enumerate(self._keys)]
        _place(partitions, after)
        of_user = None if user_id is None else partition_of(user_id, len(partitions))
        lanes: dict[int, list[Partition]] = {}
        for partition, (lane, _) in zip(partitions, self._by_lane(), strict=True):
            if of_user in {None, partition.number}:
                lanes.setdefault(lane, []).append(partition)
        return list(lanes.items())

    def _begin(self, after: After, steps: Callable[..., Steps[None]]) -> list[tuple[L, Steps[None]]]:
        """Return the steps for each connection, with a client for them alone."""
        begun = []
        for _, partitions in self._lanes(after=after):
            line = self._kind(self._settings, partitions[0].keys.events, blocks=True)
            begun.append((line, steps(line, partitions)))
        with self._lock:
            if self._is_closed:
                raise FeedClosedError("The feed is closed.")
            self._followers.update(line for line, _ in begun)
        return begun

    def _end(self) -> list[L]:
        """Let nothing begin any more; return what has to be closed."""
        with self._lock:
            self._is_closed = True
            return list(self._followers) + list(self._readers.values())

    def _subscription(self, user_id: str | None) -> list[tuple[L, Steps[None]]]:
        keys = self._channels
        channel = keys.channel if user_id is None else keys.user_channel(user_id)
        # Any node of a cluster has every message.
        return self._begin(None, lambda *_: feed_steps.subscribe(channel))[:1]


def _place(partitions: Sequence[Partition], after: After) -> None:
    if isinstance(after, str):
        if len(partitions) > 1 and "-" in after and after != feed_steps.START:
            raise ValueError("A cursor counts within its stream: with partitions, give {number: cursor}.")
        after = {partition.number: after for partition in partitions}
    for number, cursor in (after or {}).items():
        if not 0 <= int(number) < len(partitions):
            raise ValueError(f"There is no partition {number}.")
        partitions[int(number)].go_to(cursor)


class SessionFeed(_Feed[Line]):
    """Thread-safe. Short reads share a few connections; each iterator has its own."""

    _kind = Line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. Iterators end, also those that wait in other threads."""
        for line in self._end():
            line.close()

    def get(self, session_id: str, user_id: str | None = None) -> SessionUpdate | None:
        """Return what was applied to the session last; None if nothing is held of it.

        user_id: whose session it is, if that is known; with partitions, it saves asking all of them.
        """
        for lane, partitions in self._lanes(user_id):
            if (update := self._readers[lane].run(feed_steps.get(partitions, session_id))) is not None:
                return update
        return None

    def is_live(self, session_id: str, user_id: str | None = None) -> bool:
        """Tell whether the session is active and has not run out; False if nothing is held of it.

        One HMGET. user_id: as for `get`.
        """
        for lane, partitions in self._lanes(user_id):
            if (answer := self._readers[lane].run(feed_steps.is_live(partitions, session_id))) is not None:
                return answer
        return False

    def live_sessions(self, user_id: str) -> list[SessionUpdate]:
        """Return the user's sessions that are live now, those that run out first, first."""
        ((lane, (partition,)),) = self._lanes(user_id)
        return self._readers[lane].run(feed_steps.live_sessions(partition, user_id))

    def history(self, session_id: str, user_id: str | None = None) -> list[SessionUpdate]:
        """Return what the stream still holds about the session, stale events too. Reads the whole stream."""
        return [
            update
            for lane, partitions in self._lanes(user_id)
            for partition in partitions
            for update in self._readers[lane].run(feed_steps.history(partition, session_id))
        ]

    def now(self) -> dict[int, str]:
        """Return the cursor at the end of each partition: `follow(after=feed.now())` is what comes later."""
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
    ) -> Iterator[SessionUpdate]:
        """Yield every applied update, in the order of the stream, until the feed is closed.

        after: a cursor (`SessionUpdate.position`): what comes behind it; "0-0": all that the stream holds;
        with partitions `{number: cursor}`. Without one, the state of each session comes first (`is_snapshot`;
        ended ones, too), then what happened since: nothing is left out, and nothing of it comes twice.
        stale: yield, too, what came too late to change anything.
        resync: begin again from the snapshots, instead of raising CursorLostError, when the stream was
        trimmed past what was read last, or Redis lost it.
        """
        steps = partial(feed_stream.follow, stale=stale, resync=resync)
        return merge(self._begin(after, steps), on_reconnect)

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
    ) -> Iterator[SessionUpdate]:
        """Yield this consumer's share of what the group gets: each update at least once, whoever dies.

        An update is acknowledged when the next one is asked for: after the loop's body. Whoever leaves the
        loop in the middle gets it again. Between the consumers of a group there is no order: an older update
        of a session may come after a newer one; their cursors tell, compared as pairs of numbers.

        name: of this consumer, the same after a restart. after: where the group begins if there is none.
        claim_after: seconds after which what a consumer has not acknowledged goes to another; longer than
        the loop's body ever takes. stale, resync: as for `follow`. A group that Redis lost is made again, and
        gets all that the stream holds.
        """
        share = Group(group, name, claim_after)
        steps = partial(feed_group.consume, group=share, stale=stale, resync=resync)
        return merge(self._begin(after, steps), on_reconnect)

    def subscribe(
        self, user_id: str | None = None, *, on_reconnect: OnReconnect = log_reconnect
    ) -> Iterator[SessionUpdate]:
        """Yield what is published from now on, of all users or of one; what comes during a cut is lost."""
        return merge(self._subscription(user_id), on_reconnect)


class AsyncSessionFeed(_Feed[AsyncLine]):
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
    ) -> AsyncIterator[SessionUpdate]:
        """See SessionFeed."""
        steps = partial(feed_stream.follow, stale=stale, resync=resync)
        return merge_async(self._begin(after, steps), on_reconnect)

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
    ) -> AsyncIterator[SessionUpdate]:
        """See SessionFeed."""
        share = Group(group, name, claim_after)
        steps = partial(feed_group.consume, group=share, stale=stale, resync=resync)
        return merge_async(self._begin(after, steps), on_reconnect)

    def subscribe(
        self, user_id: str | None = None, *, on_reconnect: OnReconnect = log_reconnect
    ) -> AsyncIterator[SessionUpdate]:
        """See SessionFeed."""
        return merge_async(self._subscription(user_id), on_reconnect)
