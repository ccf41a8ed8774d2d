"""The connections of a feed over a MemoryRedis: those of transport.py, over a client that stands for redis-py's.

The client is written once, as `async def`. Over a BlockingConnection its coroutines block instead of suspending, as
those of transport.py do.
"""

import abc
import asyncio
import inspect
import math
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import redis

from clerk_session_feed.errors import FeedClosedError
from clerk_session_feed.settings import RedisSettings
from clerk_session_feed.testing.memory_redis import Look, MemoryRedis
from clerk_session_feed.transport import AsyncConnection, BlockingConnection, Command, Connection

Wait = Callable[[Future[Any], float | None], Awaitable[Any]]


class _OverMemory(Connection):
    """What differs from a connection to Redis: the client, and that nothing waits for a time that passes."""

    @staticmethod
    @abc.abstractmethod
    async def _wait(future: Future[Any], seconds: float | None) -> Any:
        """Wait for a future, so many seconds at most; raise TimeoutError."""

    def __init__(
        self, memory: MemoryRedis, settings: RedisSettings, key: str, *, longest_wait: float = math.inf, **options: Any
    ) -> None:
        def connect(*_: str, wait: float = 0.0, on_connect: Callable[[Any], Any] | None = None, **__: Any) -> _Client:
            client = _Client(memory, self._wait, on_connect)
            client.follows = wait > 0
            client.is_endless = longest_wait < math.inf  # a mirror, which has no loop that could end
            return client

        self._connect = connect
        super().__init__(settings, key, longest_wait=longest_wait, **options)

    async def pause(self, seconds: float) -> None:  # noqa: ARG002  # tests need not wait
        if not self._client.is_connected:  # else no command has failed: it is a rest between two
            await self._call(self._client.wait_until_restored)


class BlockingMemoryConnection(_OverMemory, BlockingConnection):
    """A connection for threads."""

    @staticmethod
    async def _wait(future: Future[Any], seconds: float | None) -> Any:
        return future.result(seconds)

    async def resolve(self, result: Any) -> Any:
        return await result if inspect.isawaitable(result) else result

    async def _close(self, closable: Any) -> None:
        await closable.aclose()


class AsyncMemoryConnection(_OverMemory, AsyncConnection):
    """A connection for one event loop."""

    @staticmethod
    async def _wait(future: Future[Any], seconds: float | None) -> Any:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)


class _Client:
    """What a Connection uses of redis-py's client. It also stands for that one's pool.

    Attributes:
        follows: It is an iterator's.
        is_endless: It goes on waiting where others finish.
        is_connected: Nothing has failed since the last command.
    """

    follows = False
    is_endless = False

    def __init__(self, memory: MemoryRedis, wait: Wait, on_connect: Callable[[Any], Any] | None) -> None:
        self.memory = memory
        self.response_callbacks: dict[str, Any] = {}
        self.connection_pool = self
        self._wait = wait
        self._on_connect = on_connect
        self.is_connected = self._has_begun = self._is_closed = False

    async def execute_command(self, *command: Any) -> Any:
        """Return the response to a command."""
        self.connect()
        name, cuts = command[0], self.memory.cuts

        def look() -> Any:
            self.check()
            found = self.memory.run(command)
            # Redis says nothing about what is removed. A feed looks around after 20 s, which is too long for tests.
            return [] if found is None and name == "XREAD" and self.memory.cuts != cuts else found

        if "BLOCK" in command:
            return await self.wait_for(look, command[command.index("BLOCK") + 1] / 1000)
        with self.memory.lock:
            return look()

    def pipeline(self, *, transaction: bool) -> "_Pipeline":  # noqa: ARG002
        """Return what collects commands."""
        return _Pipeline(self)

    def pubsub(self) -> "_Subscription":
        """Return a subscription that has no channel yet."""
        return _Subscription(self)

    async def disconnect(self, *, inuse_connections: bool) -> None:  # noqa: ARG002
        """Count the next command as the first on another connection."""
        self.is_connected = False

    async def aclose(self) -> None:
        """End, and let whoever waits stop."""
        self._is_closed = True
        self.memory.end(self)

    def connect(self) -> None:
        """Count a connection, if none is there."""
        if self.follows and not self._has_begun:
            self._has_begun = True
            self.memory.begin(self)
        if not self.is_connected:
            if self._on_connect is not None:
                self._on_connect(self)
            self.is_connected = True

    def check(self) -> None:
        """Raise what a command raises now, whatever it is."""
        self._check_closed()
        if self.memory.failure is not None:
            raise self.memory.failure.with_traceback(None)

    async def wait_until_restored(self) -> None:
        """Return when Redis is there."""

        def look() -> bool | None:
            self._check_closed()
            return None if self.memory.failure else True

        await self.wait_for(look, None)

    async def wait_for(self, look: Look, seconds: float | None) -> Any:
        """Return what `look` returns once that is not None; None after so many seconds."""

        def look_or_finish() -> Any:
            found = look()
            if found is None and self.memory.is_finishing and self.follows and not self.is_endless:
                raise FeedClosedError("The feed finishes.")
            return found

        future = self.memory.wait(self, look_or_finish)
        try:
            return await self._wait(future, seconds)
        except TimeoutError:
            with self.memory.lock:  # it may have come just now
                return future.result() if future.done() and not future.cancelled() else None
        finally:
            self.memory.stop_waiting(self)

    def _check_closed(self) -> None:
        if self._is_closed:
            raise redis.ConnectionError("The connection is closed.")


class _Pipeline:
    """Commands that are sent together."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._commands: list[Command] = []

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    async def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        responses: list[Any] = []
        for command in self._commands:
            try:
                responses.append(await self._client.execute_command(*command))
            except redis.ResponseError as error:
                if raise_on_error:
                    raise
                responses.append(error)
        return responses


class _Subscription:
    """A subscription to a channel."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._received: deque[dict[str, Any]] = deque()
        self._unsubscribe: Callable[[], None] = lambda: None

    async def subscribe(self, channel: str) -> None:
        self._client.connect()
        self._client.check()
        self._unsubscribe = self._client.memory.subscribe(channel, self._receive)

    async def get_message(self, *, timeout: float) -> Any:  # noqa: ASYNC109  # as redis-py has it
        def look() -> Any:
            self._client.check()
            return self._received.popleft() if self._received else None

        return await self._client.wait_for(look, timeout)

    async def ping(self) -> None:
        self._client.check()
        self._received.append({"type": "pong", "data": b""})

    async def aclose(self) -> None:
        self._unsubscribe()

    def _receive(self, message: bytes) -> None:
        self._received.append({"type": "message", "data": message})
