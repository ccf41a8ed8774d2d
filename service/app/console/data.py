"""What the pages ask Redis, over a connection of their own: deliveries never wait behind a page.

Each question has a bound, in entries and in time, and its answer says how much was looked at. Nothing looks through all
keys. Methods block their thread, or their greenlet under `serve`, and raise StoreUnavailableError.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from clerk_session_feed.cursors import START, position
from clerk_session_feed.models import ID

from service.app.console.rows import Entry, loads
from service.store.dead_letters import DeadLetter, Summary
from service.store.partitions import Partition, results
from service.store.queries import Queries

PAGE: Final = 250
"""Entries of the stream in one response: 300 kB."""
SEARCHED: Final = 10_000
"""Entries of the stream that one question looks at, the newest ones."""
SEARCH_SECONDS: Final = 1.0
"""Seconds that one question may look for something; then it says how far it came."""
SECONDS: Final = 2.0
"""Seconds that a page waits for one response of Redis."""
MAX_FOUND: Final = 50
"""Sessions or users that one page lists."""
SCANNED: Final = 2000
"""Members of a set that one ZSCAN looks at: about half a millisecond of Redis' time."""
LETTER_PAGE: Final = 200
"""Dead letters in one response, about; without their bodies."""

Cursors = dict[int, str]
"""By the number of the partition, the entry behind which to go on; see `clerk_session_feed.cursors`."""


Commands = Callable[[Partition], tuple[tuple[Any, ...], ...]]
"""What to ask a partition."""


class News(NamedTuple):
    """What the stream has behind cursors."""

    entries: list[Entry]
    """The oldest first, within each partition."""
    cursors: Cursors
    has_more: bool
    lost: bool
    """Entries behind the cursors are gone, trimmed or lost by Redis: these begin later."""


class Found(NamedTuple):
    """Entries of the stream that were looked for, the newest first."""

    entries: list[Entry]
    looked_at: int
    is_all: bool
    """Whether nothing more can be found in the stream."""


