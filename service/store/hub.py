"""Follows Redis once for all readers of this process, and tells each of what is applied, from where it was, exactly.

A reader begins now, or behind a position. What lies between that and the hub is read from Redis a page at a time, at
the reader's pace; the rest is in memory (`recent`), so that the reader joins without a gap, and nothing comes twice.

All of it happens on one event loop: the server's, or, under other servers, one in a thread.

A long module: following, catching up and telling share one position in the stream.
"""

import asyncio
import collections
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog
from clerk_session_feed import AsyncSessionFeed
from clerk_session_feed.connections import explain
from clerk_session_feed.cursors import NOTHING, position
from clerk_session_feed.errors import CursorLostError, UnreadableMessageError
from clerk_session_feed.updates import SessionUpdate, now_ms

from service.config import StoreSettings
from service.errors import StoreUnavailableError
from service.store import positions
from service.store.behind import LostError, is_entry, is_there, read_behind
from service.store.partitions import Partition
from service.store.queries import Queries
from service.store.recent import Entry, RecentEntries
from service.store.shown import Shown
from service.store.subscription import MAX_BYTES, Notice, Scope, Subscription

log = structlog.get_logger(__name__)

T = TypeVar("T")

TICK: Final = 1.0
"""Seconds between two looks at who was told nothing for long."""
HEARTBEAT_TICKS: Final = 15
"""Ticks after which a reader that was told nothing gets a heartbeat; Heroku's router ends what is silent for 55 s."""
POSITION_EVERY: Final = 250
"""Entries for other readers after which a reader gets its new position: it can go on from there, even if the stream is
trimmed past the last entry that was for this reader."""
WOKEN_AT_ONCE: Final = 20
"""Readers that may send at once: about half a millisecond, in which no delivery is served."""
WAKE_PAUSE: Final = 0.002
"""Seconds until the next ones may."""
REST: Final = 0.1
"""Seconds between two reads of the stream: what comes meanwhile is read together, since a read takes as much CPU time
as ten entries. An event that comes after a silence is told at once."""
TOLD_AT_ONCE: Final = MAX_BYTES // 4
"""Bytes of messages after which all readers get their turn."""
RETRY_SECONDS: Final = 1.0
"""Seconds until another attempt, where Redis fails."""
AHEAD_SECONDS: Final = 0.05
"""Seconds until a reader is looked at again that another process has told more than the hub has seen."""
LINGER_SECONDS: Final = 30.0
"""Seconds for which the stream is followed after the last reader has gone."""
READS_AT_ONCE: Final = 4
"""Pages that are read at once for readers that are behind."""
LOG_SECONDS: Final = 60.0
"""Seconds in which it is logged once that the stream can't be followed."""
LONGEST_TIMER: Final = 3_600.0
"""Seconds after which a session is looked at again at the latest, however far its end is."""


