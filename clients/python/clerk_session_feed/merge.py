"""Several connections followed as one: a cluster has a stream, and so a connection, for each partition."""

import contextlib
from collections.abc import Sequence
from typing import Any

from clerk_session_feed.stream import Updates
from clerk_session_feed.transport import Connection
from clerk_session_feed.updates import SessionUpdate


async def merge(followers: Sequence[tuple[Connection, Updates]]) -> Updates:
    """Yield from all as updates come.

    Each follower has a thread, or a task, which goes on when its last update is done with.
    """
    first, _ = followers[0]
    ready = first.new_queue()
    gates = [connection.new_queue() for connection, _ in followers]
    workers = [
        connection.start(_hand_over, connection, updates, ready, gate)
        for (connection, updates), gate in zip(followers, gates, strict=True)
    ]
    running = len(workers)
    try:
        while running:
            item, gate = await first.resolve(ready.get())
            is_update = isinstance(item, SessionUpdate)
            running -= not is_update
            if first.is_closed:  # and so are all
                return
            if is_update:
                yield item
                gate.put_nowait(True)
            elif item is not None:
                raise item
    finally:
        for (connection, _), gate in zip(followers, gates, strict=True):
            gate.put_nowait(False)
            await connection.close()
        while running:
            item, _ = await first.resolve(ready.get())
            running -= not isinstance(item, SessionUpdate)


async def _hand_over(connection: Connection, updates: Updates, ready: Any, gate: Any) -> None:
    try:
        async with contextlib.aclosing(updates):
            async for update in updates:
                ready.put_nowait((update, gate))
                if not await connection.resolve(gate.get()):
                    break
    except BaseException as error:  # noqa: BLE001  # it is raised where the updates are taken
        ready.put_nowait((error, gate))
    else:
        ready.put_nowait((None, gate))
