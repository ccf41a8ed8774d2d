"""What both feeds have in common: which keys there are, and which connection leads to them."""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, Self, TypedDict, TypeVar, Unpack

from clerk_session_feed import connections, group, stream
from clerk_session_feed.cursors import START
from clerk_session_feed.errors import FeedClosedError
from clerk_session_feed.group import Group
from clerk_session_feed.keys import Keys, partition_of
from clerk_session_feed.settings import RedisSettings, load
from clerk_session_feed.stream import Partition, Updates
from clerk_session_feed.transport import AsyncConnection, BlockingConnection, OnReconnect

After = str | Mapping[int, str | None] | None
"""Where to begin: behind a cursor; behind one for each partition, by its number; None: with the snapshots."""

C = TypeVar("C", BlockingConnection, AsyncConnection)


class FeedSettings(TypedDict, total=False):
    """The settings of the relay that differ from their defaults: docs/contract.md, section 2."""

    redis_tls_verify: bool
    redis_key_prefix: str
    redis_channel: str
    redis_timeout: float
    """Seconds, for connecting and for one command."""
    partitions: int


class Feed(Generic[C]):
    """The keys of the relay, and connections to them."""

    _connection: type[C]

    def __init__(self, settings: RedisSettings) -> None:
        """Make a feed; it connects when it is first used."""
        self._settings = settings
        self._channels = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._keys = self._channels.split(settings.partitions)
        self._is_closed = False
        self._lock = threading.Lock()
        """Held while it is decided whether an iterator begins before the feed is closed, or not at all."""
        url = settings.redis_url.get_secret_value()
        self._slots = [connections.slot(url, keys.events) for keys in self._keys]
        self._readers: dict[int, C] = {
            slot: self._connection(settings, keys.events, blocks=False)
            for slot, keys in dict(zip(self._slots, self._keys, strict=True)).items()
        }
        self._followers: weakref.WeakSet[C] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: str, **settings: Unpack[FeedSettings]) -> Self:
        """Make a feed; it connects when it is first used. The environment is not read.

        Args:
            url: Where the relay's Redis is, in any of the forms of REDIS_URL: docs/contract.md, section 2.
            settings: Those of the relay that differ from their defaults.

        Raises:
            ConfigurationError: With a line for each fault.

        """
        return cls(load(RedisSettings, {"redis_url": url, **settings}))

    @classmethod
    def from_env(cls) -> Self:
        """Make a feed from the relay's own variables: REDIS_URL and so on, see `RedisSettings.from_env`.

        Raises:
            ConfigurationError: With a line for each fault.

        """
        return cls(RedisSettings.from_env())

    def _sources(self, user_id: str | None = None) -> list[tuple[C, Partition]]:
        """Return the partitions, or that of the user, each with the connection for short reads."""
        return [
            (self._readers[slot], partition)
            for slot, partitions in self._by_slot(user_id).items()
            for partition in partitions
        ]

    def _by_slot(self, user_id: str | None = None, after: After = None) -> dict[int, list[Partition]]:
        """Return the partitions, or that of the user, by the slot of a cluster that they lie in."""
        partitions = [Partition(number, keys) for number, keys in enumerate(self._keys)]
        _place(partitions, after)
        of_user = None if user_id is None else partition_of(user_id, len(partitions))
        by_slot: dict[int, list[Partition]] = {}
        for partition, slot in zip(partitions, self._slots, strict=True):
            if of_user in {None, partition.number}:
                by_slot.setdefault(slot, []).append(partition)
        return by_slot

    def _follow(
        self, after: After, *, stale: bool, resync: bool, on_reconnect: OnReconnect
    ) -> list[tuple[C, Updates]]:
        """Return the updates of each slot, with a connection for them alone."""
        rules = partial(stream.follow, stale=stale, resync=resync)
        return self._begin(rules, list(self._by_slot(after=after).values()), on_reconnect)

    def _consume(
        self, share: Group, after: After, *, stale: bool, resync: bool, on_reconnect: OnReconnect
    ) -> list[tuple[C, Updates]]:
        rules = partial(group.consume, group=share, stale=stale, resync=resync)
        return self._begin(rules, list(self._by_slot(after=after).values()), on_reconnect)

    def _subscribe(self, user_id: str | None, on_reconnect: OnReconnect) -> list[tuple[C, Updates]]:
        keys = self._channels
        channel = keys.channel if user_id is None else keys.user_channel(user_id)
        partitions, *_ = self._by_slot().values()  # any node of a cluster has every message
        return self._begin(
            lambda connection, _: stream.subscribe(connection, channel), [partitions], on_reconnect
        )

    def _begin(
        self,
        rules: Callable[[C, list[Partition]], Updates],
        slots: list[list[Partition]],
        on_reconnect: OnReconnect,
    ) -> list[tuple[C, Updates]]:
        made = [
            self._connection(
                self._settings, partitions[0].keys.events, blocks=True, on_reconnect=on_reconnect
            )
            for partitions in slots
        ]
        with self._lock:
            if self._is_closed:
                raise FeedClosedError("The feed is closed.")
            self._followers.update(made)
        return [
            (connection, connection.until_closed(rules(connection, partitions)))
            for connection, partitions in zip(made, slots, strict=True)
        ]

    def _end(self) -> list[C]:
        """Let nothing begin any more; return the connections to close."""
        with self._lock:
            self._is_closed = True
            return list(self._followers) + list(self._readers.values())


def _place(partitions: Sequence[Partition], after: After) -> None:
    if isinstance(after, str):
        if len(partitions) > 1 and "-" in after and after != START:
            raise ValueError("A cursor counts within its stream: with partitions, give {number: cursor}.")
        after = {partition.number: after for partition in partitions}
    for number, cursor in (after or {}).items():
        if not 0 <= int(number) < len(partitions):
            raise ValueError(f"There is no partition {number}.")
        if cursor is not None:
            partitions[int(number)].go_to(cursor)
