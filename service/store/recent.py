"""What was applied last, in memory: who comes back after a moment goes on from here, without asking Redis."""

import collections
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from clerk_session_feed.cursors import position

from service.store.subscription import Scope

KEPT: Final = 500
"""Entries in memory: about 600 kB."""


class Entry(NamedTuple):
    """An entry of a stream."""

    partition: int
    cursor: str
    session_id: str
    user_id: str
    is_applied: bool
    message: bytes
    """JSON, as it was published."""

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """The keys of the scopes that it belongs to."""
        return ("all", ""), ("user", self.user_id), ("session", self.session_id)

    def is_for(self, scope: Scope) -> bool:
        """Tell whether a reader with this scope is told of it."""
        return self.is_applied and scope.key in self.keys


class RecentEntries:
    """The latest entries of all partitions, in the order in which they were read."""

    def __init__(self, cursors: Sequence[str]) -> None:
        """Begin behind these cursors, one for each partition."""
        self._complete_from = [position(cursor) for cursor in cursors]
        """By partition: what came behind this is all here."""
        self._entries: collections.deque[Entry] = collections.deque()

    def add(self, entry: Entry) -> None:
        """Add the entry that was read last."""
        self._entries.append(entry)
        if len(self._entries) > KEPT:
            oldest = self._entries.popleft()
            self._complete_from[oldest.partition] = position(oldest.cursor)

    def covers(self, cursors: Sequence[str]) -> bool:
        """Tell whether all is here that came behind these cursors."""
        return all(position(cursor) >= first for cursor, first in zip(cursors, self._complete_from, strict=True))

    def behind(self, cursors: Sequence[str]) -> Iterator[Entry]:
        """Return what came behind these cursors, if they are covered."""
        reached = [position(cursor) for cursor in cursors]
        return (each for each in self._entries if position(each.cursor) > reached[each.partition])
