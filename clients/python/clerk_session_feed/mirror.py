"""Mirrors: the state of all sessions in memory, for answers without a round trip that know how old they are.

A long module, since what begins and ends a mirror stands twice, for threads and for asyncio. So does what answers: with
past_max_age="ask", it has to be awaited in asyncio.
"""

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import threading
from collections.abc import Callable
from time import time
from typing import Any, ClassVar, Final, Generic, Literal, Self, TypeVar

import redis

from clerk_session_feed import transport
from clerk_session_feed.connections import explain
from clerk_session_feed.errors import FeedClosedError, FeedError, MirrorTooOldError
from clerk_session_feed.keys import partition_of
from clerk_session_feed.mirror_reading import MirrorReading
from clerk_session_feed.models import OPEN_STATUSES, LiveStatus
from clerk_session_feed.stream import Partition, follow
from clerk_session_feed.transport import AsyncConnection, BlockingConnection, OnReconnect, clock, run
from clerk_session_feed.updates import SessionUpdate

MAX_AGE: Final = 5.0
"""Seconds; the default of `max_age`."""
KEEP_ENDED: Final = 7 * 86_400.0
"""Seconds; the default of `keep_ended`, and of SESSION_RETENTION."""

C = TypeVar("C", BlockingConnection, AsyncConnection)
PastMaxAge = Literal["raise", "ask", "allow"]

log = logging.getLogger("clerk_session_feed")


@dataclasses.dataclass(frozen=True, slots=True)
class MirrorOptions:
    """The arguments of `SessionFeed.mirror`."""

    max_age: float
    past_max_age: PastMaxAge
    keep_ended: float
    on_reconnect: OnReconnect

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not self.max_age > 0:
            raise ValueError(f"max_age={self.max_age} is no number of seconds.")
        if not 0 <= self.keep_ended < math.inf:
            raise ValueError(f"keep_ended={self.keep_ended} is no number of seconds.")
        if self.past_max_age not in {"raise", "ask", "allow"}:
            raise ValueError(f'past_max_age={self.past_max_age!r} is not "raise", "ask" or "allow".')


