"""Code that blocks, on an event loop that does not.

Under `serve`, Flask's view runs in a greenlet on the server's event loop. Where the view would block, `wait`
switches to the loop, which awaits the future and switches back with its result. SQLAlchemy's asyncio support
made this technique known (https://docs.sqlalchemy.org/en/20/orm/extensions/asyncio.html). In a thread of any
other WSGI server, the same `wait` blocks the thread.

A module of its own, since it is shared by what waits (the store, views) and by what runs them (the bridge).
"""

import asyncio
import concurrent.futures
import contextvars
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

from greenlet import getcurrent, greenlet

P = ParamSpec("P")
T = TypeVar("T")

_LARGE_WORK: Final = concurrent.futures.ThreadPoolExecutor(max_workers=2, thread_name_prefix="large-body")
"""Two threads for what computes too long to do it on the loop; started with their first work."""


IDLE_GREENLETS: Final = 64
"""Greenlets kept for later; each takes about 20 kB."""


class _LoopGreenlet(greenlet):
    """Runs code that blocks, one call after the other, and lets its event loop go on meanwhile."""

    loop: asyncio.AbstractEventLoop
    hub: greenlet
    """Runs the loop."""
    deadline: float
    """Of the loop's clock, in seconds: no `wait` lasts longer."""
    call: Callable[[], Any] | None
    """What to call next; None once that has returned or raised."""
    result: Any
    failure: BaseException | None

    def is_busy(self) -> bool:
        return self.call is not None

    def run(self) -> None:
        while True:
            try:
                self.result, self.failure = self.call(), None  # type: ignore[misc]
            except BaseException as error:  # noqa: BLE001  # raised by Greenlets.run
                self.result, self.failure = None, error
            self.call = None
            self.hub.switch()


class Greenlets:
    """Runs code that blocks on an event loop, without holding it up.

    Greenlets are used again: CPython maps memory for each new one, which costs more than switching does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Args:
        loop: the only one on which `run` is awaited.

        """
        self._loop = loop
        self._idle: list[_LoopGreenlet] = []

    async def run(self, deadline: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that may `wait`, in a greenlet with a copy of this task's context.

        Args:
            deadline: of the loop's clock, in seconds; the function's waits end by then.
            function: what to call.
            *args: of the function.
            **kwargs: of the function.

        Returns:
            What the function returns; what it raises, this raises.

        """
        worker = self._idle.pop() if self._idle else _LoopGreenlet()
        worker.gr_context = contextvars.copy_context()
        worker.loop, worker.hub, worker.deadline = self._loop, getcurrent(), deadline
        worker.call = functools.partial(function, *args, **kwargs)
        awaited = worker.switch()
        while worker.is_busy():
            try:
                value = await awaited
            except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the function that waits
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
    """Return a future that the caller can `wait` for, and that is completed on this loop.

    The loop's own kind, if the caller runs in a greenlet on that loop: such a future wakes nobody else.
    """
    current = getcurrent()
    if loop is not None and isinstance(current, _LoopGreenlet) and current.loop is loop:
        return loop.create_future()  # type: ignore[return-value]
    return concurrent.futures.Future()


def wait(future: Any, timeout: float | None = None) -> Any:
    """Block until a future is done; only the calling greenlet, if it runs on an event loop.

    Args:
        future: of asyncio (of the greenlet's own loop) or of concurrent.futures.
        timeout: in seconds; None waits for ever, or until the greenlet's deadline.

    Returns:
        The future's result; its error is raised.

    Raises:
        TimeoutError: The time is over; the future is cancelled.

    """
    current = getcurrent()
    if not isinstance(current, _LoopGreenlet):
        try:
            return future.result(timeout)
        except TimeoutError:
            if (
                not future.cancel() and future.done()
            ):  # it was done just now, or has a TimeoutError of its own
                return future.result()
            raise
    if isinstance(future, concurrent.futures.Future):
        future = asyncio.wrap_future(future, loop=current.loop)
    if not future.done():
        deadline = (
            current.deadline if timeout is None else min(current.deadline, current.loop.time() + timeout)
        )
        timer = current.loop.call_at(deadline, future.cancel)
        try:
            return current.hub.switch(future)
        except asyncio.CancelledError:
            if current.loop.time() < deadline:
                raise
            raise TimeoutError from None
        finally:
            timer.cancel()
    return future.result()


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that computes for long; in a thread, if it would hold up an event loop here.

    Raises:
        TimeoutError: No thread was free until the greenlet's deadline, or the function took longer.

    """
    current = getcurrent()
    if not isinstance(current, _LoopGreenlet):
        return function(*args, **kwargs)
    context = contextvars.copy_context()
    work = _LARGE_WORK.submit(context.run, functools.partial(function, *args, **kwargs))
    return wait(work)  # type: ignore[no-any-return]


def await_only(awaitable: Awaitable[T]) -> T:
    """Await something in the task that runs this greenlet, and in that task's context; without a time limit.

    Raises:
        RuntimeError: The caller does not run in a greenlet on an event loop.

    """
    current = getcurrent()
    if not isinstance(current, _LoopGreenlet):
        raise RuntimeError("There is no event loop to wait on here.")  # noqa: TRY004
    return current.hub.switch(awaitable)  # type: ignore[no-any-return]


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a task of its own, and so in this greenlet's context, which has Flask's request.

    Raises:
        RuntimeError: The caller does not run in a greenlet on an event loop.

    """
    return await_only(asyncio.ensure_future(coroutine))


def is_on_loop() -> bool:
    """Tell whether the caller runs in a greenlet on an event loop."""
    return isinstance(getcurrent(), _LoopGreenlet)
