"""A connection to Redis, with one interface for threads and for asyncio.

The rules of a feed (`reads`, `stream`, `group`, `merge`) are written once, as `async def` over a Connection.
With an AsyncConnection they await the asyncio client of redis-py. With a BlockingConnection they call its
blocking client, so they never suspend: `run` and `iterate` execute them in any thread, without an event loop.

A long module, since both kinds stand side by side.
"""

import abc
import asyncio
import contextlib
import functools
import logging
import math
import queue
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Final, ParamSpec, TypeVar

import redis

from clerk_session_feed import connections
from clerk_session_feed.errors import FeedClosedError, FeedError, PartitionsError
from clerk_session_feed.keys import Keys
from clerk_session_feed.layout import FIELD, Move, refuse_other_number
from clerk_session_feed.refusals import is_refusal, may_pass
from clerk_session_feed.settings import RedisSettings

READ_CONNECTIONS: Final = 8
"""Connections that the short reads of a feed share at most: small plans of Redis allow twenty in all."""
BLOCK_MS: Final = 20_000
"""Milliseconds that a read waits for something new before it looks around.

Some providers bill each command, and end connections that are silent for five minutes.
"""
FIRST_PAUSE: Final = 0.1
"""Seconds before the first new attempt; each pause is twice the one before."""
LONGEST_PAUSE: Final = 2.0
"""Seconds between two attempts at most, while Redis is away."""
LONGEST_REFUSED_PAUSE: Final = 10.0
"""Seconds between two attempts at most, while Redis refuses: an attempt may count against the limit that it met."""
TURNS: Final = 10
"""Turns of an event loop in which a task that goes on sends its commands: five with redis-py 8.1."""
CANCEL_SECONDS: Final = 0.1
"""Seconds between two attempts to cancel what waits for Redis."""
PARTITIONS_SECONDS: Final = 600.0
"""Seconds after which the number of partitions is compared again: nothing else tells of a change where none comes."""
AWAY_SECONDS: Final = 10.0
"""Seconds after which it is compared again if the node of a cluster that could have told was away."""

# It goes on while the machine sleeps, as `time.monotonic` does not on Linux and macOS.
_SLEEPLESS: Final = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
clock: Final[Callable[[], float]] = (
    time.monotonic if _SLEEPLESS is None else functools.partial(time.clock_gettime, _SLEEPLESS)
)
"""Seconds since some time in the past."""

T = TypeVar("T")
P = ParamSpec("P")
Command = tuple[Any, ...]
"""A command's name and its arguments."""
OnReconnect = Callable[[redis.RedisError], None]
log = logging.getLogger("clerk_session_feed")


def log_retry(error: redis.RedisError) -> None:
    """Log the error that another attempt follows."""
    log.warning("Redis: %s; trying again", connections.explain(error))


class MovingError(PartitionsError, redis.RedisError):
    """The data is being moved to another number of partitions: another attempt may come after the end of that."""

    def __init__(self, partitions: int, move: Move) -> None:
        where = f"the data is being moved from {move.was} partitions to {move.to}"
        todo = f"wait for `session-relay repartition`, then set PARTITIONS={move.to}"
        super().__init__(f"PARTITIONS={partitions}, but {where}: {todo}.")


