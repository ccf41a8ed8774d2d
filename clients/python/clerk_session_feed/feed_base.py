"""What both feeds are made of: which keys there are, and which connection leads to them."""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, Self, TypedDict, TypeVar, Unpack

from clerk_session_feed import connections, feed_group, feed_steps, feed_stream
from clerk_session_feed.errors import FeedClosedError
from clerk_session_feed.feed_group import Group
from clerk_session_feed.feed_lines import AsyncLine, Line
from clerk_session_feed.feed_steps import Partition, Steps
from clerk_session_feed.keys import Keys, partition_of
from clerk_session_feed.settings import RedisSettings, load

After = str | Mapping[int, str | None] | None
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


class Feed(Generic[L]):
    """Which keys there are, and which connection leads to them."""

    _kind: type[L]

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._channels = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._keys = self._channels.split(settings.partitions)
        self._is_closed = False
        self._lock = threading.Lock()
        """Held while it is decided whether an iterator begins before the feed is closed, or not at all."""
        url = settings.redis_url.get_secret_value()
        self._lane_of = [connections.lane(url, keys.events) for keys in self._keys]
        self._readers: dict[int, L] = {
            lane: self._kind(settings, keys.events, blocks=False)
            for lane, keys in dict(zip(self._lane_of, self._keys, strict=True)).items()
        }
        self._followers: weakref.WeakSet[L] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: str, **settings: Unpack[FeedSettings]) -> Self:
        """Make a feed; it connects when it is first used. The environment is not read.

        url: in any of the forms that the service takes. settings: those of the service, where it has others
        than the defaults.
        Raises ConfigurationError, with a line for each fault.
        """
        return cls(load(RedisSettings, {"redis_url": url, **settings}))

    @classmethod
    def from_env(cls) -> Self:
        """Make a feed from the settings that the service reads: REDIS_URL and so on, also from `.env`.

        Raises ConfigurationError, with a line for each fault.
        """
        return cls(RedisSettings.from_env())

    def _lanes(self, user_id: str | None = None, after: After = None) -> list[tuple[int, list[Partition]]]:
        """Return the partitions, or that of the user, by the connection that serves them."""
        partitions = [Partition(number, keys) for number, keys in enumerate(self._keys)]
        _place(partitions, after)
        of_user = None if user_id is None else partition_of(user_id, len(partitions))
        lanes: dict[int, list[Partition]] = {}
        for partition, lane in zip(partitions, self._lane_of, strict=True):
            if of_user in {None, partition.number}:
                lanes.setdefault(lane, []).append(partition)
        return list(lanes.items())

    def _following(self, after: After, *, stale: bool, resync: bool) -> list[tuple[L, Steps[None]]]:
        """Return the steps for each connection, with a client for them alone."""
        steps = partial(feed_stream.follow, stale=stale, resync=resync)
        return self._begin(steps, [partitions for _, partitions in self._lanes(after=after)])

    def _consuming(
        self, group: Group, after: After, *, stale: bool, resync: bool
    ) -> list[tuple[L, Steps[None]]]:
        steps = partial(feed_group.consume, group=group, stale=stale, resync=resync)
        return self._begin(steps, [partitions for _, partitions in self._lanes(after=after)])

    def _subscribing(self, user_id: str | None) -> list[tuple[L, Steps[None]]]:
        keys = self._channels
        channel = keys.channel if user_id is None else keys.user_channel(user_id)
        (_, partitions), *_ = self._lanes()  # any node of a cluster has every message
        return self._begin(lambda *_: feed_steps.subscribe(channel), [partitions])

    def _begin(
        self, steps: Callable[[L, list[Partition]], Steps[None]], lanes: list[list[Partition]]
    ) -> list[tuple[L, Steps[None]]]:
        lines = [self._kind(self._settings, partitions[0].keys.events, blocks=True) for partitions in lanes]
        with self._lock:
            if self._is_closed:
                raise FeedClosedError("The feed is closed.")
            self._followers.update(lines)
        return [(line, steps(line, partitions)) for line, partitions in zip(lines, lanes, strict=True)]

    def _end(self) -> list[L]:
        """Let nothing begin any more; return what has to be closed."""
        with self._lock:
            self._is_closed = True
            return list(self._followers) + list(self._readers.values())


def _place(partitions: Sequence[Partition], after: After) -> None:
    if isinstance(after, str):
        if len(partitions) > 1 and "-" in after and after != feed_steps.START:
            raise ValueError("A cursor counts within its stream: with partitions, give {number: cursor}.")
        after = {partition.number: after for partition in partitions}
    for number, cursor in (after or {}).items():
        if not 0 <= int(number) < len(partitions):
            raise ValueError(f"There is no partition {number}.")
        if cursor is not None:
            partitions[int(number)].go_to(cursor)
