"""Tasks of asyncio that raise the first error itself, where a TaskGroup raises a group of them; and threads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call something that blocks, in a thread."""
    return await asyncio.to_thread(function, *args)


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
async def first_error() -> AsyncIterator[None]:
    """Raise the first error of a TaskGroup instead of the group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__  # which says what Redis said
