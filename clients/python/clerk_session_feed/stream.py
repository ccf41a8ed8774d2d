"""The state of every session, then the stream, without a gap; or the channel, whose messages can get lost.

A long module, since snapshots, stream and waiting share what is known of how far a partition was read.
"""

import abc
import contextlib
import dataclasses
import math
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

import redis

from clerk_session_feed import transport
from clerk_session_feed.ahead import read_ahead
from clerk_session_feed.cursors import NOTHING, START, position, whole_cursor
from clerk_session_feed.errors import CursorLostError
from clerk_session_feed.hashes import read_field
from clerk_session_feed.keys import Keys
from clerk_session_feed.transport import Command, Connection, as_dict
from clerk_session_feed.updates import SessionUpdate, published, streamed

BATCH: Final = 500
"""Entries in one response."""
SCANNED: Final = 1000
"""Keys that one SCAN looks at: half a millisecond of Redis' time. About half of them are of sessions."""
BEGINS_AGAIN: Final = object()
"""What was read of hashes counts no more: all are read again."""
POLL_SECONDS: Final = 1.0
"""Seconds between two reads at a server that does not wait for news, though it is told to."""

Entries = list[tuple[bytes, Sequence[bytes]]]
"""Entries of a stream as Redis sends them: the id, then names and values in turns."""
Updates = AsyncGenerator[Iterable[SessionUpdate], None]
"""In batches, since each step of an asynchronous generator takes time. An update is read when its turn comes."""
T = TypeVar("T")


class Entry(NamedTuple):
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
        self.is_entry = "-" in cursor and self.cursor not in {START, NOTHING}
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

    def note(self, session_id: str, reached: tuple[int, int], begun_at: tuple[int, int]) -> None:
        """Note up to where a session is known, if that is behind the cursor from which the stream will be read."""
        if reached > begun_at:
            self.ahead[session_id] = reached
            self.ahead_until = max(self.ahead_until, reached)

    def is_known(self, entry: Entry) -> bool:
        """Tell whether the session's snapshot was made after this entry."""
        if not self.ahead:
            return False
        at = position(entry.cursor)
        if at > self.ahead_until:
            self.ahead.clear()
        return at <= self.ahead.get(entry.session_id, (0, 0))


class Found(NamedTuple, Generic[T]):
    """A session as Redis has it."""

    session_id: str
    cursor: str
    item: T | None
    """What a follower yields; None: nothing."""


class Reading(abc.ABC, Generic[T]):
    """What a follower makes of what Redis has, and how long it may wait."""

    takes_repeats: ClassVar[bool] = False
    """Whether a snapshot may come twice. If not, its key is remembered until all have come."""
    longest_wait: float = math.inf
    """Seconds to wait for news at most, if that is less than transport.BLOCK_MS."""
    rest: float = 0.0
    """Seconds between entries and the next read: what comes meanwhile is read at once."""

    @abc.abstractmethod
    async def read(self, connection: Connection, keys: Sequence[bytes], *further: Command) -> tuple[Any, list[Any]]:
        """Return what `found` needs of the hashes of sessions, and the responses to further commands.

        It is called while `found` is still busy with others.
        """

    @abc.abstractmethod
    def found(self, partition: Partition, hashes: Any) -> Iterable[Found[T]]:
        """Return the sessions of what was read; those that are gone are left out. Raises UnreadableMessageError."""

    @abc.abstractmethod
    def entry(self, entry: Entry) -> T | None:
        """Return what a follower yields for an entry that no snapshot had. Raises UnreadableMessageError."""

    def begin(self, partition: Partition) -> None:
        """Called before the snapshots of a partition, and again where they begin anew."""

    def is_due(self, partition: Partition) -> bool:  # noqa: ARG002
        """Tell whether to look into a partition of which there is no news."""
        return False

    async def reached(self, connection: Connection, partition: Partition, asked_at: float) -> None:
        """Called when all is read that a partition had; it may take the cursor away, to have the snapshots again.

        asked_at: by transport.clock, when that was asked.
        """


