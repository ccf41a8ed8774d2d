"""What Clerk's Backend API answered about sessions, compared with what is stored, and written where that differs.

docs/contract.md, section 10.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import orjson
from clerk_session_feed import lenient_json
from clerk_session_feed.models import OPEN_STATUSES, SessionActivity

from service.clerk.api_sessions import ApiSession
from service.clerk.normalize import other_event, reported
from service.models import ABSENT, OPEN, RANKS, NewState, OrderKey, Outcome, SessionChange, Unusable, UserEnding, omit
from service.store.partitions import Partition, result
from service.store.sessions import SessionStore
from service.store.stored import StoredState
from service.workers.report import Drift, Gone

COMPARED: Final = (
    *("status", "user_id", "client_id", "expire_at", "abandon_at", "actor"),
    *("last_active_organization_id", "tasks"),
)
"""Fields of a session that are news if they differ. The others move with use, and are taken along."""
CHUNK: Final = 128
"""Sessions that are written at once, so that Redis serves others in between."""
ATTEMPTS: Final = 10
"""How often a state is compared anew because an event replaced what it was compared with."""
TOO_NEW: Final = "Clerk does not have it, but the stored state is of a later time than Clerk's response"


class Found(NamedTuple):
    """What became of one answer."""

    session_id: str
    drift: Drift | None
    """How the stored state differed; None if it did not, or if what is stored is right nevertheless."""
    fault: str | None = None
    """Why the session could not be compared, and stays as it is."""


class Mender:
    """Writes what Clerk answered. Its methods block until Redis has it, and raise StoreUnavailableError."""

    def __init__(
        self, store: SessionStore, instance_id: str, *, dry_run: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """Take where states are stored, the Clerk instance, and a clock that returns Unix seconds.

        With `dry_run` nothing is written.
        """
        self._store = store
        self._instance_id = instance_id
        self.dry_run: Final = dry_run
        self._clock = clock

    def apply(self, sessions: Iterable[ApiSession]) -> list[Found]:
        """Compare sessions with what is stored, and write what differs, unless something newer is stored."""
        by_partition: dict[Partition, list[ApiSession]] = {}
        for session in sessions:
            by_partition.setdefault(self._store.partition_of(session.data.user_id), []).append(session)
        return [
            found
            for partition, each in by_partition.items()
            for start in range(0, len(each), CHUNK)
            for found in self._apply(partition, each[start : start + CHUNK])
        ]

    def end_gone(self, partition: Partition, gone: Sequence[Gone]) -> list[Found]:
        """End sessions that Clerk no longer has, if nothing was applied to them since.

        Args:
            partition: where they are stored.
            gone: whom Clerk no longer has.
        """
        states = self._store.read(partition, [each.session_id for each in gone])
        found, waiting = [], []
        for (session_id, _, cursor, answered_at_ms), stored in zip(gone, states, strict=True):
            if not isinstance(stored, StoredState) or not stored.is_open or stored.cursor != cursor:
                found.append(Found(session_id, None))
                continue
            try:
                new = self._removed(stored, answered_at_ms)
            except ValueError as error:
                found.append(Found(session_id, None, str(error)))
                continue
            if new.order > stored.order:
                waiting.append((session_id, self._replace(partition, new)))
            else:
                found.append(Found(session_id, None, TOO_NEW))
        for session_id, future in waiting:
            outcome = None if future is None else result(future)
            is_ended = future is None or (isinstance(outcome, Outcome) and outcome.outcome == "applied")
            found.append(Found(session_id, "gone" if is_ended else None))
        return found

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _replace(self, partition: Partition, new: NewState) -> Any:
        return None if self.dry_run else self._store.replace(partition, new, self._now_ms())

    def _apply(self, partition: Partition, sessions: Sequence[ApiSession]) -> list[Found]:
        found: list[Found] = []
        for _ in range(ATTEMPTS):
            states = self._store.read(partition, [session.id for session in sessions])
            waiting: list[tuple[ApiSession, SessionChange, Drift, Any]] = []
            for session, stored in zip(sessions, states, strict=True):
                try:
                    change, drift = self._compare(session, stored)
                except ValueError as error:
                    found.append(Found(session.id, None, str(error)))
                    continue
                if drift is None:
                    found.append(Found(session.id, None))
                    continue
                new = self._store.new_state(change, change.event.id)._replace(
                    from_cursor=stored.cursor if isinstance(stored, StoredState) else ABSENT, keeps_stale=False
                )
                waiting.append((session, change, drift, self._replace(partition, new)))
            again = []
            for session, change, drift, future in waiting:
                outcome = None if future is None else result(future)
                if isinstance(outcome, UserEnding):
                    ended = self._store.ended_with_user(change, outcome)._replace(keeps_stale=False)
                    outcome = result(self._store.replace(partition, ended, self._now_ms()))
                if isinstance(outcome, Outcome) or future is None:
                    is_applied = future is None or outcome.outcome == "applied"  # type: ignore[union-attr]
                    found.append(Found(session.id, drift if is_applied else None))
                else:
                    again.append(session)
            if not again:
                return found
            sessions = again
        return found + [Found(session.id, None, "its state changes too often to be compared") for session in sessions]

    def _compare(
        self, session: ApiSession, stored: StoredState | ValueError | None
    ) -> tuple[SessionChange, Drift | None]:
        """Return what Clerk says, and how what is stored differs; raise ValueError if they can't be compared."""
        if isinstance(stored, ValueError):
            raise stored
        change = reported(
            session.data,
            answered_at_ms=session.answered_at_ms,
            instance_id=self._instance_id,
            is_first=stored is None,
            now_ms=self._now_ms(),
            with_request=self._store.publishes_http_request,
        )
        if isinstance(change, Unusable):
            raise ValueError(change.detail)  # noqa: TRY004  # it is a value of Clerk's
        if stored is None:
            return change, self._drift_of_first(change)
        before = stored.message()["session"]
        try:
            if change.session.latest_activity is None and before["latest_activity"] is not None:
                activity = SessionActivity(**before["latest_activity"])
                change = dataclasses.replace(
                    change, session=dataclasses.replace(change.session, latest_activity=activity)
                )
            after: Any = lenient_json.loads(orjson.dumps(omit(change.session, self._store.omitted)))
            return change, _drift(stored, change, before, after)
        except (KeyError, TypeError) as error:
            raise ValueError(f"its state is not a message: {type(error).__name__}") from error

    def _drift_of_first(self, change: SessionChange) -> Drift | None:
        """Tell whether a session is written of which nothing is stored.

        One that is over is, as long as its key would last if its end had been delivered: a late event of its life
        must not open it. Later, it would be written again whenever its key has gone.
        """
        session, now_ms = change.session, self._now_ms()
        if session.status in OPEN_STATUSES:
            return "missing"
        over_at_ms = max(session.updated_at or 0, session.expire_at or 0)
        return "missing" if over_at_ms + self._store.retention_ms > now_ms else None

    def _removed(self, stored: StoredState, at_ms: int) -> NewState:
        """Return the end of a session that Clerk did not have at this time, in Unix milliseconds."""
        digest = hashlib.sha256(f"{stored.session_id} {stored.cursor} {at_ms}".encode()).hexdigest()
        event = other_event("clerk-api", "session.removed", f"api_{digest[:32]}", at_ms, self._instance_id)
        # It counts as open, so that later evidence of life undoes it.
        order = OrderKey(OPEN, at_ms, at_ms, RANKS.index("removed"), event.id)
        return stored.ended("removed", event, order, self._store.omitted)._replace(keeps_stale=False)


def _drift(stored: StoredState, change: SessionChange, before: dict[str, Any], after: dict[str, Any]) -> Drift | None:
    """Return how Clerk's session differs from the stored one, in what is published; None if that may stay."""
    if all(before[name] == after[name] for name in COMPARED):
        return None
    becomes_open = change.session.status in OPEN_STATUSES
    end_ms, stored_end_ms = change.session.expire_at, stored.expire_at_ms
    ends_later = stored_end_ms is not None and (end_ms is None or end_ms > stored_end_ms)
    if stored.status == "expired" and not stored.is_final and becomes_open:
        # The expiry worker made it, and that finds only sessions that have an end: `stored_end_ms` is not None here.
        if not ends_later:
            return None  # Clerk has not noticed yet that it ran out
    elif change.order <= stored.order:
        return None  # what is stored is newer; what ended does not come back
    if before["user_id"] != after["user_id"]:
        return "wrong_user"
    if becomes_open:
        return "extended" if ends_later or not stored.is_open else "changed"
    return "late_end" if stored.is_open else "changed"