class Hub:
    """Follows the stream as long as there are readers."""

    def __init__(self, settings: StoreSettings, queries: Queries) -> None:
        """Connect to nothing yet."""
        self._settings = settings
        self._queries = queries
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._following: asyncio.Task[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._tick_count = 0
        self._cursors: list[str] | None = None
        """How far the stream was read, by partition; None as long as it is not known where to begin."""
        self._recent = RecentEntries([])
        self._is_known = asyncio.Event()
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._seen = 0
        """Entries that were read so far."""
        self._readers: set[Subscription] = set()
        """All, also those that have not caught up."""
        self._told: dict[tuple[str, str], set[Subscription]] = {}
        """Those that have, by the key of their scope."""
        self._due: collections.deque[Subscription] = collections.deque()
        """Those that may take what waits for them, in turn."""
        self._all_woken = asyncio.Event()
        self._all_woken.set()
        self._lost_for = ""
        """Why what was read last is no position any more."""
        self._log_again_at = 0.0

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop instead of one in a thread; to be called before anything else."""
        self._loop = loop

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop on which everything happens."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="events", daemon=True).start()
            return self._loop

    @property
    def count(self) -> int:
        """How many readers there are."""
        return len(self._readers)

    def subscribe(self, scope: Scope, after: list[str] | None = None, *, is_lost: bool = False) -> Subscription:
        """Return a new reader. From any thread.

        Args:
            scope: what it gets.
            after: the cursor of each partition behind which it begins; None: now.
            is_lost: it has a position that means nothing here: it is told so, and begins now.
        """
        return self._call(lambda: self._subscribe(scope, after, is_lost=is_lost))

    def leave(self, reader: Subscription) -> None:
        """Forget a reader. From any thread, at any time."""
        self.loop.call_soon_threadsafe(self._leave, reader)

    def wait(self, awaitable: Coroutine[Any, Any, T]) -> T:
        """Await something on the hub's loop. This blocks the thread, which is not that loop's."""
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result()

    def close(self) -> None:
        """End all readers, and disconnect. Not in the thread of the loop."""
        if self._loop is not None and self._loop.is_running():
            self.wait(self._close())

    def _call(self, function: Callable[[], T]) -> T:
        try:
            if asyncio.get_running_loop() is self.loop:
                return function()
        except RuntimeError:  # this thread runs no loop
            pass

        async def call() -> T:
            return function()

        return self.wait(call())

    async def _close(self) -> None:
        for each in list(self._readers):
            self._leave(each)
        following = self._following
        self._stop_following()
        if following is not None:
            await asyncio.wait([following])

    # Readers come, are brought up to where the hub is, and go.

    def _subscribe(self, scope: Scope, after: list[str] | None, *, is_lost: bool) -> Subscription:
        reader = Subscription(scope, after, self._wake)
        reader.told_at = self._tick_count
        self._readers.add(reader)
        self._start_following()
        if scope.seconds is not None:
            reader.timers.append(self.loop.call_later(scope.seconds, reader.finish, "token_expired"))
        reader.task = self.loop.create_task(self._bring_up(reader, is_lost=is_lost))
        return reader

    def _leave(self, reader: Subscription) -> None:
        reader.close()
        self._readers.discard(reader)
        if readers := self._told.get(reader.scope.key):
            readers.discard(reader)
            if not readers:
                del self._told[reader.scope.key]
        if not self._readers and self._lingering is None:
            self._lingering = self.loop.call_later(LINGER_SECONDS, self._stop_following)

    async def _bring_up(self, reader: Subscription, *, is_lost: bool) -> None:
        """Tell a reader what lies between its position and the hub's, and let it join."""
        while not (reader.has_joined or reader.is_over):
            hub = await self._known_cursors()
            if is_lost:
                self._join(reader, self._resync("trimmed"))
                continue
            try:
                if reader.cursors is None:
                    reader.cursors = await self._ends()
                    reader.put(Notice("position", positions.write(reader.cursors)))
                elif not self._join_from_memory(reader, reader.cursors, hub):
                    await self._read_on(reader, reader.cursors, list(hub))
            except LostError:
                is_lost = True
            except (StoreUnavailableError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
        if reader.scope.session_id is not None:
            await self._end_with_session(reader, reader.scope.session_id)

    async def _ends(self) -> list[str]:
        """Return the cursor at the end of each stream; the hub may not have come so far. Raises like `read_behind`."""
        partitions = self._queries.partitions
        asked = [(each, ("XREVRANGE", each.keys.events, "+", "-", "COUNT", 1)) for each in partitions]
        return [found[0][0].decode() if found else NOTHING for found in await self._queries.ask_on_loop(asked)]

    async def _known_cursors(self) -> list[str]:
        while self._cursors is None:
            await self._is_known.wait()
        return self._cursors

    def _join(self, reader: Subscription, first: Notice | None) -> None:
        """Let a reader go on from where the hub is."""
        if first is not None:
            reader.put(first)
        reader.cursors, reader.has_joined, reader.seen = None, True, self._seen
        self._told.setdefault(reader.scope.key, set()).add(reader)

    def _join_from_memory(self, reader: Subscription, cursors: list[str], hub: list[str]) -> bool:
        """Let a reader join, if all that it missed is in memory, and not too much to wait for it at once."""
        is_ahead = any(position(own) > position(its) for own, its in zip(cursors, hub, strict=True))
        if is_ahead or not self._recent.covers(cursors):
            return False
        missed = [each for each in self._recent.behind(cursors) if each.is_for(reader.scope)]
        if not reader.has_room_for(len(missed), sum(len(each.message) for each in missed)):
            return False
        for entry in missed:
            _tell(reader, cursors, entry)
        self._join(reader, None)
        return True

    async def _read_on(self, reader: Subscription, cursors: list[str], hub: list[str]) -> None:
        """Tell a reader what Redis has between its cursors and those of the hub. Raises like `read_behind`."""
        for partition in self._queries.partitions:
            number = partition.number
            while not reader.is_over and position(cursors[number]) < position(hub[number]):
                async with self._reads:
                    entries = await read_behind(self._queries, partition, cursors[number], hub[number])
                for entry in entries:
                    if entry.is_for(reader.scope):
                        await reader.room()
                        _tell(reader, cursors, entry)
                    cursors[number] = entry.cursor
                if not entries:
                    cursors[number] = hub[number]
            if position(cursors[number]) > position(hub[number]):
                await self._await_hub(partition, cursors, hub[number])

    async def _await_hub(self, partition: Partition, cursors: list[str], hub: str) -> None:
        """Deal with a cursor that the hub has not reached. Raises like `read_behind`."""
        if not is_entry(cursors[partition.number]):
            cursors[partition.number] = hub  # it is a time, and nothing has come since
            return
        async with self._reads:
            if not await is_there(self._queries, partition, cursors[partition.number]):
                raise LostError
        await asyncio.sleep(AHEAD_SECONDS)  # another process was quicker

    async def _end_with_session(self, reader: Subscription, session_id: str) -> None:
        """End a reader if its session is over; else look again when the session runs out."""
        while not reader.is_over:
            try:
                replies = await self._queries.ask_on_loop(self._queries.asking_for(session_id))
            except (StoreUnavailableError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
                continue
            found = self._queries.found(replies)
            if found is None:  # its beginning may be on the way
                return
            if found.is_over and not self._has_reached(found):
                await asyncio.sleep(AHEAD_SECONDS)  # what ended it is told first
            elif found.is_over:
                reader.finish("session_ended", session_id=session_id, status=found.over_as)
            else:
                left = max(0.0, found.expire_at_ms - now_ms()) / 1000
                await asyncio.sleep(min(LONGEST_TIMER, left + 0.001))

    def _has_reached(self, found: Shown) -> bool:
        """Tell whether the stream was read up to what made a session's state."""
        number = self._queries.partition_of(found.user_id).number
        return self._cursors is not None and position(self._cursors[number]) >= position(found.cursor)

    # The stream is followed, and readers are told.

    def _start_following(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._following is None:
            self._following = self.loop.create_task(self._follow())
            self._ticking = self.loop.call_later(TICK, self._tick)

    def _stop_following(self) -> None:
        for each in (self._following, self._ticking, self._lingering):
            if each is not None:
                each.cancel()
        self._following = self._ticking = self._lingering = None
        self._lose("stopped")

    def _lose(self, reason: str) -> None:
        self._cursors, self._lost_for = None, reason
        self._is_known.clear()

    async def _follow(self) -> None:
        async with AsyncSessionFeed(self._settings) as feed:
            while True:
                try:
                    if self._cursors is None:
                        self._begin(await feed.now())
                    await self._follow_on(feed)
                except CursorLostError:
                    self._lose("trimmed")
                except UnreadableMessageError:
                    self._lose("unreadable")
                except Exception as error:  # noqa: BLE001  # whatever it is, readers wait for the next attempt
                    self._log_failure(error)
                    await asyncio.sleep(RETRY_SECONDS)

    def _begin(self, cursors: dict[int, str]) -> None:
        self._cursors = [cursors[number] for number in range(len(cursors))]
        self._recent = RecentEntries(self._cursors)
        for readers in self._told.values():  # of before it was lost
            for each in readers:
                each.put(self._resync(self._lost_for))
        self._is_known.set()

    async def _follow_on(self, feed: AsyncSessionFeed) -> None:
        assert self._cursors is not None  # noqa: S101  # it has begun
        after: dict[int, str | None] = dict(enumerate(self._cursors))
        size = 0
        async for update in feed.follow(after, stale=True, rest=REST, on_reconnect=self._log_failure):
            self._publish(update, self._cursors)
            size += len(update.json)
            if size >= TOLD_AT_ONCE:
                await asyncio.sleep(0)
                await self._all_woken.wait()  # else those who read would be cut off with those who don't
                size = 0

    def _publish(self, update: SessionUpdate, cursors: list[str]) -> None:
        session, is_applied = update.session, update.outcome == "applied"
        entry = Entry(update.partition, update.cursor, session.id, session.user_id, is_applied, update.json)
        self._recent.add(entry)
        self._seen += 1
        cursors[update.partition] = update.cursor
        readers = [reader for key in entry.keys for reader in self._told.get(key, ())] if is_applied else []
        if not readers:
            return
        notice = Notice("applied", positions.write(cursors), entry.message)
        for reader in readers:
            reader.put(notice)
            reader.told_at, reader.seen = self._tick_count, self._seen
            if (session_id := reader.scope.session_id) is not None and not reader.is_over:
                if reader.task is not None:
                    reader.task.cancel()
                reader.task = self.loop.create_task(self._end_with_session(reader, session_id))

    def _resync(self, reason: str) -> Notice:
        """Return what tells a reader that something is gone before the hub's position."""
        where = positions.write(self._cursors or ())
        return Notice("resync", where, said={"reason": reason, "cursor": where})

    def _tick(self) -> None:
        self._tick_count += 1
        for reader in self._readers:
            if self._tick_count - reader.told_at >= HEARTBEAT_TICKS:
                reader.told_at = self._tick_count
                if reader.has_joined and self._cursors and self._seen - reader.seen >= POSITION_EVERY:
                    reader.seen = self._seen
                    reader.put(Notice("position", positions.write(self._cursors)))
                reader.put(Notice("heartbeat"))
        self._ticking = self.loop.call_later(TICK, self._tick)

    def _wake(self, reader: Subscription) -> None:
        self._due.append(reader)
        if self._all_woken.is_set():
            self._all_woken.clear()
            self.loop.call_soon(self._wake_some)

    def _wake_some(self) -> None:
        for _ in range(min(WOKEN_AT_ONCE, len(self._due))):
            self._due.popleft().resume()
        if self._due:
            self.loop.call_later(WAKE_PAUSE, self._wake_some)
        else:
            self._all_woken.set()

    def _log_failure(self, error: Exception) -> None:
        """Log why the stream can't be followed; not at each attempt."""
        now = self.loop.time()
        if now >= self._log_again_at:
            self._log_again_at = now + LOG_SECONDS
            log.warning("events_not_followed", error=type(error).__name__, detail=explain(error))


def _tell(reader: Subscription, cursors: list[str], entry: Entry) -> None:
    """Tell a reader that has not joined of an entry; its position is its own."""
    cursors[entry.partition] = entry.cursor
    reader.put(Notice("applied", positions.write(cursors), entry.message))
