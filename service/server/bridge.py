"""The bridge from ASGI to the Flask application.

It receives the whole body, calls Flask in a greenlet on the event loop (see `waiting`), and sends the
response as it is produced. A slow client or a slow Redis holds up neither a thread nor the loop.

A long module: receiving, calling and sending share one request's deadline and its body's memory.
"""

import asyncio
import gc
import io
import itertools
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog

from service import errors
from service.app.environ import Body, Message, build_environ, decode_headers, decode_path
from service.app.responses import RESPONSE_SECONDS
from service.app.webhook import WEBHOOK_PATH
from service.server.protocol import ARRIVED_AT, BODY_IS_WHOLE, END_STREAM, DirectApplication, RawHeaders
from service.telemetry import metrics
from service.waiting import STREAMS, Greenlets, Steps, Walk, await_only, complete, schedule

if TYPE_CHECKING:
    from service.app.factory import RelayFlask

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS: Final = 3.0
"""Seconds for a body to arrive; the rest of RESPONSE_SECONDS is for parsing it, and for Redis."""
GRACE_SECONDS: Final = 0.25
"""Seconds that a request gets even if it waited longer than it may for this process: Redis needs milliseconds."""
DRAINED_BYTES: Final = 8 * 1_048_576
"""Bytes that are read and dropped of a body that is too large, so that its sender reads the response."""
BUFFERED_BYTES: Final = 64 * 1_048_576
"""Bytes that all bodies together may take: anyone can send one, and Heroku's smallest dynos have 512 MB."""
SMALL_BYTES: Final = 16 * 1024
"""Bytes of each body that do not count towards BUFFERED_BYTES, so that small bodies always pass."""

log = structlog.get_logger(__name__)


