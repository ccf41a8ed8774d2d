"""Finds the sessions of a partition that are due, and expires a batch of them.

The script does nothing if the stored state has changed since it was read here. So any number of workers may do this at
the same time, and be killed.
"""

import math
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import structlog
from clerk_session_feed.connections import explain

from service.errors import RelayError
from service.models import NewState, Outcome, UserEnding
from service.store.partitions import WRITE_SECONDS, Partition, result, results
from service.store.rights import is_missing_right
from service.store.sessions import SessionStore
from service.store.stored import StoredState
from service.workers.expiry_event import expiry_of

log = structlog.get_logger(__name__)

SPREAD: Final = 64
"""Batches of which a worker chooses one at random, so that workers seldom meet."""
SKIP_SECONDS: Final = 240.0
"""Seconds until a session that can't be read, or that Redis refuses to end, is tried again."""


class Batch(NamedTuple):
    """What became of a batch."""

    size: int
    expired: int
    skipped: int
    """Sessions that stay due, because they can't be read, or Redis refuses to end them."""


class _Skipped:
    """Stands for the state of a session that is skipped."""


_SKIPPED: Final = _Skipped()
_Found: TypeAlias = dict[str, StoredState | ValueError | _Skipped | None]
"""Sessions that are due, by id, with what is stored of each."""
_Expiries: TypeAlias = dict[str, NewState | None]
_Result: TypeAlias = Outcome | UserEnding | RelayError | None


