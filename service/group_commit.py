"""Commands from any number of requests, over one connection, in as few round trips as they allow.

One thread takes whatever waits, sends it as one pipeline (no MULTI: each command stands for itself) and
hands each request its own reply. Nothing is ever sent twice, but for what Redis said it did not run, since it
does not know the script or is not the primary any more. A connection that fails, fails all that were on it,
those with a reply included, and is replaced.
"""

import collections
import dataclasses
import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import redis
import structlog
from redis.exceptions import ClusterDownError, MovedError, NoScriptError, ReadOnlyError

from service.connections import explain
from service.errors import RelayError, StoreUnavailableError

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_BATCH: Final = 128
"""Commands in one round trip: short against any timeout."""
MAX_WAITING: Final = 10_000
"""Commands that may wait for the connection: memory has a bound, too."""
CLOSE_SECONDS: Final = 5.0
"""For what still waits when the service stops."""
STUCK_SECONDS: Final = 4.0
"""A round trip that takes longer will not end in time for anybody. (Looking up a name has no timeout.)"""
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


class GroupCommit:
    """Thread-safe. One connection, and one thread that starts with the first command."""

    def __init__(
        self,
        connect: Callable[..., redis.Redis],
        scripts: Sequence[Script],
        *,
        min_replicas: int = 0,
        replica_timeout_ms: int = 1000,
    ) -> None:
        """connect: builds the client; what it gets as `on_connect` has to be called with each new connection.

        min_replicas: a reply counts only once that many replicas have what the pipeline wrote.
        """
        self._scripts = scripts
        self._client: Any = connect(on_connect=self._load_scripts_on)
        self._min_replicas = min_replicas
        self._replica_timeout_ms = replica_timeout_ms
        self._waiting: collections.deque[_Command] = collections.deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._paused_until = 0.0
        self._stuck_from = math.inf

    def submit(self, *arguments: Any, parse: Callable[[Any], T]) -> Future[T]:
        """Send one command when the connection is free; the future gets what `parse` makes of its reply.

        arguments: the command; a Script stands for EVALSHA and its hash.
        Raises StoreUnavailableError (here or in the future) if Redis did not take it in time.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._closing:
                raise StoreUnavailableError("The service is stopping.")
            now = time.monotonic()
            if now < self._paused_until or now > self._stuck_from:
                raise StoreUnavailableError("Redis timed out a moment ago.")
            if len(self._waiting) >= MAX_WAITING:
                raise StoreUnavailableError("Too many deliveries wait for Redis.")
            self._waiting.append(_Command(arguments, parse, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
                self._thread.start()
            self._wake.notify()
        return future

    def close(self) -> None:
        """Send what waits, then disconnect. Commands that come later are refused."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        with self._wake:
            left = self._take(MAX_WAITING)
        _fail(left, StoreUnavailableError("The service is stopping."))
        self._client.close()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._stuck_from = time.monotonic() + STUCK_SECONDS
            try:
                self._commit(batch)
            except redis.TimeoutError as error:
                with self._wake:
                    self._paused_until = time.monotonic() + PAUSE_AFTER_TIMEOUT
                    batch += self._take(MAX_WAITING)
                _fail(batch, error)
            except Exception as error:  # noqa: BLE001  # this thread outlives whatever a connection can do
                _fail(batch, error)
            finally:
                self._stuck_from = math.inf

    def _next_batch(self) -> list[_Command] | None:
        with self._wake:
            while not (batch := self._take(MAX_BATCH)):
                if self._closing:
                    return None
                self._wake.wait_for(lambda: self._waiting or self._closing)
            return batch

    def _take(self, at_most: int) -> list[_Command]:
        taken = [self._waiting.popleft() for _ in range(min(at_most, len(self._waiting)))]
        # Whoever stopped waiting was answered 503 by now, and the sender will come again.
        return [command for command in taken if command.future.set_running_or_notify_cancel()]

    def _load_scripts_on(self, connection: Any) -> None:
        for script in self._scripts:
            connection.send_command("SCRIPT", "LOAD", script.source)
            connection.read_response()

    def _commit(self, batch: list[_Command]) -> None:
        replies = self._send(batch)
        not_run = [command for command, reply in zip(batch, replies, strict=True) if _is_not_run(reply)]
        if not_run:
            # Connecting finds the primary, and loads the scripts.
            self._client.connection_pool.disconnect()
            again = iter(self._send(not_run))
            replies = [next(again) if _is_not_run(reply) else reply for reply in replies]
        failed: dict[str, tuple[Exception, list[_Command]]] = {}
        for command, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                failed.setdefault(str(reply), (reply, []))[1].append(command)
            else:
                _finish(command, reply)
        for error, commands in failed.values():  # one line in the log for what is wrong with all of them
            _fail(commands, error)

    def _send(self, batch: list[_Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in batch:
            name, *rest = command.arguments
            if isinstance(name, Script):
                pipeline.execute_command("EVALSHA", name.sha, *rest)
            else:
                pipeline.execute_command(name, *rest)
        if self._min_replicas:
            pipeline.execute_command("WAIT", self._min_replicas, self._replica_timeout_ms)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        if self._min_replicas:
            confirmed = replies.pop()
            doubt: Exception | None = None
            if isinstance(confirmed, Exception):
                doubt = confirmed
            elif confirmed < self._min_replicas:
                doubt = StoreUnavailableError(
                    f"{confirmed} of {self._min_replicas} replicas confirmed in time."
                )
            if doubt is not None:
                return [reply if isinstance(reply, Exception) else doubt for reply in replies]
        return replies


def _is_not_run(reply: object) -> bool:
    return isinstance(reply, NoScriptError | MovedError | ReadOnlyError | ClusterDownError)


def _finish(command: _Command, reply: object) -> None:
    try:
        result = command.parse(reply)
    except RelayError as error:
        command.future.set_exception(error)
    except Exception as error:  # noqa: BLE001  # no reply of our script's: its keys hold something else
        _fail([command], error)
    else:
        command.future.set_result(result)


def _fail(commands: Sequence[_Command], error: Exception) -> None:
    if not commands:
        return
    if not isinstance(error, StoreUnavailableError):
        detail = explain(error)
        code = detail.partition(" ")[0]
        kind = code if code.isupper() else type(error).__name__
        log.warning("redis_failed", error=kind, detail=detail, commands=len(commands))
        unavailable = StoreUnavailableError(f"Redis did not take it ({kind}).")
        unavailable.__cause__ = error
        error = unavailable
    for command in commands:
        if not command.future.done():
            command.future.set_exception(error)
