"""What a mirror keeps of the sessions of one partition.

A question finds its answer in one look: a number that many sessions share, and that is in the processor's cache
therefore, while a session's own data is not. Neither dict holds anything but text, bytes and numbers, so the garbage
collector never looks through them.
"""

import math
from collections.abc import Iterable
from struct import Struct
from typing import Final

MAX_KEPT: Final = 400 * 86_400.0
"""Seconds after which the relay forgets any session that is over; and one that had no end, after exactly that."""
HOUR: Final = 3600.0
"""Seconds: ends are rounded down to hours, and when to forget a session is rounded up. What is equal is shared."""
NOT_YET: Final = 0.0
"""In `Table.kept`: it is open, and not live whatever the time is."""
_END: Final = Struct("=d")


class Table:
    """Sessions by their ids; one thread at a time writes, and any number read.

    Attributes:
        kept: Of each session, until when it is live for sure, in Unix seconds: inf if it has no end. Then `is_live_at`
            tells. Of one that ended, when to forget it, negative.
        exact: Of each open session, its end and its user: a double, and text. The end is negative if the session is
            not live whatever the time is.
    """

    __slots__ = ("_hours", "_keep_ended", "exact", "kept")

    def __init__(self, keep_ended: float) -> None:
        """Make an empty table. keep_ended: seconds that the id of a session stays after the session's end."""
        self.kept: dict[str, float] = {}
        self.exact: dict[str, bytes] = {}
        self._keep_ended = keep_ended
        self._hours: dict[float, float] = {}

    def put(self, session_id: str, user_id: str, end: float, *, is_open: bool, is_live: bool, now: float) -> None:
        """Set the state of a session. end, now: Unix seconds; end: inf if it has none."""
        # Who reads in between sees the state before or the one after: `kept` decides whether `exact` is looked at.
        if is_open or is_live:
            self.exact[session_id] = _END.pack(end if is_live else -end) + user_id.encode()
            self.kept[session_id] = self._shared(end // HOUR * HOUR if end < math.inf else end) if is_live else NOT_YET
        else:
            self.kept[session_id] = self._forget_at(end, now)
            self.exact.pop(session_id, None)

    def is_live_at(self, session_id: str, now: float) -> bool:
        """Tell whether a session is live, to the millisecond."""
        exact = self.exact.get(session_id)
        return exact is not None and end_of(exact) > now

    def user_id(self, session_id: str) -> str | None:
        """Return whose session it is, if it is open."""
        exact = self.exact.get(session_id)
        return None if exact is None else exact[_END.size :].decode()

    def forget(self, session_ids: Iterable[str], now: float) -> None:
        """Drop those of these sessions that ended long ago, and keep less of those whose end has passed."""
        for session_id in session_ids:
            exact = self.exact.get(session_id)
            if exact is not None:
                end = abs(end_of(exact))
                if end <= now:
                    self.kept[session_id] = self._forget_at(end, end)
                    del self.exact[session_id]
            if -now <= self.kept.get(session_id, math.inf) < 0:
                del self.kept[session_id]
        self._hours = {hour: hour for hour in self._hours if abs(hour) > now}

    def _forget_at(self, end: float, now: float) -> float:
        """Return when the relay has forgotten a session that is over now, at the latest; negative."""
        seconds = MAX_KEPT if end == math.inf else min(max(end - now, 0) + self._keep_ended, MAX_KEPT)
        return self._shared(-((now + seconds) // HOUR + 1) * HOUR)

    def _shared(self, hour: float) -> float:
        return self._hours.setdefault(hour, hour)


def end_of(exact: bytes) -> float:
    """Return the end of an open session, as `Table.exact` has it."""
    end: float = _END.unpack_from(exact)[0]
    return end
