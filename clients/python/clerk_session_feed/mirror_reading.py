"""How a mirror reads what Redis has, and what it knows of its own age.

Snapshots are read field by field: to parse the messages of a million sessions takes a minute.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from time import time
from typing import Any, Final

from clerk_session_feed.cursors import position
from clerk_session_feed.errors import UnreadableMessageError
from clerk_session_feed.hashes import read_field, read_hashes
from clerk_session_feed.mirror_table import HOUR, Table
from clerk_session_feed.models import OPEN_STATUSES
from clerk_session_feed.stream import Entry, Found, Partition, Reading
from clerk_session_feed.transport import Command, Connection, clock
from clerk_session_feed.updates import published

FIELDS: Final = ("live", "status", "user_id", "cursor", "_expire_at")
"""Of a session's hash. The last is the relay's own affair: where it is missing, `state` has the end."""
REST: Final = 0.02
"""Seconds between news and the next read: with 1,000 events a second, 20 are read at once, for a tenth of the time."""
FORGET_AT_ONCE: Final = 2000
"""Sessions that are looked at between two reads, for whether to forget them: a millisecond's work."""
CLOCK_SECONDS: Final = 60.0
"""Seconds by which the time of day may be set within an hour. Otherwise nothing is forgotten for another hour."""
OPEN: Final = frozenset(status.encode() for status in OPEN_STATUSES)

Hashes = tuple[list[tuple[bytes, Any]], dict[bytes, float]]
"""The values of FIELDS of each hash, by its key; ends, in Unix seconds, by the keys of those that don't have one."""


