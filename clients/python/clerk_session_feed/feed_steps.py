"""What a feed asks of Redis, and in which order; without doing it.

Each function is a generator that yields what is to be done (`Ask`, `Receive`, `Reconnect`) and is sent what
came of it, or is thrown the error. In between it yields updates, and goes on when the user asks for the next
one. So `SessionFeed` and `AsyncSessionFeed` share every rule, and differ only in how they wait.

Here: the words for it, and the short reads. `feed_stream` and `feed_group` have what never ends.
"""

import dataclasses
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import redis
from redis.exceptions import AskError, ClusterError, OutOfMemoryError, ReadOnlyError, TryAgainError

from clerk_session_feed.errors import UnreadableMessageError
from clerk_session_feed.keys import Keys
from clerk_session_feed.updates import SessionUpdate, now_ms, published, streamed

BLOCK_MS: Final = 2_000
BATCH: Final = 500
"""Entries, or keys, in one reply."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
"""Seconds before a connection is made again; each pause is twice the one before."""

START: Final = "0-0"
"""Before all that the stream holds, whatever was trimmed."""
NOTHING: Final = "0-1"
"""The cursor of a stream that was empty. No entry has it; what is trimmed later, was missed."""

MAX_PART: Final = 2**64 - 1
"""Of a cursor, on either side of the hyphen."""

Command = tuple[Any, ...]
T = TypeVar("T")


class Ask(NamedTuple):
    """Send these in one round trip. What comes of it: their replies, as Redis gives them (RESP2)."""

    commands: tuple[Command, ...]


class Receive(NamedTuple):
    """Wait for a message on the channel. What comes of it: its bytes, or None after a while."""

    channel: str


class Reconnect(NamedTuple):
    """Give up the connection (after a failover, the next one may lead to another server), and wait."""

    why: redis.RedisError
    seconds: float


Steps = Generator[Ask | Receive | Reconnect | SessionUpdate, Any, T]


class Link:
    """The connection over which the steps are done."""

    connections: int = 0
    """How many were made until now."""


@dataclasses.dataclass(slots=True)
class Partition:
    """A stream, the keys that belong to it, and how far it was read."""

    number: int
    keys: Keys
    cursor: str | None = None
    """None: the snapshots come first."""
    is_entry: bool = False
    """An entry with this id was there: if it is not any more, others may be missing."""
    ahead: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Sessions whose snapshot was newer than the cursor: up to where they are known."""
    ahead_until: tuple[int, int] = (0, 0)
    """Behind this, none of them is."""

    def go_to(self, cursor: str) -> None:
        """Raises ValueError if it is no cursor."""
        self.cursor = whole_cursor(cursor)
        self.is_entry = "-" in cursor and cursor not in {START, NOTHING}


def whole_cursor(cursor: str) -> str:
    """Return the cursor; that before all entries of a millisecond, if it is no more than a time.

    Raises ValueError if it is neither.
    """
    parts = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", cursor)
    if parts is None or any(int(part or 0) > MAX_PART for part in parts.groups()):
        raise ValueError(f"{cursor!r} is no cursor like 1795422761000-0")
    return cursor if "-" in cursor else f"{cursor}-0"


def position(cursor: str) -> tuple[int, int]:
    """Return what cursors are compared by."""
    ms, _, sequence = cursor.partition("-")
    return int(ms), int(sequence)


# Short reads: tried twice, since the first try may meet a connection that Redis has given up.


def get(partitions: Sequence[Partition], session_id: str) -> Steps[SessionUpdate | None]:
    for partition in partitions:
        ((state,),) = yield from ask_twice(("HMGET", partition.keys.session(session_id), "state"))
        if state is not None:
            return published(state, partition=partition.number)
    return None


def is_live(partitions: Sequence[Partition], session_id: str) -> Steps[bool | None]:
    """Return None if nothing is held of the session."""
    for partition in partitions:
        key = partition.keys.session(session_id)
        ((live, expire_at),) = yield from ask_twice(("HMGET", key, "live", "_expire_at"))
        if live is not None:
            return bool(live == b"1" and (not expire_at or int(expire_at) > now_ms()))
    return None


