"""Partitions of the present number and of the one to come, while the data is moved from one to the other."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self

from clerk_session_feed import connections
from clerk_session_feed.cursors import position
from clerk_session_feed.keys import HASH_TAG, Keys, has_hash_tag, partition_of
from clerk_session_feed.layout import FIELD
from clerk_session_feed.redis_url import RedisUrl
from redis.exceptions import WatchError

from service.config import StoreSettings
from service.errors import CommandError
from service.store.layout import MARK_TTL_MS, MOVED_AT
from service.store.scanning import SCAN_COUNT

MOST_PARTITIONS: Final = 1024
AFTER: Final = "after"
"""Field of the mark of the whole: the id behind which the streams of the last move began."""
TAKEN_OVER: Final = "Another run has taken over, or has finished: nothing more was moved."


class RepartitionError(CommandError):
    """The data can't be moved, or not in this way."""


class Mark(NamedTuple):
    """What a partition, or the whole, is marked with; nothing if it is not marked."""

    text: str = ""
    """The number of partitions, or the move that is under way."""
    moved_at_ms: int = 0
    """When the last run began that marked it. Each run has a greater time than those before it."""
    after: str = "0-0"


class Place(NamedTuple):
    """A partition, and a client of the server where it is."""

    keys: Keys
    client: Any

    def mark(self) -> Mark:
        """Return how it is marked."""
        return _read_mark(self.client, self.keys)

    def last_id(self) -> tuple[int, int]:
        """Return the greatest id that the stream ever had."""
        if not self.client.exists(self.keys.events):
            return 0, 0
        return position(self.client.xinfo_stream(self.keys.events)["last-generated-id"].decode())


class Found(NamedTuple):
    """A key of the relay that a scan has found."""

    number: int | None
    """The one in its name."""
    kind: str
    """`user`, `session`, or another one, of which there is only one key in a partition."""
    name: bytes
    """What follows."""


def _read_mark(client: Any, keys: Keys) -> Mark:
    found = {name.decode(): value.decode(errors="replace") for name, value in client.hgetall(keys.layout).items()}
    return Mark(found.get(FIELD, ""), int(found.get(MOVED_AT, 0)), found.get(AFTER, "0-0"))


def queue_mark(keys: Keys, fields: dict[str, Any], pipe: Any) -> None:
    """Mark a partition by way of a transaction."""
    pipe.hset(keys.layout, mapping=fields)
    pipe.pexpire(keys.layout, MARK_TTL_MS)


class Places:
    """Makes places, with one client for each server, and writes to them."""

    def __init__(self, settings: StoreSettings) -> None:
        self.keys: Final = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._settings = settings
        self._url = settings.redis_url.get_secret_value()
        self._clients: dict[object, Any] = {}
        self._is_cluster = RedisUrl.parse(self._url).kind == "cluster"
        self._owners: list[tuple[int, int, object]] = []
        """Of a cluster, the first and the last slot of each range, and whose it is."""
        beginning, ending = self.keys.prefix, ""
        if has_hash_tag(beginning) and (tag := HASH_TAG.search(beginning)):
            beginning, ending = beginning[: tag.end() - 1], beginning[tag.end() - 1 :]
        self._pattern = re.sub(r"([][*?\\^])", r"\\\1", beginning) + "*"
        number = "(?::(0|[1-9][0-9]{0,3}))?" if ending else "()"
        kinds = "(?:(user|session):(.+)|(events|expiry|revokes))"
        self._name = re.compile(f"{re.escape(beginning)}{number}{re.escape(ending)}:{kinds}".encode(), re.DOTALL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    @property
    def main(self) -> Place:
        """The place of what is not divided, and of the only partition if there is one."""
        return self.at(self.keys)

    def at(self, keys: Keys) -> Place:
        """Return the place of a partition."""
        server = self._server(connections.slot(self._url, keys.layout))
        if server not in self._clients:
            self._clients[server] = self._connect(keys.layout)
        return Place(keys, self._clients[server])

    def _connect(self, key: str) -> Any:
        settings = self._settings
        return connections.connect(self._url, key, tls_verify=settings.redis_tls_verify, timeout=settings.redis_timeout)

    def _server(self, slot: int) -> object:
        """Return what stands for the server that has a slot."""
        if self._is_cluster and not self._owners:
            with self._connect(self.keys.layout) as client:
                slots = client.execute_command("CLUSTER", "SLOTS")
            self._owners = [(first, last, tuple(primary[:2])) for first, last, primary, *_ in slots]
        return next((owner for first, last, owner in self._owners if first <= slot <= last), None)

    def of(self, partitions: int) -> list[Place]:
        """Return the places of so many partitions, by number."""
        return [self.at(keys) for keys in self.keys.split(partitions)]

    def scan(self) -> Iterator[tuple[list[Found], float]]:
        """Yield the keys of all partitions, up to MOST_PARTITIONS; and which part has been looked at."""
        is_divided = self._is_cluster and has_hash_tag(self.keys.prefix)
        everywhere = self.of(MOST_PARTITIONS) if is_divided else []
        clients = list(dict.fromkeys(place.client for place in [self.main, *everywhere]))
        for number, client in enumerate(clients):
            total, looked_at, cursor = max(1, client.dbsize()), 0, None
            while cursor != 0:
                cursor, keys = client.scan(cursor or 0, match=self._pattern, count=SCAN_COUNT)
                looked_at += SCAN_COUNT
                found = (_found(match) for key in keys if (match := self._name.fullmatch(key)))
                ours = [each for each in found if each.number is None or each.number < MOST_PARTITIONS]
                yield ours, (number + min(1.0, looked_at / total)) / len(clients)

    def write(self, place: Place, is_right: Callable[[Mark], bool], queue: Callable[[Any], object]) -> None:
        """Do all that `queue` puts into a transaction, or nothing, if the mark of the place is not right.

        Raises:
            RepartitionError: It is not, or too few replicas have confirmed the write.
            redis.RedisError: Redis failed.
        """
        is_done = False
        while not is_done:
            with place.client.pipeline() as pipe, contextlib.suppress(WatchError):
                pipe.watch(place.keys.layout)
                if not is_right(_read_mark(pipe, place.keys)):
                    raise RepartitionError(TAKEN_OVER)
                pipe.multi()
                queue(pipe)
                pipe.execute()
                is_done = True
        count, timeout_ms = self._settings.redis_min_replicas, int(self._settings.redis_timeout * 750)
        # Over the same connection: the pool gives out the one that came back last.
        if count and place.client.wait(count, timeout_ms) < count:
            raise RepartitionError(f"Fewer than {count} replicas confirmed a write in time: run it again, it goes on.")


def _found(match: re.Match[bytes]) -> Found:
    number, kind, name, single = match.groups()
    return Found(int(number) if number else None, (kind or single).decode(), name or b"")


def place_of(user_id: str, places: list[Place]) -> Place:
    """Return the place of a user among all of one number."""
    return places[partition_of(user_id, len(places))]