class FlaskBridge(DirectApplication):
    """An ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html) around the Flask one.

    Args:
        app: what `create_app()` returned; hooks, routes and middleware may have been added.
    """

    direct_path = WEBHOOK_PATH.encode()
    direct_bytes = SMALL_BYTES

    def __init__(self, app: "RelayFlask") -> None:
        self._app = app
        self._max_body_bytes = app.settings.max_body_bytes
        self._loop: Any = None
        self._greenlets: Any = None
        self._asked_at, self._is_open = -1.0, False
        self._under_way = 0
        self._buffered = 0
        self._buffered_at_most = max(BUFFERED_BYTES, 2 * self._max_body_bytes)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request, or the server's start and stop; ignore other scopes of ASGI."""
        if self._loop is None:
            # Not at each request: it asks the system for the process's id.
            self._loop = asyncio.get_running_loop()
            self._greenlets = Greenlets(self._loop)
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "http":
            self._under_way += 1
            try:
                stream = await self._serve(scope, receive, send)
            finally:
                self._under_way -= 1
            if stream is not None:
                await stream.send_all(scope, receive, send)

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        store, access_log = self._app.store, self._app.access_log
        await receive()
        loop = self._loop
        store.bind_loop(loop)
        reader = self._app.reader
        if reader is not None:
            reader.bind_loop(loop)
        # Log a single request at once, and several together after their responses are sent.
        access_log.schedule = lambda write: schedule(loop, write) if self._under_way > 1 else write()
        # Connect now, not with the first delivery. Redis may be unavailable.
        connecting = asyncio.create_task(self._connect())
        closed_by = self._app.fast_lane.closed_by()
        log.info(
            "listening",
            host=self._app.settings.host,
            port=self._app.settings.port,
            fast_lane=not closed_by,
            **({"fast_lane_closed_by": closed_by} if closed_by else {}),
        )
        metrics.mark_worker_started(has_fast_lane=not closed_by)
        _rarely_collect_garbage()
        _stop_with_main_process(loop)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        connecting.cancel()
        if reader is not None:
            await asyncio.to_thread(reader.close)
        await asyncio.to_thread(store.close)
        access_log.write()
        await send({"type": "lifespan.shutdown.complete"})

    def is_direct(self) -> bool:
        """Tell whether a delivery is processed without Flask; asked once in each turn of the loop, or millisecond."""
        if self._loop is None:
            return False
        now = self._loop.time()
        if now != self._asked_at:
            self._asked_at, self._is_open = now, not self._app.fast_lane.closed_by()
        return self._is_open

    def take(
        self, headers: RawHeaders, body: bytes, arrived_at: float, respond: Callable[[int, RawHeaders, bytes], None]
    ) -> None:
        """Process a delivery that arrived whole, by the fast lane."""
        deadline = max(arrived_at + RESPONSE_SECONDS, self._loop.time() + GRACE_SECONDS)
        Walk(self._loop, self._greenlets, deadline, self._take(headers, body, respond))

    def _take(self, headers: RawHeaders, body: bytes, respond: Callable[[int, RawHeaders, bytes], None]) -> Steps[None]:
        self._under_way += 1
        try:
            response = yield from self._app.fast_lane.steps(decode_headers(headers), io.BytesIO(body))
        finally:
            self._under_way -= 1
        respond(response.status, response.raw_headers(), response.body)

    async def _connect(self) -> None:
        with suppress(errors.RelayError):
            await self._greenlets.run(self._loop.time() + RESPONSE_SECONDS, self._app.store.probe)

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> "Stream | None":
        """Serve a request; of one whose response is a stream, return that, with nothing sent yet."""
        begun = self._loop.time()
        arrived = scope.get(ARRIVED_AT, begun)
        body = Body()
        path, headers = decode_path(scope), decode_headers(scope["headers"])
        try:
            if scope.get(BODY_IS_WHOLE):
                await self._receive_body(receive, body)
            else:
                try:
                    async with asyncio.timeout_at(max(arrived + BODY_SECONDS, begun + GRACE_SECONDS)):
                        await self._receive_body(receive, body)
                except TimeoutError:
                    body.fault = errors.RequestTimeoutError("The body did not arrive in time.")
            if body.size > self._max_body_bytes:
                body.fault = errors.BodyTooLargeError(f"The body is larger than {self._max_body_bytes} bytes.")
            body.seek(0)
            deadline = max(arrived + RESPONSE_SECONDS, begun + GRACE_SECONDS)
            if self._app.fast_lane.takes(scope["method"], path.decode("latin-1")):
                steps = self._app.fast_lane.steps(headers, body)
                response = await self._greenlets.run(deadline, complete, steps, RESPONSE_SECONDS)
                await send(
                    {"type": "http.response.start", "status": response.status, "headers": response.raw_headers()}
                )
                await send({"type": "http.response.body", "body": response.body})
            else:
                environ = build_environ(scope, path, headers, body)
                streams: list[Any] = []
                environ[STREAMS] = streams
                sender = _Sender(send)
                stream = None
                try:
                    stream = await self._greenlets.run(deadline, self._call_flask, environ, sender)
                finally:
                    sender.send = None
                    if stream is None:  # something went wrong after a view put it there
                        for each in streams:
                            each.close()
                return stream  # type: ignore[no-any-return]
        finally:
            self._buffered -= body.buffered
            body.close()  # frees its memory, whoever still refers to it
        return None

    def _call_flask(self, environ: dict[str, Any], sender: "_Sender") -> "Stream | None":
        """Call the WSGI application in a greenlet, and send its response as it is produced.

        If a view has put a stream into the environ, that is returned instead, unless something went wrong after it.
        """
        start: Message = {"type": "http.response.start"}
        sender.start = start
        written: list[bytes] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], object]:
            start["status"] = int(status.partition(" ")[0])
            start["headers"] = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            return written.append

        chunks = self._app(environ, start_response)
        try:
            rest = itertools.chain(written, chunks)
            first = next(rest, b"")  # from here on, `start` is known
            if environ[STREAMS] and start["status"] == HTTPStatus.OK:
                return Stream(start, environ[STREAMS][-1])
            length = dict(start["headers"]).get(b"content-length")
            missing = int(length) if length and environ["REQUEST_METHOD"] != "HEAD" else None
            for chunk in itertools.chain((first,), rest):
                if missing is not None and (missing := missing - len(chunk)) <= 0:
                    sender.write(chunk, more=False)
                    return None
                sender.write(chunk, more=True)
            sender.write(b"", more=False)
            return None
        finally:
            if hasattr(chunks, "close"):
                chunks.close()

    async def _receive_body(self, receive: Receive, body: Body) -> None:
        """Fill in the body; of one that is too large, keep a part that is too large as well."""
        more = True
        while more and body.size <= self._max_body_bytes + DRAINED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                # The client has gone, or its chunks can't be parsed.
                body.fault = errors.BadRequestError("The body is cut short, or its chunks are malformed.")
                break
            chunk = message.get("body", b"")
            body.size += len(chunk)
            if body.tell() <= self._max_body_bytes:
                if not self._buffer(body):
                    body.fault = errors.StoreUnavailableError("Too many large bodies arrive at once.")
                    break
                body.write(chunk)
            more = message.get("more_body", False)

    def _buffer(self, body: Body) -> bool:
        """Count a body's memory; tell whether there is room for it."""
        buffered = max(0, body.size - SMALL_BYTES)
        if self._buffered + buffered - body.buffered > self._buffered_at_most:
            return False
        self._buffered += buffered - body.buffered
        body.buffered = buffered
        return True


