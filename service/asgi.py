"""The thin asynchronous layer in front of the Flask application.

It holds what would hold a thread: a client that takes its time with the body, and Redis that takes its
time with the reply. Flask itself runs on the event loop: between the two waits there is only computing, and
little of it, but for large bodies.
Any number of slow clients, and a Redis that hangs, leave the loop free to answer everyone else.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from service.answers import ANSWER_SECONDS, Pending, problem
from service.deadlines import Deadlines
from service.environ import Body, Message, ResponseStart
from service.environ import build as build_environ
from service.errors import BadRequestError, RequestTimeoutError, StoreUnavailableError

if TYPE_CHECKING:
    from flask import Flask

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS: Final = 3.0
"""For a request's body; what is left of ANSWER_SECONDS is for reading it, and for Redis."""
DRAINED_BYTES: Final = 8 * 1_048_576
"""Read and dropped of a body too large, so that its sender reads the answer before the connection ends."""
HELD_BYTES: Final = 64 * 1_048_576
"""Held of all bodies together, since everyone can send one: the smallest dynos have 512 MB."""
SMALL_BYTES: Final = 16 * 1024
"""What a body has over this counts as held."""
LARGE_BYTES: Final = 64 * 1024
"""A larger body may take long to read: the loop leaves it to a thread."""


class Application:
    """An ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html) out of the Flask one."""

    def __init__(self, app: "Flask", max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._under_way = 0
        self._held = 0
        self._deadlines = Deadlines()
        self._held_at_most = max(HELD_BYTES, 2 * max_body_bytes)
        self._large = ThreadPoolExecutor(max_workers=2, thread_name_prefix="large-body")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            self._under_way += 1
            try:
                await self._serve(scope, receive, send)
            finally:
                self._under_way -= 1

    async def _live(self, receive: Receive, send: Send) -> None:
        store, journal = self._app.extensions["session_store"], self._app.extensions["journal"]
        await receive()
        loop = asyncio.get_running_loop()
        store.work_on(loop)

        def soon(write: Callable[[], None]) -> None:
            """Write before the answer, if that is the only one; else once those at hand are answered."""
            if self._under_way > 1:
                loop.call_soon_threadsafe(write)
            else:
                write()

        journal.soon = soon
        connected = store.probe()  # now, not with the first delivery; Redis may also be away
        connected.add_done_callback(lambda probe: probe.cancelled() or probe.exception())
        _rarely_collect_garbage()
        await send({"type": "lifespan.startup.complete"})
        watch = asyncio.create_task(_end_with_main_process())
        await receive()
        watch.cancel()
        await asyncio.to_thread(store.close)
        journal.write()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        body = Body()
        pending: list[Pending[Any]] = []
        is_given_up = False

        def defer(answer: Pending[Any]) -> None:
            pending.append(answer)
            if is_given_up:  # nobody hears it any more, but it is counted, and in the log
                loop.call_soon_threadsafe(answer.future.add_done_callback, lambda _: answer.settled())

        response = ResponseStart()
        try:
            await self._read_body(receive, body, begun + BODY_SECONDS)
            environ = build_environ(scope, body, defer)
            if body.is_whole and body.size <= LARGE_BYTES:
                chunks = self._app(environ, response.start)
            else:
                call = self._call(environ, response, body, begun + ANSWER_SECONDS)
                # In a task, no frame of Flask's has `receive` above it: its errors keep their frames until
                # they are collected, and the server keeps a connection with half a body while someone has
                # `receive`.
                chunks = await (call if body.is_whole else asyncio.create_task(call))
        except TimeoutError:
            is_given_up = True
            response = ResponseStart()  # the thread may still use the other one
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
        self, environ: dict[str, Any], response: ResponseStart, body: Body, deadline: float
    ) -> Iterable[bytes]:
        if body.size <= LARGE_BYTES or environ["REQUEST_METHOD"] != "POST":  # others don't read it
            return self._app(environ, response.start)
        async with asyncio.timeout_at(deadline):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._large, self._app, environ, response.start)

    async def _read_body(self, receive: Receive, body: Body, deadline: float) -> None:
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

    def _hold(self, body: Body) -> bool:
        """Count what a body holds of the memory for all; small ones are free, so that they always pass."""
        held = max(0, body.size - SMALL_BYTES)
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


async def _end_with_main_process() -> None:
    """Stop this worker when the main process was killed: it would hold the port, and nobody would end it."""
    main = multiprocessing.parent_process()
    if main is None:  # this is it
        return
    while os.getppid() == main.pid:  # noqa: ASYNC110  # nothing tells of a parent's death but this
        await asyncio.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
