"""Finds the sessions that are live, among all that are stored.

No index has just these: `{clerk}:expiry` also has pending sessions, and none without an end. So all are looked at, a
few at a time. In memory are the page that is asked for, and 16 to 32 bytes for each session that is live.
"""

import heapq
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from clerk_session_feed import connections
from clerk_session_feed.errors import UnreadableMessageError
from clerk_session_feed.keys import Keys
from clerk_session_feed.models import ID
from clerk_session_feed.redis_url import RedisUrl
from clerk_session_feed.updates import SessionUpdate, now_ms, published

from service.cli.check_connect import client_at, keys_of
from service.config import RedisSettings
from service.store.scanning import SCAN_COUNT, scan
from service.workers.visited import Visited

BATCH: Final = 100
"""States that are read at once: about 120 kB."""


class LiveSessions:
    """The sessions that are live, in the order of their ids: those of Clerk's are about that of their creation."""

    def __init__(self, settings: RedisSettings) -> None:
        """Connect to nothing yet."""
        self._settings = settings
        self._clients: dict[Keys, Any] = {}
        """Partitions of one server share a client."""
        self._counted = Visited()
        self.unreadable: Final[dict[str, str]] = {}
        """By key, what is wrong with a session that another version of the relay has written, or nobody."""
        self._is_closed = False

    def close(self) -> None:
        """Disconnect. Whoever looks for sessions stops, in other threads, too."""
        self._is_closed = True  # redis-py would connect again for the next command
        for client in dict.fromkeys(self._clients.copy().values()):
            client.close()

    @property
    def count(self) -> int:
        """How many there are, once `page` has looked at all."""
        return len(self._counted)

    def page(self, after: str, limit: int) -> list[tuple[str, Keys]]:
        """Return the ids that come next after this one, with the partition of each.

        Raises:
            redis.RedisError: Redis failed.
        """
        self._counted = Visited()
        self._connect()
        return heapq.nsmallest(limit, ((id_, part) for id_, part in self._all() if id_ > after))

    def _connect(self) -> None:
        parts = keys_of(self._settings).split(self._settings.partitions)
        url, clients = self._settings.redis_url.get_secret_value(), dict[object, Any]()
        first = client_at(self._settings, parts[0].events)
        is_cluster = RedisUrl.parse(url).kind == "cluster"
        owners = first.execute_command("CLUSTER", "SLOTS") if is_cluster else ()
        for part in parts:
            slot = connections.slot(url, part.events)
            server = next((tuple(primary[:2]) for low, high, primary, *_ in owners if low <= slot <= high), None)
            if server not in clients:
                clients[server] = client_at(self._settings, part.events) if clients else first
            self._clients[part] = clients[server]

    def _all(self) -> Iterator[tuple[str, Keys]]:
        parts_of: dict[Any, list[Keys]] = {}
        for part, client in self._clients.items():
            parts_of.setdefault(client, []).append(part)
        for client, parts in parts_of.items():
            for found in scan(partial(_scan, client), {part.session(""): part for part in parts}):
                if self._is_closed:
                    return
                for part, names in found.items():
                    ids = [id_ for name in names if ID.fullmatch(id_ := name.decode(errors="replace"))]
                    yield from ((id_, part) for id_ in self._live_of(client, part, ids))

    def _live_of(self, client: Any, part: Keys, ids: list[str]) -> Iterator[str]:
        pipeline = client.pipeline(transaction=False)
        for id_ in ids:
            pipeline.hmget(part.session(id_), "live", "_expire_at")
        now = now_ms()
        for id_, (live, expire_at) in zip(ids, pipeline.execute(), strict=True):
            if live != b"1" or id_ in self._counted:  # SCAN repeats some
                continue
            try:
                has_run_out = bool(expire_at) and int(expire_at) <= now
            except ValueError:
                key = part.session(id_)
                self.unreadable[key] = f"{key}: _expire_at: it is no time, so the session is not counted"
                continue
            if not has_run_out:
                self._counted.add(id_)
                yield id_

    def updates(self, page: list[tuple[str, Keys]]) -> Iterator[SessionUpdate]:
        """Yield the states of these sessions; without those that have ended meanwhile, or can't be read.

        Raises:
            redis.RedisError: Redis failed.
        """
        for start in range(0, len(page), BATCH):
            batch = page[start : start + BATCH]
            states: dict[str, bytes | None] = {}
            for part in {part for _, part in batch}:
                ids = [id_ for id_, its_part in batch if its_part == part]
                pipeline = self._clients[part].pipeline(transaction=False)
                for id_ in ids:
                    pipeline.hmget(part.session(id_), "state")  # HGET is a right of its own
                states |= zip(ids, (state for (state,) in pipeline.execute()), strict=True)
            for id_, part in batch:
                if (state := states[id_]) is None:
                    continue
                try:
                    update = published(state, key := part.session(id_))
                except UnreadableMessageError as error:
                    self.unreadable[key] = str(error)
                    continue
                if update.is_live:
                    yield update


def _scan(client: Any, cursor: bytes, pattern: str) -> tuple[bytes, list[bytes]]:
    following, keys = client.scan(int(cursor), pattern, SCAN_COUNT, "hash")
    return b"%d" % following, keys
