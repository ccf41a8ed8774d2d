"""The expiry worker: Clerk sends nothing when a session runs out, so the relay makes an event of its own.

That goes through the same script as Clerk's events, which does nothing if another state is stored by then
than was read here. So any number of workers may run, and be killed, at any time.

`abandon_at` is ignored: Clerk moves it whenever the user is active, and sends no event about it.

A long module: the loop and the batch share the connections.
"""

import dataclasses
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import redis
import structlog
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys

from service.config import StoreSettings
from service.errors import StoreUnavailableError
from service.expiry.event import STORED_FIELDS, expiry_of
from service.models import NewState, Outcome
from service.store.sessions import SessionStore

log = structlog.get_logger(__name__)

BATCH: Final = 128
"""Sessions that are expired at once: one batch of the store's pipeline."""
SPREAD: Final = 64
"""Batches of which a worker chooses one at random, so that workers seldom meet."""
IDLE_SECONDS: Final = 0.5
"""Seconds until a worker looks again, at most; also after an error."""
RETRY_SECONDS: Final = 0.1
"""Seconds, at most, after a batch that another worker took; a random part of it, so that they part ways."""
STOP_SECONDS: Final = 3.0
"""Seconds for the batch that is under way when the worker has to stop."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Slot:
    """Partitions that one connection reaches."""

    client: Any
    partitions: list[tuple[int, Keys]]
    unreadable: set[str]
    """Ids of sessions that can't be read; they stay in the expiry set, for a version that can read them."""

    def skip(self, session_id: str, why: str) -> None:
        """Log that a session can't be read, once."""
        if session_id not in self.unreadable:
            self.unreadable.add(session_id)
            log.warning("session_unreadable", session_id=session_id, detail=why)


class _Taken(NamedTuple):
    """What became of a batch."""

    expired: int
    skipped: int
    """Sessions that can't be read, and stay in the expiry set."""
    size: int


