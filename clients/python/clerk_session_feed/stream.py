"""The state of every session, then the stream, without a gap; or the channel, whose messages can get lost.

A long module, since snapshots, stream and waiting share what is known of how far a partition was read.
"""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final

import redis

from clerk_session_feed import transport
from clerk_session_feed.cursors import NOTHING, START, position, whole_cursor
from clerk_session_feed.errors import CursorLostError
from clerk_session_feed.keys import Keys
from clerk_session_feed.transport import Command, Connection
from clerk_session_feed.updates import SessionUpdate, published, streamed

BATCH: Final = 500
"""Entries, or keys, in one response."""
POLL_SECONDS: Final = 1.0
"""Seconds between two reads at a server that does not wait for news, though it is told to."""

Entries = list[tuple[bytes, Sequence[bytes]]]
"""Entries of a stream as Redis sends them: the id, then names and values in turns."""
Updates = AsyncGenerator[SessionUpdate, None]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the stream: docs/contract.md, section 4."""

    cursor: str
    outcome: str
    session_id: str
    message: bytes
    partition: "Partition"

    def update(self) -> SessionUpdate:
        """Raises UnreadableMessageError."""
        where, number = f"{self.partition.keys.events} {self.cursor}", self.partition.number
        return streamed(self.message, where, cursor=self.cursor, outcome=self.outcome, partition=number)


@dataclasses.dataclass(slots=True)
class Partition:
    """A stream, the keys that belong to it, and how far it was read."""

    number: int
    keys: Keys
    cursor: str | None = None
    """None: the snapshots come first."""
    is_entry: bool = False
    """There was an entry with this id: if it is gone, entries after it may be gone too."""
    added_before: int = 0
    """Entries that the stream had got, and lost again, when this began at its end."""
    first_seen: str | None = None
    """The first entry behind a cursor that is no entry's, if it was added while this was awaited."""
    ahead: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Sessions whose snapshot was newer than the cursor, and up to where they are known."""
    ahead_until: tuple[int, int] = (0, 0)
    """The greatest position in `ahead`."""

    def go_to(self, cursor: str) -> None:
        """Raises ValueError if it is no cursor."""
        self.cursor = whole_cursor(cursor)
        self.is_entry = "-" in cursor and cursor not in {START, NOTHING}
        self.added_before = 0

    def go_to_end(self, stream: dict[bytes, Any]) -> None:
        """Go to the last entry; without one, to where the next can come. stream: see `stream_info`."""
        if last := stream.get(b"last-entry"):
            self.go_to(last[0].decode())
            return
        last_id = stream.get(b"last-generated-id", b"0-0").decode()
        self.cursor, self.is_entry = max(NOTHING, last_id, key=position), False
        self.added_before = stream.get(b"entries-added", 0)

    def entry(self, entry: tuple[bytes, Sequence[bytes]]) -> Entry:
        """Return an entry of the stream by the names of its fields."""
        entry_id, fields = entry
        named = as_dict(fields)
        outcome, session_id = named.get(b"outcome", b""), named.get(b"session_id", b"")
        return Entry(entry_id.decode(), outcome.decode(), session_id.decode(), named.get(b"message", b""), self)

    def is_known(self, entry: Entry) -> bool:
        """Tell whether the session's snapshot was made after this entry."""
        at = position(entry.cursor)
        if at > self.ahead_until:
            self.ahead.clear()
        return at <= self.ahead.get(entry.session_id, (0, 0))


async def follow(connection: Connection, partitions: Sequence[Partition], *, stale: bool, resync: bool) -> Updates:
    """Yield the snapshots of partitions without a cursor, then every entry behind the cursors; never end.

    Raises CursorLostError, unless `resync` is set: then the snapshots come again.
    """
    awake = list(partitions)
    while True:
        for partition in awake:
            if partition.cursor is None:
                # Before the snapshots: what happens meanwhile comes after this cursor.
                partition.go_to_end(await stream_info(connection, partition.keys.events))
                async with contextlib.aclosing(snapshots(connection, partition)) as updates:
                    async for update in updates:
                        yield update
        for partition in awake:
            while entries := await _read_on(connection, partition, resync=resync):
                for entry in map(partition.entry, entries):
                    partition.cursor, partition.is_entry = entry.cursor, True
                    is_news = not partition.is_known(entry) if entry.outcome == "applied" else stale
                    if is_news:
                        yield entry.update()
        awake = [partition for partition in awake if partition.cursor is None]
        awake = awake or await _sleep_seeing_first(connection, partitions)


async def subscribe(connection: Connection, _: object, *, channel: str) -> Updates:
    """Yield what is published from now on; never end."""
    while True:
        if (message := await connection.receive(channel)) is not None:
            yield published(message, channel)


async def _read_on(connection: Connection, partition: Partition, *, resync: bool) -> Entries:
    """Return entries behind the cursor; none, and no cursor any more, if it is lost and `resync` is set.

    The range begins with the cursor's own entry: as long as that is there, nothing behind it is missing.
    """
    cursor = str(partition.cursor)
    first = cursor if partition.is_entry else f"({cursor}"
    read = ("XRANGE", partition.keys.events, first, "+", "COUNT", BATCH + 1)
    entries: Entries
    if partition.is_entry:
        (entries,) = await connection.ask(read)
        is_lost = not entries or entries[0][0].decode() != cursor
        entries = entries[1:]
    else:
        try:
            entries, stream = await connection.ask(read, ("XINFO", "STREAM", partition.keys.events))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            entries, stream = [], []
        is_first_seen = bool(entries) and entries[0][0].decode() == partition.first_seen
        is_lost = bool(entries) and is_trimmed_past(
            cursor, as_dict(stream), if_unknown=not is_first_seen, added_before=partition.added_before
        )
    if not is_lost:
        return entries
    if not resync:
        raise CursorLostError(cursor, partition.number)
    connection.compare_partitions_again()
    partition.cursor = None
    return []


