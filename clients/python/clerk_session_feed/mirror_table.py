"""What a mirror keeps of the sessions of one partition: their ids, and 8 bytes and the user of each open one.

A dict from id to bytes, or to a number: neither holds anything else, so the garbage collector never looks through it.
"""

import math
from collections.abc import Iterable
from struct import Struct
from typing import Final

MAX_KEPT: Final = 400 * 86_400.0
"""Seconds after which the relay forgets any session that is over; and one that had no end, after exactly that."""
HOUR: Final = 3600.0
"""Seconds: when to forget a session is counted in hours. All that ended in the same hour share that number."""

Kept = bytes | int
"""Of an open session, its end and its user; of one that ended, in which hour to forget it.

The end is a double, in Unix seconds, inf for none. If the session is not live whatever the time is, it is negative.
"""
_END: Final = Struct("=d")
ends_at: Final = _END.unpack_from
"""Returns the end of an open session, in a tuple."""


class Table:
    """Sessions by their ids; one thread at a time writes, and any number read `kept`.

    Attributes:
        kept: What is kept of each.
        open: Number of the open ones. Those whose end has passed count until `forget` comes to them.
    """

    __slots__ = ("_hours", "_keep_ended", "kept", "open")

    def __init__(self, keep_ended: float) -> None:
        """Make an empty table. keep_ended: seconds that the id of a session stays after the session's end."""
        self.kept: dict[str, Kept] = {}
        self.open = 0
        self._keep_ended = keep_ended
        self._hours: dict[int, int] = {}

    def put(self, session_id: str, user_id: str, end: float, *, is_open: bool, is_live: bool, now: float) -> None:
        """Set the state of a session. end, now: Unix seconds; end: inf if it has none, which counts as not passed."""
        self.open -= self.kept.get(session_id).__class__ is bytes
        if is_open or is_live:
            self.kept[session_id] = _END.pack(end if is_live else -end) + user_id.encode()
            self.open += 1
        else:
            self.kept[session_id] = self._forget_in(end, now)

    def user_id(self, session_id: str) -> str | None:
        """Return whose session it is, if it is open."""
        kept = self.kept.get(session_id)
        return kept[_END.size :].decode() if isinstance(kept, bytes) else None

    def forget(self, session_ids: Iterable[str], now: float) -> None:
        """Drop those of these sessions that ended long ago, and keep less of those whose end has passed."""
        for session_id in session_ids:
            kept = self.kept.get(session_id)
            if isinstance(kept, bytes):
                end = abs(ends_at(kept)[0])
                if end <= now:
                    self.kept[session_id] = kept = self._forget_in(end, end)
                    self.open -= 1
            if isinstance(kept, int) and kept <= now / HOUR:
                del self.kept[session_id]
        self._hours = {hour: hour for hour in self._hours if hour > now / HOUR}

    def _forget_in(self, end: float, now: float) -> int:
        """Return the hour at whose begin the relay has forgotten a session that is over now, at the latest."""
        seconds = MAX_KEPT if end == math.inf else min(max(end - now, 0) + self._keep_ended, MAX_KEPT)
        hour = int((now + seconds) // HOUR) + 1
        return self._hours.setdefault(hour, hour)
