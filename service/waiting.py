"""Blocking calls on an event loop.

Under `serve`, Flask's view runs in a greenlet on the server's event loop. Where the view would block, `wait`
switches to the loop, which awaits the future and switches back with its result. SQLAlchemy's asyncio support
made this technique known (https://docs.sqlalchemy.org/en/20/orm/extensions/asyncio.html). In a thread, as
under any other WSGI server, the same `wait` blocks the thread.
"""

import asyncio
import concurrent.futures
import contextvars
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar

from greenlet import getcurrent, greenlet

P = ParamSpec("P")
T = TypeVar("T")

_threads: Final = concurrent.futures.ThreadPoolExecutor(max_workers=2, thread_name_prefix="large-body")
"""For what computes too long for the loop; a thread starts with its first work."""
LARGE_BYTES: Final = 64 * 1024
"""Bytes of the largest body that is read on the event loop; a larger one would hold it up for too long."""
IDLE_GREENLETS: Final = 64
"""Greenlets kept for later calls; each takes about 20 kB."""
STREAMS: Final = "session_relay.streams"
"""The key of a WSGI environ under which a server with an event loop has a list. It sends what a view puts there, an
asynchronous iterator of bytes with a `close`, as the body of the view's response: without a thread, a greenlet or
Flask's context, however long that takes."""
_TIME_IS_OVER: Final = "the time is over"


class _LoopGreenlet(greenlet):
    """Makes blocking calls, one after the other, while its event loop goes on."""

    loop: asyncio.AbstractEventLoop
    hub: greenlet
    """Runs the loop."""
    deadline: float
    """No `wait` lasts longer; in seconds of the loop's clock."""
    call: Callable[[], Any] | None
    """The call to make; None once it has returned or raised."""
    result: Any
    failure: BaseException | None

    def is_busy(self) -> bool:
        return self.call is not None

    def run(self) -> None:
        while True:
            try:
                self.result, self.failure = self.call(), None  # type: ignore[misc]
            except BaseException as error:  # noqa: BLE001  # Greenlets.run raises it
                self.result, self.failure = None, error
            self.call = None
            self.hub.switch()


class Greenlets:
    """Makes blocking calls on an event loop, which goes on meanwhile.

    Greenlets are used again: CPython maps memory for each new one, which costs more than switching does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._idle: list[_LoopGreenlet] = []

    async def run(self, deadline: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that may `wait`, in a greenlet with a copy of this task's context.

        Its waits end at the deadline, in seconds of the loop's clock. It has to be awaited on the loop.
        """
        worker = self._idle.pop() if self._idle else _LoopGreenlet()
        worker.gr_context = contextvars.copy_context()
        worker.loop, worker.hub, worker.deadline = self._loop, getcurrent(), deadline
        worker.call = functools.partial(function, *args, **kwargs)
        awaited = worker.switch()
        while worker.is_busy():
            try:
                value = await awaited
            except BaseException as error:  # noqa: BLE001  # the function that waits gets it
                awaited = worker.throw(error)
            else:
                awaited = worker.switch(value)
        result, failure = worker.result, worker.failure
        worker.result = worker.failure = None
        if len(self._idle) < IDLE_GREENLETS:
            self._idle.append(worker)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it refers to this frame
        return result  # type: ignore[no-any-return]


def new_future(loop: asyncio.AbstractEventLoop | None) -> "concurrent.futures.Future[Any]":
    """Return a future for the caller to `wait` for, and for code on this loop to complete.

    It is asyncio's kind if the caller runs in a greenlet on that loop: completing it wakes no thread.
    """
    current = getcurrent()
    if loop is not None and isinstance(current, _LoopGreenlet) and current.loop is loop:
        return loop.create_future()  # type: ignore[return-value]
    return concurrent.futures.Future()


def wait(future: Any, timeout: float | None = None) -> Any:
    """Block this thread, or this greenlet, until a future is done; return its result or raise its error.

    Args:
        future: of concurrent.futures, or of asyncio and the greenlet's loop.
        timeout: in seconds. A greenlet waits until its deadline at most.

    Raises:
        TimeoutError: The time is over; the future is cancelled.
    """
    current = getcurrent()
    if not isinstance(current, _LoopGreenlet):
        try:
            return future.result(timeout)
        except TimeoutError:
            # It may have been done just now, or have a TimeoutError of its own.
            if not future.cancel() and future.done():
                return future.result()
            raise
    if isinstance(future, concurrent.futures.Future):
        future = asyncio.wrap_future(future, loop=current.loop)
    if not future.done():
        deadline = current.deadline
        if timeout is not None:
            deadline = min(deadline, current.loop.time() + timeout)
        timer = current.loop.call_at(deadline, future.cancel, _TIME_IS_OVER)
        try:
            return current.hub.switch(future)
        except asyncio.CancelledError as error:
            # Not told by the clock: uvloop rounds it down, and may call a timer half a millisecond early.
            if error.args == (_TIME_IS_OVER,):
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
    return future.result()


def read_body(body: bytes, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that reads a body: in a thread, if the body is large and the caller runs on an event loop.

    Raises:
        TimeoutError: The function has not returned by the greenlet's deadline.
    """
    if len(body) <= LARGE_BYTES or not is_on_loop():
        return function(*args, **kwargs)
    call = functools.partial(function, *args, **kwargs)
    return wait(_threads.submit(contextvars.copy_context().run, call))  # type: ignore[no-any-return]


def await_only(awaitable: Awaitable[T]) -> T:
    """Await something in the task that runs this greenlet, and in that task's context; without a time limit.

    Raises:
        RuntimeError: The caller does not run in a greenlet on an event loop.
    """
    current = getcurrent()
    if not isinstance(current, _LoopGreenlet):
        raise RuntimeError("There is no event loop to wait on here.")  # noqa: TRY004
    return current.hub.switch(awaitable)  # type: ignore[no-any-return]


def is_on_loop() -> bool:
    """Tell whether the caller runs in a greenlet on an event loop."""
    return isinstance(getcurrent(), _LoopGreenlet)