class MirrorReading(Reading[None]):
    """Keeps a table of each partition, which the mirror looks into.

    A table is complete when it gets in here. While the snapshots are read, it grows elsewhere.

    Attributes:
        tables: One for each partition.
        only: What the table has, if there is one partition: `Table.kept`; else nothing.
        known_at: When nothing was missing in any of them, by `clock`; -inf before they are complete.
        old_at: When they are too old to answer from; -inf also after the end.
        heard_at: When Redis last answered, of each partition.
    """

    takes_repeats = True
    rest = REST

    def __init__(
        self, partitions: int, max_age: float, keep_ended: float, *, longest_wait: float, on_ready: Callable[[], None]
    ) -> None:
        """Begin with nothing. max_age, keep_ended, longest_wait: seconds. on_ready: called again and again."""
        self.tables = [Table(keep_ended) for _ in range(partitions)]
        self.only: dict[str, float] = {}
        self.known_at = self.old_at = -math.inf
        self.heard_at = [-math.inf] * partitions
        self.longest_wait = longest_wait
        self._max_age = max_age
        self._keep_ended = keep_ended
        self._on_ready = on_ready
        self._growing: dict[int, Table] = {}
        """Tables for which the snapshots are being read."""
        self._known_at = [-math.inf] * partitions
        self._was_ahead = [(0, 0)] * partitions
        """`Partition.ahead_until` when all was last read."""
        self._unsure: list[dict[str, tuple[int, int]]] = [{} for _ in range(partitions)]
        """Sessions of which an entry did not say when they end, and its position."""
        self._forgetting: list[Iterator[str]] = [iter(()) for _ in range(partitions)]
        self._forget_at = [clock() + HOUR] * partitions
        self._set_at = time() - clock()
        """Differs later if somebody sets the time of day."""
        self._is_over = False
        self._lock = threading.Lock()
        """Held while the times are set: partitions on several nodes have a thread for each node."""

    @property
    def open(self) -> int:
        """Number of open sessions."""
        return sum(len(table.exact) for table in self.tables)

    @property
    def growing(self) -> int | None:
        """Number of sessions that were read so far, while snapshots are read."""
        growing = list(self._growing.values())  # others may begin meanwhile
        return sum(len(table.kept) for table in growing) if growing else None

    def user_id(self, session_id: str) -> str | None:
        """Return whose session it is, if it is open."""
        return next(filter(None, (table.user_id(session_id) for table in self.tables)), None)

    def end(self) -> None:
        """Answer nothing any more."""
        with self._lock:
            self._is_over = True
            self.old_at = -math.inf

    # What `follow` asks

    def begin(self, partition: Partition) -> None:
        self._growing[partition.number] = Table(self._keep_ended)
        self._unsure[partition.number].clear()
        # Of a server that went away before all was read.
        partition.ahead.clear()
        partition.ahead_until = (0, 0)

    async def read(self, connection: Connection, keys: Sequence[bytes], *further: Command) -> tuple[Hashes, list[Any]]:
        hashes, responses = await read_hashes(connection, keys, FIELDS, *further)
        stored = [(key, values) for key, values in zip(keys, hashes, strict=True) if values[0] is not None]
        ends = await _ends(connection, [key for key, values in stored if values[-1] is None])
        return (stored, ends), responses

    def found(self, partition: Partition, hashes: Hashes) -> Iterable[Found[None]]:
        table, now, before = self._table(partition), time(), len(partition.keys.session(""))
        self.heard_at[partition.number] = clock()
        stored, ends = hashes
        found, unsure = [], self._unsure[partition.number]
        for key, (live, status, user_id, cursor, expire_at) in stored:
            if user_id is None or cursor is None:
                raise UnreadableMessageError(f"{key.decode(errors='replace')}: fields of its hash are missing")
            end = ends.get(key) if expire_at is None else int(expire_at) / 1000 if expire_at else math.inf
            session_id, is_open = key[before:].decode(errors="replace"), status in OPEN
            if unsure and position(cursor.decode()) < unsure.get(session_id, (0, 0)):
                continue  # it is of a server that does not have the entry
            if end is not None:
                table.put(session_id, user_id.decode(), end, is_open=is_open, is_live=live == b"1", now=now)
                found.append(Found(session_id, cursor.decode(), None))
        return found

    def entry(self, entry: Entry) -> None:
        if entry.outcome != "applied":
            return
        session = entry.update().session
        table, end, is_open = self._table(entry.partition), _seconds(session.expire_at), session.status in OPEN_STATUSES
        table.put(session.id, session.user_id, end, is_open=is_open, is_live=session.live, now=time())
        if session.expire_at is None:
            self._unsure[entry.partition.number][session.id] = position(entry.cursor)

    def is_due(self, partition: Partition) -> bool:
        return clock() - self._known_at[partition.number] > self.longest_wait / 2

    async def reached(self, connection: Connection, partition: Partition, asked_at: float) -> None:
        number = partition.number
        if self._is_ahead_of_stream(partition):
            connection.compare_partitions_again()
            partition.cursor = None
            return
        await self._settle(connection, partition)
        if (table := self._growing.pop(number, None)) is not None:
            self.tables[number] = table
            self.only = table.kept if len(self.tables) == 1 else {}
            self._forgetting[number] = iter(())
        with self._lock:
            self.heard_at[number] = clock()
            self._known_at[number] = asked_at
            self.known_at = min(self._known_at)
            is_ready = self.known_at > -math.inf
            if is_ready and not self._is_over:
                self.old_at = self.known_at + self._max_age
        if is_ready:
            self._on_ready()
        self._forget(number)

    def _is_ahead_of_stream(self, partition: Partition) -> bool:
        """Tell whether a session was read whose last event is not in the stream, for the first time.

        It may be of a server that another has taken over from, without it: then it is gone when it is read again. If it
        is still there, the stream was deleted, or the data moved to other partitions.
        """
        was_ahead, self._was_ahead[partition.number] = self._was_ahead[partition.number], partition.ahead_until
        is_ahead = partition.ahead_until > (0, 0) and position(str(partition.cursor)) < partition.ahead_until
        return is_ahead and partition.ahead_until != was_ahead

    async def _settle(self, connection: Connection, partition: Partition) -> None:
        """Look up when sessions end whose entries did not say so: they have no end, or OMIT_FIELDS hides it."""
        unsure = self._unsure[partition.number]
        while unsure:
            at, batch = position(str(partition.cursor)), list(islice(unsure, FORGET_AT_ONCE))
            keys = [partition.keys.session(session_id).encode() for session_id in batch]
            hashes, _ = await self.read(connection, keys)
            for found in self.found(partition, hashes):
                # It may be newer than the cursor. What comes of it up to there must not undo it.
                partition.note(found.session_id, position(found.cursor), at)
            for session_id in batch:
                del unsure[session_id]

    def _forget(self, number: int) -> None:
        """Look at some sessions, and once an hour begin to look at all."""
        table, now = self.tables[number], time()
        batch = list(islice(self._forgetting[number], max(FORGET_AT_ONCE, len(table.kept) // 500)))
        if batch:
            table.forget(batch, now)
        elif clock() >= self._forget_at[number]:
            self._forget_at[number] = clock() + HOUR
            set_at = time() - clock()
            if abs(set_at - self._set_at) < CLOCK_SECONDS:  # else that time may be wrong, and what is forgotten is gone
                self._forgetting[number] = iter(list(table.kept))
            self._set_at = set_at

    def _table(self, partition: Partition) -> Table:
        return self._growing.get(partition.number) or self.tables[partition.number]


async def _ends(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, float]:
    """Return the ends of sessions, in Unix seconds, by what their messages say; without those that are gone."""
    states, _ = await read_field(connection, keys, "state") if keys else ([], [])
    found = ((key, state) for key, state in zip(keys, states, strict=True) if state is not None)
    return {key: _seconds(published(state, key.decode(errors="replace")).session.expire_at) for key, state in found}


def _seconds(end_ms: int | None) -> float:
    return math.inf if end_ms is None else end_ms / 1000
