"""What a run of `reconcile` is to look at, and what it found."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

MAX_FAULTS: Final = 100
"""Faults that a report names; the others are counted."""


Drift = Literal["missing", "late_end", "extended", "gone", "wrong_user", "changed"]
"""How a stored state differed from Clerk's.

`missing`: nothing was stored. `late_end`: it was stored as open, and ended at Clerk. `extended`: it is open at Clerk
until later than stored, or although stored as expired or removed. `gone`: Clerk no longer has it. `wrong_user`: it is
another user's. `changed`: anything else.
"""


Stage = Literal["users", "stored"]
"""What a run goes through now: Clerk's list of users, or the sessions that are stored as open."""


class Gone(NamedTuple):
    """A session that is stored as open, and that Clerk no longer has: it said so twice."""

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
    def lists_users(self) -> bool:
        """Whether it goes through Clerk's list of users."""
        return self.full or self.since_ms is not None

    @property
    def mode(self) -> str:
        """The name under which an unfinished run can be resumed."""
        if self.since_ms is not None:
            return f"since-{self.since_ms}"
        if not self.full:
            return "stored"
        return "full" if self.active_within_days is None else f"full-{self.active_within_days}"


class Faults(dict[str, str]):
    """What could not be compared, by session or user, with the reason: the first MAX_FAULTS; the others are counted."""

    def __init__(self) -> None:
        super().__init__()
        self._unnamed: set[int] = set()
        self._before = 0

    @property
    def count(self) -> int:
        """How many there are in all."""
        return len(self) + len(self._unnamed) + self._before

    def add(self, about: str, why: str) -> None:
        """Record that something could not be compared; what is known already counts once."""
        if about in self or len(self) < MAX_FAULTS:
            self[about] = why
            self._unnamed.discard(hash(about))
        else:
            self._unnamed.add(hash(about))

    def drop(self, about: str) -> None:
        """Take that back."""
        self.pop(about, None)
        self._unnamed.discard(hash(about))

    def load(self, named: Mapping[str, str], count: int) -> None:
        """Add what an interrupted run has stored."""
        for about, why in named.items():
            self.add(about, why)
        self._before += count - len(named)


@dataclasses.dataclass(slots=True)
class Report:
    """What a run has found so far."""

    began_at_ms: int
    """When it began, in Unix milliseconds; when the run began that it goes on with, if it does."""
    resumed: bool = False
    users_before: int = 0
    """Users that an interrupted run had looked at, with which this one goes on."""
    users: int = 0
    sessions: int = 0
    drift: Counter[str] = dataclasses.field(default_factory=Counter)
    """How many states differed, by kind."""
    faults: Faults = dataclasses.field(default_factory=Faults)
    stage: Stage = "users"
    part: float | None = None
    """Which part of the stage is done, from 0 to 1; None if that is unknown."""
    brake: str | None = None
    """Of a dry run: why the same run, if it were not dry, would end none of the sessions that are gone."""
    pending_revokes: int = 0
    """Sessions that Clerk has still to revoke, since it could not be reached or refused to."""

    @property
    def fault_count(self) -> int:
        """How many sessions and users could not be compared."""
        return self.faults.count

    def resume(
        self, users: int, sessions: int, drift: Mapping[str, int], faults: Mapping[str, str], fault_count: int
    ) -> None:
        """Go on from what an interrupted run has found."""
        self.resumed = True
        self.users_before = users
        self.users += users
        self.sessions += sessions
        self.drift.update(drift)
        self.faults.load(faults, fault_count)

    def add(self, drift: Iterable[Drift], faults: Iterable[tuple[str, str]]) -> None:
        """Add what was found: how states differed, and what could not be compared, with the reason."""
        self.drift.update(drift)
        for about, why in faults:
            self.faults.add(about, why)
