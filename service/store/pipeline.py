"""Commands from any number of requests, over one connection, in as few round trips as they allow.

An event loop takes whatever waits, sends it as one pipeline (no MULTI: each command stands for itself) and
hands each request its own reply. Nothing is ever sent twice, but for what Redis said it did not run, since it
does not know the script or is not the primary any more. A connection that fails, fails all that were on it,
those with a reply included, and is replaced.

The loop is the server's own, where there is one: no thread has to be woken, and none waits for the
interpreter. Everyone else gets a loop in a thread.

A long module: what waits, what is sent and what fails share one state, and taken apart would share it still.
"""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import redis
import structlog
from clerk_session_feed.connections import explain
from hiredis import pack_command
from redis.exceptions import ClusterDownError, MovedError, NoScriptError, ReadOnlyError

from service.errors import RelayError, StoreUnavailableError
from service.telemetry.tracing import current_context, round_trip
from service.waiting import new_future

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_BATCH: Final = 32
"""Commands in one round trip: enough to share its cost, and few enough that Redis and the server work at the
same time, on one batch and on the next."""
MAX_WAITING: Final = 10_000
"""Commands that may wait for the connection: memory has a bound, too."""
CLOSE_SECONDS: Final = 5.0
"""For what still waits when the service stops."""
STUCK_SECONDS: Final = 4.0
"""What takes longer will not end in time for anybody. (Asking sentinels has no timeout as a whole.)"""
PAUSE_AFTER_TIMEOUT: Final = 1.0
"""Seconds for which commands are refused at once after a timeout, instead of waiting for the next one."""


@dataclasses.dataclass(frozen=True)
class Script:
    source: bytes
    sha: str

    @classmethod
    def from_source(cls, source: bytes) -> "Script":
        return cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


@dataclasses.dataclass(slots=True)
class _Command:
    arguments: tuple[Any, ...]
    parse: Callable[[Any], Any]
    future: Future[Any]
    trace: Any
    """The OpenTelemetry context that it was submitted in, if there is one."""


class TooFewReplicasError(StoreUnavailableError):
    """Redis has the write, but not as many replicas as were asked for."""