class _Mirror(Generic[C]):
    """What the mirrors for threads and for asyncio have in common."""

    _event: ClassVar[type[Any]]

    def __init__(
        self,
        connect: Callable[[list[list[Partition]], OnReconnect, float], list[C]],
        slots: list[list[Partition]],
        options: MirrorOptions,
        status: Callable[..., Any],
        get: Callable[..., Any],
    ) -> None:
        """Begin to follow. connect: returns connections to slots. status, get: those of the feed."""
        self._options = options
        self._ask_status = status
        self._ask_state = get
        self._pid = os.getpid()
        self._error: Exception | None = None
        """What ended it."""
        self._is_over = False
        self._away: dict[int, tuple[float, redis.RedisError]] = {}
        """By slot, since when Redis is away, and what it said last. Out of date once Redis was heard again."""
        self._ready: Any = self._event()
        self._count = sum(map(len, slots))
        max_age = math.inf if options.past_max_age == "allow" else options.max_age
        longest_wait = min(options.max_age / 2, transport.BLOCK_MS / 1000)
        self._reading = MirrorReading(
            self._count, max_age, options.keep_ended, longest_wait=longest_wait, on_ready=self._ready.set
        )
        self._slots = slots
        self._connections: list[C] = [
            made
            for number, slot in enumerate(slots)
            for made in connect([slot], self._noting(number), self._reading.longest_wait)
        ]
        pairs = zip(self._connections, slots, strict=True)
        self._workers = [connection.start(self._keep, connection, slot) for connection, slot in pairs]

    def __len__(self) -> int:
        """Return the number of open sessions: `active` or `pending`. It takes an hour to notice that one expired."""
        return self._reading.open

    def __bool__(self) -> bool:
        """Return True, also without any session."""
        return True

    @property
    def age(self) -> float:
        """Seconds since the mirror last knew that it had missed nothing; inf before it is ready."""
        return clock() - self._reading.known_at

    @property
    def is_ready(self) -> bool:
        """Whether it has read the state of all sessions, and still follows. It may be too old nevertheless."""
        return self._reading.known_at > -math.inf and not self._is_over and not self._is_forked

    # What happens in the threads, or tasks

    async def _keep(self, connection: C, slot: list[Partition]) -> None:
        try:
            async with contextlib.aclosing(follow(connection, slot, reading=self._reading, resync=True)) as batches:
                async for batch in batches:
                    for _ in batch:  # nothing is in it, but looking there fills the table
                        pass
        except FeedClosedError:
            pass
        except Exception as error:  # noqa: BLE001  # whoever asks the mirror gets it
            if not self._is_over:
                self._error = error
                log.error("The mirror has ended: %s", explain(error))  # noqa: TRY400  # it is raised, too
        finally:
            self._end()
            for each in self._connections:
                await each.close()

    def _noting(self, slot: int) -> OnReconnect:
        def note(error: redis.RedisError) -> None:
            since, _ = self._away.get(slot, (-math.inf, error))
            is_first = since <= self._heard_at(slot)
            self._away[slot] = (clock() if is_first else since, error)
            self._options.on_reconnect(error)

        return note

    def _heard_at(self, slot: int) -> float:
        return max(self._reading.heard_at[partition.number] for partition in self._slots[slot])

    def _end(self) -> None:
        self._is_over = True
        self._reading.end()
        self._ready.set()

    # Answers

    def _held_status(self, session_id: str, user_id: str | None) -> LiveStatus:
        """Return what memory says, whatever its age."""
        tables, now = self._reading.tables, time()
        if user_id is not None and self._count > 1:
            tables = [tables[partition_of(user_id, self._count)]]
        try:
            for table in tables:
                if (until := table.kept.get(session_id)) is not None:
                    is_live = until > now or (until >= 0 and table.is_live_at(session_id, now))
                    return "live" if is_live else "ended"
        except TypeError:  # a claim of a token can be anything, also what is no key of a dict
            pass
        return "unknown"

    @property
    def _is_too_old(self) -> bool:
        return clock() >= self._reading.old_at

    @property
    def _may_ask(self) -> bool:
        return self._options.past_max_age == "ask" and not self._is_closed

    @property
    def _is_closed(self) -> bool:
        return self._is_over and self._error is None

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    def _refusal(self) -> FeedError:
        """Return what tells why memory can't say."""
        if self._is_closed:
            return FeedClosedError("The mirror is closed.")
        error = MirrorTooOldError(self.age, self._options.max_age, self._reason())
        error.__cause__ = self._error
        return error

    def _refuse_unready(self) -> None:
        if self._error is not None:
            raise self._error
        if self._is_closed:
            raise FeedClosedError("The mirror is closed.")
        if not self.is_ready:
            raise TimeoutError(f"The mirror is not ready: {self._reason()}.")

    def _reason(self) -> str:
        if self._error is not None:
            return f"it has ended, since {explain(self._error)}"
        if self._is_forked:
            return "this process was forked from the one that follows: make a mirror in each process"
        away = [(since, error) for slot, (since, error) in list(self._away.items()) if since > self._heard_at(slot)]
        if away:
            since, error = min(away, key=lambda each: each[0])
            return f"Redis has been away for {clock() - since:.1f} s: {explain(error)}"
        if (count := self._reading.growing) is not None:
            again = "again, since the stream has lost its place" if self._reading.known_at > -math.inf else "still"
            return f"the sessions are {again} being read, {count} so far"
        return "Redis does not answer, or this process had no time to look"


class _Answering(_Mirror[C]):
    """What answers without being awaited."""

    def status(self, session_id: str, user_id: str | None = None) -> LiveStatus:
        """Tell what `SessionFeed.status` would have told at most max_age ago, from memory.

        An `expire_at` that has passed since counts, as it does there.

        Args:
            session_id: Clerk's id of the session.
            user_id: Whose session it is, if that is known; of use with partitions only.

        Raises:
            MirrorTooOldError: If the mirror is older than max_age, and may not ask; or was never ready; or has ended.
                Its `__cause__` is the error that ended it.
            FeedClosedError: If the mirror is closed.
            redis.RedisError: With past_max_age="ask": if Redis can't say.
        """
        reading = self._reading
        if clock() >= reading.old_at:
            return self._ask_status_or_refuse(session_id, user_id)
        # What nearly every question gets, without a further call.
        try:
            until = reading.only.get(session_id)
        except TypeError:
            return "unknown"
        if until is not None and until > time():
            return "live"
        return self._held_status(session_id, user_id)

    def is_live(self, session_id: str, user_id: str | None = None) -> bool:
        """Tell whether the session's `status` is `live`. Arguments and errors are those of `status`."""
        return self.status(session_id, user_id) == "live"

    def user_id(self, session_id: str) -> str | None:
        """Return the user of an open session (`active` or `pending`); None for any other. Raises like `status`."""
        if self._is_too_old:
            return self._ask_user_or_refuse(session_id)
        return self._reading.user_id(session_id)

    def _ask_status_or_refuse(self, session_id: str, user_id: str | None) -> LiveStatus:  # noqa: ARG002
        raise self._refusal()

    def _ask_user_or_refuse(self, session_id: str) -> str | None:  # noqa: ARG002
        raise self._refusal()


