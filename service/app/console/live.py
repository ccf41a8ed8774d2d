"""The live part: server-sent events of what the stream gets, at most a few a second, whatever comes in.

A few times a second one tab looks whether the stream has grown, for all tabs of the process. If it has, each reads it
on its own, from its own cursor: so it goes on without a gap after a lost connection (`Last-Event-ID`) and after Redis
was away, and many events need one message, with their count.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import contextlib
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final

import orjson
from clerk_session_feed.cursors import whole_cursor

from service.app.console.data import ConsoleStore, Cursors
from service.app.console.rows import Entry, Filter, row
from service.errors import StoreUnavailableError, TooManyStreamsError

TICK_SECONDS: Final = 0.25
"""Seconds between two looks at the stream. What comes meanwhile is one message."""
BEAT_SECONDS: Final = 0.6
"""Seconds after which a sign of life is sent if there is no news: the page misses two before it says so."""
SHARED_SECONDS: Final = 0.15
"""Seconds for which all tabs of a process believe one look at the end of the stream."""
AWAY_SECONDS: Final = 1.0
"""Seconds that Redis may take; then the page is told that it is away."""
MAX_ROWS: Final = 25
"""Rows in one message, the newest; the others are counted. Nobody reads a hundred rows a second."""
MAX_PAGES: Final = 20
"""Pages that are read at once of a stream that is behind."""
MAX_TABS: Final = 50
"""Tabs that one process serves at the same time."""


class Ends:
    """Where the stream ends, asked once for all tabs of a process: a tab that is there needs not read."""

    def __init__(self, store: ConsoleStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._found: Cursors | StoreUnavailableError = {}
        self._at = -math.inf

    def are(self, cursors: Cursors) -> bool:
        """Tell whether nothing is behind cursors, from what was seen in the last SHARED_SECONDS; this never waits."""
        return time.monotonic() - self._at < SHARED_SECONDS and self._found == cursors

    def look(self) -> Cursors:
        """Return the ends, as they are or were within SHARED_SECONDS; raise StoreUnavailableError likewise."""
        with self._lock:  # a failure is shared, too: else each tab would wait for its own, one after the other
            if time.monotonic() - self._at >= SHARED_SECONDS:
                try:
                    self._found = self._store.newest(AWAY_SECONDS)
                except StoreUnavailableError as error:
                    self._found = error
                self._at = time.monotonic()
            found = self._found
        if isinstance(found, StoreUnavailableError):
            raise StoreUnavailableError(str(found))
        return found


class LiveFeed:
    """The tabs of one process."""

    def __init__(self, store: ConsoleStore) -> None:
        self._store, self._ends = store, Ends(store)
        self._tabs: weakref.WeakSet[Tab] = weakref.WeakSet()

    def open(self, cursors: Cursors, wanted: Filter, ends_at: float, *, is_lost: bool = False) -> "Tab":
        """Return the events of one tab, until it is closed, or the visit ends.

        Args:
            cursors: behind what to begin.
            wanted: which entries to show; the others are not even counted.
            ends_at: when the visit ends, in Unix seconds.
            is_lost: the tab was further back than `cursors`: it is told that events are missing.

        Raises:
            TooManyStreamsError: There are MAX_TABS open.
        """
        if sum(not tab.is_closed for tab in self._tabs) >= MAX_TABS:
            raise TooManyStreamsError(f"{MAX_TABS} tabs show the live feed already: close some.")
        tab = Tab(self._store, self._ends, cursors, wanted, ends_at, is_lost=is_lost)
        self._tabs.add(tab)
        return tab


class Tab:
    """What one tab is sent, as bytes: iterated by threads, or on an event loop."""

    def __init__(
        self,
        store: ConsoleStore,
        ends: Ends,
        cursors: Cursors,
        wanted: Filter,
        ends_at: float,
        *,
        is_lost: bool = False,
    ) -> None:
        self._store, self._ends, self._wanted, self._ends_at = store, ends, wanted, ends_at
        self._cursors, self._is_lost = cursors, is_lost
        self._sent_at = -math.inf
        self._pause = 0.0
        """Seconds until the next step."""
        self._closing = threading.Event()
        self._on_close: Callable[[], object] = lambda: None

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is sent."""
        return self._closing.is_set()

    def close(self) -> None:
        """End it. From the thread of the loop, or from any other if it is iterated by threads."""
        self._closing.set()
        self._on_close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield what is to be sent; this blocks the thread until there is something."""
        try:
            while not self._closing.wait(self._pause):
                if data := self._step():
                    yield data
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield likewise, on an event loop."""
        closed = asyncio.Event()
        self._on_close = closed.set
        while not self.is_closed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), self._pause)
                return
            # Without a thread if that asks nobody.
            data = self._step(is_idle=True) if self._is_idle() else await asyncio.to_thread(self._step)
            if data:
                yield data

    def _is_idle(self) -> bool:
        return not self._is_lost and self._ends.are(self._cursors)

    def _step(self, *, is_idle: bool = False) -> bytes:
        """Return what is to be sent now, and set the pause until the next step; if it is idle, without asking Redis."""
        began_at = time.monotonic()
        if time.time() >= self._ends_at:
            self._closing.set()
            return _event("bye", {"reason": "signed_out"})
        try:
            is_idle = is_idle or (not self._is_lost and self._ends.look() == self._cursors)
            data, pause = b"" if is_idle else b"".join(self._news()), TICK_SECONDS
        except StoreUnavailableError as error:
            data, pause = _event("away", {"detail": str(error)}), AWAY_SECONDS / 2
        if not data and began_at - self._sent_at > BEAT_SECONDS:
            data = b"retry: 500\n" + _event("beat", {})
        if data:
            self._sent_at = began_at
        self._pause = max(0.05, pause - (time.monotonic() - began_at))
        return data

    def _news(self) -> list[bytes]:
        """Return events for what is new."""
        shown: list[Entry] = []
        cursors, count, is_lost = self._cursors, 0, self._is_lost
        for _ in range(MAX_PAGES):
            news = self._store.news(cursors, AWAY_SECONDS)
            cursors, is_lost = news.cursors, is_lost or news.lost
            found = [entry for entry in news.entries if self._wanted.wants(entry)]
            count += len(found)
            shown = (shown + found)[-MAX_ROWS:]
            if not news.has_more:
                break
        # Not before: if Redis fails on the way, all is read again.
        self._cursors, self._is_lost = cursors, False
        events = [_event("resync", {})] if is_lost else []
        if shown or is_lost:
            data = {"rows": [row(entry) for entry in shown], "count": count}
            events.append(_event("rows", data, write_cursors(cursors)))
        return events


def _event(name: str, data: Mapping[str, Any], cursor: str = "") -> bytes:
    # JSON has no line breaks outside of its texts, and escapes them there: one line of data.
    id_ = f"id: {cursor}\n" if cursor else ""
    return f"{id_}event: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def write_cursors(cursors: Mapping[int, str]) -> str:
    """Return cursors as one text: of one partition, its cursor; else `0:…,1:…`."""
    if len(cursors) == 1:
        return next(iter(cursors.values()))
    return ",".join(f"{number}:{cursor}" for number, cursor in sorted(cursors.items()))


def read_cursors(text: str, partitions: int) -> Cursors | None:
    """Return what `write_cursors` wrote; None if it is something else, or of another number of partitions."""
    parts = [part.rpartition(":") for part in text.split(",")] if text else []
    try:
        cursors = {int(number or 0): whole_cursor(cursor) for number, _, cursor in parts}
    except ValueError:
        return None
    return cursors if sorted(cursors) == [*range(partitions)] else None
