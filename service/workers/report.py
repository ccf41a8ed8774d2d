"""What a run of `reconcile` is to look at, and what it found."""

import dataclasses
from collections import Counter
from typing import Final, Literal, NamedTuple

MAX_FAULTS: Final = 100
"""Faults that a report names; the others are counted."""


Drift = Literal["missing", "late_end", "extended", "gone", "wrong_user", "changed"]
"""How a stored state differed from Clerk's.

`missing`: nothing was stored. `late_end`: it was stored as open, and ended at Clerk. `extended`: it is open at Clerk
until later than stored, or although stored as expired or removed. `gone`: Clerk has it no more. `wrong_user`: it is
another user's. `changed`: anything else.
"""


class Gone(NamedTuple):
    """A session that is stored as open, and that Clerk has no more: it said so twice."""

    session_id: str
    user_id: str
    cursor: str
    """Of the state that was stored before Clerk was asked."""
    answered_at_ms: int
    """When Clerk answered for the second time, in Unix milliseconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """What a run looks at."""

    full: bool = False
    """All users that Clerk has, and then all sessions that are stored as open."""
    active_within_days: int | None = None
    """Of Clerk's users only those who were active in these days, if `full`."""
    since_ms: int | None = None
    """Of Clerk's users those who signed in since then, in Unix milliseconds."""
    user_id: str | None = None
    """Nobody but this user."""

    @property
    def mode(self) -> str:
        """The name under which an unfinished run can be resumed."""
        if self.since_ms is not None:
            return f"since-{self.since_ms}"
        if not self.full:
            return "stored"
        return "full" if self.active_within_days is None else f"full-{self.active_within_days}"


@dataclasses.dataclass(slots=True)
class Report:
    """What a run has found so far."""

    resumed: bool = False
    users: int = 0
    sessions: int = 0
    drift: Counter[str] = dataclasses.field(default_factory=Counter)
    """How many states differed, by kind."""
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    """What could not be compared, by session or user, with the reason; the first MAX_FAULTS."""
    fault_count: int = 0
    part: float | None = None
    """Which part of the work is done, from 0 to 1; None if that is unknown."""

    def add_fault(self, about: str, why: str) -> None:
        """Record that something could not be compared."""
        self.fault_count += about not in self.faults
        if len(self.faults) < MAX_FAULTS:
            self.faults[about] = why
