"""Pages of sessions, by the indexes that there are: no request looks through all keys.

Open sessions are in sorted sets by the time at which they run out: of all users in `{clerk}:expiry` (those without an
end are not), of one user in the sets of that user. Sessions that are over are in no index, but each ended by an event,
and the stream has the latest of those.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Self

from clerk_session_feed.cursors import MAX_PART, position
from clerk_session_feed.models import OPEN_STATUSES, STATUSES
from clerk_session_feed.transport import as_dict
from clerk_session_feed.updates import now_ms

from service.store.partitions import Partition
from service.store.queries import Page, Queries
from service.store.shown import Shown, UnreadableStateError, shown_command

GROUPS: Final = ("live", "pending", "ended")
"""Each session is in one of these: live, or pending, or neither, as it ended or ran out."""
WANTED: Final = (*GROUPS, *sorted(STATUSES - {"pending", "ended"}))
"""What a list can be narrowed to; `ended` is the group, so it also has those that expired, were revoked and so on."""
CHUNK: Final = 100
"""Sessions, or entries of a stream, in one reply."""
LOOKED_AT: Final = 2_000
"""Sessions, or entries, that one request looks at, at most; the next one goes on where it stopped."""
_OPEN: Final = frozenset({"live", *OPEN_STATUSES})
_INDEX_CURSOR: Final = re.compile(r"([0-9]{1,5})\.(inf|[0-9]{1,15})\.([0-9]{1,9})\.([A-Za-z0-9_-]{1,128})")
_STREAM_CURSOR: Final = re.compile(r"([0-9]{1,4})\.([0-9]{1,20}-[0-9]{1,20})")


class IndexCursor(NamedTuple):
    """Where a page of open sessions ended."""

    place: int
    """Which of the sets."""
    score: float
    passed: int
    """How many with this score come before the next, unless the set has changed."""
    session_id: str

    def __str__(self) -> str:
        score = "inf" if self.score == float("inf") else f"{self.score:.0f}"
        return f"{self.place}.{score}.{self.passed}.{self.session_id}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises ValueError if it is none."""
        if (match := _INDEX_CURSOR.fullmatch(text)) is None:
            raise ValueError("It is no `next` of this list.")
        return cls(int(match[1]), float(match[2]), int(match[3]), match[4])


def read_stream_cursor(text: str) -> tuple[int, str]:
    """Return the number of a partition, and a cursor in it; raise ValueError if the text is something else."""
    match = _STREAM_CURSOR.fullmatch(text)
    if match is None or max(position(match[2])) > MAX_PART:
        raise ValueError("It is no `next` of this list.")
    return int(match[1]), match[2]


def list_sessions(queries: Queries, status: str, user_id: str | None, after: str | None, limit: int) -> Page:
    """Return a page of sessions.

    Open ones come in the order in which they run out, the others the latest first; with partitions, those of one
    partition after those of another. A page may have less than `limit` of them, or none, and still not be the last.

    Args:
        queries: where to ask.
        status: one of WANTED.
        user_id: whose sessions; None for all. Without an end, only those of a user are found.
        after: what the page before gave as `next`; None at first.
        limit: how many at most.

    Raises:
        ValueError: `after` is of no such list.
    """
    wanted = _wanted(status)
    partitions = list(queries.partitions) if user_id is None else [queries.partition_of(user_id)]
    if status in _OPEN:
        places = _indexes(partitions, status, user_id)
        start = None if after is None else IndexCursor.read(after)
        return _page(
            queries, _walk_indexes(queries, places, start, now_ms() if status == "live" else None), wanted, limit
        )
    begin = None if after is None else read_stream_cursor(after)
    return _page(queries, _walk_streams(queries, partitions, begin, user_id), wanted, limit)


def _wanted(status: str) -> Callable[[Shown], bool]:
    match status:
        case "live":
            return lambda shown: shown.is_live
        case "ended":
            return lambda shown: not shown.is_live and shown.status != "pending"
        case _:
            return lambda shown: shown.status == status


class _Candidate(NamedTuple):
    """A session that may belong into the page."""

    session_id: str
    partition: Partition
    following: str
    """Where the page after this one begins."""
    of_entry: str | None = None
    """The entry by which it was found: it is listed there, and nowhere else, if that made its present state."""


class _Chunk(NamedTuple):
    """What one reply had."""

    looked_at: int
    candidates: list[_Candidate]
    following: str | None
    """Where the page after this chunk begins."""


