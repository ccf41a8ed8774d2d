"""Short reads: the state of sessions, and what the stream says about one."""

from collections.abc import Sequence
from typing import Any

from clerk_session_feed.cursors import START
from clerk_session_feed.models import ID, LiveStatus
from clerk_session_feed.stream import BATCH, Partition, newest
from clerk_session_feed.transport import Connection
from clerk_session_feed.updates import SessionUpdate, now_ms, published

Source = tuple[Connection, Partition]
Sources = Sequence[Source]
"""The partitions that may know, each with a connection to it."""


async def get(sources: Sources, session_id: str) -> SessionUpdate | None:
    """Return the session's state, or None; see `SessionFeed.get`."""
    stored = await _stored(sources, session_id, "state")
    if stored is None:
        return None
    (_, partition), (state,) = stored
    return published(state, partition.keys.session(session_id), partition=partition.number)


async def status(sources: Sources, session_id: str) -> LiveStatus:
    """Tell whether the session is live, over, or not known; see `SessionFeed.status`."""
    stored = await _stored(sources, session_id, "live", "_expire_at")
    if stored is None:
        return "unknown"
    source, (live, expire_at) = stored
    if live == b"1" and expire_at is None:  # another version's: only `state` is promised to have it
        update = await get([source], session_id)
        if update is None:  # the key expired between the two reads
            return "unknown"
        is_live = update.is_live
    else:
        is_live = live == b"1" and (not expire_at or int(expire_at) > now_ms())
    return "live" if is_live else "ended"


async def _stored(sources: Sources, session_id: str, *fields: str) -> tuple[Source, list[Any]] | None:
    """Return where the session is stored, and these fields of its hash; None if it is stored nowhere.

    Partitions that share a connection are asked in one round trip. Of a stored session the first field is there.
    """
    if not _is_id(session_id):
        return None
    by_connection: dict[Connection, list[Partition]] = {}
    for connection, partition in sources:
        by_connection.setdefault(connection, []).append(partition)
    for connection, partitions in by_connection.items():
        commands = [("HMGET", partition.keys.session(session_id), *fields) for partition in partitions]
        for partition, values in zip(partitions, await connection.ask_twice(*commands), strict=True):
            if values[0] is not None:
                return (connection, partition), values
    return None


def _is_id(value: str) -> bool:
    """Tell whether something can be stored under this id. A claim of a token can be anything, also of another type."""
    return isinstance(value, str) and ID.fullmatch(value) is not None


async def live_sessions(sources: Sources, user_id: str) -> list[SessionUpdate]:
    """Return the user's live sessions; `sources` is the user's partition alone."""
    if not _is_id(user_id):
        return []
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