class ExpiryWorker:
    """Ends sessions that ran out."""

    def __init__(self, settings: StoreSettings, *, clock: Callable[[], float] = time.time) -> None:
        """Take a clock that returns Unix seconds; raise ConfigurationError if REDIS_URL can't be used."""
        self._store = SessionStore(settings)
        self._omitted = settings.omit_fields
        self._clock = clock
        url = settings.redis_url.get_secret_value()
        slots: dict[int, _Slot] = {}
        parts = Keys(settings.redis_key_prefix, settings.redis_channel).split(settings.partitions)
        for number, keys in enumerate(parts):
            slot = connections.slot(url, keys.events)
            if slot not in slots:
                tls_verify, timeout = settings.redis_tls_verify, settings.redis_timeout
                client = connections.connect(url, keys.events, tls_verify=tls_verify, timeout=timeout)
                slots[slot] = _Slot(client, [], set())
            slots[slot].partitions.append((number, keys))
        self._slots = list(slots.values())
        self._stopping = threading.Event()
        self._failure: Exception | None = None

    def run_until_signal(self) -> None:
        """Expire sessions as they run out, until SIGTERM or SIGINT.

        Raises:
            redis.RedisError: Trying again is no use: the password is wrong, or rights are missing.

        """
        # All threads block the signals, and this one waits for them. So no handler interrupts anything, and a
        # second signal does not kill a process that is about to end.
        signals = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threads = [threading.Thread(target=self._run, args=(slot,), daemon=True) for slot in self._slots]
        for thread in threads:
            thread.start()
        log.info("expiry_started")
        signal.sigwait(signals)
        log.info("expiry_stopping")
        self._stopping.set()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._failure is not None:
            raise self._failure

    def run_once(self) -> tuple[int, int]:
        """Expire the sessions that have run out; return how many, and how many could not be read.

        Raises redis.RedisError or StoreUnavailableError if Redis fails.
        """
        now_ms, expired, skipped = self._now_ms(), 0, 0
        for slot in self._slots:
            for number, keys in slot.partitions:
                offset = 0
                while (taken := self._take(slot, number, keys, now_ms, offset)).size:
                    expired += taken.expired
                    offset += taken.skipped
                skipped += offset
        return expired, skipped

    def close(self) -> None:
        """Disconnect."""
        self._store.close()
        for slot in self._slots:
            slot.client.close()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _run(self, slot: _Slot) -> None:
        is_failing = False
        try:
            while not self._stopping.is_set():
                pause = IDLE_SECONDS
                try:
                    pause = self._look(slot)
                    if is_failing:
                        log.info("expiry_resumed")
                    is_failing = False
                except (redis.RedisError, StoreUnavailableError) as error:
                    cause = error.__cause__ or error
                    if isinstance(cause, redis.AuthenticationError | redis.exceptions.NoPermissionError):
                        raise cause from None
                    if not is_failing:
                        log.warning("expiry_failed", detail=connections.explain(cause))
                    is_failing = True
                    # Connecting again finds the primary, which may be another one by now.
                    slot.client.connection_pool.disconnect()
                self._stopping.wait(pause)
        except Exception as error:  # noqa: BLE001  # raised by run_until_signal
            self._failure = error
            os.kill(os.getpid(), signal.SIGTERM)

    def _look(self, slot: _Slot) -> float:
        """Expire a batch of each partition, if sessions are due; return the seconds until the next look."""
        now_ms = self._now_ms()
        pipeline = slot.client.pipeline(transaction=False)
        for _, keys in slot.partitions:
            pipeline.zcount(keys.expiry, "-inf", now_ms)
            pipeline.zrangebyscore(keys.expiry, "-inf", "+inf", start=0, num=1, withscores=True)
        replies = pipeline.execute()
        pause = IDLE_SECONDS
        for (number, keys), due, first in zip(slot.partitions, replies[::2], replies[1::2], strict=True):
            if due:
                batches = min(-(-due // BATCH), SPREAD)
                taken = self._take(slot, number, keys, now_ms, BATCH * random.randrange(batches))  # noqa: S311
                if taken.expired:
                    pause = 0.0
                elif taken.skipped < taken.size:
                    pause = min(pause, random.uniform(0, RETRY_SECONDS))  # noqa: S311
            elif first:
                pause = min(pause, (first[0][1] - now_ms) / 1000)
        return pause

    def _take(self, slot: _Slot, number: int, keys: Keys, now_ms: int, offset: int) -> _Taken:
        """Expire a batch of the sessions that were due at a time, leaving out the first `offset` of them.

        Raises redis.RedisError or StoreUnavailableError, but only after trying the whole batch.
        """
        due = slot.client.zrangebyscore(keys.expiry, "-inf", now_ms, start=offset, num=BATCH)
        ids = [each.decode(errors="backslashreplace") for each in due]
        expiries, others = self._read(slot, keys, ids, now_ms)
        skipped = len(due) - len(expiries) - len(others)
        submitted = [(expiry, self._store.expire(number, expiry, self._now_ms())) for expiry in expiries]
        lags_ms: list[int] = []
        failure: StoreUnavailableError | None = None
        for expiry, future in submitted:
            try:
                outcome = future.result()
            except StoreUnavailableError as error:
                if _is_about_one_session(error):
                    skipped += 1
                    slot.skip(expiry.session_id, connections.explain(error.__cause__ or error))
                else:
                    failure = error
                continue
            if outcome is not None and outcome.outcome == "applied":
                lags_ms.append(_applied_at_ms(outcome) - int(expiry.expire_at_ms or 0))
            else:
                others.append(expiry.session_id)
        if lags_ms:
            log.info("sessions_expired", sessions=len(lags_ms), max_lag_ms=max(lags_ms))
        for settled in [self._store.settle_expiry(number, session_id) for session_id in others]:
            settled.result()
        if failure is not None:
            raise failure
        return _Taken(len(lags_ms), skipped, len(due))

    def _read(
        self, slot: _Slot, keys: Keys, session_ids: list[str], now_ms: int
    ) -> tuple[list[NewState], list[str]]:
        """Return the expiries of these sessions, and the ids of those that don't expire."""
        pipeline = slot.client.pipeline(transaction=False)
        for session_id in session_ids:
            pipeline.hmget(keys.session(session_id), STORED_FIELDS)
        expiries: list[NewState] = []
        others: list[str] = []
        for session_id, reply in zip(session_ids, pipeline.execute(raise_on_error=False), strict=True):
            try:
                expiry = expiry_of(session_id, _fields(reply), now_ms, self._omitted)
            except ValueError as error:
                slot.skip(session_id, str(error))
                continue
            if expiry is None:
                others.append(session_id)
            else:
                expiries.append(expiry)
        return expiries, others


def _is_about_one_session(error: StoreUnavailableError) -> bool:
    """Tell if Redis would take others: the key is of another type, or the script can't read a field of it."""
    return re.match(r"WRONGTYPE |.*user_script:\d+: ", str(error.__cause__)) is not None


def _fields(reply: Any) -> Sequence[bytes | None]:
    if isinstance(reply, redis.ResponseError) and str(reply).startswith("WRONGTYPE"):
        raise ValueError("its key is not a hash")
    if isinstance(reply, Exception):
        raise reply
    return reply  # type: ignore[no-any-return]


def _applied_at_ms(outcome: Outcome) -> int:
    """Return when the expiry was applied, by Redis' clock."""
    return int(str(outcome.cursor).partition("-")[0])
