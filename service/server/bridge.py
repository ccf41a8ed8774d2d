"""The bridge from ASGI to the Flask application.

It holds what would hold a thread: a client that takes its time with the body, and Redis that takes its time
with the reply. Flask runs in a greenlet on the event loop (see `waiting`): the view blocks, the loop not.
So any number of slow clients, and a Redis that hangs, leave the loop free to answer everyone else.

The body is received whole before Flask is called; a response is sent as it is produced.

A long module: receiving, calling and sending share one request's deadline, and what its body may take.
"""

import asyncio
import gc
import itertools
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from service.app.environ import Body, Message, build, headers_of, path_of
from service.app.responses import ANSWER_SECONDS, Reply
from service.errors import (
    BadRequestError,
    BodyTooLargeError,
    RelayError,
    RequestTimeoutError,
    StoreUnavailableError,
)
from service.server.protocol import BODY_IS_WHOLE
from service.telemetry import metrics
from service.waiting import Greenlets, await_only

if TYPE_CHECKING:
    from service.app.factory import RelayFlask

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS: Final = 3.0
"""Seconds for a request's body; what is left of ANSWER_SECONDS is for reading it, and for Redis."""
DRAINED_BYTES: Final = 8 * 1_048_576
"""Bytes read and dropped of a body too large, so that its sender gets to read the response."""
BUFFERED_BYTES: Final = 64 * 1_048_576
"""Bytes that all bodies together may take, since everyone can send one: the smallest dynos have 512 MB."""
SMALL_BYTES: Final = 16 * 1024
"""Bytes of each body that do not count for that, so that small ones always pass."""

log = structlog.get_logger(__name__)


