"""How the steps of a feed are done: over a client of redis-py, in threads or in an event loop.

The two classes say the same twice, once with `await`: whoever changes one changes the other.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Final, TypeVar

import redis

from clerk_session_feed import connections
from clerk_session_feed.connections_async import connect_async
from clerk_session_feed.errors import FeedClosedError
from clerk_session_feed.feed_steps import BLOCK_MS, Ask, Link, Receive, Reconnect, Steps
from clerk_session_feed.settings import RedisSettings
from clerk_session_feed.updates import SessionUpdate

READ_CONNECTIONS: Final = 8
"""For short reads, at most: small plans of Redis have twenty in all."""

T = TypeVar("T")
OnReconnect = Callable[[redis.RedisError], None]
log = logging.getLogger("service.feed")


def log_reconnect(error: redis.RedisError) -> None:
    log.warning("Redis: %s; trying again", connections.explain(error))


def _options(settings: RedisSettings, *, blocks: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"tls_verify": settings.redis_tls_verify, "timeout": settings.redis_timeout}
    if blocks:
        return options | {"timeout": settings.redis_timeout + BLOCK_MS / 1000}
    return options | {"max_connections": READ_CONNECTIONS}


class _Line(Link):
    """One client, at first without a connection."""

    _closing: threading.Event | asyncio.Event

    def __init__(
        self, connect: Callable[..., Any], settings: RedisSettings, key: str, *, blocks: bool
    ) -> None:
        url = settings.redis_url.get_secret_value()
        self._client = connect(url, key, on_connect=self._count, **_options(settings, blocks=blocks))
        self._client.response_callbacks.clear()  # the steps read what Redis says
        self._pubsub: Any = None
        self._is_asked = False

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    def _count(self, _: object) -> None:
        if self.is_closed:  # redis-py connects again to send what it was about to
            raise redis.ConnectionError("The feed is closed.")
        self.connections += 1

    def _note(self, message: dict[str, Any] | None) -> bytes | None:
        """Return what was published, if the message is that.

        A channel on which nothing happens is told from a dead connection by its answer to a PING.
        """
        if message is None and self._is_asked:
            raise redis.TimeoutError("the subscription does not answer a PING")
        self._is_asked = message is None
        return bytes(message["data"]) if message and message["type"] == "message" else None


class Line(_Line):
    """For threads."""

    def __init__(self, settings: RedisSettings, key: str, *, blocks: bool) -> None:
        super().__init__(connections.connect, settings, key, blocks=blocks)
        self._closing: threading.Event = threading.Event()

    def run(self, steps: Generator[Any, Any, T]) -> T:
        """Do steps that yield no updates, and return their result."""
        try:
            next(self._drive(steps, lambda _: None))
        except StopIteration as end:
            result: T = end.value
            return result
        raise AssertionError

    def follow(self, steps: Steps[None], on_reconnect: OnReconnect) -> Generator[SessionUpdate, None, None]:
        """Yield updates until the line is closed."""
        try:
            with contextlib.suppress(FeedClosedError):
                yield from self._drive(steps, on_reconnect)
        finally:
            self.close()

    def close(self) -> None:
        """Let whoever waits for Redis stop at once, in other threads, too."""
        self._closing.set()
        self._client.close()

    def _drive(
        self, steps: Generator[Any, Any, T], on_reconnect: OnReconnect
    ) -> Generator[SessionUpdate, None, T]:
        answer: Any = None
        error: Exception | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = error = None
            if isinstance(step, SessionUpdate):
                yield step
            else:
                try:
                    answer = self._do(step, on_reconnect)
                except redis.RedisError as raised:
                    error = raised
                except Exception:
                    # redis-py may stumble over anything when its socket is closed under its hands.
                    if not self.is_closed:
                        raise
            if self.is_closed:
                raise FeedClosedError("The feed is closed.")

    def _do(self, step: Ask | Receive | Reconnect, on_reconnect: OnReconnect) -> Any:
        if self.is_closed:
            return None
        match step:
            case Ask([command]):
                return [self._client.execute_command(*command)]
            case Ask(commands):
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                return _replies(pipeline.execute(raise_on_error=False))
            case Receive(channel):
                return self._receive(channel)
            case Reconnect(why, seconds):
                if self._pubsub is not None:
                    self._pubsub.close()
                    self._pubsub = None
                self._client.connection_pool.disconnect(inuse_connections=False)
                if seconds:
                    on_reconnect(why)
                    self._closing.wait(seconds)
        return None

    def _receive(self, channel: str) -> bytes | None:
        if self._pubsub is None:
            self._is_asked = False
            self._pubsub = self._client.pubsub()
            self._pubsub.subscribe(channel)
        message = self._note(self._pubsub.get_message(timeout=BLOCK_MS / 1000))
        if self._is_asked:
            self._pubsub.ping()
        return message


def _replies(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


class AsyncLine(_Line):
    """For an event loop."""

    def __init__(self, settings: RedisSettings, key: str, *, blocks: bool) -> None:
        super().__init__(connect_async, settings, key, blocks=blocks)
        self._closing: asyncio.Event = asyncio.Event()

    async def run(self, steps: Generator[Any, Any, T]) -> T:
        """Do steps that yield no updates, and return their result."""
        answer: Any = None
        error: Exception | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            answer, error = await self._try(step, lambda _: None)

    async def follow(
        self, steps: Steps[None], on_reconnect: OnReconnect
    ) -> AsyncGenerator[SessionUpdate, None]:
        """Yield updates until the line is closed."""
        answer: Any = None
        error: Exception | None = None
        try:
            while True:
                step = steps.send(answer) if error is None else steps.throw(error)
                if isinstance(step, SessionUpdate):
                    answer = error = None
                    yield step
                    if self.is_closed:
                        return
                else:
                    answer, error = await self._try(step, on_reconnect)
        except FeedClosedError:
            pass
        finally:
            steps.close()
            await self.close()

    async def close(self) -> None:
        self._closing.set()
        await self._client.aclose()

    async def _try(
        self, step: Ask | Receive | Reconnect, on_reconnect: OnReconnect
    ) -> tuple[Any, Exception | None]:
        answer: Any = None
        error: Exception | None = None
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            answer = await self._do(step, on_reconnect)
        except redis.RedisError as raised:
            error = raised
        except Exception:
            if not self.is_closed:
                raise
        # redis-py sends with asyncio.wait_for, and that of Python 3.11 may swallow being cancelled:
        # https://github.com/python/cpython/issues/86296
        if task and task.cancelling() > cancelled:
            raise asyncio.CancelledError
        if self.is_closed:
            raise FeedClosedError("The feed is closed.")
        return answer, error

    async def _do(self, step: Ask | Receive | Reconnect, on_reconnect: OnReconnect) -> Any:
        if self.is_closed:
            return None
        match step:
            case Ask([command]):
                return [await self._client.execute_command(*command)]
            case Ask(commands):
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                return _replies(await pipeline.execute(raise_on_error=False))
            case Receive(channel):
                return await self._receive(channel)
            case Reconnect(why, seconds):
                if self._pubsub is not None:
                    await self._pubsub.aclose()
                    self._pubsub = None
                await self._client.connection_pool.disconnect(inuse_connections=False)
                if seconds:
                    on_reconnect(why)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), seconds)
        return None

    async def _receive(self, channel: str) -> bytes | None:
        if self._pubsub is None:
            self._is_asked = False
            self._pubsub = self._client.pubsub()
            await self._pubsub.subscribe(channel)
        message = self._note(await self._pubsub.get_message(timeout=BLOCK_MS / 1000))
        if self._is_asked:
            await self._pubsub.ping()
        return message
