"""What Redis holds and what happens in it, for reading: the state of sessions, and the stream of events."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import redis
from redis.exceptions import AskError, ClusterError, TryAgainError

from service import connections
from service.config import RedisSettings
from service.contract import SCHEMA_VERSION
from service.keys import Keys, partition_of

BLOCK_MS: Final = 5_000
RECONNECT_SECONDS: Final = 1.0

_STREAM_HEAD: Final = f'{{"schema_version":{SCHEMA_VERSION},"cursor":null'.encode()


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """An entry of the stream."""

    cursor: str
    outcome: str
    """`applied` or `stale`."""
    user_id: str
    message: bytes
    """JSON, as it was published, the cursor filled in."""


class SessionFeed:
    def __init__(self, settings: RedisSettings) -> None:
        url = settings.redis_url.get_secret_value()
        clients: dict[int, Any] = {}
        self._partitions: list[tuple[Keys, Any]] = []
        for keys in Keys(settings.redis_key_prefix, settings.redis_channel).split(settings.partitions):
            lane = connections.lane(url, keys.events)
            if lane not in clients:
                clients[lane] = connections.connect(
                    url,
                    keys.events,
                    tls_verify=settings.redis_tls_verify,
                    timeout=settings.redis_timeout + BLOCK_MS / 1000,
                )
            self._partitions.append((keys, clients[lane]))
        self._clients = tuple(clients.values())
        self._closing = threading.Event()

    def get(self, session_id: str) -> bytes | None:
        """Return the last applied message of a session, as JSON."""
        for keys, client in self._partitions:
            # Which partition it is, only the user's id would tell.
            state: bytes | None = client.hget(keys.session(session_id), "state")
            if state is not None:
                return state
        return None

    def live_sessions(self, user_id: str) -> list[bytes]:
        """Return the messages of the user's sessions that are live now, the longest-lived last."""
        keys, client = self._partitions[partition_of(user_id, len(self._partitions))]
        now_ms = time.time_ns() // 1_000_000
        session_ids = client.zrangebyscore(keys.user_sessions(user_id), f"({now_ms}", "+inf")
        states = (client.hget(keys.session(session_id.decode()), "state") for session_id in session_ids)
        return [state for state in states if state is not None]

    def follow(self, after: str | None, on_reconnect: Callable[[Exception], None]) -> Iterator[Update]:
        """Return what comes after the cursor (None: from now on), until the feed is closed.

        A connection that is lost is made again. Partitions have a stream each, and no order among them: a
        cursor of one is only a time for the others, and may leave out what they took just before it.
        on_reconnect: is told why, before each new try.
        """
        streams = {client: dict[str, str]() for client in self._clients}
        for keys, client in self._partitions:
            streams[client][keys.events] = after or _last_cursor(client, keys.events)
        followed = [self._follow(client, cursors, on_reconnect) for client, cursors in streams.items()]
        return self._merge(followed) if len(followed) > 1 else followed[0]

    def close(self) -> None:
        self._closing.set()
        for client in self._clients:
            client.close()

    def _merge(self, followed: Sequence[Iterator[Update]]) -> Iterator[Update]:
        """Yield from all of them, as it comes: each waits in a thread of its own."""
        updates: queue.Queue[Update | Exception] = queue.Queue(maxsize=1000)

        def put(update: Update | Exception) -> None:
            while not self._closing.is_set():
                with contextlib.suppress(queue.Full):
                    updates.put(update, timeout=RECONNECT_SECONDS)
                    return

        def hand_over(one: Iterator[Update]) -> None:
            try:
                for update in one:
                    put(update)
            except Exception as error:  # noqa: BLE001  # it is raised where the updates are taken
                put(error)

        for one in followed:
            threading.Thread(target=hand_over, args=(one,), daemon=True).start()
        while not self._closing.is_set():
            with contextlib.suppress(queue.Empty):
                update = updates.get(timeout=RECONNECT_SECONDS)
                if isinstance(update, Exception):
                    raise update
                yield update

    def _follow(
        self, client: Any, cursors: dict[str, str], on_reconnect: Callable[[Exception], None]
    ) -> Iterator[Update]:
        """Yield what comes after the cursors of streams on one server; the cursors go along."""
        while not self._closing.is_set():
            try:
                reply = client.xread(cursors, count=500, block=BLOCK_MS)
            except redis.RedisError as error:
                if self._closing.is_set():
                    break
                if not _passes(error):
                    raise
                # It may be another server by now: a failover does not wait for readers.
                client.connection_pool.disconnect()
                on_reconnect(error)
                self._closing.wait(RECONNECT_SECONDS)
                continue
            for stream, entries in reply:
                for entry_id, fields in entries:
                    cursor = cursors[stream.decode()] = entry_id.decode()
                    yield Update(
                        cursor,
                        fields[b"outcome"].decode(),
                        fields[b"user_id"].decode(),
                        _with_cursor(fields[b"message"], cursor),
                    )
        client.close()  # this read may have begun just after the feed was closed


def _passes(error: redis.RedisError) -> bool:
    """Tell whether trying again may mend it. A wrong password is a ConnectionError too, and stays wrong."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return not isinstance(error, redis.AuthenticationError)
    return isinstance(error, ClusterError | AskError | TryAgainError) or str(error).startswith(
        ("BUSY ", "UNBLOCKED ")
    )


def _last_cursor(client: Any, stream: str) -> str:
    """Return the cursor of the newest entry, or the one before all entries."""
    newest = client.xrevrange(stream, count=1)
    return newest[0][0].decode() if newest else "0-0"


def _with_cursor(message: bytes, cursor: str) -> bytes:
    """The entry's id is its cursor, so the message in it leaves it null."""
    head = _STREAM_HEAD.replace(b"null", f'"{cursor}"'.encode())
    return head + message.removeprefix(_STREAM_HEAD)