class UpdateReading(Reading[SessionUpdate]):
    """Yields each state as a SessionUpdate. stale: also what came too late to change anything; rest: see Reading."""

    def __init__(self, *, stale: bool = False, rest: float = 0.0) -> None:
        self._stale = stale
        self.rest = rest

    async def read(
        self, connection: Connection, keys: Sequence[bytes], *further: Command
    ) -> tuple[list[tuple[bytes, bytes | None]], list[Any]]:
        states, responses = await read_field(connection, keys, "state", *further)
        return list(zip(keys, states, strict=True)), responses

    def found(self, partition: Partition, hashes: list[tuple[bytes, bytes | None]]) -> Iterator[Found[SessionUpdate]]:
        before = len(partition.keys.session(""))
        for name, state in hashes:
            if state is not None:
                key = name.decode()
                update = published(state, key, partition=partition.number, is_snapshot=True)
                yield Found(key[before:], update.cursor, update)

    def entry(self, entry: Entry) -> SessionUpdate | None:
        return entry.update() if self._stale or entry.outcome == "applied" else None


async def follow(
    connection: Connection, partitions: Sequence[Partition], *, reading: Reading[T], resync: bool
) -> AsyncGenerator[Iterable[T], None]:
    """Yield the snapshots of partitions without a cursor, then every entry behind the cursors; never end.

    Raises CursorLostError, unless `resync` is set: then the snapshots come again.
    """
    awake = list(partitions)
    while True:
        for partition in awake:
            if partition.cursor is None:
                # Before the snapshots: what happens meanwhile comes after this cursor.
                partition.go_to_end(await stream_info(connection, partition.keys.events))
                async with contextlib.aclosing(_snapshots(connection, partition, reading)) as batches:
                    async for batch in batches:
                        yield batch
        behind, is_idle = [], True
        for partition in awake:
            entries = await _read_on(connection, partition, resync=resync)
            asked_at, is_idle = connection.asked_at, is_idle and not entries
            yield _news(partition, entries, reading)
            if partition.cursor is not None and len(entries) < BATCH:
                await reading.reached(connection, partition, asked_at)
            if partition.cursor is None or len(entries) >= BATCH:
                behind.append(partition)
        awake = behind or await _await_turn(connection, partitions, reading, is_idle=is_idle)
        awake += [each for each in partitions if each not in awake and reading.is_due(each)]


def _news(partition: Partition, entries: Entries, reading: Reading[T]) -> Iterator[T]:
    """Move the cursor from entry to entry; yield what is read of each that no snapshot had."""
    for entry in map(partition.entry, entries):
        partition.cursor, partition.is_entry = entry.cursor, True
        if entry.outcome != "applied" or not partition.is_known(entry):
            item = reading.entry(entry)
            if item is not None:
                yield item


async def _await_turn(
    connection: Connection, partitions: Sequence[Partition], reading: Reading[T], *, is_idle: bool
) -> list[Partition]:
    """Return the partitions to look at next. is_idle: whether there was nothing new."""
    if reading.rest and not is_idle:
        await connection.pause(reading.rest)
    return await _sleep_seeing_first(connection, partitions, reading.longest_wait)


async def subscribe(connection: Connection, _: object, *, channel: str) -> Updates:
    """Yield what is published from now on; never end."""
    while True:
        if (message := await connection.receive(channel)) is not None:
            yield [published(message, channel)]


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
        info = as_dict(stream)
        if entries:
            is_first_seen = entries[0][0].decode() == partition.first_seen
            before = partition.added_before
            is_lost = is_trimmed_past(cursor, info, if_unknown=not is_first_seen, added_before=before)
        else:  # Redis 6.2 can't tell, once there is an entry, that others came before it, and went
            is_lost = cursor != START and _is_emptied_behind(cursor, info)
    if not is_lost:
        return entries
    if not resync:
        raise CursorLostError(cursor, partition.number)
    connection.compare_partitions_again()
    partition.cursor = None
    return []