class GroupCommit:
    """Thread-safe. One connection; it is made with the first command."""

    on_round_trip: Callable[[int, float], None] = staticmethod(lambda *_: None)
    """Is told how many commands shared a round trip, and how many seconds that took."""
    on_failure: Callable[[str], None] = staticmethod(lambda _: None)
    """Is told the name of what went wrong."""

    def __init__(
        self,
        connect: Callable[..., Any],
        scripts: Sequence[Script],
        *,
        timeout: float,
        min_replicas: int = 0,
        replica_timeout_ms: int = 1000,
    ) -> None:
        """connect: builds the client; what it gets as `on_connect` has to be awaited for a new connection.

        timeout: seconds for connecting, and for a round trip.
        min_replicas: a reply counts only once that many replicas have what the pipeline wrote.
        """
        self._scripts = scripts
        self._connect = connect
        self._timeout = timeout
        self._min_replicas = min_replicas
        self._replica_timeout_ms = replica_timeout_ms
        self._abandoned: list[Any] = []
        self._begin()
        _EVERY.add(self)

    def _begin(self) -> None:
        """Begin without a loop and a connection."""
        self._pool: Any = self._connect(on_connect=self._load_scripts_on).connection_pool
        # Outside the pool, which would take longer over lending it than Redis over a command.
        self._connection: Any = None
        self._waiting: collections.deque[_Command] = collections.deque()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_working = False
        self._closing = False
        self._paused_until = 0.0
        self._stuck_from = math.inf

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop, from before the first command on, instead of one in a thread."""
        self._loop = loop

    def begin_anew_in_child(self) -> None:
        """Begin anew after a fork: this process lacks the loop's thread, and the socket is its parent's."""
        # Kept, since their end would tell the server, and the parent's selector, about it.
        self._abandoned += [self._loop, self._task, self._connection, self._pool, self._waiting]
        self._begin()

    def submit(self, *arguments: Any, parse: Callable[[Any], T]) -> Future[T]:
        """Send one command when the connection is free; the future gets what `parse` makes of its reply.

        Args:
            arguments: the command; a Script stands for EVALSHA and its hash.
            parse: makes the result of Redis' reply.

        Returns:
            What `waiting.wait` can wait for.

        Raises:
            StoreUnavailableError: Redis did not take it in time; raised here, or by the future.

        """
        future = new_future(self._loop)
        with self._lock:
            if self._closing:
                raise StoreUnavailableError("The service is stopping.")
            now = time.monotonic()
            if now < self._paused_until or now > self._stuck_from:
                raise StoreUnavailableError("Redis timed out a moment ago.")
            if len(self._waiting) >= MAX_WAITING:
                raise StoreUnavailableError("Too many deliveries wait for Redis.")
            self._waiting.append(_Command(arguments, parse, future, current_context()))
            if not self._is_working:
                self._is_working = True
                loop = self._loop or self._start_thread()
                loop.call_soon_threadsafe(self._start)
        return future

    def close(self) -> None:
        """Send what waits, then disconnect. Commands that come later are refused.

        Waits for the loop, so the loop's own thread can't call it.
        """
        with self._lock:
            if self._closing:
                return
            self._closing = True
        if self._loop is None:
            return
        closed = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with contextlib.suppress(TimeoutError):
            closed.result(CLOSE_SECONDS + 1)
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(1)

    def _start_thread(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = asyncio.new_event_loop()

        def run() -> None:
            with contextlib.closing(loop):
                loop.run_forever()

        self._thread = threading.Thread(target=run, name="group-commit", daemon=True)
        self._thread.start()
        return loop

    def _start(self) -> None:
        self._task = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        while batch := self._next_batch():
            self._stuck_from = time.monotonic() + STUCK_SECONDS
            try:
                await self._commit(batch)
            except (redis.TimeoutError, TimeoutError) as error:
                with self._lock:
                    self._paused_until = time.monotonic() + PAUSE_AFTER_TIMEOUT
                    batch += self._take(MAX_WAITING)
                self._fail(batch, error)
            except Exception as error:  # noqa: BLE001  # this outlives whatever a connection can do
                self._fail(batch, error)
            finally:
                self._stuck_from = math.inf

    async def _close(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        with self._lock:
            left = self._take(MAX_WAITING)
        self._fail(left, StoreUnavailableError("The service is stopping."))
        if self._connection is not None:
            await self._connection.disconnect()

    def _next_batch(self) -> list[_Command]:
        """Return what to send now; after an empty list, the next command starts the work anew."""
        with self._lock:
            while self._waiting:
                if batch := self._take(MAX_BATCH):
                    return batch
            self._is_working = False
            return []

    def _take(self, at_most: int) -> list[_Command]:
        taken = [self._waiting.popleft() for _ in range(min(at_most, len(self._waiting)))]
        # Whoever stopped waiting was answered 503 by now, and the sender will come again.
        return [command for command in taken if _is_wanted(command.future)]

    async def _load_scripts_on(self, connection: Any) -> None:
        for script in self._scripts:
            await connection.send_command("SCRIPT", "LOAD", script.source)
            await connection.read_response()

    async def _commit(self, batch: list[_Command]) -> None:
        replies = await self._send(batch)
        not_run = [command for command, reply in zip(batch, replies, strict=True) if _is_not_run(reply)]
        if not_run:
            # Connecting finds the primary, and loads the scripts.
            await self._connection.disconnect()
            again = iter(await self._send(not_run))
            replies = [next(again) if _is_not_run(reply) else reply for reply in replies]
        failed: dict[str, tuple[Exception, list[_Command]]] = {}
        for command, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                failed.setdefault(str(reply), (reply, []))[1].append(command)
            else:
                self._finish(command, reply)
        for error, commands in failed.values():  # one line in the log for what is wrong with all of them
            self._fail(commands, error)

    async def _connected(self) -> Any:
        """Return the connection; one that Redis gave up while it was idle is made anew."""
        if self._connection is None:
            self._connection = self._pool.make_connection()
        connection = self._connection
        connection.socket_timeout = self._timeout  # also one that seems connected may have to be made anew
        try:
            await self._pool.ensure_connection(connection)
        except redis.ConnectionError as error:
            # redis-py wraps what our way to find a server raises, and so hides a timeout.
            raise error.__cause__ if isinstance(error.__cause__, redis.RedisError) else error from None
        connection.socket_timeout = None  # for one read or write; a round trip has its own, as a whole
        return connection

    async def _send(self, batch: list[_Command]) -> list[Any]:
        # Not with redis-py's pipeline: it takes longer over a command than Redis does.
        packed = [_pack(*command.arguments) for command in batch]
        if self._min_replicas:
            packed.append(_pack("WAIT", self._min_replicas, self._replica_timeout_ms))
        connection = await self._connected()
        started = time.perf_counter()
        with round_trip([command.trace for command in batch]):
            async with asyncio.timeout(self._timeout):
                await connection.send_packed_command(packed, check_health=False)
                replies = [await _read(connection) for _ in batch]
                confirmed = await _read(connection) if self._min_replicas else 0
        self.on_round_trip(len(batch), time.perf_counter() - started)
        doubt: Exception | None = None
        if isinstance(confirmed, Exception):
            doubt = confirmed
        elif confirmed < self._min_replicas:
            doubt = TooFewReplicasError(f"{confirmed} of {self._min_replicas} replicas confirmed in time.")
        if doubt is not None:
            return [reply if isinstance(reply, Exception) else doubt for reply in replies]
        return replies

    def _finish(self, command: _Command, reply: object) -> None:
        try:
            result = command.parse(reply)
        except RelayError as error:
            self._fail([command], error)
        except Exception as error:
            # No reply of our script's. An error with its traceback, so that error trackers see it.
            log.exception("redis_reply_unreadable", error=type(error).__name__)
            self._fail([command], StoreUnavailableError("What Redis replied can't be read."))
        else:
            if not command.future.done():
                command.future.set_result(result)

    def _fail(self, commands: Sequence[_Command], error: Exception) -> None:
        if not commands:
            return
        if isinstance(error, TooFewReplicasError) or not isinstance(error, RelayError):
            detail = explain(error)
            code = detail.partition(" ")[0]
            kind = code if code.isupper() else type(error).__name__
            self.on_failure(kind)
            log.warning("redis_failed", error=kind, detail=detail, commands=len(commands))
        if not isinstance(error, RelayError):
            unavailable = StoreUnavailableError(f"Redis did not take it ({kind}).")
            unavailable.__cause__ = error
            error = unavailable
        for command in commands:
            if not command.future.done():
                command.future.set_exception(error)


def _pack(name: str | Script, *arguments: Any) -> bytes:
    words = ("EVALSHA", name.sha, *arguments) if isinstance(name, Script) else (name, *arguments)
    packed: bytes = pack_command(words)
    return packed


async def _read(connection: Any) -> Any:
    """Return a reply, or what Redis says is wrong; raise redis.RedisError if the connection has failed."""
    try:
        return await connection.read_response()
    except redis.ResponseError as error:
        return error


def _is_wanted(future: Future[Any]) -> bool:
    return future.set_running_or_notify_cancel() if isinstance(future, Future) else not future.done()


_EVERY: Final[weakref.WeakSet[GroupCommit]] = weakref.WeakSet()


def _begin_anew_in_child() -> None:
    for each in _EVERY:
        each.begin_anew_in_child()


os.register_at_fork(after_in_child=_begin_anew_in_child)


def _is_not_run(reply: object) -> bool:
    return isinstance(reply, NoScriptError | MovedError | ReadOnlyError | ClusterDownError)
