"""Reads what a stream has behind a cursor, and tells if something is missing there.

The rules are those of the feed: as long as the entry that a cursor names is there, nothing behind it is missing.
"""

from typing import Final

from clerk_session_feed.cursors import MAX_PART, NOTHING, START, position
from clerk_session_feed.stream import is_trimmed_past
from clerk_session_feed.transport import as_dict

from service.store.partitions import Partition
from service.store.queries import Queries, with_cursor
from service.store.recent import Entry

PAGE: Final = 200
"""Entries in one reply: about 240 kB."""


class LostError(Exception):
    """What came behind a cursor is not all there any more: the stream was trimmed, or Redis lost it."""


def is_entry(cursor: str) -> bool:
    """Tell whether there was an entry with this id: other cursors are times, or say that there was none."""
    return cursor not in {START, NOTHING} and position(cursor)[1] != MAX_PART


async def read_behind(queries: Queries, partition: Partition, cursor: str, last: str) -> list[Entry]:
    """Return some of the entries behind a cursor; none if there are none.

    Args:
        queries: where to ask.
        partition: whose stream.
        cursor: where the reader is.
        last: the cursor of the last entry that is wanted.

    Raises:
        LostError: Some are missing.
        StoreUnavailableError: Redis failed, or the data was moved.
        TimeoutError: Redis does not answer.
    """
    events, is_exact = partition.keys.events, is_entry(cursor)
    first = cursor if is_exact else f"({cursor}"
    (found,) = await queries.ask_on_loop([(partition, ("XRANGE", events, first, last, "COUNT", PAGE + 1))])
    entries = [read_entry(partition, entry_id.decode(), as_dict(fields)) for entry_id, fields in found]
    if is_exact:
        if not entries or entries[0].cursor != cursor:
            raise LostError
        return entries[1:]
    if entries and cursor != START:
        (stream,) = await queries.ask_on_loop([(partition, ("XINFO", "STREAM", events))])
        if is_trimmed_past(cursor, as_dict(stream), if_unknown=True):
            raise LostError
    return entries


async def is_there(queries: Queries, partition: Partition, cursor: str) -> bool:
    """Tell whether the stream has an entry with this id. Raises like `read_behind`."""
    (found,) = await queries.ask_on_loop([(partition, ("XRANGE", partition.keys.events, cursor, cursor))])
    return bool(found)


def read_entry(partition: Partition, cursor: str, fields: dict[bytes, bytes]) -> Entry:
    """Return an entry of a stream by the names of its fields."""
    message = fields.get(b"message", b"")
    return Entry(
        partition=partition.number,
        cursor=cursor,
        session_id=fields.get(b"session_id", b"").decode(errors="replace"),
        user_id=fields.get(b"user_id", b"").decode(errors="replace"),
        is_applied=fields.get(b"outcome") == b"applied" and bool(message),
        message=with_cursor(message, cursor),
    )
