"""The snapshots, then the stream, without a gap. Steps, like those of `feed_steps`."""

import re
from collections.abc import Sequence
from typing import Any

import redis

from clerk_session_feed.errors import CursorLostError, UnreadableMessageError
from clerk_session_feed.feed_steps import (
    BATCH,
    BLOCK_MS,
    START,
    Command,
    Entry,
    Link,
    Partition,
    Steps,
    as_dict,
    ask,
    newest,
    position,
)
from clerk_session_feed.updates import SessionUpdate, published


def follow(link: Link, partitions: Sequence[Partition], *, stale: bool, resync: bool) -> Steps[None]:
    """Yield the snapshots of partitions without a cursor, then every entry behind the cursors; never end.

    Raises CursorLostError, unless `resync`: then the snapshots come again.
    """
    for partition in partitions:
        if partition.cursor is None:
            yield from _begin(link, partition)
    awake = partitions
    while True:
        for partition in awake:
            yield from _catch_up(link, partition, stale=stale, resync=resync)
        awake = yield from sleep(partitions, [str(partition.cursor) for partition in partitions])


def _begin(link: Link, partition: Partition) -> Steps[None]:
    # Before the snapshots: what happens meanwhile comes after this cursor.
    partition.go_to((yield from newest(partition, asking=ask)))
    yield from snapshots(link, partition)


def _catch_up(link: Link, partition: Partition, *, stale: bool, resync: bool) -> Steps[None]:
    """Yield what is behind the cursor now.

    The range begins with the cursor's own entry: as long as that is there, nothing behind it is missing.
    """
    events = partition.keys.events
    while True:
        first = partition.cursor if partition.is_entry else f"({partition.cursor}"
        read = ("XRANGE", events, first, "+", "COUNT", BATCH + 1)
        if partition.is_entry:
            (entries,) = yield from ask(read)
            is_lost = not entries or entries[0][0].decode() != partition.cursor
            entries = entries[1:]
        else:
            entries, stream = yield from _read_with_state(read)
            is_lost = is_trimmed_past(str(partition.cursor), stream)
        if is_lost:
            if not resync:
                raise CursorLostError(str(partition.cursor), partition.number)
            yield from _begin(link, partition)
            continue
        if not entries:
            return
        for entry_id, fields in entries:
            entry = Entry.of(entry_id, fields)
            partition.cursor, partition.is_entry = entry.cursor, True
            is_wanted = not _is_known(partition, entry) if entry.outcome == "applied" else stale
            if is_wanted:
                yield entry.update(partition)


def _is_known(partition: Partition, entry: Entry) -> bool:
    """Tell whether the session's snapshot came after this entry."""
    if not partition.ahead:
        return False
    at = position(entry.cursor)
    if at > partition.ahead_until:
        partition.ahead.clear()
        return False
    return at <= partition.ahead.get(entry.session_id, (0, 0))


def _read_with_state(read: Command) -> Steps[tuple[list[Any], dict[bytes, Any]]]:
    """Read behind a cursor that is no entry, but a time; XINFO STREAM tells whether something is missing."""
    try:
        entries, stream = yield from ask(read, ("XINFO", "STREAM", read[1]))
    except redis.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return [], {}
    return entries, as_dict(stream)


def is_trimmed_past(cursor: str, stream: dict[bytes, Any], *, if_unknown: bool = False) -> bool:
    """Tell whether something behind the cursor was removed.

    stream: XINFO STREAM. if_unknown: for Redis 6.2, which does not count what was ever added.
    """
    first = stream.get(b"first-entry")
    if cursor == START or not first or position(first[0].decode()) <= position(cursor):
        return False
    added = stream.get(b"entries-added")
    return if_unknown if added is None else bool(added > stream[b"length"])


def snapshots(link: Link, partition: Partition) -> Steps[None]:
    """Yield the state of every session, each once.

    A scan is worth nothing on another connection, since that may lead to another server, or to one that was
    restarted: there it has to begin anew.
    """
    pattern = re.sub(r"([][*?\\^])", r"\\\1", partition.keys.session("")) + "*"
    begun_at = position(str(partition.cursor)) if partition.cursor else None
    seen: set[bytes] = set()
    partition.ahead.clear()
    at, connections = b"0", link.connections
    while True:
        ((after, keys),) = yield from ask(("SCAN", at, "MATCH", pattern, "COUNT", BATCH))
        if at != b"0" and link.connections != connections:
            at = b"0"
            continue
        connections = link.connections
        new = [key for key in dict.fromkeys(keys) if key not in seen]
        states = (yield from ask(*(("HMGET", key, "state") for key in new))) if new else []
        for key, (state,) in zip(new, states, strict=True):
            if state is not None:
                seen.add(key)
                update = _snapshot(key, state, partition)
                reached = position(update.cursor)
                if begun_at is not None and reached > begun_at:
                    partition.ahead[update.session.id] = reached
                    partition.ahead_until = max(partition.ahead_until, reached)
                yield update
        at = after
        if at == b"0":
            return


def _snapshot(key: bytes, state: bytes, partition: Partition) -> SessionUpdate:
    try:
        return published(state, partition=partition.number, is_snapshot=True)
    except UnreadableMessageError as error:
        raise UnreadableMessageError(f"{key.decode()}: {error}") from None


def sleep(partitions: Sequence[Partition], cursors: Sequence[str]) -> Steps[list[Partition]]:
    """Wait, and return the partitions to look at: those with something behind the cursor, or all."""
    streams = [partition.keys.events for partition in partitions]
    command = ("XREAD", "COUNT", 1, "BLOCK", BLOCK_MS, "STREAMS", *streams, *cursors)
    (reply,) = yield from ask(command)
    if reply is None:
        return list(partitions)  # whether their cursors are still there
    awake = {stream.decode() for stream, _ in reply}
    return [partition for partition in partitions if partition.keys.events in awake]
