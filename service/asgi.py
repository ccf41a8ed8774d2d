"""The thin asynchronous layer in front of the Flask application.

It holds what would hold a thread: a client that takes its time with the body, and Redis that takes its
time with the reply. Flask itself runs on the event loop: between the two waits there is only computing, and
little of it, but for large bodies.
Any number of slow clients, and a Redis that hangs, leave the loop free to answer everyone else.
"""

import asyncio
import contextlib
import gc
import io
import itertools
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from service.answers import ANSWER_SECONDS, DEFER, Pending, problem
from service.errors import BadRequestError, RelayError, RequestTimeoutError, StoreUnavailableError
from service.signature import HEADERS

if TYPE_CHECKING:
    from flask import Flask

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS: Final = 3.0
"""For a request's body; what is left of ANSWER_SECONDS is for reading it, and for Redis."""
DEADLINE_SECONDS: Final = 0.1
"""Between two looks at what is late."""
DRAINED_BYTES: Final = 8 * 1_048_576
"""Read and dropped of a body too large, so that its sender reads the answer before the connection ends."""
HELD_BYTES: Final = 64 * 1_048_576
"""Held of all bodies together, since everyone can send one: the smallest dynos have 512 MB."""
LARGE_BYTES: Final = 16 * 1024
"""A larger body may take long to read: the loop leaves it to a thread. What is over this counts as held."""


class Application:
    """An ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html) out of the Flask one."""

    def __init__(self, app: "Flask", max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._held = 0
        self._deadlines = _Deadlines()
        self._held_at_most = max(HELD_BYTES, 2 * max_body_bytes)
        self._large = ThreadPoolExecutor(max_workers=2, thread_name_prefix="large-body")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        store, journal = self._app.extensions["session_store"], self._app.extensions["journal"]
        await receive()
        loop = asyncio.get_running_loop()
        store.work_on(loop)
        journal.soon = loop.call_soon_threadsafe
        connected = store.probe()  # now, not with the first delivery; Redis may also be away
        connected.add_done_callback(lambda probe: probe.cancelled() or probe.exception())
        _rarely_collect_garbage()
        await send({"type": "lifespan.startup.complete"})
        watch = asyncio.create_task(_end_with_parent())
        await receive()
        watch.cancel()
        await asyncio.to_thread(store.close)
        journal.write()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        body = _Body()
        pending: list[Pending[Any]] = []
        response = _Response()
        try:
            await self._read_body(receive, body, begun + BODY_SECONDS)
            environ = _environ(scope, body, pending.append)
            if body.is_whole and body.size <= LARGE_BYTES:
                chunks = self._app(environ, response.start)
            else:
                call = self._call(environ, response, body, begun + ANSWER_SECONDS)
                # In a task, no frame of Flask's has `receive` above it: its errors keep their frames until
                # they are collected, and the server keeps a connection with half a body while someone has
                # `receive`.
                chunks = await (call if body.is_whole else asyncio.create_task(call))
        except TimeoutError:
            response = _Response()  # the thread may still use the other one
            busy = StoreUnavailableError("Too many large bodies wait to be read.")
            chunks = problem(busy)(environ, response.start)
        else:
            body.close()  # its memory is free now, whoever still has it
        finally:
            self._held -= body.held
        for answer in pending:
            if not answer.future.done():
                await self._wait(answer.future, min(loop.time() + answer.timeout, begun + ANSWER_SECONDS))
            chunks = answer.settled()(environ, response.start)
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        await send({"type": "http.response.body", "body": b"".join(chunks)})

    async def _call(
        self, environ: dict[str, Any], response: "_Response", body: "_Body", deadline: float
    ) -> Iterable[bytes]:
        if body.size <= LARGE_BYTES:
            return self._app(environ, response.start)
        async with asyncio.timeout_at(deadline):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._large, self._app, environ, response.start)

    async def _read_body(self, receive: Receive, body: "_Body", deadline: float) -> None:
        """Fill in the body; of one that is too large, a part that is too large as well."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a server calls this in one
        too_late = self._deadlines.start(deadline, task.cancel)
        more = True
        try:
            while more and body.size <= self._max_body_bytes + DRAINED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    # Not only of a client that has gone: also of one whose chunks can't be read.
                    body.fault = BadRequestError("The body is cut short, or its chunks are malformed.")
                    break
                chunk = message.get("body", b"")
                body.size += len(chunk)
                if body.tell() <= self._max_body_bytes:
                    if not self._hold(body):
                        body.fault = StoreUnavailableError("Too many large bodies arrive at once.")
                        break
                    body.write(chunk)
                more = message.get("more_body", False)
                body.is_whole = not more
        except asyncio.CancelledError:
            if not self._deadlines.is_over(too_late):
                raise
            task.uncancel()
            if body.size <= self._max_body_bytes:
                body.fault = RequestTimeoutError("The body did not arrive in time.")
        finally:
            self._deadlines.stop(too_late)
        body.seek(0)

    async def _wait(self, future: Any, deadline: float) -> None:
        """Wait for a future, of this loop or of another thread, until the loop's clock shows the deadline."""
        if not asyncio.isfuture(future):
            future = asyncio.wrap_future(future)
        too_late = self._deadlines.start(deadline, future.cancel)
        with contextlib.suppress(asyncio.CancelledError, Exception):  # whoever answers looks what it has
            await future
        self._deadlines.stop(too_late)

    def _hold(self, body: "_Body") -> bool:
        """Count what a body holds of the memory for all; small ones are free, so that they always pass."""
        held = max(0, body.size - LARGE_BYTES)
        if self._held + held - body.held > self._held_at_most:
            return False
        self._held += held - body.held
        body.held = held
        return True


