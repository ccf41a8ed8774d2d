"""Commands from any number of requests, over one connection, in as few round trips as possible.

An event loop takes the commands that wait, sends them together (without MULTI: each stands for itself) and
gives each request its own reply. A command is never sent twice, unless Redis said that it did not run it: it
does not know the script, or is not the primary any more. If the connection fails, all commands that were sent
on it fail, and the next batch gets a new connection.

What is in front of Redis, and spreads commands over several, may load a script elsewhere than where it is to run, or
not at all. So if a script is unknown although it was just loaded, or EVALSHA is, its source is sent (EVAL).

The loop is the server's own, if there is one: then no thread has to be woken, and none waits for the
interpreter. Else a thread runs a loop.

A long module: the queue, the connection and its failures share one state.
"""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

import redis
import structlog
from clerk_session_feed.connections import explain
from hiredis import pack_command
from redis.exceptions import ClusterDownError, MovedError, NoScriptError, ReadOnlyError

from service.errors import RelayError, StoreUnavailableError
from service.store.batched import Batched
from service.store.exchange import Exchange
from service.store.rights import (
    MISSING_RIGHT_ADVICE,
    NO_SCRIPTS_ADVICE,
    has_no_command,
    is_missing_right,
    is_script_unknown,
)
from service.telemetry.tracing import current_context, round_trip
from service.waiting import new_future, schedule

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_BATCH: Final = 32
"""Commands in one round trip: enough to share its cost, and few enough that Redis works on one batch while
the server works on the next."""
MAX_WAITING: Final = 10_000
"""Commands that may wait for the connection, so that memory has a bound."""
CLOSE_SECONDS: Final = 5.0
"""Seconds for the commands that still wait when the service stops."""
STUCK_SECONDS: Final = 3.5
"""Seconds after which a batch is too late for everyone who waits: asking where Redis is comes before its timeout."""
PAUSE_AFTER_TIMEOUT: Final = 1.0
"""Seconds after a timeout in which commands are refused at once, instead of waiting for the next timeout."""

_SCRIPTS_UNKNOWN: Final = (
    "A script that was just loaded is unknown. Is there a proxy in front of Redis? Deliveries go on, "
    "with the source of the script each time that it is unknown. docs/redis.md has more."
)
_CODE: Final = re.compile(r"(?:.*@user_script: ?\d+: -?)?([A-Z]{2,}) ")
"""The code of an error. Redis 6.2 puts the place in the script before it, redis-py leaves out many."""


@dataclasses.dataclass(slots=True)
class _Command:
    words: tuple[Any, ...]
    parse: Callable[[Any], Any]
    future: Any
    """Of concurrent.futures, of asyncio, or a place in a Batched."""
    context: Any
    """The OpenTelemetry context in which it was submitted, if there is one."""


class TooFewReplicasError(StoreUnavailableError):
    """Redis has the write, but fewer replicas than required have confirmed it."""