class FlaskBridge:
    """An ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html) around the Flask one."""

    def __init__(self, app: "RelayFlask") -> None:
        """Args:
        app: what `create_app()` returned, with whatever was added to it.

        """
        self._app = app
        self._max_body_bytes = app.settings.max_body_bytes
        self._loop: Any = None
        self._greenlets: Any = None
        self._under_way = 0
        self._buffered = 0
        self._buffered_at_most = max(BUFFERED_BYTES, 2 * self._max_body_bytes)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection of the server's, as ASGI has it."""
        if self._loop is None:
            # Not at each request: it asks the system for the process's id.
            self._loop = asyncio.get_running_loop()
            self._greenlets = Greenlets(self._loop)
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            self._under_way += 1
            try:
                await self._serve(scope, receive, send)
            finally:
                self._under_way -= 1

    async def _live(self, receive: Receive, send: Send) -> None:
        store, access_log = self._app.store, self._app.access_log
        await receive()
        loop = self._loop
        store.bind_loop(loop)

        def schedule(write: Callable[[], None]) -> None:
            """Write before the response, if that is the only one; else once those at hand are sent."""
            if self._under_way > 1:
                loop.call_soon_threadsafe(write)
            else:
                write()

        access_log.schedule = schedule
        # Connect now, not with the first delivery; Redis may also be away.
        connecting = asyncio.create_task(self._connect())
        closed_by = self._app.fast_lane.closed_by()
        log.info(
            "listening",
            host=self._app.settings.host,
            port=self._app.settings.port,
            fast_lane=not closed_by,
            fast_lane_closed_by=closed_by or None,
        )
        metrics.set_fast_lane(not closed_by)
        metrics.mark_worker_started()
        _rarely_collect_garbage()
        _stop_with_main_process(loop)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        connecting.cancel()
        await asyncio.to_thread(store.close)
        access_log.write()
        await send({"type": "lifespan.shutdown.complete"})

    async def _connect(self) -> None:
        with suppress(RelayError):
            await self._greenlets.run(self._loop.time() + ANSWER_SECONDS, self._app.store.probe)

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        begun = self._loop.time()
        body = Body()
        path, headers = path_of(scope), headers_of(scope)
        try:
            if scope.get(BODY_IS_WHOLE):
                await self._take_body(receive, body)
            else:
                await self._await_body(receive, body, begun + BODY_SECONDS)
            if body.size > self._max_body_bytes:
                body.fault = BodyTooLargeError(f"The body is larger than {self._max_body_bytes} bytes.")
            body.seek(0)
            deadline = begun + ANSWER_SECONDS
            if self._app.fast_lane.takes(scope["method"], path.decode("latin-1")):
                reply = await self._greenlets.run(deadline, self._app.fast_lane.receive, headers, body)
                await _send_reply(send, reply)
            else:
                environ = build(scope, path, headers, body)
                sender = _Sender(send)
                try:
                    await self._greenlets.run(deadline, self._call_flask, environ, sender)
                finally:
                    sender.send = None
        finally:
            self._buffered -= body.buffered
            body.close()  # its memory is free now, whoever still has it

    def _call_flask(self, environ: dict[str, Any], sender: "_Sender") -> None:
        """Call the WSGI application, in a greenlet, and send what it returns as it comes."""
        start: Message = {"type": "http.response.start"}
        sender.start = start
        written: list[bytes] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], _: Any = None
        ) -> Callable[[bytes], object]:
            start["status"] = int(status.partition(" ")[0])
            start["headers"] = [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
            ]
            return written.append

        chunks = self._app(environ, start_response)
        try:
            rest = itertools.chain(written, chunks)
            first = next(rest, b"")  # from here on, `start` is known
            length = dict(start["headers"]).get(b"content-length")
            missing = int(length) if length and environ["REQUEST_METHOD"] != "HEAD" else None
            for chunk in itertools.chain((first,), rest):
                if missing is not None and (missing := missing - len(chunk)) <= 0:
                    sender.write(chunk, more=False)
                    return
                sender.write(chunk, more=True)
            sender.write(b"", more=False)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()

    async def _await_body(self, receive: Receive, body: Body, deadline: float) -> None:
        """Fill in the body, in time."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101  # a server calls this in one
        timer = self._loop.call_at(deadline, task.cancel)
        try:
            await self._take_body(receive, body)
        except asyncio.CancelledError:
            if self._loop.time() < deadline or task.uncancel() > 0:
                raise
            body.fault = RequestTimeoutError("The body did not arrive in time.")
        finally:
            timer.cancel()

    async def _take_body(self, receive: Receive, body: Body) -> None:
        """Fill in the body; of one that is too large, a part that is too large as well."""
        more = True
        while more and body.size <= self._max_body_bytes + DRAINED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                # Not only of a client that has gone: also of one whose chunks can't be read.
                body.fault = BadRequestError("The body is cut short, or its chunks are malformed.")
                break
            chunk = message.get("body", b"")
            body.size += len(chunk)
            if body.tell() <= self._max_body_bytes:
                if not self._buffer(body):
                    body.fault = StoreUnavailableError("Too many large bodies arrive at once.")
                    break
                body.write(chunk)
            more = message.get("more_body", False)

    def _buffer(self, body: Body) -> bool:
        """Count what a body takes of the memory for all."""
        buffered = max(0, body.size - SMALL_BYTES)
        if self._buffered + buffered - body.buffered > self._buffered_at_most:
            return False
        self._buffered += buffered - body.buffered
        body.buffered = buffered
        return True


class _Sender:
    """Sends a response from a greenlet.

    Errors keep Flask's frames, and the frames above them, until they are collected. This is all they keep of
    the connection, and it lets go.
    """

    def __init__(self, send: Send) -> None:
        self.send: Send | None = send
        self.start: Message | None = None

    def write(self, chunk: bytes, *, more: bool) -> None:
        await_only(self._write(chunk, more))

    async def _write(self, chunk: bytes, more: bool) -> None:
        assert self.send is not None  # noqa: S101  # until the response is sent
        if self.start is not None:
            await self.send(self.start)
            self.start = None
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more})


async def _send_reply(send: Send, reply: Reply) -> None:
    headers = {"content-type": reply.content_type, "content-length": str(len(reply.body)), **reply.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    await send({"type": "http.response.body", "body": reply.body})


def _rarely_collect_garbage() -> None:
    """Leave what the start made alone for good, and look through the rest less often.

    A delivery leaves no cycles behind; the collector looks all the same, each time that 700 objects live.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def _stop_with_main_process(loop: asyncio.AbstractEventLoop) -> None:
    """Stop this worker when the main process dies: it would keep the port, and nobody would end it."""
    main = multiprocessing.parent_process()
    if main is None:  # this is it
        return

    def stop() -> None:
        loop.remove_reader(main.sentinel)
        os.kill(os.getpid(), signal.SIGTERM)

    # https://docs.python.org/3/library/multiprocessing.html#multiprocessing.Process.sentinel
    loop.add_reader(main.sentinel, stop)
