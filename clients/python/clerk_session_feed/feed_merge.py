"""Several connections followed as one: a cluster has a stream, and so a connection, for each partition."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Generator, Sequence

from clerk_session_feed.feed_lines import AsyncLine, Line, OnReconnect
from clerk_session_feed.feed_steps import Steps
from clerk_session_feed.updates import SessionUpdate

_Gate = queue.SimpleQueue[bool]
_Ready = queue.SimpleQueue[tuple[SessionUpdate, _Gate] | BaseException | None]
_AsyncReady = asyncio.Queue[tuple[SessionUpdate, asyncio.Event] | Exception | None]


def merge(
    lines: Sequence[tuple[Line, Steps[None]]], on_reconnect: OnReconnect
) -> Generator[SessionUpdate, None, None]:
    """Yield from all, as it comes. Each has a thread, which goes on once its last update is done with."""
    if len(lines) == 1:
        return lines[0][0].follow(lines[0][1], on_reconnect)
    return _merge(lines, on_reconnect)


def _merge(
    lines: Sequence[tuple[Line, Steps[None]]], on_reconnect: OnReconnect
) -> Generator[SessionUpdate, None, None]:
    ready: _Ready = queue.SimpleQueue()
    gates: list[_Gate] = [queue.SimpleQueue() for _ in lines]
    threads = [
        threading.Thread(
            target=_hand_over,
            args=(line.follow(steps, on_reconnect), ready, gate),
            name="session-feed",
            daemon=True,
        )
        for (line, steps), gate in zip(lines, gates, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            item = ready.get()
            if lines[0][0].is_closed:  # and so are all
                return
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                update, gate = item
                yield update
                gate.put(True)
    finally:
        for (line, _), gate in zip(lines, gates, strict=True):
            gate.put(False)
            line.close()
        for thread in threads:
            thread.join()


def _hand_over(updates: Generator[SessionUpdate, None, None], ready: _Ready, gate: _Gate) -> None:
    try:
        with contextlib.closing(updates):
            for update in updates:
                ready.put((update, gate))
                if not gate.get():
                    break
    except BaseException as error:  # noqa: BLE001  # it is raised where the updates are taken
        ready.put(error)
    else:
        ready.put(None)


def merge_async(
    lines: Sequence[tuple[AsyncLine, Steps[None]]], on_reconnect: OnReconnect
) -> AsyncGenerator[SessionUpdate, None]:
    """Yield from all, as it comes. Each has a task, which goes on once its last update is done with."""
    if len(lines) == 1:
        return lines[0][0].follow(lines[0][1], on_reconnect)
    return _merge_async(lines, on_reconnect)


async def _merge_async(
    lines: Sequence[tuple[AsyncLine, Steps[None]]], on_reconnect: OnReconnect
) -> AsyncGenerator[SessionUpdate, None]:
    ready: _AsyncReady = asyncio.Queue()
    tasks = [
        asyncio.create_task(_hand_over_async(line.follow(steps, on_reconnect), ready), name="session-feed")
        for line, steps in lines
    ]
    try:
        running = len(tasks)
        while running:
            item = await ready.get()
            if lines[0][0].is_closed:
                return
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                update, is_done = item
                yield update
                is_done.set()
    finally:
        for (line, _), task in zip(lines, tasks, strict=True):
            task.cancel()
            await line.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _hand_over_async(updates: AsyncGenerator[SessionUpdate, None], ready: _AsyncReady) -> None:
    try:
        async with contextlib.aclosing(updates):
            async for update in updates:
                is_done = asyncio.Event()
                ready.put_nowait((update, is_done))
                await is_done.wait()
    except Exception as error:  # noqa: BLE001  # it is raised where the updates are taken
        ready.put_nowait(error)
    else:
        ready.put_nowait(None)
