"""The expiry worker: Clerk sends nothing when a session runs out, so the relay makes an event of its own.

That goes through the same script as Clerk's events (`expiry_batch`). Until a session is due, the worker waits at the
stream (`expiry_watch`). When very many are due, it goes at a pace (`expiry_pace`).

`abandon_at` is ignored: Clerk moves it whenever the user is active, and sends no event about it.
"""

import dataclasses
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import redis
import structlog
from clerk_session_feed.connections import explain

from service.config import StoreSettings
from service.errors import StoreUnavailableError
from service.store.partitions import Partition
from service.store.pipeline import Pipeline
from service.store.rights import is_missing_right
from service.store.sessions import SessionStore
from service.workers.expiry_batch import Expirer
from service.workers.expiry_pace import Pace
from service.workers.expiry_watch import BEGINNING, StreamWatch

log = structlog.get_logger(__name__)

REST_SECONDS: Final = 0.5
"""Seconds between two looks for what is due, if nothing was: a stream may get thousands of entries a second."""
RETRY_SECONDS: Final = 0.1
"""Seconds, at most, after a batch that another worker took; a random part of it, so that they part ways."""
LONGEST_PAUSE: Final = 4.0
"""Seconds between two attempts while Redis fails, at most; each pause is twice the one before, from REST_SECONDS on."""
STOP_SECONDS: Final = 3.0
"""Seconds for the batch that is under way when the worker has to stop."""


@dataclasses.dataclass(slots=True)
class _Watched:
    """A partition, and when to look at it."""

    partition: Partition
    pace: Pace
    position: str | None = None
    """The cursor at the end of the stream; None: it has got entries since."""
    written: int = 0
    """Entries that this worker has written, and the pace does not know of."""
    look_at_ms: float = 0.0
    """When to look again, by the worker's clock; also earlier, if the stream gets something."""
    is_slowed: bool = False


def _slowed(pace: Pace) -> str:
    most = f"At most {pace.rate:.0f} sessions a second expire, for all workers together"
    return f"{most}, so that those who follow the stream keep up. A greater STREAM_MAXLEN allows more."


@dataclasses.dataclass(slots=True)
class _Slot:
    """The partitions that share their connections, for one thread."""

    watched: Sequence[_Watched]
    expirer: Expirer
    watch: StreamWatch
    look_at_all: float = 0.0
    """When to look at all partitions again, by the monotonic clock."""


class ExpiryWorker:
    """Ends sessions that ran out."""

    def __init__(self, settings: StoreSettings, *, clock: Callable[[], float] = time.time) -> None:
        """Take a clock that returns Unix seconds; raise ConfigurationError if REDIS_URL can't be used."""
        self._store = SessionStore(settings)
        self._clock = clock
        slots: dict[Pipeline, list[Partition]] = {}
        for partition in self._store.partitions:
            slots.setdefault(partition.pipeline, []).append(partition)
        self._slots = [
            _Slot(
                [_Watched(each, Pace(settings.stream_maxlen)) for each in partitions],
                Expirer(self._store, self._now_ms, settings.redis_timeout),
                StreamWatch(settings, partitions),
            )
            for partitions in slots.values()
        ]
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
            for each in slot.watched:
                expired += slot.expirer.expire_all(
                    each.partition, now_ms, each.pace.batch, partial(self._rest, each.pace)
                )
                # Sessions that are left now can't be read, or other workers came in between.
                offset, size = 0, 1
                while size:
                    batch = slot.expirer.expire(each.partition, now_ms, offset, each.pace.batch)
                    size = batch.size
                    expired += batch.expired
                    offset += batch.skipped
                    self._rest(each.pace, batch.expired)
                skipped += offset
        return expired, skipped

    def _rest(self, pace: Pace, expired: int) -> None:
        """Wait until the pace allows another batch after one that expired so many."""
        pace.record(expired, None)
        self._stopping.wait(pace.pause())

    def close(self) -> None:
        """Disconnect."""
        self._store.close()
        for slot in self._slots:
            slot.watch.close()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _run(self, slot: _Slot) -> None:
        pause = 0.0
        try:
            while not self._stopping.is_set():
                try:
                    self._turn(slot)
                    if pause:
                        log.info("expiry_resumed")
                    pause = 0.0
                except (redis.RedisError, StoreUnavailableError) as error:
                    cause = error.__cause__ or error
                    if isinstance(cause, redis.AuthenticationError) or is_missing_right(cause):
                        raise cause from None
                    if not pause:
                        log.warning("expiry_failed", detail=explain(cause))
                    pause = min(max(2 * pause, REST_SECONDS), LONGEST_PAUSE)
                    slot.watch.disconnect()
                    slot.look_at_all = 0.0
                    for each in slot.watched:  # the next connection may lead to another server
                        each.position = None
                    self._stopping.wait(pause)
        except Exception as error:  # noqa: BLE001  # raised by run_until_signal
            self._failure = error
            os.kill(os.getpid(), signal.SIGTERM)

    def _turn(self, slot: _Slot) -> None:
        """Look at the partitions that need it; then wait until one of them does."""
        now = time.monotonic()
        if now >= slot.look_at_all:
            self._look(slot, slot.watched)
            slot.look_at_all = now + slot.watch.look_seconds
        elif ready := [each for each in slot.watched if each.look_at_ms <= self._now_ms()]:
            self._look(slot, ready)
        due_ms = min(each.look_at_ms for each in slot.watched) - self._now_ms()
        seconds = max(0.0, min(due_ms / 1000, slot.look_at_all - time.monotonic()))
        if not self._stopping.wait(min(seconds, REST_SECONDS)) and seconds > REST_SECONDS:
            positions = {each.partition.keys.events: each.position or BEGINNING for each in slot.watched}
            news = slot.watch.wait(positions, seconds - REST_SECONDS, self._stopping)
            for each in slot.watched:
                if each.partition.keys.events in news:
                    each.position, each.look_at_ms = None, 0.0

    def _look(self, slot: _Slot, watched: Sequence[_Watched]) -> None:
        """Expire a batch of each partition in which sessions are due, and set when to look again."""
        # Before looking: what comes in between will be found behind this.
        unknown = [each for each in watched if each.position is None]
        positions = slot.watch.positions([each.partition.keys.events for each in unknown])
        for each, position in zip(unknown, positions, strict=True):
            each.position = position
        firsts_ms = slot.expirer.first_ms([each.partition for each in watched])
        for each, first_ms in zip(watched, firsts_ms, strict=True):
            each.look_at_ms = first_ms
            if first_ms <= (now_ms := self._now_ms()):
                each.look_at_ms = now_ms + 1000 * self._expire(slot, each)
            else:
                each.is_slowed = False

    def _expire(self, slot: _Slot, watched: _Watched) -> float:
        """Expire a batch if the pace allows it; return the seconds until the next one."""
        watched.pace.record(watched.written, slot.watch.added(watched.partition.keys.events))
        watched.written = 0
        if pause := watched.pace.pause():
            if not watched.is_slowed:
                watched.is_slowed = True
                log.info("expiry_slowed", partition=watched.partition.number, detail=_slowed(watched.pace))
            return pause
        batch = slot.expirer.expire_some(watched.partition, watched.pace.batch)
        watched.written, watched.position = batch.expired, None
        return 0.0 if batch.expired else random.uniform(0, RETRY_SECONDS)  # noqa: S311
