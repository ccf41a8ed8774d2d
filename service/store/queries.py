"""What readers ask Redis: the state of a session, what the stream says of it, dead letters, and how much there is.

Over connections of their own, so that no long reply holds up a delivery. Nothing here writes. `listing` has the pages
of many sessions.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, NamedTuple

from clerk_session_feed.cursors import START
from clerk_session_feed.keys import Keys
from clerk_session_feed.transport import as_dict
from clerk_session_feed.updates import now_ms

from service.config import StoreSettings
from service.store.dead_letters import DeadLetter, Summary
from service.store.partitions import Partition, PartitionedStore, results
from service.store.scripts import LIST_DEAD_LETTERS
from service.store.shown import Shown, shown_command

READ_SECONDS: Final = 3.0
"""Seconds that a reader waits for Redis at most, for one round trip."""
ENTRIES: Final = 500
"""Entries of a stream in one reply: about 600 kB."""
LOOKED_AT: Final = 5_000
"""Entries of streams that one request looks at, at most; the next one goes on where it stopped."""
_BEGINNING_BYTES: Final = 2_048
"""Bytes of a dead letter's JSON that have all but its body."""


class Page(NamedTuple):
    """Some of many messages."""

    messages: list[bytes]
    """JSON of each."""
    next: str | None
    """Where the next page begins; None: this is the last one."""


