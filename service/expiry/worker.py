"""The expiry worker: Clerk says nothing when a session runs out, so what is due becomes an event of our own.

It goes through the same script as Clerk's events, which does nothing if another state is held by then than
was read here. So any number of workers may run, and be killed, at any time.

`abandon_at` is left alone: Clerk moves it whenever the user is active, and sends no event about it. So what
is held of it says nothing about the session.

A long module: the loop and the batch belong together; what an expiry is, is in `synthetic`.
"""

import dataclasses
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
import structlog
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys

from service.config import StoreSettings
from service.errors import StoreUnavailableError
from service.expiry.event import HELD_FIELDS, expiry_of
from service.models import Expiry, Outcome
from service.store.sessions import SessionStore

log = structlog.get_logger(__name__)

BATCH: Final = 128
"""Sessions taken at once: one pipeline of GroupCommit."""
SPREAD: Final = 64
"""Batches among which workers choose by chance, so that they seldom meet. Redis walks past those before."""
IDLE_SECONDS: Final = 0.5
"""At most, until it is looked again whether something is due; also after an error."""
MEET_SECONDS: Final = 0.1
"""At most, after a batch that others had taken already: they shall not meet again."""
STOP_SECONDS: Final = 3.0
"""For what is under way when the worker is told to stop."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Lane:
    """Partitions that one connection reaches."""

    client: Any
    partitions: list[tuple[int, Keys]]
    unreadable: set[str]
    """Sessions whose keys can't be read; they stay in the expiry set, for a version that can."""

    def leave(self, session_id: str, why: str) -> None:
        """Say so, once."""
        if session_id not in self.unreadable:
            self.unreadable.add(session_id)
            log.warning("session_unreadable", session_id=session_id, detail=why)


@dataclasses.dataclass(frozen=True, slots=True)
class _Taken:
    """What became of a batch."""

    expired: int
    left: int
    """In the set, since they can't be read."""
    size: int


