"""Work beside whoever takes its results: in a thread, or in a task."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from clerk_session_feed.transport import Connection

T = TypeVar("T")


async def hand_over(connection: Connection, items: AsyncGenerator[T, None], ready: Any, gate: Any) -> None:
    """Put each item into the queue `ready`, with the gate; go on when True comes through the gate, end when False does.

    Behind the last item comes None, or the error.
    """
    try:
        async with contextlib.aclosing(items):
            async for item in items:
                ready.put_nowait((item, gate))
                if not await connection.resolve(gate.get()):
                    break
    except BaseException as error:  # noqa: BLE001  # it is raised where the items are taken
        ready.put_nowait((error, gate))
    else:
        ready.put_nowait((None, gate))


def is_end(item: Any) -> bool:
    """Tell whether an item that was handed over is none, but what comes behind the last one."""
    return item is None or isinstance(item, BaseException)


async def read_ahead(connection: Connection, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield what a generator yields, each while the next one is made.

    Who stops before the end closes the connection, so that nobody has to wait for Redis.
    """
    ready, gate = connection.new_queue(), connection.new_queue()
    gate.put_nowait(True)  # it asks for the next item before the first is taken
    worker = connection.start(hand_over, connection, items, ready, gate)
    item: Any = None
    is_over = False
    try:
        while True:
            item, _ = await connection.resolve(ready.get())
            is_over = is_end(item)
            if is_over:
                break
            gate.put_nowait(True)
            await connection.give_way()
            yield item
    finally:
        if not is_over:
            gate.put_nowait(False)
            await connection.close()
            await connection.join(worker)
    if item is not None:
        raise item