def _is_emptied_behind(cursor: str, stream: dict[bytes, Any]) -> bool:
    """Tell whether a stream that is empty had entries behind the cursor, if it does not count them."""
    last = stream.get(b"last-generated-id", b"0-0").decode()
    return b"entries-added" not in stream and position(last) > position(cursor)


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


def snapshots(connection: Connection, partition: Partition) -> Updates:
    """Yield the state of every session, each once."""
    return _snapshots(connection, partition, UpdateReading())


async def _snapshots(
    connection: Connection, partition: Partition, reading: Reading[T]
) -> AsyncGenerator[Iterable[T], None]:
    """Yield what is read of every session."""
    partition.ahead.clear()
    partition.ahead_until = (0, 0)
    reading.begin(partition)
    async with contextlib.aclosing(read_ahead(connection, _scan(connection, partition, reading))) as scanned:
        async for hashes in scanned:
            if hashes is BEGINS_AGAIN:
                reading.begin(partition)
            else:
                yield _stored(partition, hashes, reading)


def _stored(partition: Partition, hashes: Any, reading: Reading[T]) -> Iterator[T]:
    """Yield what is read of sessions; note those that are ahead of where the stream will be read."""
    begun_at = position(partition.cursor) if partition.cursor else None
    for found in reading.found(partition, hashes):
        if begun_at is not None:
            partition.note(found.session_id, position(found.cursor), begun_at)
        if found.item is not None:
            yield found.item


async def _scan(connection: Connection, partition: Partition, reading: Reading[Any]) -> AsyncGenerator[Any, None]:
    """Yield what is read of the hashes of sessions, some at a time; BEGINS_AGAIN, if all come again from here on.

    The cursor of a SCAN means nothing on another connection, which may lead to another server, or to one that was
    restarted. Then the SCAN begins again.
    """
    pattern = re.sub(r"([][*?\\^])", r"\\\1", partition.keys.session("")) + "*"
    seen: set[bytes] = set()
    while True:
        ((at, keys),) = await connection.ask(("SCAN", 0, "MATCH", pattern, "COUNT", SCANNED))
        connections = connection.connections
        while connection.connections == connections:
            new = [key for key in dict.fromkeys(keys) if key not in seen]
            if not reading.takes_repeats:
                seen.update(new)
            if at == b"0":
                hashes, _ = await reading.read(connection, new)
                yield hashes
                return
            # In one round trip: Redis is busy with both while the page before is dealt with.
            next_page = ("SCAN", at, "MATCH", pattern, "COUNT", SCANNED)
            hashes, [(at, keys)] = await reading.read(connection, new, next_page)
            yield hashes
        yield BEGINS_AGAIN


async def sleep(
    connection: Connection, partitions: Sequence[Partition], cursors: Sequence[str], seconds: float = math.inf
) -> list[Partition]:
    """Wait, and return the partitions to look at: those with something behind the cursor, or all.

    seconds: to wait at most, if that is less than transport.BLOCK_MS.
    """
    _, news = await _await_news(connection, partitions, cursors, seconds=seconds)
    return [partition for partition in partitions if partition.keys.events in news] or list(partitions)


async def _sleep_seeing_first(
    connection: Connection, partitions: Sequence[Partition], seconds: float
) -> list[Partition]:
    """Wait likewise, and note what comes first behind cursors that are no entry's.

    Redis 6.2 can't tell later whether others had been there. It runs commands that are sent together one right after
    the other, so what comes after the first found nothing is the first.
    """
    unsure = [each for each in partitions if not each.is_entry and each.cursor != START]
    looks = [("XRANGE", each.keys.events, f"({each.cursor}", "+", "COUNT", 1) for each in unsure]
    cursors = [str(each.cursor) for each in partitions]
    found, news = await _await_news(connection, partitions, cursors, *looks, seconds=seconds)
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
        await connection.pause(min(POLL_SECONDS, block_ms / 1000))
    return responses, news