def _rarely_collect_garbage() -> None:
    """Leave what the start made alone for good, and look through the rest less often.

    A delivery leaves no cycles behind; the collector looks all the same, each time that 700 objects live.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


async def _end_with_parent() -> None:
    """Stop this worker when the main process was killed: it would hold the port, and nobody would end it."""
    # Its id is known from the fork: it may have died before this begins, and another is the parent now.
    main = multiprocessing.parent_process()
    parent = os.getppid() if main is None else main.pid
    while os.getppid() == parent:  # noqa: ASYNC110  # nothing tells of a parent's death but this
        await asyncio.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


class _Deadlines:
    """Calls what is late. One timer for all: one for each would cost more than what it guards."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._running: dict[int, tuple[float, Callable[[], object]]] = {}
        self._rings = False

    def start(self, deadline: float, act: Callable[[], object]) -> int:
        """Call `act` soon after the loop's clock shows the deadline, unless it was stopped by then."""
        number = next(self._numbers)
        self._running[number] = deadline, act
        if not self._rings:
            self._ring()
        return number

    def stop(self, number: int) -> None:
        self._running.pop(number, None)

    def is_over(self, number: int) -> bool:
        """Tell whether it was called."""
        return number not in self._running

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for number, (deadline, act) in [*self._running.items()]:
            if deadline <= now:
                self.stop(number)
                act()
        self._rings = bool(self._running)
        if self._rings:
            loop.call_later(DEADLINE_SECONDS, self._ring)


class _Body(io.BytesIO):
    """A request's body. If it did not arrive whole, whoever reads it is told why."""

    size = 0
    """Bytes that arrived; they may be more than are kept."""
    held = 0
    is_whole = False
    """Nothing of it is left to be received."""
    fault: RelayError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.fault is not None:
            raise self.fault
        return super().read(size)


class _Response:
    """What the WSGI application says with `start_response`, in ASGI's terms."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def start(self, status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], object]:
        self.status = int(status.partition(" ")[0])
        self.headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        return lambda _: None


def _path(scope: Message) -> bytes:
    """Return the path decoded, but for slashes: encoded, they separate nothing."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    if b"%" not in raw_path:
        return raw_path
    return unquote_to_bytes(re.sub(rb"%2f", b"%252F", raw_path, flags=re.IGNORECASE))


def _environ(scope: Message, body: _Body, defer: Callable[[Pending[Any]], None]) -> dict[str, Any]:
    """Build what PEP 3333 asks for."""
    host, port = scope.get("server") or ("", None)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": _path(scope).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or ""),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        DEFER: defer,
    }
    for raw_name, raw_value in scope["headers"]:
        key = _KEYS.get(raw_name) or _key(raw_name)
        if key:
            value = raw_value.decode("latin-1")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def _key(raw_name: bytes) -> str:
    """Return the name of a header in an environ; nothing for one that does not belong there."""
    name = raw_name.decode("latin-1")
    # `svix_id` is not `svix-id`, though CGI's names make them one. Hosts and upgrades are nobody's
    # business here, and odd ones would stop Flask's routing.
    if "_" in name or name in {"host", "upgrade"}:
        return ""
    key = name.upper().replace("-", "_")
    return key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"


_KEYS: Final = {
    name.encode(): _key(name.encode())
    for name in (*HEADERS, "accept", "content-length", "content-type", "user-agent")
}
"""Of the headers that deliveries have."""