class Mirror(_Answering[BlockingConnection]):
    """The state of all sessions in memory, kept up to date by a thread: `SessionFeed.mirror` returns it.

        with feed.mirror() as mirror:
            mirror.wait_until_ready(60)
            if mirror.is_live("sess_…"): ...

    Thread-safe. It ends with `close`, or with the feed. In a forked process it has no thread: make one in each.
    """

    _event = threading.Event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop following. What is asked afterwards raises FeedClosedError."""
        self._end()
        for connection in self._connections:
            run(connection.close)

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Return as soon as the state of all sessions has been read.

        Args:
            timeout: Seconds to wait at most; None: however long it takes.

        Raises:
            TimeoutError: If it takes longer, or this process was forked from the one that follows; the text says why.
            FeedClosedError: If the mirror is closed.
            redis.RedisError: If another attempt can't help.
            FeedError: Another of `SessionFeed.follow`'s, which ended it.
        """
        if not self._is_forked:  # else nothing comes
            self._ready.wait(timeout)
        self._refuse_unready()

    def _ask_status_or_refuse(self, session_id: str, user_id: str | None) -> LiveStatus:
        if not self._may_ask:
            raise self._refusal()
        asked: LiveStatus = self._ask_status(session_id, user_id)
        return asked

    def _ask_user_or_refuse(self, session_id: str) -> str | None:
        if not self._may_ask:
            raise self._refusal()
        return _user_of(self._ask_state(session_id))


class _AsyncMirror(_Mirror[AsyncConnection]):
    """How mirrors for asyncio begin and end."""

    _event = asyncio.Event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Mirror.close`. The tasks have ended then, too, if it is awaited in their event loop."""
        self._end()
        for connection in self._connections:
            await connection.close()
        here = asyncio.get_running_loop()
        for task in [each for each in self._workers if each.get_loop() is here]:
            task.cancel()  # it may be connecting, which takes a while to fail
            await asyncio.wait([task])

    async def wait_until_ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # as for threads
        """See `Mirror.wait_until_ready`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._is_forked else timeout):
                await self._ready.wait()
        self._refuse_unready()


class AsyncMirror(_AsyncMirror, _Answering[AsyncConnection]):
    """The methods of `Mirror`, for asyncio. They are described there.

    It belongs to the event loop in which it began: a task of that loop follows. What answers is not awaited, and may
    be called anywhere: `mirror.status("sess_…")`.
    """


class AsyncAskingMirror(_AsyncMirror):
    """An `AsyncMirror` with past_max_age="ask": what answers is awaited, since it may take a round trip."""

    async def status(self, session_id: str, user_id: str | None = None) -> LiveStatus:
        """See `Mirror.status`."""
        if not self._is_too_old:
            return self._held_status(session_id, user_id)
        if not self._may_ask:
            raise self._refusal()
        asked: LiveStatus = await self._ask_status(session_id, user_id)
        return asked

    async def is_live(self, session_id: str, user_id: str | None = None) -> bool:
        """See `Mirror.is_live`."""
        return await self.status(session_id, user_id) == "live"

    async def user_id(self, session_id: str) -> str | None:
        """See `Mirror.user_id`."""
        if not self._is_too_old:
            return self._reading.user_id(session_id)
        if not self._may_ask:
            raise self._refusal()
        return _user_of(await self._ask_state(session_id))


def _user_of(update: SessionUpdate | None) -> str | None:
    if update is None or not (update.session.live or update.session.status in OPEN_STATUSES):
        return None
    return update.session.user_id