def live_sessions(partition: Partition, user_id: str) -> Steps[list[SessionUpdate]]:
    keys = partition.keys
    (ids,) = yield from ask_twice(("ZRANGEBYSCORE", keys.user_sessions(user_id), f"({now_ms()}", "+inf"))
    if not ids:
        return []
    states = yield from ask_twice(*(("HMGET", keys.session(each.decode()), "state") for each in ids))
    updates = [published(state, partition=partition.number) for (state,) in states if state is not None]
    return [update for update in updates if update.is_live]  # it may have ended in between


def history(partition: Partition, session_id: str) -> Steps[list[SessionUpdate]]:
    updates = []
    after = START
    while True:
        (entries,) = yield from ask_twice(("XRANGE", partition.keys.events, f"({after}", "+", "COUNT", BATCH))
        for entry_id, fields in entries:
            entry = Entry.of(entry_id, fields)
            if entry.session_id == session_id:
                updates.append(entry.update(partition))
        if len(entries) < BATCH:
            return updates
        after = entries[-1][0].decode()


def newest(partition: Partition, asking: Callable[[Command], Steps[list[Any]]] | None = None) -> Steps[str]:
    """Return the cursor at the end of the stream. asking: how, if not twice."""
    command = ("XREVRANGE", partition.keys.events, "+", "-", "COUNT", 1)
    (entries,) = yield from (asking or ask_twice)(command)
    return entries[0][0].decode() if entries else NOTHING


class Entry(NamedTuple):
    """An entry of the stream: CONTRACT, section 4."""

    cursor: str
    outcome: str
    session_id: str
    message: bytes

    @classmethod
    def of(cls, entry_id: bytes, fields: Sequence[bytes]) -> "Entry":
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        return cls(
            entry_id.decode(),
            named.get(b"outcome", b"").decode(),
            named.get(b"session_id", b"").decode(),
            named.get(b"message", b""),
        )

    def update(self, partition: Partition) -> SessionUpdate:
        try:
            return streamed(self.cursor, self.outcome, self.message, partition.number)
        except UnreadableMessageError as error:
            raise UnreadableMessageError(f"{partition.keys.events} {self.cursor}: {error}") from None


def subscribe(channel: str) -> Steps[None]:
    """Yield what is published from now on; never end."""
    while True:
        message = yield from _persist(Receive(channel))
        if message is not None:
            yield published(message)


# Asking


def ask(*commands: Command) -> Steps[list[Any]]:
    """Return the replies, however often it takes to get them.

    Raises redis.RedisError for what trying again does not mend.
    """
    replies: list[Any] = yield from _persist(Ask(commands))
    return replies


def _persist(step: Ask | Receive) -> Steps[Any]:
    pause = FIRST_PAUSE
    while True:
        try:
            return (yield step)
        except redis.RedisError as error:
            if not passes(error):
                raise
            yield Reconnect(error, pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def ask_twice(*commands: Command) -> Steps[list[Any]]:
    """Return the replies; raise redis.RedisError if there are none at the second try either."""
    try:
        replies: list[Any] = yield Ask(commands)
    except redis.RedisError as error:
        # Who waited once, for Redis or for one of the connections, does not wait twice.
        waited = isinstance(error, redis.TimeoutError) or str(error) == "No connection available."
        if waited or not passes(error):
            raise
        yield Reconnect(error, 0)
        replies = yield Ask(commands)
    return replies


def passes(error: redis.RedisError) -> bool:
    """Tell whether trying again may mend it. A wrong password is a ConnectionError too, and stays wrong."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return not isinstance(error, redis.AuthenticationError)
    return isinstance(
        error, ClusterError | AskError | TryAgainError | ReadOnlyError | OutOfMemoryError
    ) or str(error).startswith(("BUSY ", "UNBLOCKED ", "MASTERDOWN ", "NOREPLICAS ", "MISCONF "))


def as_dict(reply: Sequence[Any]) -> dict[bytes, Any]:
    """Read names and values that come in turns."""
    return dict(zip(reply[::2], reply[1::2], strict=True))
