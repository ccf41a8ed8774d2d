"""The live part: server-sent events of what the stream gets, at most a few a second, whatever comes in.

Each tab reads the stream on its own, from its own cursor, a few times a second: so it goes on without a gap after a
lost connection (`Last-Event-ID`) and after Redis was away, and many events need one message, with their count.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson
from clerk_session_feed.cursors import whole_cursor

from service import waiting
from service.console.data import ConsoleStore, Cursors
from service.console.rows import Entry, Filter, row
from service.errors import RelayError, StoreUnavailableError

TICK_SECONDS: Final = 0.2
"""Seconds between two looks at the stream. What comes meanwhile is one message."""
BEAT_SECONDS: Final = 0.6
"""Seconds after which a sign of life is sent if there is no news: the page misses two before it says so."""
AWAY_SECONDS: Final = 1.0
"""Seconds that Redis may take; then the page is told that it is away."""
MAX_ROWS: Final = 40
"""Rows in one message, the newest; the others are counted. Nobody reads 200 rows a second."""
MAX_PAGES: Final = 20
"""Pages that are read at once of a stream that is behind."""
MAX_TABS: Final = 50
"""Tabs that one process serves at the same time."""


class TooManyTabsError(RelayError):
    """There are MAX_TABS open already."""

    status, code, title = 503, "too_many_streams", "Too many tabs are open"


class LiveFeed:
    """The events of all tabs of one process."""

    def __init__(self, store: ConsoleStore) -> None:
        self._store = store
        self._open = 0
        self._lock = threading.Lock()

    def events(self, cursors: Cursors, wanted: Filter, ends_at: float) -> Iterator[bytes]:
        """Yield events for one tab, until it is closed, or the visit ends.

        Args:
            cursors: behind what to begin.
            wanted: which entries to show; the others are not even counted.
            ends_at: when the visit ends, in Unix seconds.

        Raises:
            TooManyTabsError: There are MAX_TABS open; raised before the first event.
        """
        if self._open >= MAX_TABS:
            raise TooManyTabsError(f"{MAX_TABS} tabs show the live feed already: close some.")
        return self._events(cursors, wanted, ends_at)

    def _events(self, cursors: Cursors, wanted: Filter, ends_at: float) -> Iterator[bytes]:
        with self._lock:  # not before: a server may close what it has never begun
            self._open += 1
        try:
            yield b"retry: 500\n\n" + _event("beat", {})
            sent_at = time.monotonic()
            while time.time() < ends_at:
                began_at = time.monotonic()
                try:
                    news, cursors = self._read(cursors, wanted)
                except StoreUnavailableError as error:
                    yield _event("away", {"detail": str(error)})
                    pause = AWAY_SECONDS / 2
                else:
                    pause = TICK_SECONDS
                    if news or time.monotonic() - sent_at > BEAT_SECONDS:
                        yield b"".join(news) or _event("beat", {})
                        sent_at = time.monotonic()
                _sleep(max(0.05, pause - (time.monotonic() - began_at)))
            yield _event("bye", {"reason": "signed_out"})
        finally:
            with self._lock:
                self._open -= 1

    def _read(self, cursors: Cursors, wanted: Filter) -> tuple[list[bytes], Cursors]:
        """Return events for what is new, and how far that reaches."""
        shown: list[Entry] = []
        count, is_lost = 0, False
        for _ in range(MAX_PAGES):
            news = self._store.news(cursors, AWAY_SECONDS)
            cursors, is_lost = news.cursors, is_lost or news.lost
            found = [entry for entry in news.entries if wanted.wants(entry)]
            count += len(found)
            shown = (shown + found)[-MAX_ROWS:]
            if not news.has_more:
                break
        events = []
        if is_lost:
            events.append(_event("resync", {"cursor": write_cursors(cursors)}))
        if shown or is_lost:
            data = {"rows": [row(entry) for entry in shown], "count": count}
            events.append(_event("rows", data, write_cursors(cursors)))
        return events, cursors


def _event(name: str, data: Mapping[str, Any], cursor: str = "") -> bytes:
    # JSON has no line breaks outside of its texts, and escapes them there: one line of data.
    id_ = f"id: {cursor}\n" if cursor else ""
    return f"{id_}event: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def _sleep(seconds: float) -> None:
    if waiting.is_on_loop():
        waiting.await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


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