class Expirer:
    """Expires sessions, for one thread. Each method raises StoreUnavailableError if Redis fails."""

    def __init__(self, store: SessionStore, now_ms: Callable[[], int], timeout: float) -> None:
        """Take a clock that returns Unix milliseconds, and REDIS_TIMEOUT."""
        self._store = store
        self._now_ms = now_ms
        self._seconds = timeout + WRITE_SECONDS
        self._logged: set[str] = set()
        self._skipped_until: dict[tuple[int, str], float] = {}

    def first_ms(self, partitions: Sequence[Partition]) -> list[float]:
        """Return when the first session of each partition is due, without those that are skipped.

        In Unix milliseconds; infinite if there is none.
        """
        firsts = []
        for partition in partitions:
            # One more than those that are skipped: they may all come first.
            limit = 1 + sum(number == partition.number for number, _ in self._skipped_until)
            first = ("ZRANGEBYSCORE", partition.keys.expiry, "-inf", "+inf", "WITHSCORES", "LIMIT", 0, limit)
            firsts.append(partial(partition.pipeline.submit, first, partial(self._first, partition.number)))
        return results(firsts, self._seconds)

    def _first(self, number: int, reply: list[bytes]) -> float:
        scores = zip(map(_text, reply[::2]), map(float, reply[1::2]), strict=True)
        return next((score for session_id, score in scores if not self._is_skipped(number, session_id)), math.inf)

    def expire_some(self, partition: Partition, limit: int) -> Batch:
        """Expire a batch of so many sessions that are due, at most, chosen at random."""
        now_ms = self._now_ms()
        due = self._ask(partition, "ZCOUNT", partition.keys.expiry, "-inf", now_ms)
        batches = min(-(-due // limit), SPREAD)
        return self.expire(partition, now_ms, limit * random.randrange(max(1, batches)), limit)  # noqa: S311

    def expire(self, partition: Partition, due_ms: int, offset: int, limit: int) -> Batch:
        """Expire so many sessions, at most, that were due at a time, without the first `offset` of them.

        If Redis fails, the whole batch was tried nevertheless.
        """
        found = self._find(partition, due_ms, offset, limit)
        new = self._expiries(partition, found, due_ms)
        expired = self._finish(partition, new, self._submit(partition, new))
        return Batch(len(found), expired, sum(self._is_skipped(partition.number, each) for each in found))

    def expire_all(self, partition: Partition, due_ms: int, limit: int, rest: Callable[[int], None]) -> int:
        """Expire the sessions that were due at a time, in batches; return how many.

        While Redis writes a batch, the next one is prepared here. It was found behind the sessions of the first one. So
        if others expired some of these meanwhile, a few are left: `expire` finds them.

        Args:
            partition: of the sessions.
            due_ms: Unix milliseconds.
            limit: sessions in a batch, at most.
            rest: is called with what each batch has expired, and waits until the next one may be written.
        """
        expired = passed = 0
        found = self._find(partition, due_ms, 0, limit)
        new = self._expiries(partition, found, due_ms)
        while found:
            following = self._find(partition, due_ms, passed + len(found), limit)
            written = self._submit(partition, new)
            prepared = self._expiries(partition, following, due_ms)
            batch = self._finish(partition, new, written)
            rest(batch)
            expired += batch
            passed += sum(self._is_skipped(partition.number, each) for each in found)
            found, new = following, prepared
        return expired

    def _find(self, partition: Partition, due_ms: int, offset: int, limit: int) -> _Found:
        """Return the stored state of sessions that are due; None for those that are skipped."""
        due = ("ZRANGEBYSCORE", partition.keys.expiry, "-inf", due_ms, "LIMIT", offset, limit)
        ids = [_text(each) for each in self._ask(partition, *due)]
        wanted = [each for each in ids if not self._is_skipped(partition.number, each)]
        return dict.fromkeys(ids, _SKIPPED) | dict(
            zip(wanted, self._store.read(partition, wanted, self._seconds), strict=True)
        )

    def _ask(self, partition: Partition, *command: Any) -> Any:
        return result(partition.pipeline.submit(command, lambda reply: reply), self._seconds)

    def _expiries(self, partition: Partition, found: _Found, due_ms: int) -> _Expiries:
        """Return the expiry of each session that can be read, or None if it does not expire."""
        new: _Expiries = {}
        for session_id, stored in found.items():
            try:
                if isinstance(stored, _Skipped):
                    continue
                if isinstance(stored, ValueError):
                    raise stored
                new[session_id] = expiry_of(stored, due_ms, self._store.omitted)
            except ValueError as error:
                self._skip(partition, session_id, str(error))
        return new

    def _submit(self, partition: Partition, new: _Expiries) -> Future[list[_Result]] | None:
        """Write the sessions that expire; return None if there are none."""
        expiries = [each for each in new.values() if each is not None]
        return self._store.replace_all(partition, expiries, self._now_ms()) if expiries else None

    def _finish(self, partition: Partition, new: _Expiries, written: Future[list[_Result]] | None) -> int:
        """Wait for a batch, and settle what did not expire; return how many did."""
        others = [session_id for session_id, each in new.items() if each is None]
        expiries = [each for each in new.values() if each is not None]
        outcomes = [] if written is None else written.result()
        lags_ms: list[int] = []
        failure: RelayError | None = None
        for expiry, outcome in zip(expiries, outcomes, strict=True):
            if isinstance(outcome, RelayError):
                if _is_about_one_session(outcome):
                    self._skip(partition, expiry.session_id, explain(outcome.__cause__ or outcome))
                else:
                    failure = outcome
            elif isinstance(outcome, Outcome) and outcome.outcome == "applied":
                applied_at_ms = int(str(outcome.cursor).partition("-")[0])  # by Redis' clock
                lags_ms.append(applied_at_ms - int(expiry.expire_at_ms or 0))
            else:
                others.append(expiry.session_id)
        if lags_ms:
            log.info("sessions_expired", sessions=len(lags_ms), max_lag_ms=max(lags_ms))
        if failure is not None:
            raise failure
        for settled in [self._store.settle_expiry(partition, session_id) for session_id in others]:
            settled.result()
        return len(lags_ms)

    def _is_skipped(self, number: int, session_id: str) -> bool:
        if (until := self._skipped_until.get((number, session_id))) is None:
            return False
        if until > time.monotonic():
            return True
        del self._skipped_until[number, session_id]
        return False

    def _skip(self, partition: Partition, session_id: str, why: str) -> None:
        """Leave a session in the expiry set, for a version that can read it; log that once."""
        self._skipped_until[partition.number, session_id] = time.monotonic() + SKIP_SECONDS
        if session_id not in self._logged:
            self._logged.add(session_id)
            log.warning("session_unreadable", session_id=session_id, detail=why)


def _text(session_id: bytes) -> str:
    return session_id.decode(errors="backslashreplace")


def _is_about_one_session(error: RelayError) -> bool:
    """Tell if Redis would take others: the key is of another type, or the script can't read a field of it."""
    said = error.__cause__ or error
    return not is_missing_right(said) and re.match(r"WRONGTYPE |.*user_script:\d+: ", str(said)) is not None
