"""Tasks of asyncio that raise the first error itself, where a TaskGroup raises a group of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


async def gather(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await several at once; the first error ends the others, and is raised."""
    async with first_error(), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each) for each in calls]
    return [each.result() for each in running]


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run something beside the block, until that ends; an error of it ends the block."""
    async with first_error(), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        yield
        task.cancel()


@contextlib.asynccontextmanager
async def repeated(function: Callable[[], None], seconds: float) -> AsyncIterator[None]:
    """Call something that blocks every so many seconds beside the block, and once after it; an error ends the block.

    After the block, an error of the call is ignored: what ended the block is the one to tell of.
    """
    loop = asyncio.get_running_loop()

    async def repeat() -> None:
        while True:
            await asyncio.sleep(seconds)
            await loop.run_in_executor(thread, function)

    # A call goes on when the block has ended. In the same thread, the last one waits for it.
    with ThreadPoolExecutor(1) as thread:
        try:
            async with background(repeat()):
                yield
        finally:
            with contextlib.suppress(Exception):
                await loop.run_in_executor(thread, function)


@contextlib.asynccontextmanager
async def first_error() -> AsyncIterator[None]:
    """Raise the first error of a TaskGroup instead of the group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__  # which says what Redis said