class ConsoleStore:
    """What Redis holds, for people to look at.

    Attributes:
        queries: asks Redis.
        partitions: where sessions are kept, by number.
    """

    def __init__(self, queries: Queries) -> None:
        self.queries: Final = queries
        self.partitions: Final = queries.partitions

    def newest(self, seconds: float = SECONDS) -> Cursors:
        """Return the end of each partition's stream."""
        replies = self._each(lambda part: (("XREVRANGE", part.keys.events, "+", "-", "COUNT", 1),), seconds)
        ends = zip(self.partitions, replies, strict=True)
        return {part.number: entries[0][0].decode() if entries else START for part, (entries,) in ends}

    def news(self, cursors: Mapping[int, str], seconds: float = SECONDS) -> News:
        """Return what was added behind cursors: up to PAGE entries of each partition.

        As long as a cursor's own entry is there after that was read, nothing behind it is missing.
        """
        at = {part.number: cursors.get(part.number, START) for part in self.partitions}
        commands: Commands = lambda part: (  # noqa: E731
            ("XREAD", "COUNT", PAGE, "STREAMS", part.keys.events, at[part.number]),
            ("XREVRANGE", part.keys.events, at[part.number], at[part.number], "COUNT", 1),
        )
        entries: list[Entry] = []
        following, has_more, lost = dict(at), False, False
        for part, (streams, own) in zip(self.partitions, self._each(commands, seconds), strict=True):
            page = streams[0][1] if streams else []
            has_more = has_more or len(page) >= PAGE
            if page:
                following[part.number] = page[-1][0].decode()
            if at[part.number] != START and not own:
                lost = True
                if not page:
                    following[part.number] = START  # Redis lost the stream: its next entry may have a smaller id
            entries += [Entry.read(part.number, *each) for each in page]
        if len(self.partitions) > 1:
            entries.sort(key=lambda each: position(each.cursor))
        return News(entries, following, has_more, lost)

    def find(
        self,
        wanted: Callable[[Entry], bool],
        count: int,
        user_id: str | None = None,
        is_first: Callable[[Entry], bool] = lambda _: False,
    ) -> Found:
        """Return the newest entries that are wanted, up to `count`; look at SEARCHED, for SEARCH_SECONDS.

        Args:
            wanted: tells whether an entry is.
            count: how many.
            user_id: whose sessions they are about, which tells the partition.
            is_first: tells of a wanted entry that none can be before it.
        """
        parts = self.partitions if user_id is None else [self.queries.partition_of(user_id)]
        found: list[Entry] = []
        looked_at, deadline, is_all = 0, time.monotonic() + SEARCH_SECONDS, True
        for part in parts:
            upper, of_part = "+", 0
            while True:
                (page,) = part.ask(("XREVRANGE", part.keys.events, upper, "-", "COUNT", PAGE), seconds=SECONDS)
                looked_at += len(page)
                new = [entry for entry in (Entry.read(part.number, *each) for each in page) if wanted(entry)]
                found += new
                of_part += len(new)
                if any(map(is_first, new)):
                    found.sort(key=lambda each: position(each.cursor), reverse=True)
                    return Found(found[:count], looked_at, len(found) <= count)
                if len(page) < PAGE:
                    break
                if of_part >= count or looked_at >= SEARCHED or time.monotonic() > deadline:
                    is_all = False
                    break
                upper = f"({page[-1][0].decode()}"
        found.sort(key=lambda each: position(each.cursor), reverse=True)
        return Found(found[:count], looked_at, is_all and len(found) <= count)

    def state(self, session_id: str) -> tuple[Partition, dict[str, Any]] | None:
        """Return a session's state, as the message that was published, and where it is; None if nothing is stored."""
        if not ID.fullmatch(session_id):
            return None
        replies = self._each(lambda part: (("HMGET", part.keys.session(session_id), "state"),))
        for part, ((state,),) in zip(self.partitions, replies, strict=True):
            if state is not None:
                return part, loads(state)
        return None

    def states(self, part: Partition, session_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the states of those sessions that are stored."""
        if not session_ids:
            return []
        replies = part.ask(*(("HMGET", part.keys.session(each), "state") for each in session_ids), seconds=SECONDS)
        return [loads(state) for (state,) in replies if state is not None]

    def pending_revoke(self, part: Partition, session_id: str) -> int | None:
        """Return since when Clerk has still to revoke a session, in Unix milliseconds; None if it has not."""
        # ZSCAN, since ZSCORE is a right that `serve` does not need. The set is small.
        command = ("ZSCAN", part.keys.revokes, 0, "MATCH", session_id, "COUNT", SEARCHED)
        ((_, items),) = part.ask(command, seconds=SECONDS)
        return int(float(items[1])) if items else None

    def user(self, user_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int, dict[str, int]]:
        """Return a user's live sessions, the other open ones, how many all are, and when the user was gone."""
        part = self.queries.partition_of(user_id)
        keys = (part.keys.user_sessions(user_id), part.keys.user_pending(user_id))
        ranges = [("ZRANGEBYSCORE", key, "-inf", "+inf", "LIMIT", 0, MAX_FOUND) for key in keys]
        counts = [("ZCOUNT", key, "-inf", "+inf") for key in keys]
        gone = ("HMGET", part.keys.user_gone(user_id), "deleted_at", "banned_at")
        live, pending, live_count, pending_count, marks = part.ask(*ranges, *counts, gone, seconds=SECONDS)
        names = [[each.decode() for each in ids] for ids in (live, pending)]
        marked = {name: int(mark) for name, mark in zip(("deleted", "banned"), marks, strict=True) if mark}
        return self.states(part, names[0]), self.states(part, names[1]), live_count + pending_count, marked

    def open_sessions(self) -> int:
        """Return how many open sessions have an end: nearly all that are open."""
        counts = self._each(lambda part: (("ZCOUNT", part.keys.expiry, "-inf", "+inf"),))
        return sum(count for (count,) in counts)

    def scan_set(self, part: Partition, key: str, pattern: str) -> Iterator[list[str]]:
        """Yield, after each SCANNED members of a sorted set, those that match a pattern."""
        cursor: bytes | None = None
        while cursor != b"0":
            command = ("ZSCAN", key, cursor or 0, "MATCH", pattern, "COUNT", SCANNED)
            ((cursor, items),) = part.ask(command, seconds=SECONDS)
            yield [each.decode(errors="replace") for each in items[::2]]

    def letters(self) -> list[Summary]:
        """Return dead letters without their bodies, the newest first; those that SEARCH_SECONDS are enough for."""
        deadline = time.monotonic() + SEARCH_SECONDS
        found: dict[str, Summary] = {}
        cursor: str | None = "0"
        while cursor is not None and time.monotonic() < deadline and len(found) < SEARCHED:
            page, cursor = self.queries.dead_letters(cursor, LETTER_PAGE)
            found |= {each.id: each for each in page}
        return sorted(found.values(), key=lambda each: (each.received_at or 0, each.id), reverse=True)

    def letter(self, message_id: str) -> DeadLetter | None:
        """Return a dead letter with its body; None if it is not stored, or the relay has not written it."""
        if not ID.fullmatch(message_id):
            return None
        part = self.queries.common
        ((stored,),) = part.ask(("HMGET", part.keys.dead_letters, message_id), seconds=SECONDS)
        return None if stored is None else DeadLetter.read(message_id, stored)

    def _each(self, commands: Commands, seconds: float = SECONDS) -> list[list[Any]]:
        """Return what each partition replies to its commands; all are asked at once."""
        asked: list[Callable[[], Any]] = []
        for part in self.partitions:
            asked += [partial(part.pipeline.submit, command, lambda reply: reply) for command in commands(part)]
            asked.append(part.checked)
        replies = results(asked, seconds)
        size = len(replies) // len(self.partitions)
        return [replies[start : start + size - 1] for start in range(0, len(replies), size)]


def fields_of(reply: Sequence[Any]) -> dict[bytes, Any]:
    """Return a reply of names and values as a mapping."""
    return dict(zip(reply[::2], reply[1::2], strict=True))