class Stream:
    """A response without an end of its own, which is sent on the event loop as it comes.

    It has no deadline. It ends when the client has gone, or does not read, and when the service is told to stop.
    """

    def __init__(self, start: Message, chunks: Any) -> None:
        """start: the response's status and headers. chunks: what a view has put under STREAMS."""
        self._start, self._chunks = start, chunks

    async def send_all(self, scope: Message, receive: Receive, send: Send) -> None:
        """Send what comes until there is no more."""
        chunks = self._chunks
        scope[END_STREAM] = chunks.close
        watching = asyncio.ensure_future(_await_disconnect(receive))
        watching.add_done_callback(lambda _: chunks.close())
        try:
            await send(self._start)
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except RuntimeError:  # so uvloop refuses a connection that has broken, a moment before it says so
            await asyncio.wait([watching], timeout=1.0)
            if not watching.done():
                raise
        finally:
            watching.cancel()  # which also closes the stream


async def _await_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Sender:
    """Sends a response from a greenlet.

    Exceptions keep the frames of Flask and of its callers until they are garbage-collected. Those frames
    refer to the connection only through this object, and its `send` is None once the request is over.
    """

    def __init__(self, send: Send) -> None:
        self.send: Send | None = send
        self.start: Message | None = None

    def write(self, chunk: bytes, *, more: bool) -> None:
        await_only(self._write(chunk, more))

    async def _write(self, chunk: bytes, more: bool) -> None:
        assert self.send is not None  # noqa: S101  # until the request is over
        if self.start is not None:
            await self.send(self.start)
            self.start = None
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more})


def _rarely_collect_garbage() -> None:
    """Exempt what exists now from garbage collection, and collect the rest less often.

    A delivery leaves no reference cycles, so Python's default of every 700 objects is wasted time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def _stop_with_main_process(loop: asyncio.AbstractEventLoop) -> None:
    """Stop this worker when the main process dies; otherwise it would keep the port."""
    main = multiprocessing.parent_process()
    if main is None:  # this is the only process
        return

    def stop() -> None:
        loop.remove_reader(main.sentinel)
        os.kill(os.getpid(), signal.SIGTERM)

    # https://docs.python.org/3/library/multiprocessing.html#multiprocessing.Process.sentinel
    loop.add_reader(main.sentinel, stop)