class Connection(abc.ABC):
    """A client of redis-py, which connects when it is first used.

    Attributes:
        connections: Number of connections made so far. A new one may lead to another server.
        asked_at: When the commands were sent that were answered last, by `clock`. Of use where one at a time asks.
        runs_scripts: Whether Redis runs scripts for this user, as far as is known: see `hashes`.
    """

    _connect: Callable[..., Any]
    _event: ClassVar[type[Any]]
    _semaphore: ClassVar[type[Any]]
    new_queue: ClassVar[type[Any]]
    """A queue with `put_nowait`, and with a `get` for whose result `resolve` waits."""

    def __init__(
        self,
        settings: RedisSettings,
        key: str,
        *,
        blocks: bool,
        longest_wait: float = math.inf,
        on_reconnect: OnReconnect = log_retry,
    ) -> None:
        """Make a client for the server that holds the key.

        blocks: whether commands wait for news. longest_wait: seconds that they wait, if that is less than BLOCK_MS.
        """
        self._key = key
        self._partitions = settings.partitions
        self._whole = Keys(settings.redis_key_prefix)
        """The keys of what is not divided."""
        self._compared_on, self._compare_at = 0, 0.0
        """The connection, by its number, on which the number of partitions was compared; when to do it again."""
        self.connections = 0
        self.asked_at = -math.inf
        self.runs_scripts = True
        self._timeout = settings.redis_timeout
        self._permits: Any = self._semaphore(READ_CONNECTIONS)
        self._on_reconnect = on_reconnect
        self._closing: Any = self._event()
        self._pubsub: Any = None
        self._is_pinged = False
        url, tls_verify = settings.redis_url.get_secret_value(), settings.redis_tls_verify
        wait = min(BLOCK_MS / 1000, longest_wait) if blocks else 0.0
        options = {"tls_verify": tls_verify, "timeout": self._timeout, "wait": wait, "on_connect": self._count}
        self._client = self._connect(url, key, **options)
        self._connect_apart = functools.partial(self._connect, url, tls_verify=tls_verify, timeout=self._timeout)
        self._is_whole_elsewhere = connections.slot(url, key) != connections.slot(url, self._whole.layout)
        self._client.response_callbacks.clear()  # the rules read responses as Redis sends them (RESP2)

    @abc.abstractmethod
    async def resolve(self, result: Any) -> Any:
        """Return the result of a call to redis-py, or to a queue of ours."""

    @abc.abstractmethod
    async def _close(self, closable: Any) -> None:
        """Close a client, or a subscription, of redis-py."""

    @abc.abstractmethod
    async def _acquire(self) -> bool:
        """Take one of the permits to use a connection; return False if there is none in time."""

    @abc.abstractmethod
    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the connection is closed."""

    @abc.abstractmethod
    async def give_way(self) -> None:
        """Let what goes on beside this send its commands first: in asyncio, it could not while this is busy."""

    @abc.abstractmethod
    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Any:
        """Run a function beside others, in a thread or a task, and return that."""

    @abc.abstractmethod
    async def join(self, worker: Any) -> None:
        """Wait for the end of what was started."""

    @abc.abstractmethod
    async def finish(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Run a function in which whoever leaves an iterator waits for Redis."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._closing.is_set())

    async def close(self) -> None:
        """Close the connection. Whoever waits for Redis stops at once, in other threads too."""
        self._closing.set()
        await self._close(self._client)

    async def execute(self, *commands: Command) -> list[Any]:
        """Send commands in one round trip and return their responses.

        On a new connection, and every ten minutes, the number of partitions is compared first.

        Raises:
            redis.RedisError: If there is no response, or one of them is an error.
            PartitionsError: If the data has another number of partitions.
            FeedClosedError: If the connection is closed, or was closed meanwhile.
        """
        is_new = self.connections != self._compared_on and not self._is_whole_elsewhere
        if is_new or time.monotonic() >= self._compare_at:
            await self._compare_partitions()
        return await self._send(*commands)

    def compare_partitions_again(self) -> None:
        """Let the next command compare them: what is missing may have been moved."""
        self._compare_at = 0.0

    async def _compare_partitions(self) -> None:
        commands: list[Command] = [("HMGET", self._whole.layout, FIELD)]
        if self._partitions > 1:  # data of one partition has no mark, unless it was moved
            commands.append(("XREVRANGE", self._whole.events, "+", "-", "COUNT", 1))
        found, seconds = [], PARTITIONS_SECONDS
        try:
            if self._is_whole_elsewhere:
                found = await self.execute_apart(*commands, key=self._whole.layout)
            else:
                found = await self._send(*commands)
        except redis.RedisError as error:
            # What can't pass is a right that earlier versions did not need.
            if may_pass(error):
                if not self._is_whole_elsewhere:
                    raise
                seconds = AWAY_SECONDS  # a node that the commands don't need
        mark = next(iter(found[0] or ()), None) if found else None
        if mark is None and any(found[1:]):
            mark = b"1"
        if mark is not None and (move := Move.read(mark.decode(errors="replace"))):
            raise MovingError(self._partitions, move)
        refuse_other_number(self._partitions, mark)
        self._compared_on, self._compare_at = self.connections, time.monotonic() + seconds

    async def _send(self, *commands: Command) -> list[Any]:
        # Not with a blocking pool of redis-py: that of version 5 loses connections when a task is cancelled.
        if not await self._acquire():
            raise redis.TimeoutError("No connection available.")
        self.asked_at = clock()
        try:
            if len(commands) == 1:
                return [await self._call(self._client.execute_command, *commands[0])]
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            responses: list[Any] = await self._call(pipeline.execute, raise_on_error=False)
        finally:
            self._permits.release()
        for response in responses:
            if isinstance(response, Exception):
                raise response
        return responses

    async def ask(self, *commands: Command) -> list[Any]:
        """Return the responses, however many attempts it takes. Raises an error that no attempt can help."""
        return await self.persist(self.execute, *commands)

    async def persist(self, attempt: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Return what an attempt returns, however many it takes. Raises an error that no attempt can help."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await attempt(*arguments)
            except redis.RedisError as error:
                if not may_pass(error):
                    raise
                await self._disconnect()
                self._on_reconnect(error)
                longest = LONGEST_REFUSED_PAUSE if is_refusal(error) else LONGEST_PAUSE
            await self.pause(pause)
            pause = min(2 * pause, longest)

    async def ask_twice(self, *commands: Command) -> list[Any]:
        """Return the responses. If the first attempt may have met a dead connection, make a second one."""
        try:
            return await self.execute(*commands)
        except redis.RedisError as error:
            # Who has waited once, for Redis or for one of the connections, does not wait twice.
            if isinstance(error, redis.TimeoutError) or not may_pass(error):
                raise
        await self._disconnect()
        return await self.execute(*commands)

    async def execute_apart(self, *commands: Command, key: str = "") -> list[Any]:
        """Send commands on a connection of their own, which waits for nothing else: after `close`, too.

        key: decides which server of a cluster gets them; that of the connection, if it is empty.

        Raises:
            redis.RedisError: If there is no response, or one of them is an error.
        """
        client = self._connect_apart(key or self._key)
        client.response_callbacks.clear()
        try:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            responses: list[Any] = await self.resolve(pipeline.execute())
        finally:
            await self._close(client)
        return responses

    async def receive(self, channel: str) -> bytes | None:
        """Return the next message of the channel; None if there is none for a while. Raises like `ask`."""
        return await self.persist(self._receive, channel)

    async def until_closed(self, batches: AsyncGenerator[Iterable[T], None]) -> AsyncGenerator[Iterable[T], None]:
        """Yield batches until the connection is closed, also in the midst of one; close it when the caller stops."""
        try:
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    yield self._while_open(batch)
                    if self.is_closed:  # the rules learn that the caller is done with the batch
                        await batches.athrow(FeedClosedError("The feed is closed."))
        except FeedClosedError:
            pass
        finally:
            await self.close()

    def _while_open(self, batch: Iterable[T]) -> Iterator[T]:
        is_closed = self._closing.is_set  # not by way of the property: it is asked after each update
        for update in batch:
            yield update
            if is_closed():
                break

    async def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        result = None
        try:
            if not self.is_closed:
                result = await self.resolve(function(*arguments, **options))
        except Exception:
            # redis-py may raise anything when another thread closes its socket.
            if not self.is_closed:
                raise
        if self.is_closed:
            raise FeedClosedError("The feed is closed.")
        return result

    async def _receive(self, channel: str) -> bytes | None:
        if self._pubsub is None:
            self._is_pinged = False
            self._pubsub = self._client.pubsub()
            await self._call(self._pubsub.subscribe, channel)
        timeout = self._timeout if self._is_pinged else BLOCK_MS / 1000
        message = await self._call(self._pubsub.get_message, timeout=timeout)
        if message is None:
            # The response to a PING tells a channel on which nothing happens from a dead connection.
            if self._is_pinged:
                raise redis.TimeoutError("the subscription does not respond to PING")
            await self._call(self._pubsub.ping)
        self._is_pinged = message is None
        return bytes(message["data"]) if message and message["type"] == "message" else None

    async def _disconnect(self) -> None:
        """Give up connections that nobody uses: after a failover, a new one may lead to another server."""
        if self._pubsub is not None:
            pubsub, self._pubsub = self._pubsub, None
            await self._close(pubsub)
        await self._call(self._client.connection_pool.disconnect, inuse_connections=False)

    def _count(self, _: object) -> None:
        if self.is_closed:  # redis-py connects again to send what it was about to send
            raise redis.ConnectionError("The feed is closed.")
        self.connections += 1


class BlockingConnection(Connection):
    """A connection for threads. Its coroutines block instead of suspending: see `run`."""

    _connect = staticmethod(connections.connect)
    _event = threading.Event
    _semaphore = threading.Semaphore
    new_queue = queue.SimpleQueue

    async def resolve(self, result: Any) -> Any:
        return result

    async def _close(self, closable: Any) -> None:
        closable.close()

    async def _acquire(self) -> bool:
        return bool(self._permits.acquire(timeout=self._timeout))

    async def pause(self, seconds: float) -> None:
        self._closing.wait(seconds)

    async def give_way(self) -> None:
        pass  # a thread that has something to send gets its turn

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Any:
        thread = threading.Thread(target=run, args=(function, *arguments), name="session-feed", daemon=True)
        thread.start()
        return thread

    async def join(self, worker: Any) -> None:
        worker.join()

    async def finish(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        await function(*arguments)


class AsyncConnection(Connection):
    """A connection for one event loop: that in which it is first used. It is closed with the loop, at the latest."""

    _connect = staticmethod(connections.connect_async)
    _event = asyncio.Event
    _semaphore = asyncio.Semaphore
    new_queue = asyncio.Queue
    _loop: asyncio.AbstractEventLoop | None = None
    _guard: AsyncGenerator[None, None]
    _ending: asyncio.Task[None]

    async def close(self) -> None:
        here = asyncio.get_running_loop()
        if self._loop in {None, here}:
            await super().close()
            return
        closed: Future[None] = Future()
        with contextlib.suppress(RuntimeError):  # that loop is closed, and this with it
            self._loop.call_soon_threadsafe(self._close_soon, closed)
            if self._loop.is_running():  # else it closes this when it goes on
                await asyncio.wait([asyncio.wrap_future(closed)], timeout=self._timeout)

    def _close_soon(self, closed: "Future[None]") -> None:
        self._ending = asyncio.ensure_future(super().close())
        self._ending.add_done_callback(lambda _: closed.set_result(None))

    async def resolve(self, result: Any) -> Any:
        here = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._guard = here, _close_with_loop(self._client)
            await anext(self._guard)
        elif self._loop is not here:
            result.close()
            raise FeedError("This iterator began in another event loop: begin a new one.")
        # redis-py sends with asyncio.wait_for, which may swallow a cancellation in Python 3.11, and then waits for the
        # response for as long as ever: https://github.com/python/cpython/issues/86296
        work = asyncio.ensure_future(result)
        try:
            return await asyncio.shield(work)
        finally:
            while not work.done():
                work.cancel()
                await asyncio.wait([work], timeout=CANCEL_SECONDS)
            if not work.cancelled():
                work.exception()  # asyncio logs those that nobody looked at

    async def _close(self, closable: Any) -> None:
        await closable.aclose()

    async def _acquire(self) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                return bool(await self._permits.acquire())
        except TimeoutError:
            return False

    async def pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def give_way(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Any:
        return asyncio.create_task(function(*arguments), name="session-feed")

    async def join(self, worker: Any) -> None:
        if worker.get_loop() is asyncio.get_running_loop():  # else it ends with that loop
            await asyncio.wait([worker])

    async def finish(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        # asyncio.run cancels the task that closes an iterator which was left. Python 3.11 gives that cancellation to
        # the iterator and, when what it then waits for is there, a GeneratorExit. After that, nothing may be awaited.
        task = self.start(function, *arguments)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # if it was this that was cancelled


async def _close_with_loop(client: Any) -> AsyncGenerator[None, None]:
    """Close a client when the event loop ends: before, it closes the asynchronous generators that began in it."""
    try:
        yield
    finally:
        await client.aclose()


def as_dict(response: Sequence[Any]) -> dict[bytes, Any]:
    """Return names and values, which come in turns, as a dict."""
    return dict(zip(response[::2], response[1::2], strict=True))


def run(function: Callable[P, Awaitable[T]], *arguments: P.args, **options: P.kwargs) -> T:
    """Return the result of a function whose awaitable never suspends, as over a BlockingConnection."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)  # an event loop of this thread must not adopt our generators
    try:
        function(*arguments, **options).__await__().send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        sys.set_asyncgen_hooks(*hooks)
    raise RuntimeError("A coroutine over a blocking connection was suspended.")


def iterate(batches: AsyncGenerator[Iterable[T], None]) -> Generator[T, None, None]:
    """Yield what is in the batches of an asynchronous generator over a BlockingConnection."""
    try:
        while True:
            try:
                batch = run(batches.__anext__)
            except StopAsyncIteration:
                return
            yield from batch
    finally:
        run(batches.aclose)


async def iterate_async(batches: AsyncGenerator[Iterable[T], None]) -> AsyncGenerator[T, None]:
    """Yield what is in the batches of an asynchronous generator over an AsyncConnection."""
    async with contextlib.aclosing(batches):
        async for batch in batches:
            for update in batch:
                yield update