class ExpiryWorker:
    def __init__(self, settings: StoreSettings, *, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix seconds. Raises ConfigurationError if REDIS_URL can't be used."""
        self._store = SessionStore(settings)
        self._omitted = settings.omit_fields
        self._clock = clock
        url = settings.redis_url.get_secret_value()
        lanes: dict[int, _Lane] = {}
        parts = Keys(settings.redis_key_prefix, settings.redis_channel).split(settings.partitions)
        for number, keys in enumerate(parts):
            lane = connections.lane(url, keys.events)
            if lane not in lanes:
                client = connections.connect(
                    url,
                    keys.events,
                    tls_verify=settings.redis_tls_verify,
                    timeout=settings.redis_timeout,
                )
                lanes[lane] = _Lane(client, [], set())
            lanes[lane].partitions.append((number, keys))
        self._lanes = list(lanes.values())
        self._stopping = threading.Event()
        self._failure: Exception | None = None

    def run_until_signal(self) -> None:
        """Expire what is due, as it becomes due, until SIGTERM or SIGINT.

        Raises redis.RedisError if trying again can't mend it: a wrong password, a lack of rights.
        """
        # Blocked, here and in the threads to come, and waited for: no handler runs in the middle of something
        # else, and a signal that comes again while the process ends does not kill it.
        signals = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threads = [threading.Thread(target=self._run, args=(lane,), daemon=True) for lane in self._lanes]
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
        """Expire what is due now; return how many, and how many could not be read.

        Raises redis.RedisError, StoreUnavailableError.
        """
        now_ms, expired, left = self._now_ms(), 0, 0
        for lane in self._lanes:
            for number, keys in lane.partitions:
                offset = 0
                while (taken := self._take(lane, number, keys, now_ms, offset)).size:
                    expired += taken.expired
                    offset += taken.left
                left += offset
        return expired, left

    def close(self) -> None:
        self._store.close()
        for lane in self._lanes:
            lane.client.close()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _run(self, lane: _Lane) -> None:
        is_failing = False
        try:
            while not self._stopping.is_set():
                pause = IDLE_SECONDS
                try:
                    pause = self._round(lane)
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
                    # The primary may be another one by now, which connecting finds out.
                    lane.client.connection_pool.disconnect()
                self._stopping.wait(pause)
        except Exception as error:  # noqa: BLE001  # raised by run_until_signal
            self._failure = error
            os.kill(os.getpid(), signal.SIGTERM)

    def _round(self, lane: _Lane) -> float:
        """Take a batch of each partition, if something is due; return for how many seconds to wait."""
        now_ms = self._now_ms()
        pipeline = lane.client.pipeline(transaction=False)
        for _, keys in lane.partitions:
            pipeline.zcount(keys.expiry, "-inf", now_ms)
            pipeline.zrangebyscore(keys.expiry, "-inf", "+inf", start=0, num=1, withscores=True)
        replies = pipeline.execute()
        pause = IDLE_SECONDS
        for (number, keys), due, first in zip(lane.partitions, replies[::2], replies[1::2], strict=True):
            if due:
                batches = min(-(-due // BATCH), SPREAD)
                taken = self._take(lane, number, keys, now_ms, BATCH * random.randrange(batches))  # noqa: S311
                if taken.expired:
                    pause = 0.0
                elif taken.left < taken.size:
                    pause = min(pause, random.uniform(0, MEET_SECONDS))  # noqa: S311
            elif first:
                pause = min(pause, (first[0][1] - now_ms) / 1000)
        return pause

    def _take(self, lane: _Lane, number: int, keys: Keys, now_ms: int, offset: int) -> _Taken:
        """Expire a batch of what was due at a time. offset: of how many that are due it is not.

        Raises redis.RedisError, StoreUnavailableError; the rest of the batch was tried all the same.
        """
        due = lane.client.zrangebyscore(keys.expiry, "-inf", now_ms, start=offset, num=BATCH)
        ids = [each.decode(errors="backslashreplace") for each in due]
        expiries, other = self._read(lane, keys, ids, now_ms)
        left = len(due) - len(expiries) - len(other)
        begun = [(expiry, self._store.expire(number, expiry, self._now_ms())) for expiry in expiries]
        lags_ms: list[int] = []
        failure: StoreUnavailableError | None = None
        for expiry, future in begun:
            try:
                outcome = future.result()
            except StoreUnavailableError as error:
                if _is_about_one_session(error):
                    left += 1
                    lane.leave(expiry.session_id, connections.explain(error.__cause__ or error))
                else:
                    failure = error
                continue
            if outcome is not None and outcome.outcome == "applied":
                lags_ms.append(_taken_at_ms(outcome) - expiry.expire_at)
            else:
                other.append(expiry.session_id)
        if lags_ms:
            log.info("sessions_expired", sessions=len(lags_ms), max_lag_ms=max(lags_ms))
        for settled in [self._store.settle_expiry(number, session_id) for session_id in other]:
            settled.result()
        if failure is not None:
            raise failure
        return _Taken(len(lags_ms), left, len(due))

    def _read(
        self, lane: _Lane, keys: Keys, session_ids: list[str], now_ms: int
    ) -> tuple[list[Expiry], list[str]]:
        """Return what ends these sessions, and those that there is nothing to end of."""
        pipeline = lane.client.pipeline(transaction=False)
        for session_id in session_ids:
            pipeline.hmget(keys.session(session_id), HELD_FIELDS)
        expiries: list[Expiry] = []
        other: list[str] = []
        for session_id, held in zip(session_ids, pipeline.execute(raise_on_error=False), strict=True):
            try:
                expiry = expiry_of(session_id, _checked(held), now_ms, self._omitted)
            except ValueError as error:
                lane.leave(session_id, str(error))
                continue
            if expiry is None:
                other.append(session_id)
            else:
                expiries.append(expiry)
        return expiries, other


def _is_about_one_session(error: StoreUnavailableError) -> bool:
    """Tell whether Redis would take others: a key holds something else, or the script can't read a field."""
    return re.match(r"WRONGTYPE |.*user_script:\d+: ", str(error.__cause__)) is not None


def _checked(held: Any) -> Sequence[bytes | None]:
    if isinstance(held, redis.ResponseError) and str(held).startswith("WRONGTYPE"):
        raise ValueError("its key is no hash")
    if isinstance(held, Exception):
        raise held
    fields: Sequence[bytes | None] = held
    return fields


def _taken_at_ms(outcome: Outcome) -> int:
    """When Redis had it, by its own clock."""
    return int(str(outcome.cursor).partition("-")[0])