class Queries(PartitionedStore):
    """Reads for HTTP and for the console.

    A method blocks its thread, or its greenlet under `serve`, until Redis answers. Each raises StoreUnavailableError if
    it does not; or PartitionsError, which is one, if the data was moved.
    """

    def __init__(self, settings: StoreSettings) -> None:
        """Connect to nothing yet."""
        super().__init__(settings, may_mark=False)

    def ask_each(self, asked: Sequence[tuple[Partition, tuple[Any, ...]]]) -> list[Any]:
        """Return the replies to commands, each for its partition, in one round trip to each server."""
        return results(_submits(asked), READ_SECONDS)[: len(asked)]

    async def ask_on_loop(self, asked: Sequence[tuple[Partition, tuple[Any, ...]]]) -> list[Any]:
        """Return the replies likewise, to a coroutine."""
        futures = [asyncio.wrap_future(submit()) for submit in _submits(asked)]
        async with asyncio.timeout(READ_SECONDS):
            return (await asyncio.gather(*futures))[: len(asked)]

    def asking_for(self, session_id: str) -> list[tuple[Partition, tuple[Any, ...]]]:
        """Return what to ask for a session's state; `found` reads the replies."""
        return [(each, shown_command(each, session_id)) for each in self.partitions]

    @staticmethod
    def found(replies: Sequence[Sequence[bytes | None]]) -> Shown | None:
        """Return the state of a session from what the partitions replied; None if none has it."""
        now = now_ms()
        return next((shown for values in replies if (shown := Shown.read(values, now))), None)

    def session(self, session_id: str) -> Shown | None:
        """Return the state of a session; None if nothing is stored of it."""
        return self.found(self.ask_each(self.asking_for(session_id)))

    def history(self, session_id: str, after: tuple[int, str] | None, limit: int) -> Page:
        """Return what the stream still has of a session, the oldest first, stale events too.

        Args:
            session_id: of the session.
            after: the number of a partition, and a cursor in it; the page begins behind it.
            limit: how many at most.
        """
        state = self.session(session_id)
        partitions = [self.partition_of(state.user_id)] if state and state.user_id else list(self.partitions)
        number, cursor = after or (0, START)
        found: list[bytes] = []
        looked_at = 0
        for partition in partitions:
            if partition.number < number:
                continue
            while True:
                if looked_at >= LOOKED_AT:
                    return Page(found, f"{partition.number}.{cursor}")
                entries = self.entries(partition, f"({cursor}", "+")
                for entry_id, fields in entries:
                    cursor = entry_id.decode()
                    if fields.get(b"session_id") == session_id.encode() and b"message" in fields:
                        found.append(with_cursor(fields[b"message"], cursor))
                        if len(found) == limit:
                            return Page(found, f"{partition.number}.{cursor}")
                looked_at += len(entries)
                if len(entries) < ENTRIES:
                    break
            cursor = START
        return Page(found, None)

    def entries(self, partition: Partition, first: str, last: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Return up to ENTRIES entries of a stream from `first` to `last`, with their fields by name."""
        ((reply),) = self.ask_each([(partition, ("XRANGE", partition.keys.events, first, last, "COUNT", ENTRIES))])
        return [(entry_id, as_dict(fields)) for entry_id, fields in reply]

    def dead_letters(self, after: str, limit: int) -> tuple[list[Summary], str | None]:
        """Return about so many dead letters without their bodies, in no order of their own; one may come twice.

        Args:
            after: what the page before gave as the second part; 0 at first.
            limit: about how many.
        """
        key, pipeline = self._dead_letters
        command = LIST_DEAD_LETTERS.command(
            dead_letters_key=key, cursor=after, count=limit, beginning_bytes=_BEGINNING_BYTES
        )
        ((cursor, *listed),) = results([partial(pipeline.submit, command, list)], READ_SECONDS)
        triples = zip(listed[::3], listed[1::3], listed[2::3], strict=True)
        found = {message_id: _summary(message_id.decode(errors="replace"), *rest) for message_id, *rest in triples}
        summaries = sorted(found.values(), key=lambda each: (each.received_at or 0, each.id))
        return summaries, None if cursor == b"0" else cursor.decode()

    def stats(self) -> dict[str, Any]:
        """Return how much there is: sessions, streams, dead letters, and what is still to be done."""
        now, parts = now_ms(), self.partitions
        backlog = self.backlog(("last_success_at",))
        per_partition: list[Callable[[Keys], tuple[Any, ...]]] = [
            lambda keys: ("ZCOUNT", keys.expiry, f"({now}", "+inf"),
            lambda keys: ("ZCOUNT", keys.expiry, "-inf", now),
            lambda keys: ("XREVRANGE", keys.events, "+", "-", "COUNT", 1),
        ]
        replies = self.ask_each([(each, ask(each.keys)) for ask in per_partition for each in parts])
        opens, overdue, lasts = (replies[start : start + len(parts)] for start in range(0, len(replies), len(parts)))
        has_events = [each for each, last in zip(parts, lasts, strict=True) if last]
        told = self.ask_each([(each, ("XINFO", "STREAM", each.keys.events)) for each in has_events])
        streams = {each.number: as_dict(stream) for each, stream in zip(has_events, told, strict=True)}
        reconciled_at = backlog.reconcile[0]
        return {
            "open_sessions": sum(opens),
            "sessions_to_expire": sum(overdue),
            "dead_letters": backlog.dead_letters,
            "pending_revokes": backlog.pending_revokes,
            "reconciled_at": int(reconciled_at) if reconciled_at else None,
            "streams": [_stream(each.number, streams.get(each.number, {})) for each in parts],
        }


def with_cursor(message: bytes, cursor: str) -> bytes:
    """Return the message of a stream entry as it was published: with the entry's id."""
    return message.replace(b'"cursor":null', f'"cursor":"{cursor}"'.encode(), 1)


def _submits(asked: Sequence[tuple[Partition, tuple[Any, ...]]]) -> list[Callable[[], Future[Any]]]:
    checks = {partition.number: partition.checked for partition, _ in asked}
    return [*(partial(each.pipeline.submit, words, _as_it_is) for each, words in asked), *checks.values()]


def _as_it_is(reply: Any) -> Any:
    return reply


def _summary(message_id: str, beginning: bytes, size: int) -> Summary:
    """Return what is known of a dead letter from the beginning of its JSON; its body comes last in that."""
    known, found, _ = beginning.partition(b',"body":"')
    dead_letter = DeadLetter.read(message_id, known + b',"body":""}') if found else None
    if dead_letter is None:
        return Summary(message_id)
    return Summary(message_id, dead_letter.received_at, dead_letter.reason, dead_letter.detail, size)


def _stream(number: int, told: dict[bytes, Any]) -> dict[str, Any]:
    """Return what is told of a stream, from the reply to XINFO STREAM; empty if there is no stream."""
    first, last = (entry[0].decode() if (entry := told.get(name)) else None for name in (b"first-entry", b"last-entry"))
    return {"partition": number, "length": told.get(b"length", 0), "first": first, "last": last}
