"""What both feeds have in common: the keys of each partition, the connections to them, and one iterator over all."""

import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

from clerk_session_feed import connections
from clerk_session_feed.ahead import hand_over, is_end
from clerk_session_feed.cursors import START
from clerk_session_feed.errors import FeedClosedError
from clerk_session_feed.keys import Keys, partition_of
from clerk_session_feed.settings import RedisSettings, load
from clerk_session_feed.stream import Partition, Updates
from clerk_session_feed.transport import AsyncConnection, BlockingConnection, Connection, OnReconnect

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
        self._readers: dict[int, C] = self._make_readers()  # also refuses a URL that can't be used
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

    def _make_readers(self) -> dict[int, C]:
        """Return connections for short reads, one to each slot, and by the slot."""
        by_slot = dict(zip(self._slots, self._keys, strict=True))
        return {slot: self._new_connection(keys.events, blocks=False) for slot, keys in by_slot.items()}

    def _new_connection(self, key: str, **options: Any) -> C:
        return self._connection(self._settings, key, **options)

    def _readers_here(self) -> dict[int, C]:
        """Return the connections for short reads that the caller may use."""
        return self._readers

    def _sources(self, user_id: str | None = None) -> list[tuple[C, Partition]]:
        """Return the partitions, or that of the user, each with the connection for short reads."""
        count = len(self._keys)
        numbers = range(count) if user_id is None else [partition_of(user_id, count)]
        readers = self._readers_here()
        return [(readers[self._slots[number]], Partition(number, self._keys[number])) for number in numbers]

    def _by_slot(self, after: After = None) -> list[list[Partition]]:
        """Return the partitions, grouped by the slot of a cluster that they lie in."""
        partitions = [Partition(number, keys) for number, keys in enumerate(self._keys)]
        _place(partitions, after)
        by_slot: dict[int, list[Partition]] = {}
        for partition in partitions:
            by_slot.setdefault(self._slots[partition.number], []).append(partition)
        return list(by_slot.values())

    def _channel(self, user_id: str | None) -> str:
        return self._channels.channel if user_id is None else self._channels.user_channel(user_id)

    def _begin(
        self, rules: Callable[..., Updates], slots: list[list[Partition]], on_reconnect: OnReconnect, **options: Any
    ) -> Updates:
        """Return what the rules yield for all slots, each over a connection of its own."""
        made = self._connect(slots, on_reconnect)
        batches = [each.until_closed(rules(each, slot, **options)) for each, slot in zip(made, slots, strict=True)]
        return batches[0] if len(batches) == 1 else _merge(list(zip(made, batches, strict=True)))

    def _connect(
        self, slots: list[list[Partition]], on_reconnect: OnReconnect, longest_wait: float = math.inf
    ) -> list[C]:
        """Return a connection to each slot, for what waits there. They are closed with the feed."""
        options: Any = {"blocks": True, "longest_wait": longest_wait, "on_reconnect": on_reconnect}
        made = [self._new_connection(slot[0].keys.events, **options) for slot in slots]
        with self._lock:
            if self._is_closed:
                raise FeedClosedError("The feed is closed.")
            self._followers.update(made)
        return made

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


async def _merge(followers: Sequence[tuple[Connection, Updates]]) -> Updates:
    """Yield the batches of all as they come.

    Each follower has a thread, or a task, which goes on when its last batch has been dealt with.
    """
    first, _ = followers[0]
    ready = first.new_queue()
    gates = [connection.new_queue() for connection, _ in followers]
    workers = [
        connection.start(hand_over, connection, batches, ready, gate)
        for (connection, batches), gate in zip(followers, gates, strict=True)
    ]
    running = len(workers)
    try:
        while running:
            item, gate = await first.resolve(ready.get())
            if is_end(item):
                running -= 1
                if item is not None:
                    raise item
            elif first.is_closed:  # with all others; or by its error, which is about to come
                gate.put_nowait(False)
            else:
                yield item
                gate.put_nowait(True)
    finally:
        for (connection, _), gate in zip(followers, gates, strict=True):
            gate.put_nowait(False)
            await connection.close()
        while running:
            item, _ = await first.resolve(ready.get())
            running -= is_end(item)
