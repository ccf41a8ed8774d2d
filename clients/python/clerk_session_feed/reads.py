"""Short reads: the state of sessions, and what the stream says about one."""

from collections.abc import Sequence

from clerk_session_feed.cursors import START
from clerk_session_feed.stream import BATCH, Partition, newest
from clerk_session_feed.transport import Connection
from clerk_session_feed.updates import SessionUpdate, now_ms, published

Sources = Sequence[tuple[Connection, Partition]]
"""The partitions that may know, each with a connection to it."""


async def get(sources: Sources, session_id: str) -> SessionUpdate | None:
    """Return the session's state, or None; see `SessionFeed.get`."""
    for connection, partition in sources:
        key = partition.keys.session(session_id)
        ((state,),) = await connection.ask_twice(("HMGET", key, "state"))
        if state is not None:
            return published(state, key, partition=partition.number)
    return None


async def is_live(sources: Sources, session_id: str) -> bool:
    """Tell whether the session is live; see `SessionFeed.is_live`."""
    for connection, partition in sources:
        key = partition.keys.session(session_id)
        ((live, expire_at),) = await connection.ask_twice(("HMGET", key, "live", "_expire_at"))
        if live is None:
            continue
        if live == b"1" and expire_at is None:  # another version's: only `state` is promised to have it
            update = await get([(connection, partition)], session_id)
            return update is not None and update.is_live
        return bool(live == b"1" and (not expire_at or int(expire_at) > now_ms()))
    return False


async def live_sessions(sources: Sources, user_id: str) -> list[SessionUpdate]:
    """Return the user's live sessions; `sources` is the user's partition alone."""
    ((connection, partition),) = sources
    alive = ("ZRANGEBYSCORE", partition.keys.user_sessions(user_id), f"({now_ms()}", "+inf")
    (ids,) = await connection.ask_twice(alive)
    if not ids:
        return []
    keys = [partition.keys.session(each.decode()) for each in ids]
    states = zip(keys, await connection.ask_twice(*(("HMGET", key, "state") for key in keys)), strict=True)
    updates = [published(state, key, partition=partition.number) for key, (state,) in states if state is not None]
    return [update for update in updates if update.is_live]  # it may have ended in between


async def history(sources: Sources, session_id: str) -> list[SessionUpdate]:
    """Return what the stream has about the session; see `SessionFeed.history`."""
    updates = []
    for connection, partition in sources:
        after = START
        while True:
            read = ("XRANGE", partition.keys.events, f"({after}", "+", "COUNT", BATCH)
            (entries,) = await connection.ask_twice(read)
            for entry in map(partition.entry, entries):
                after = entry.cursor
                if entry.session_id == session_id:
                    updates.append(entry.update())
            if len(entries) < BATCH:
                break
    return updates


async def now(sources: Sources) -> dict[int, str]:
    """Return the cursor at the end of each partition; see `SessionFeed.now`."""
    return {
        partition.number: await newest(connection.ask_twice, partition.keys.events) for connection, partition in sources
    }
