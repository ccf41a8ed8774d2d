"""Partitions of the present number and of the one to come, while the data is moved from one to the other."""

import contextlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

from clerk_session_feed import connections
from clerk_session_feed.cursors import position
from clerk_session_feed.keys import Keys, has_hash_tag, partition_of
from clerk_session_feed.layout import FIELD
from clerk_session_feed.redis_url import RedisUrl
from redis.exceptions import WatchError

from service.config import StoreSettings
from service.errors import CommandError
from service.store.layout import MARK_TTL_MS

MOST_PARTITIONS: Final = 1024


class RepartitionError(CommandError):
    """The data can't be moved, or not in this way."""


class Place(NamedTuple):
    """A partition, and a client of the server where it is."""

    keys: Keys
    client: Any

    def set_mark(self, mark: str) -> None:
        """Mark the partition, whatever was marked before."""
        with self.client.pipeline() as pipe:
            queue_mark(pipe, self.keys, mark)
            pipe.execute()

    def mark(self, name: str = FIELD) -> str:
        """Return a field of the mark; empty if it is not there."""
        return (self.client.hget(self.keys.layout, name) or b"").decode(errors="replace")

    def last_id(self) -> tuple[int, int]:
        """Return the greatest id that the stream ever had."""
        if not self.client.exists(self.keys.events):
            return 0, 0
        return position(self.client.xinfo_stream(self.keys.events)["last-generated-id"].decode())


def queue_mark(pipe: Any, keys: Keys, mark: str) -> None:
    """Mark a partition by way of a transaction."""
    pipe.hset(keys.layout, FIELD, mark)
    pipe.pexpire(keys.layout, MARK_TTL_MS)


class Places:
    """Makes places, each with one client for its slot, and writes to them."""

    def __init__(self, settings: StoreSettings) -> None:
        self.keys: Final = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._settings = settings
        self._url = settings.redis_url.get_secret_value()
        self._clients: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def at(self, keys: Keys) -> Place:
        """Return the place of a partition."""
        slot, settings = connections.slot(self._url, keys.layout), self._settings
        if slot not in self._clients:
            self._clients[slot] = connections.connect(
                self._url, keys.layout, tls_verify=settings.redis_tls_verify, timeout=settings.redis_timeout
            )
        return Place(keys, self._clients[slot])

    def of(self, partitions: int) -> list[Place]:
        """Return the places of so many partitions, by number."""
        return [self.at(keys) for keys in self.keys.split(partitions)]

    def count_streams(self, known: int) -> tuple[bool, int]:
        """Return whether there is the stream of one partition, and how many partitions the others tell of.

        known: a number of partitions; on a cluster, streams are looked for up to twice that number.
        """
        is_one = bool(self.at(self.keys).client.exists(self.keys.events))
        if not has_hash_tag(self.keys.prefix):
            return is_one, 0
        is_cluster = RedisUrl.parse(self._url).kind == "cluster"
        places = self.of(min(2 * known, MOST_PARTITIONS) if is_cluster else MOST_PARTITIONS)
        found = [number for number, place in enumerate(places) if place.client.exists(place.keys.events)]
        return is_one, max(2, found[-1] + 1) if found else 0  # one alone has no number

    def write(self, place: Place, mark: str, queue: Callable[[Any], object]) -> None:
        """Do all that `queue` puts into a transaction, or nothing, if the place is not marked so.

        Raises:
            RepartitionError: Its mark is another one, or too few replicas have confirmed the write.
            redis.RedisError: Redis failed.
        """
        is_done = False
        while not is_done:
            with place.client.pipeline() as pipe, contextlib.suppress(WatchError):
                pipe.watch(place.keys.layout)
                if pipe.hget(place.keys.layout, FIELD) != mark.encode():
                    raise RepartitionError("Another run has taken over, or has finished: nothing more was moved.")
                pipe.multi()
                queue(pipe)
                pipe.execute()
                is_done = True
        count, timeout_ms = self._settings.redis_min_replicas, int(self._settings.redis_timeout * 750)
        # Over the same connection: the pool gives out the one that came back last.
        if count and place.client.wait(count, timeout_ms) < count:
            raise RepartitionError(f"Fewer than {count} replicas confirmed a write in time: run it again, it goes on.")


def place_of(user_id: str, places: list[Place]) -> Place:
    """Return the place of a user among all of one number."""
    return places[partition_of(user_id, len(places))]
