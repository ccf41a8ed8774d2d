"""Steps, taken in a thread and on an event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from service import waiting
from service.waiting import Steps


def done(result: object) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def sum_of(*steps: object) -> Steps[int]:
    total = 0
    for step in steps:
        total += yield step
    return total


def caught(step: object) -> Steps[str]:
    try:
        yield step
    except Exception as error:  # noqa: BLE001
        return type(error).__name__
    return ""


def walked(seconds: float, steps_on: Callable[[asyncio.AbstractEventLoop], Steps[Any]]) -> Any:
    """Take the steps on a loop; return what they return."""

    async def walk() -> Any:
        loop = asyncio.get_running_loop()
        end = loop.create_future()

        def to_the_end() -> Steps[None]:
            end.set_result((yield from steps_on(loop)))

        waiting.Walk(loop, waiting.Greenlets(loop), loop.time() + seconds, to_the_end())
        return await asyncio.wait_for(end, 30)

    return asyncio.run(walk())


def later(loop: asyncio.AbstractEventLoop, result: object) -> "asyncio.Future[Any]":
    future = loop.create_future()
    if isinstance(result, Exception):
        loop.call_soon(future.set_exception, result)
    else:
        loop.call_soon(future.set_result, result)
    return future


def test_steps_are_completed_in_a_thread() -> None:
    assert waiting.complete(sum_of(done(1), lambda: 2, done(3)), 30) == 6


def test_steps_that_wait_for_nothing_are_completed() -> None:
    assert waiting.complete(sum_of(), 30) == 0


@pytest.mark.parametrize("step", [done(ZeroDivisionError()), lambda: 1 / 0])
def test_the_steps_get_the_error_of_what_they_wait_for(step: object) -> None:
    assert waiting.complete(caught(step), 30) == "ZeroDivisionError"


def test_what_does_not_come_in_time_is_a_timeout() -> None:
    future: Future[Any] = Future()

    assert waiting.complete(caught(future), 0.01) == "TimeoutError"
    assert future.cancelled()


def test_an_error_of_the_steps_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        waiting.complete(sum_of(done(ZeroDivisionError())), 30)


def test_a_loop_takes_the_steps() -> None:
    assert walked(30, lambda loop: sum_of(later(loop, 1), later(loop, 2))) == 3


def test_a_function_of_the_steps_may_wait_on_the_loop() -> None:
    assert walked(30, lambda loop: sum_of(lambda: waiting.wait(later(loop, 1)), later(loop, 2))) == 3


def test_on_a_loop_the_steps_get_errors() -> None:
    assert walked(30, lambda loop: caught(later(loop, ZeroDivisionError()))) == "ZeroDivisionError"


def test_on_a_loop_the_steps_get_a_timeout() -> None:
    assert walked(0.01, lambda loop: caught(loop.create_future())) == "TimeoutError"


def test_on_a_loop_a_function_of_the_steps_gets_a_timeout() -> None:
    assert walked(0.01, lambda loop: caught(lambda: waiting.wait(loop.create_future()))) == "TimeoutError"


def test_to_wait_on_a_loop_outside_a_greenlet_is_an_error() -> None:
    async def block() -> None:
        loop = asyncio.get_running_loop()
        waiting.Greenlets(loop)
        waiting.wait(waiting.new_future(loop), 1)

    with pytest.raises(RuntimeError, match="would block the event loop"):
        asyncio.run(block())
