"""Waits until a stream gets something, so that an idle expiry worker sends Redis next to nothing.

Each change of the expiry set comes with an entry in the partition's stream, so who waits there misses no session that
expires earlier than those that were known.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis
import structlog
from clerk_session_feed import connections

from service.config import StoreSettings
from service.store.partitions import Partition
from service.store.rights import has_no_command, is_missing_right

log = structlog.get_logger(__name__)

BLOCK_SECONDS: Final = 60.0
"""Seconds that one command waits, at most: after so many, and REDIS_TIMEOUT, a dead connection is noticed."""
LOOK_SECONDS: Final = 240.0
"""Seconds until a worker looks again although the stream got nothing: somebody may have changed the expiry set by hand.
Shorter than the 300 s after which providers close an idle connection."""
POLL_SECONDS: Final = 60.0
"""Seconds between two looks of a worker that can't read the stream. It tries each time: nothing is refused for good."""
SLICE_SECONDS: Final = 0.25
"""Seconds after which a worker that has to stop stops waiting. Redis is sent nothing."""
BEGINNING: Final = "0-0"
"""A cursor before every entry."""
_READS: Final = ("XREAD", "XREVRANGE")
_MAY_NOT: Final = "The user of Redis may not {what}"
_UNKNOWN: Final = "This Redis, or a proxy before it, does not have the command to {what}"
_POLLS: Final = (
    "read the stream, so the worker looks once a minute: a session that lasts for less than that can expire late, and "
    "each worker paces itself alone."
)
_PACED_ALONE: Final = "count what the stream got, so each worker paces itself alone."


class StreamWatch:
    """A connection that waits for entries in the streams of one slot; made when it is first used.

    Each method raises redis.RedisError if Redis fails; the next call connects again. A missing right, or a command that
    the server does not have, is logged once instead. Without XREAD or XREVRANGE this is a plain wait, without XINFO it
    only does not count, until the command is tried again: after POLL_SECONDS, or on a new connection.
    """

    def __init__(self, settings: StoreSettings, partitions: Sequence[Partition]) -> None:
        url, tls_verify = settings.redis_url.get_secret_value(), settings.redis_tls_verify
        self._timeout = settings.redis_timeout
        self._client = connections.connect(url, partitions[0].keys.events, tls_verify=tls_verify, timeout=self._timeout)
        self._connection: Any = self._client.connection_pool.make_connection()
        self._refused: dict[str, float] = {}
        """Commands that were refused, each with the monotonic time at which it is tried again."""

    def _may_try(self, *names: str) -> bool:
        return all(time.monotonic() >= self._refused.get(name, 0.0) for name in names)

    @property
    def look_seconds(self) -> float:
        """Seconds until the expiry set has to be read again, although nothing came."""
        return POLL_SECONDS if any(name in self._refused for name in _READS) else LOOK_SECONDS

    def positions(self, events: Sequence[str]) -> list[str]:
        """Return the cursor at the end of each stream."""
        newest = self._read([("XREVRANGE", key, "+", "-", "COUNT", 1) for key in events])
        return [entries[0][0].decode() if entries else BEGINNING for entries in newest]

    def added(self, events: str) -> int | None:
        """Return how many entries a stream ever got; None if Redis does not say, as 6.2."""
        if not self._may_try(*_READS, "XINFO"):  # who does not read has no connection that is kept alive
            return None
        try:
            (reply,) = self._ask([("XINFO", "STREAM", events)])
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                self._note_refusal("XINFO", "expiry_paces_alone", error, _PACED_ALONE, "+xinfo")
            return None
        return dict(zip(reply[::2], reply[1::2], strict=True)).get(b"entries-added")

    def wait(self, positions: Mapping[str, str], seconds: float, stopping: threading.Event) -> set[str]:
        """Wait until one of the streams has an entry behind its cursor, or so many seconds, or until `stopping` is set.

        It may return earlier. Returns the streams that have such an entry.
        """
        seconds = min(seconds, BLOCK_SECONDS)
        if self._may_try(*_READS):
            block = ("BLOCK", max(1, math.ceil(seconds * 1000)))
            read = ("XREAD", "COUNT", 1, *block, "STREAMS", *positions, *positions.values())
            (found,) = self._read([read], seconds, stopping)
            return {stream.decode() for stream, _ in found or ()}
        stopping.wait(seconds)
        return set()

    def disconnect(self) -> None:
        """Connect again with the next call: that finds the primary, which may be another server by now."""
        self._refused = dict.fromkeys(self._refused, 0.0)
        self._connection.disconnect()

    def close(self) -> None:
        """Disconnect for good."""
        self._connection.disconnect()
        self._client.close()

    def _read(
        self, commands: Sequence[tuple[Any, ...]], seconds: float = 0.0, stopping: threading.Event | None = None
    ) -> list[Any]:
        """Return the replies; None for each if the stream can't be read."""
        if commands and self._may_try(*_READS):
            try:
                return self._ask(commands, seconds, stopping)
            except redis.ResponseError as error:
                self._note_refusal(commands[0][0], "expiry_polls", error, _POLLS, "+xread +xrevrange +xinfo")
        return [None] * len(commands)

    def _ask(
        self, commands: Sequence[tuple[Any, ...]], seconds: float = 0.0, stopping: threading.Event | None = None
    ) -> list[Any]:
        """Return the replies; None for each if it had to stop."""
        try:
            for command in commands:
                self._connection.send_command(*command)
            deadline = time.monotonic() + seconds + self._timeout
            while stopping is not None and not self._connection.can_read(SLICE_SECONDS):
                if stopping.is_set():
                    self._connection.disconnect()
                    return [None] * len(commands)
                if time.monotonic() > deadline:
                    raise redis.TimeoutError("Redis does not answer a read of the stream")
            replies = [self._connection.read_response() for _ in commands]
        except redis.RedisError:
            self._connection.disconnect()
            raise
        name = commands[0][0]
        if self._refused.pop(name, None) is not None:
            log.info("expiry_command_works", command=name)
        return replies

    def _note_refusal(self, name: str, event: str, error: redis.ResponseError, what: str, rights: str) -> None:
        """Log once what this user may not do, or this server does not have; raise the error if it is another one."""
        if is_missing_right(error):
            detail = f"{_MAY_NOT.format(what=what)} Allow {rights}, and it is tried again within a minute."
        elif has_no_command(error):
            detail = _UNKNOWN.format(what=what)
        else:
            raise error
        if self._refused.keys().isdisjoint(_READS if name in _READS else {name}):
            log.warning(event, redis_said=connections.explain(error), detail=detail)
        self._refused[name] = time.monotonic() + POLL_SECONDS
