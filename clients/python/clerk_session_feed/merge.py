"""Several connections followed as one: a cluster has a stream, and so a connection, for each partition."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Generator, Sequence

from clerk_session_feed.transport import AsyncConnection, BlockingConnection, iterate, run
from clerk_session_feed.updates import SessionUpdate

_Updates = AsyncGenerator[SessionUpdate, None]
_Gate = queue.SimpleQueue[bool]
_Ready = queue.SimpleQueue[tuple[SessionUpdate, _Gate] | BaseException | None]
_AsyncReady = asyncio.Queue[tuple[SessionUpdate, asyncio.Event] | Exception | None]


def merge(
    followers: Sequence[tuple[BlockingConnection, _Updates]],
) -> Generator[SessionUpdate, None, None]:
    """Yield from all as updates come. Each has a thread, which goes on when its last update is done with."""
    return _merge(followers) if len(followers) > 1 else iterate(followers[0][1])


def _merge(
    followers: Sequence[tuple[BlockingConnection, _Updates]],
) -> Generator[SessionUpdate, None, None]:
    ready: _Ready = queue.SimpleQueue()
    gates: list[_Gate] = [queue.SimpleQueue() for _ in followers]
    threads = [
        threading.Thread(
            target=_hand_over, args=(iterate(updates), ready, gate), name="session-feed", daemon=True
        )
        for (_, updates), gate in zip(followers, gates, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            item = ready.get()
            if followers[0][0].is_closed:  # and so are all
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
        for (connection, _), gate in zip(followers, gates, strict=True):
            gate.put(False)
            run(connection.close)
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


def merge_async(followers: Sequence[tuple[AsyncConnection, _Updates]]) -> _Updates:
    """Yield from all as updates come. Each has a task, which goes on when its last update is done with."""
    return _merge_async(followers) if len(followers) > 1 else followers[0][1]


async def _merge_async(followers: Sequence[tuple[AsyncConnection, _Updates]]) -> _Updates:
    ready: _AsyncReady = asyncio.Queue()
    tasks = [
        asyncio.create_task(_hand_over_async(updates, ready), name="session-feed") for _, updates in followers
    ]
    try:
        running = len(tasks)
        while running:
            item = await ready.get()
            if followers[0][0].is_closed:
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
        for (connection, _), task in zip(followers, tasks, strict=True):
            task.cancel()
            await connection.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _hand_over_async(updates: _Updates, ready: _AsyncReady) -> None:
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
