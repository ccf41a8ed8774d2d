"""What Redis holds and what happens in it, for reading: the state of sessions, and the stream of events."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import redis

from service.config import RedisSettings
from service.connections import connect
from service.contract import SCHEMA_VERSION
from service.keys import Keys

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
        self._keys = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._client: Any = connect(
            settings.redis_url.get_secret_value(),
            tls_verify=settings.redis_tls_verify,
            timeout=settings.redis_timeout + BLOCK_MS / 1000,
        )

    def get(self, session_id: str) -> bytes | None:
        """Return the last applied message of a session, as JSON."""
        state: bytes | None = self._client.hget(self._keys.session(session_id), "state")
        return state

    def live_sessions(self, user_id: str) -> list[bytes]:
        """Return the messages of the user's sessions that are live now, the longest-lived last."""
        now_ms = time.time_ns() // 1_000_000
        session_ids = self._client.zrangebyscore(self._keys.user_sessions(user_id), f"({now_ms}", "+inf")
        states = (self.get(session_id.decode()) for session_id in session_ids)
        return [state for state in states if state is not None]

    def last_cursor(self) -> str:
        """Return the cursor of the newest entry, or the one before all entries."""
        newest = self._client.xrevrange(self._keys.events, count=1)
        return newest[0][0].decode() if newest else "0-0"

    def follow(self, after: str, on_reconnect: Callable[[Exception], None]) -> Iterator[Update]:
        """Yield what comes after the cursor, for ever; a connection that is lost is made again.

        on_reconnect: is told why, before each new try.
        """
        while True:
            try:
                reply = self._client.xread({self._keys.events: after}, count=500, block=BLOCK_MS)
            except redis.AuthenticationError:
                raise  # a ConnectionError too, but one that trying again does not mend
            except (redis.ConnectionError, redis.TimeoutError) as error:
                on_reconnect(error)
                time.sleep(RECONNECT_SECONDS)
                continue
            for _, entries in reply:
                for entry_id, fields in entries:
                    after = entry_id.decode()
                    yield Update(
                        after,
                        fields[b"outcome"].decode(),
                        fields[b"user_id"].decode(),
                        _with_cursor(fields[b"message"], after),
                    )

    def close(self) -> None:
        self._client.close()


def _with_cursor(message: bytes, cursor: str) -> bytes:
    """The entry's id is its cursor, so the message in it leaves it null."""
    head = _STREAM_HEAD.replace(b"null", f'"{cursor}"'.encode())
    return head + message.removeprefix(_STREAM_HEAD)
