"""The expiry worker: Clerk sends nothing when a session runs out, so the relay makes an event of its own.

That goes through the same script as Clerk's events. The script does nothing if the stored state has changed since
it was read here. So any number of workers may run, and be killed, at any time.

`abandon_at` is ignored: Clerk moves it whenever the user is active, and sends no event about it.
"""

import itertools
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import redis
import structlog
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys

from service.config import StoreSettings
from service.errors import StoreUnavailableError
from service.models import NewState, Outcome
from service.store.sessions import SessionStore
from service.store.stored import STORED_FIELDS
from service.workers.expiry_event import expiry_of

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


class _Partition(NamedTuple):
    number: int
    keys: Keys
    client: Any


class ExpiryWorker:
    """Ends sessions that ran out."""

    def __init__(self, settings: StoreSettings, *, clock: Callable[[], float] = time.time) -> None:
        """Take a clock that returns Unix seconds; raise ConfigurationError if REDIS_URL can't be used."""
        self._store = SessionStore(settings)
        self._omitted = settings.omit_fields
        self._clock = clock
        url, tls_verify = settings.redis_url.get_secret_value(), settings.redis_tls_verify
        clients: dict[int, Any] = {}
        self._slots: dict[int, list[_Partition]] = {}
        parts = Keys(settings.redis_key_prefix, settings.redis_channel).split(settings.partitions)
        for number, keys in enumerate(parts):
            slot = connections.slot(url, keys.events)
            if slot not in clients:
                clients[slot] = connections.connect(
                    url, keys.events, tls_verify=tls_verify, timeout=settings.redis_timeout
                )
            self._slots.setdefault(slot, []).append(_Partition(number, keys, clients[slot]))
        self._unreadable: set[str] = set()
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
        threads = [threading.Thread(target=self._run, args=(slot,), daemon=True) for slot in self._slots.values()]
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
        for partition in itertools.chain(*self._slots.values()):
            offset, size = 0, BATCH
            while size:
                done, left, size = self._take(partition, now_ms, offset)
                expired += done
                offset += left
            skipped += offset
        return expired, skipped

    def close(self) -> None:
        """Disconnect."""
        self._store.close()
        for partitions in self._slots.values():
            partitions[0].client.close()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _run(self, partitions: list[_Partition]) -> None:
        is_failing = False
        try:
            while not self._stopping.is_set():
                pause = IDLE_SECONDS
                try:
                    pause = self._look(partitions)
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
                    partitions[0].client.connection_pool.disconnect()
                self._stopping.wait(pause)
        except Exception as error:  # noqa: BLE001  # raised by run_until_signal
            self._failure = error
            os.kill(os.getpid(), signal.SIGTERM)

    def _look(self, partitions: list[_Partition]) -> float:
        """Expire a batch of each partition, if sessions are due; return the seconds until the next look."""
        now_ms = self._now_ms()
        pipeline = partitions[0].client.pipeline(transaction=False)
        for each in partitions:
            pipeline.zcount(each.keys.expiry, "-inf", now_ms)
            pipeline.zrangebyscore(each.keys.expiry, "-inf", "+inf", start=0, num=1, withscores=True)
        replies = pipeline.execute()
        pause = IDLE_SECONDS
        for partition, due, first in zip(partitions, replies[::2], replies[1::2], strict=True):
            if due:
                batches = min(-(-due // BATCH), SPREAD)
                offset = BATCH * random.randrange(batches)  # noqa: S311
                expired, skipped, size = self._take(partition, now_ms, offset)
                if expired:
                    pause = 0.0
                elif skipped < size:
                    pause = min(pause, random.uniform(0, RETRY_SECONDS))  # noqa: S311
            elif first:
                pause = min(pause, (first[0][1] - now_ms) / 1000)
        return pause

    def _take(self, partition: _Partition, now_ms: int, offset: int) -> tuple[int, int, int]:
        """Expire a batch of the sessions that were due at a time, without the first `offset` of them.

        Returns:
            How many it expired, how many stay due because they can't be read, and the size of the batch.

        Raises:
            redis.RedisError: The batch could not be read.
            StoreUnavailableError: Redis failed; the whole batch was tried nevertheless.
        """
        due = partition.client.zrangebyscore(partition.keys.expiry, "-inf", now_ms, start=offset, num=BATCH)
        ids = [each.decode(errors="backslashreplace") for each in due]
        found = list(self._read(partition, ids, now_ms))
        skipped = len(due) - len(found)
        others = [session_id for session_id, expiry in found if expiry is None]
        submitted = [
            (expiry, self._store.replace(self._store.partitions[partition.number], expiry, self._now_ms()))
            for _, expiry in found
            if expiry is not None
        ]
        lags_ms: list[int] = []
        failure: StoreUnavailableError | None = None
        for expiry, future in submitted:
            try:
                outcome = future.result()
            except StoreUnavailableError as error:
                if _is_about_one_session(error):
                    skipped += 1
                    self._skip(expiry.session_id, connections.explain(error.__cause__ or error))
                else:
                    failure = error
                continue
            if isinstance(outcome, Outcome) and outcome.outcome == "applied":
                applied_at_ms = int(str(outcome.cursor).partition("-")[0])  # by Redis' clock
                lags_ms.append(applied_at_ms - int(expiry.expire_at_ms or 0))
            else:
                others.append(expiry.session_id)
        if lags_ms:
            log.info("sessions_expired", sessions=len(lags_ms), max_lag_ms=max(lags_ms))
        for settled in [self._store.settle_expiry(partition.number, session_id) for session_id in others]:
            settled.result()
        if failure is not None:
            raise failure
        return len(lags_ms), skipped, len(due)

    def _read(
        self, partition: _Partition, session_ids: list[str], now_ms: int
    ) -> Iterator[tuple[str, NewState | None]]:
        """Return the expiry of each session that can be read, or None if it does not expire."""
        pipeline = partition.client.pipeline(transaction=False)
        for session_id in session_ids:
            pipeline.hmget(partition.keys.session(session_id), STORED_FIELDS)
        for session_id, reply in zip(session_ids, pipeline.execute(raise_on_error=False), strict=True):
            try:
                yield session_id, expiry_of(session_id, _fields(reply), now_ms, self._omitted)
            except ValueError as error:
                self._skip(session_id, str(error))

    def _skip(self, session_id: str, why: str) -> None:
        """Leave a session in the expiry set, for a version that can read it; log that once."""
        if session_id not in self._unreadable:
            self._unreadable.add(session_id)
            log.warning("session_unreadable", session_id=session_id, detail=why)


def _is_about_one_session(error: StoreUnavailableError) -> bool:
    """Tell if Redis would take others: the key is of another type, or the script can't read a field of it."""
    return re.match(r"WRONGTYPE |.*user_script:\d+: ", str(error.__cause__)) is not None


def _fields(reply: Any) -> Sequence[bytes | None]:
    if isinstance(reply, redis.ResponseError) and str(reply).startswith("WRONGTYPE"):
        raise ValueError("its key is not a hash")
    if isinstance(reply, Exception):
        raise reply
    return reply  # type: ignore[no-any-return]