async def newest(ask: Callable[..., Awaitable[list[Any]]], events: str) -> str:
    """Return the cursor at the end of a stream. ask: `ask` or `ask_twice` of a connection."""
    (entries,) = await ask(("XREVRANGE", events, "+", "-", "COUNT", 1))
    return entries[0][0].decode() if entries else NOTHING


async def stream_info(connection: Connection, events: str) -> dict[bytes, Any]:
    """Return the response to XINFO STREAM; nothing if there is no stream."""
    try:
        (stream,) = await connection.ask(("XINFO", "STREAM", events))
    except redis.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return {}
    return as_dict(stream)


def is_trimmed_past(cursor: str, stream: dict[bytes, Any], *, if_unknown: bool = False, added_before: int = 0) -> bool:
    """Tell whether something behind the cursor was removed.

    stream: see `stream_info`. if_unknown: for Redis 6.2, which does not count what was ever added. added_before: how
    many were added, and removed again, before the cursor.
    """
    first = stream.get(b"first-entry")
    if cursor == START or not first or position(first[0].decode()) <= position(cursor):
        return False
    added = stream.get(b"entries-added")
    return if_unknown if added is None else bool(added - added_before > stream[b"length"])


async def snapshots(connection: Connection, partition: Partition) -> Updates:
    """Yield the state of every session, each once.

    The cursor of a SCAN means nothing on another connection, which may lead to another server, or to one that was
    restarted. Then the SCAN begins again.
    """
    pattern = re.sub(r"([][*?\\^])", r"\\\1", partition.keys.session("")) + "*"
    begun_at = position(partition.cursor) if partition.cursor else None
    seen: set[bytes] = set()
    partition.ahead.clear()
    at, connections = b"0", connection.connections
    while True:
        ((after, keys),) = await connection.ask(("SCAN", at, "MATCH", pattern, "COUNT", BATCH))
        if at != b"0" and connection.connections != connections:
            at = b"0"
            continue
        connections = connection.connections
        new = [key for key in dict.fromkeys(keys) if key not in seen]
        states = await connection.ask(*(("HMGET", key, "state") for key in new)) if new else []
        for key, (state,) in zip(new, states, strict=True):
            if state is not None:
                seen.add(key)
                update = published(state, key.decode(), partition=partition.number, is_snapshot=True)
                reached = position(update.cursor)
                if begun_at is not None and reached > begun_at:
                    partition.ahead[update.session.id] = reached
                    partition.ahead_until = max(partition.ahead_until, reached)
                yield update
        at = after
        if at == b"0":
            return


async def sleep(
    connection: Connection, partitions: Sequence[Partition], cursors: Sequence[str], seconds: float = math.inf
) -> list[Partition]:
    """Wait, and return the partitions to look at: those with something behind the cursor, or all.

    seconds: to wait at most, if that is less than transport.BLOCK_MS.
    """
    _, news = await _await_news(connection, partitions, cursors, seconds=seconds)
    return [partition for partition in partitions if partition.keys.events in news] or list(partitions)


async def _sleep_seeing_first(connection: Connection, partitions: Sequence[Partition]) -> list[Partition]:
    """Wait likewise, and note what comes first behind cursors that are no entry's.

    Redis 6.2 can't tell later whether others had been there. It runs commands that are sent together one right after
    the other, so what comes after the first found nothing is the first.
    """
    unsure = [each for each in partitions if not each.is_entry and each.cursor != START]
    looks = [("XRANGE", each.keys.events, f"({each.cursor}", "+", "COUNT", 1) for each in unsure]
    found, news = await _await_news(connection, partitions, [str(each.cursor) for each in partitions], *looks)
    for partition, entries in zip(unsure, found, strict=True):
        partition.first_seen = None if entries else news.get(partition.keys.events)
    awake = [each for each in partitions if each.keys.events in news]
    return awake or [each for each in partitions if each.is_entry]  # those may be gone, and what came after them


async def _await_news(
    connection: Connection,
    partitions: Sequence[Partition],
    cursors: Sequence[str],
    *before: Command,
    seconds: float = math.inf,
) -> tuple[list[Any], dict[str, str]]:
    """Wait; return the responses to commands sent before, and by stream the first id behind the cursor, if any."""
    block_ms = int(min(transport.BLOCK_MS, max(1.0, seconds * 1000)))
    streams = [partition.keys.events for partition in partitions]
    begun_at = time.monotonic()
    read = ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *streams, *cursors)
    *responses, response = await connection.ask(*before, read)
    # Of an entry that was added and deleted at once, XREAD says that nothing is there.
    news = {name.decode(): entries[0][0].decode() for name, entries in response or [] if entries}
    if not news and time.monotonic() - begun_at < min(POLL_SECONDS, block_ms / 2000):
        await connection.pause(POLL_SECONDS)
    return responses, news


def as_dict(response: Sequence[Any]) -> dict[bytes, Any]:
    """Return names and values, which come in turns, as a dict."""
    return dict(zip(response[::2], response[1::2], strict=True))