class Pipeline:
    """One connection to Redis, shared by all threads and greenlets; made when the first command comes.

    Attributes:
        rights_version: Another number for each connection, and after each refusal for a missing right. What is known of
            the user's rights holds for one number.
    """

    on_round_trip: Callable[[int, float], None] = staticmethod(lambda *_: None)
    """Called after each round trip with its number of commands and its seconds."""
    on_failure: Callable[[str], None] = staticmethod(lambda _: None)
    """Called with the name of each failure, such as `TimeoutError` or `READONLY`; `NOPERM` for any missing right."""

    def __init__(
        self, connect: Callable[..., Any], scripts: Iterable[bytes], *, timeout: float, min_replicas: int
    ) -> None:
        """Prepare a pipeline; nothing connects yet.

        Args:
            connect: returns a redis.asyncio client, which awaits the given `on_connect` for each connection.
            scripts: sources to load on each connection.
            timeout: seconds, for connecting and for one round trip.
            min_replicas: how many replicas must confirm a batch before its replies count (`WAIT`).
        """
        self._scripts = {hashlib.sha1(each, usedforsecurity=False).hexdigest(): each for each in scripts}
        self._sends_source = False
        self.rights_version = 0
        self._connect = connect
        self._timeout = timeout
        self._min_replicas = min_replicas
        # Redis has to stop waiting for replicas before the round trip's timeout.
        self._replica_timeout_ms = max(1, int(timeout * 750))
        self._parents: list[Any] = []
        self._reset()
        _pipelines.add(self)

    def _reset(self) -> None:
        """Start without a loop and a connection."""
        self._pool: Any = self._connect(on_connect=self._load_scripts).connection_pool
        # Not borrowed from the pool for each batch: that takes longer than Redis takes over a command.
        self._connection: Any = None
        self._exchange: Exchange | None = None
        self._is_outdated = False
        self._waiting: collections.deque[_Command] = collections.deque()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_working = False
        self._done: asyncio.Future[None] | None = None
        """Who closes this waits for it: what was submitted is done."""
        self._closing = False
        self._paused_until = 0.0
        self._stuck_from = math.inf

    def reset_after_fork(self) -> None:
        """Start again in a forked child: the loop's thread did not come along, the socket is the parent's."""
        # Kept, because collecting them would speak to the parent's server and change the parent's selector.
        self._parents += [self._loop, self._task, self._connection, self._exchange, self._pool, self._waiting]
        self._reset()

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop instead of one in a thread; to be called before the first command."""
        self._loop = loop

    def submit(self, words: tuple[Any, ...], parse: Callable[[Any], T]) -> Future[T]:
        """Send a command as soon as the connection is free.

        Args:
            words: the command and its arguments.
            parse: turns Redis' reply into the future's result.

        Returns:
            A future for `waiting.wait`.

        Raises:
            StoreUnavailableError: Redis did not run the command in time; raised here, or by the future.
        """
        future = new_future(self._loop)
        self._enqueue([_Command(words, parse, future, current_context())])
        return future

    def submit_all(
        self, commands: Sequence[tuple[tuple[Any, ...], Callable[[Any], T]]]
    ) -> Future[list[T | RelayError]]:
        """Send commands as soon as the connection is free, in this order; for many, one future is far cheaper.

        Args:
            commands: each as `submit` takes it, at least one. At most MAX_BATCH go into one round trip.

        Returns:
            A future for `waiting.wait`. For each command it has the result, or the error that `submit`'s would raise.

        Raises:
            StoreUnavailableError: None of them was sent.
        """
        batched = Batched(len(commands), new_future(self._loop))
        context = current_context()
        together = zip(commands, batched.places, strict=True)
        self._enqueue([_Command(words, parse, place, context) for (words, parse), place in together])
        return batched.future

    def _enqueue(self, commands: Sequence[_Command]) -> None:
        with self._lock:
            if self._closing:
                raise StoreUnavailableError("The service is stopping.")
            now = time.monotonic()
            if now < self._paused_until or now > self._stuck_from:
                raise StoreUnavailableError("Redis timed out a moment ago.")
            if len(self._waiting) + len(commands) > MAX_WAITING:
                raise StoreUnavailableError("Too many deliveries wait for Redis.")
            self._waiting.extend(commands)
            if not self._is_working:
                self._is_working = True
                loop = self._loop or self._start_thread()
                schedule(loop, self._go_on)

    def reconnect(self) -> None:
        """Give the next command a new connection, which asks anew whether it may be used."""
        self._is_outdated = True

    def close(self) -> None:
        """Send the commands that wait, then disconnect; later commands are refused.

        This blocks until the loop has done so: don't call it in the loop's own thread.
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
            if not self._thread.is_alive():
                self._loop.close()

    def _start_thread(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="redis-pipeline", daemon=True)
        self._thread.start()
        return self._loop

    def _go_on(self) -> None:
        """Send the next batch. When it is done, this is called again."""
        while batch := self._next_batch():
            self._stuck_from = time.monotonic() + STUCK_SECONDS
            if not self._is_connected() or any(command.context for command in batch):
                self._task = asyncio.ensure_future(self._work(batch))  # to connect, or to record a span, needs one
                return
            try:
                sent = self._write(batch)
            except Exception as error:  # noqa: BLE001  # whatever it is, the next batch may succeed
                self._give_up(batch, error)
            else:
                sent.add_done_callback(partial(self._take_replies, batch, time.perf_counter()))
                return

    def _take_replies(self, batch: list[_Command], started: float, sent: "asyncio.Future[list[Any]]") -> None:
        """Finish a batch whose replies are here, and go on; without a task, which would take longer than Redis."""
        try:
            replies = self._read(batch, sent.result(), started)
            if any(map(_is_not_run, replies)):
                self._task = asyncio.ensure_future(self._work(batch, replies))
                return
            self._settle(batch, replies)
        except Exception as error:  # noqa: BLE001  # whatever it is, the next batch may succeed
            self._give_up(batch, error)
        self._go_on()

    async def _work(self, batch: list[_Command], replies: list[Any] | None = None) -> None:
        """Connect and send a batch; or, with replies to it, send again what Redis did not run."""
        try:
            self._settle(batch, await self._run(batch, replies or await self._send(batch)))
        except Exception as error:  # noqa: BLE001  # whatever it is, the next batch may succeed
            self._give_up(batch, error)
        self._go_on()

    def _give_up(self, batch: list[_Command], error: Exception) -> None:
        if isinstance(error, redis.TimeoutError | TimeoutError):
            with self._lock:
                self._paused_until = time.monotonic() + PAUSE_AFTER_TIMEOUT
                batch += self._take(MAX_WAITING)
        self._fail(batch, error)

    async def _close(self) -> None:
        with self._lock:
            if self._is_working:
                self._done = asyncio.get_running_loop().create_future()
        if self._done is not None:
            await asyncio.wait([self._done], timeout=CLOSE_SECONDS)
        with self._lock:
            left = self._take(MAX_WAITING)
        self._fail(left, StoreUnavailableError("The service is stopping."))
        if self._connection is not None:
            await self._connection.disconnect()

    def _next_batch(self) -> list[_Command]:
        """Return the commands to send now; if there are none, the next `submit` makes it go on."""
        with self._lock:
            while self._waiting:
                if batch := self._take(MAX_BATCH):
                    return batch
            self._is_working, self._stuck_from = False, math.inf
            if self._done is not None and not self._done.done():
                self._done.set_result(None)
            return []

    def _take(self, at_most: int) -> list[_Command]:
        taken = [self._waiting.popleft() for _ in range(min(at_most, len(self._waiting)))]
        # A request that has stopped waiting got its 503 already, and its sender will try again.
        return [command for command in taken if _is_wanted(command.future)]

    async def _load_scripts(self, connection: Any) -> None:
        self.rights_version += 1
        for source in self._scripts.values():
            await connection.send_command("SCRIPT", "LOAD", source)
            reply = await _read_reply(connection)
            # A proxy may have no such command. Then Redis does not know the script, and `_run` sends its source.
            if isinstance(reply, Exception) and not has_no_command(reply):
                raise reply

    async def _run(self, batch: list[_Command], replies: list[Any]) -> list[Any]:
        """Send again what Redis did not run; return the replies to all."""
        if any(_is_elsewhere(each) or (_is_unknown(each) and not self._sends_source) for each in replies):
            # Connecting again finds the primary and loads the scripts.
            await self._connection.disconnect()
            replies = await self._send_again(batch, replies)
        if any(map(_is_unknown, replies)):
            replies = await self._send_again([self._with_source(command) for command in batch], replies)
            if not self._sends_source and not any(isinstance(reply, Exception) for reply in replies):
                self._sends_source = True
                log.warning("redis_scripts_unknown", detail=_SCRIPTS_UNKNOWN)
        return replies

    def _settle(self, batch: list[_Command], replies: list[Any]) -> None:
        """Give each command its reply."""
        failed: dict[str, tuple[Exception, list[_Command]]] = {}
        for command, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                failed.setdefault(str(reply), (reply, []))[1].append(command)
            else:
                self._finish(command, reply)
        for error, commands in failed.values():  # one log line for an error that several have in common
            self._fail(commands, error)

    async def _send_again(self, batch: list[_Command], replies: list[Any]) -> list[Any]:
        """Send the commands that Redis did not run; return the replies, with theirs in place of the former ones."""
        again = iter(await self._send([each for each, reply in zip(batch, replies, strict=True) if _is_not_run(reply)]))
        return [next(again) if _is_not_run(reply) else reply for reply in replies]

    def _with_source(self, command: _Command) -> _Command:
        name, first, *rest = command.words
        if name != "EVALSHA":
            return command
        return dataclasses.replace(command, words=("EVAL", self._scripts[first], *rest))

    def _is_connected(self) -> bool:
        """Tell whether commands can be sent: Redis may have closed the connection while it was idle."""
        return self._exchange is not None and self._exchange.is_open and not self._is_outdated

    async def _connect_again(self) -> None:
        if self._connection is None:
            self._connection = self._pool.make_connection()
        connection = self._connection
        self._is_outdated = False
        await connection.disconnect()
        try:
            await self._pool.ensure_connection(connection)
        except redis.ConnectionError as error:
            # redis-py wraps the error of asking where the server is, which may be a timeout.
            raise error.__cause__ if isinstance(error.__cause__, redis.RedisError) else error from None
        self._exchange = Exchange(connection, self._timeout)

    async def _send(self, batch: list[_Command]) -> list[Any]:
        if not self._is_connected():
            await self._connect_again()
        started = time.perf_counter()
        with round_trip([command.context for command in batch]):
            replies = await self._write(batch)
        return self._read(batch, replies, started)

    def _write(self, batch: list[_Command]) -> "asyncio.Future[list[Any]]":
        """Send a batch over the open connection; return a future of the replies."""
        assert self._exchange is not None  # noqa: S101  # it is connected
        words = [command.words for command in batch]
        if self._min_replicas:
            words.append(("WAIT", self._min_replicas, self._replica_timeout_ms))
        return self._exchange.send([pack_command(each) for each in words])  # redis-py's packing is slower than Redis

    def _read(self, batch: list[_Command], replies: list[Any], started: float) -> list[Any]:
        """Return the reply to each command: an error, too, for what not enough replicas have confirmed."""
        self.on_round_trip(len(batch), time.perf_counter() - started)
        confirmed = replies.pop() if self._min_replicas else 0
        replies = [_of_script(command, reply) for command, reply in zip(batch, replies, strict=True)]
        if isinstance(confirmed, int) and confirmed < self._min_replicas:
            confirmed = TooFewReplicasError(f"{confirmed} of {self._min_replicas} replicas confirmed in time.")
        if isinstance(confirmed, Exception):
            return [reply if isinstance(reply, Exception) else confirmed for reply in replies]
        return replies

    def _finish(self, command: _Command, reply: object) -> None:
        try:
            result = command.parse(reply)
        except RelayError as error:
            self._fail([command], error)
        except Exception as error:
            # Not a reply of our scripts: a defect, so it is logged with its traceback.
            log.exception("redis_reply_unreadable", error=type(error).__name__)
            self._fail([command], StoreUnavailableError("What Redis replied can't be read."))
        else:
            if not command.future.done():
                command.future.set_result(result)

    def _fail(self, commands: Sequence[_Command], error: Exception) -> None:
        if isinstance(error, TooFewReplicasError) or not isinstance(error, RelayError):
            detail = explain(error)
            code = _CODE.match(detail)
            kind = code[1] if code else type(error).__name__
            if is_missing_right(error):
                self.rights_version += 1
                kind, detail = "NOPERM", f"{detail.rstrip('.')}: {MISSING_RIGHT_ADVICE}"
            elif _is_unknown(error):
                detail = f"{detail.rstrip('.')}: {NO_SCRIPTS_ADVICE}"
            self.on_failure(kind)
            log.warning("redis_failed", error=kind, detail=detail, commands=len(commands))
        if not isinstance(error, RelayError):
            unavailable = StoreUnavailableError(f"Redis did not take it ({kind}).")
            unavailable.__cause__ = error
            error = unavailable
        for command in commands:
            if not command.future.done():
                command.future.set_exception(error)


async def _read_reply(connection: Any) -> Any:
    """Return Redis' reply, which may be an error; raise redis.RedisError if the connection fails."""
    try:
        return await connection.read_response()
    except redis.ResponseError as error:
        return error


def _of_script(command: _Command, reply: Any) -> Any:
    """Return the reply; a NoScriptError if it says, in other words, that the script did not run."""
    if isinstance(reply, Exception) and command.words[0] in {"EVALSHA", "EVAL"} and is_script_unknown(reply):
        return NoScriptError(str(reply))
    return reply


def _is_wanted(future: Any) -> bool:
    return future.set_running_or_notify_cancel() if isinstance(future, Future) else not future.done()


def _is_elsewhere(reply: object) -> bool:
    return isinstance(reply, MovedError | ReadOnlyError | ClusterDownError)


def _is_unknown(reply: object) -> bool:
    return isinstance(reply, NoScriptError)


def _is_not_run(reply: object) -> bool:
    return _is_elsewhere(reply) or _is_unknown(reply)


_pipelines: Final[weakref.WeakSet[Pipeline]] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for pipeline in _pipelines:
        pipeline.reset_after_fork()


os.register_at_fork(after_in_child=_reset_after_fork)