def _page(queries: Queries, walk: Iterator[_Chunk], wanted: Callable[[Shown], bool], limit: int) -> Page:
    found: list[bytes] = []
    looked_at = 0
    for chunk in walk:
        asked = [(each.partition, shown_command(each.partition, each.session_id)) for each in chunk.candidates]
        replies, now = queries.ask_each(asked), now_ms()
        for each, values in zip(chunk.candidates, replies, strict=True):
            try:
                shown = Shown.read(values, now)
            except UnreadableStateError:  # who asks for it alone is told
                continue
            if shown and wanted(shown) and each.of_entry in {None, shown.cursor}:
                found.append(shown.message)
                if len(found) == limit:
                    return Page(found, each.following)
        looked_at += chunk.looked_at
        if looked_at >= LOOKED_AT:
            return Page(found, chunk.following)
    return Page(found, None)


def _indexes(partitions: Sequence[Partition], status: str, user_id: str | None) -> list[tuple[Partition, str]]:
    """Return the sorted sets that have such sessions."""
    if user_id is None:
        return [(each, each.keys.expiry) for each in partitions]
    (partition,) = partitions
    live, pending = partition.keys.user_sessions(user_id), partition.keys.user_pending(user_id)
    by_status = {"live": [live], "pending": [pending], "active": [live, pending]}
    return [(partition, key) for key in by_status[status]]


def _walk_indexes(
    queries: Queries, places: Sequence[tuple[Partition, str]], start: IndexCursor | None, later_than: int | None
) -> Iterator[_Chunk]:
    """Yield what the sets hold behind a cursor.

    A set may change between two pages: what stays in it is found once, whatever comes or goes.
    """
    lowest = "-inf" if later_than is None else f"({later_than}"
    for place, (partition, key) in enumerate(places):
        if start is not None and place < start.place:
            continue
        last = start if start is not None and place == start.place else None
        offset = 0 if last is None else last.passed - 1
        is_end = False
        while not is_end:
            low = lowest if last is None else f"{last.score:.17g}"
            words = ("ZRANGEBYSCORE", key, low, "+inf", "WITHSCORES", "LIMIT", offset, CHUNK)
            (reply,) = queries.ask_each([(partition, words)])
            items = [(float(score), id_.decode(errors="replace")) for id_, score in _pairs(reply)]
            if last is not None and offset and (not items or items[0] > (last.score, last.session_id)):
                offset //= 2  # some have left the set, so that the last one is further in front
                continue
            found = [
                IndexCursor(place, score, _passed(items, index, last, offset), id_)
                for index, (score, id_) in enumerate(items)
                if last is None or (score, id_) > (last.score, last.session_id)
            ]
            if found:
                candidates = [_Candidate(each.session_id, partition, str(each)) for each in found]
                yield _Chunk(len(found), candidates, candidates[-1].following)
                last = found[-1]
                offset = last.passed - 1  # the next reply begins with the last one itself, unless the set changes
            else:
                offset += CHUNK - 1  # others have come into the set, before the last one
            is_end = len(items) < CHUNK


def _pairs(reply: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(reply[::2], reply[1::2], strict=True)


def _passed(items: Sequence[tuple[float, str]], index: int, last: IndexCursor | None, offset: int) -> int:
    """Return how many with the score of this one come before what follows on it.

    Args:
        items: of one reply, which begins among those with the score of `last`, at the offset.
        index: of this one.
        last: where the reply before ended; None if there was none.
        offset: how many with the score of `last` come before the first of the items.
    """
    score = items[index][0]
    if last is not None and score == last.score:
        return offset + index + 1
    return 1 + sum(1 for other, _ in items[:index] if other == score)


def _walk_streams(
    queries: Queries, partitions: Sequence[Partition], start: tuple[int, str] | None, user_id: str | None
) -> Iterator[_Chunk]:
    """Yield the sessions that the entries of the streams before a cursor name, the latest first."""
    wanted_user = None if user_id is None else user_id.encode()
    for partition in partitions:
        if start is not None and partition.number < start[0]:
            continue
        last = f"({start[1]}" if start is not None and partition.number == start[0] else "+"
        is_end = False
        while not is_end:
            words = ("XREVRANGE", partition.keys.events, last, "-", "COUNT", CHUNK)
            (reply,) = queries.ask_each([(partition, words)])
            candidates, following = [], None
            for raw_cursor, raw_fields in reply:
                cursor, fields = raw_cursor.decode(), as_dict(raw_fields)
                last, following = f"({cursor}", f"{partition.number}.{cursor}"
                if fields.get(b"outcome") == b"applied" and wanted_user in {None, fields.get(b"user_id")}:
                    id_ = fields.get(b"session_id", b"").decode(errors="replace")
                    candidates.append(_Candidate(id_, partition, following, cursor))
            if reply:
                yield _Chunk(len(reply), candidates, following)
            is_end = len(reply) < CHUNK
