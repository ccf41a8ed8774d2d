"""Commands and replies over a connection that redis-py has made, without its streams.

redis-py finds the server, connects, encrypts and authenticates. After that its transport gets another protocol, the
one here: reading a reply by asyncio's streams takes 85 µs of CPU time, and here 20, which is a tenth of a delivery
that has a round trip for itself.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import redis
from hiredis import Reader
from redis.asyncio.connection import DefaultParser
from redis.exceptions import InvalidResponse

_CLOSED: Final = "Connection closed by server."


class Exchange(asyncio.Protocol):
    """Sends commands, and collects their replies; one batch after another."""

    def __init__(self, connection: Any, seconds: float) -> None:
        """Take over a connection of redis.asyncio that is connected, and has no reply outstanding.

        Args:
            connection: it is closed when this ends.
            seconds: for a batch's replies to arrive.
        """
        # A private attribute, for which pyproject.toml pins redis-py.
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001
        self._streams: Any = self._transport.get_protocol()  # redis-py waits for it when it disconnects
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._reader = Reader(protocolError=InvalidResponse, replyError=DefaultParser.parse_error)
        self._replies: list[Any] = []
        self._awaited = 0
        self._future: asyncio.Future[list[Any]] | None = None
        self._deadline = 0.0
        """For the replies to the last batch, in seconds of the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent: not if nobody waits any more for replies that are outstanding."""
        return self._future is None and not self._transport.is_closing()

    def send(self, packed: Sequence[bytes]) -> "asyncio.Future[list[Any]]":
        """Send commands; return a future of the replies, of which some may be errors.

        The future raises redis.RedisError if the connection failed or the time is over; then it is closed.
        """
        self._replies, self._awaited = [], len(packed)
        self._future = future = self._loop.create_future()
        self._deadline = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._on_time)
        self._transport.write(b"".join(packed))
        return future

    def data_received(self, data: bytes) -> None:
        """Collect replies."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, redis.ConnectionError):  # such as LOADING: nothing more comes of it
                    raise reply
                self._replies.append(reply)
        except redis.RedisError as error:
            self._fail(error)
            return
        if len(self._replies) >= self._awaited and self._future is not None and not self._future.done():
            future, self._future = self._future, None
            future.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for replies, and redis-py."""
        if self._timer is not None:
            self._timer.cancel()
        self._fail(redis.ConnectionError(f"Error while reading: {exc}" if exc else _CLOSED))
        self._streams.connection_lost(exc)

    def pause_writing(self) -> None:
        """Do nothing: the next batch is sent when this one's replies are there."""

    def resume_writing(self) -> None:
        """Do nothing."""

    def _on_time(self) -> None:
        """End the connection if the time for a batch is over. One timer serves the batches of all this time."""
        self._timer = None
        if self._future is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._on_time)
        else:
            self._fail(redis.TimeoutError("Timeout reading from Redis."))

    def _fail(self, error: redis.RedisError) -> None:
        self._transport.abort()
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_exception(error)
