"""The sessions that Clerk no longer has: they end at the end of a run, and only if they are credibly few.

Apart from `reconcile`, so that nothing else can end them.
"""

from collections.abc import Mapping
from typing import Final

from service.errors import CommandError
from service.store.sessions import SessionStore
from service.workers.mend import Found, Mender
from service.workers.report import Gone

MAY_BE_GONE: Final = 10
"""So many sessions, or GONE_PERCENT of all, may end in one run because Clerk no longer has them."""
GONE_PERCENT: Final = 5
MANY: Final = 1000
"""From this number on, a run stops as soon as more than half of the sessions are gone: Clerk's API does not work."""
TOO_MANY: Final = 100_000
"""From this number on, a run does not wait for its end to see that too many are gone: they take memory, 30 MB here."""
CHUNK: Final = 64
"""Sessions that are ended at once."""


class TooManyGoneError(CommandError):
    """More sessions would end because Clerk no longer has them than is credible."""


class GoneSessions:
    """Those that a run has found.

    Args:
        allow: how many may end, if that is more than the usual bound.
    """

    def __init__(self, allow: int) -> None:
        self._allow = allow
        self._gone: dict[str, Gone] = {}
        self._unsaved: dict[str, Gone] = {}

    def __len__(self) -> int:
        return len(self._gone)

    def add(self, gone: Gone) -> None:
        self._gone[gone.session_id] = self._unsaved[gone.session_id] = gone

    def load(self, gone: Mapping[str, Gone]) -> None:
        """Add what an interrupted run has found and stored."""
        self._gone |= gone

    def clear(self) -> None:
        self._gone.clear()

    def unsaved(self) -> dict[str, Gone]:
        """Return what has still to be stored."""
        return dict(self._unsaved)

    def saved(self, gone: Mapping[str, Gone]) -> None:
        """Take it that these are stored."""
        for session_id in gone:
            self._unsaved.pop(session_id, None)

    def check(self, looked_at: int) -> None:
        """Raise TooManyGoneError if more are gone than is credible among so many sessions, which are all."""
        self._check(looked_at, "")

    def check_early(self, looked_at: int) -> None:
        """Raise it if so many are gone, among the sessions so far, that there is no use in going on."""
        count = len(self._gone)
        if (count > MANY and 2 * count > looked_at) or count > TOO_MANY:
            self._check(looked_at, " There may be more, since it stopped before its end.")

    def _check(self, looked_at: int, note: str) -> None:
        count, bound = len(self._gone), max(MAY_BE_GONE, looked_at * GONE_PERCENT // 100)
        if count > max(bound, self._allow):
            raise TooManyGoneError(
                f"Clerk no longer has {count} of {looked_at} sessions, which is more than {bound}: none of these was "
                "ended. See that CLERK_SECRET_KEY and CLERK_API_URL are right, and what these sessions are. If they "
                f"are to end, run it again with --allow {count}.{note}"
            )

    def end(self, store: SessionStore, mender: Mender) -> list[Found]:
        """End them, unless something was applied to them since; block until Redis has it."""
        return [
            found
            for partition in store.partitions
            for chunk in _chunks(
                [each for each in self._gone.values() if store.partition_of(each.user_id) == partition]
            )
            for found in mender.end_gone(partition, chunk)
        ]


def _chunks(gone: list[Gone]) -> list[list[Gone]]:
    return [gone[start : start + CHUNK] for start in range(0, len(gone), CHUNK)]
