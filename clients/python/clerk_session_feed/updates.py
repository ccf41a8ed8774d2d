"""SessionUpdate, and how it is read from a message of the relay."""

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from clerk_session_feed import fast_json, lenient_json
from clerk_session_feed.errors import UnreadableMessageError
from clerk_session_feed.models import SCHEMA_VERSION, Event, Session, SessionMessage, StreamMessage

_BEGINNING: Final = f'{{"schema_version":{SCHEMA_VERSION},'.encode()
"""How the relay begins each message of the version that is read here."""


class _Unmade:
    """What the event and the session of an update are made of, if they have not been looked at yet."""

    __slots__ = ("_message",)
    _message: fast_json.Message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdate(_Unmade):
    """The state of a session, and the event that led to it.

    The fields are those of the message: docs/contract.md, section 4. Times are Unix milliseconds.
    """

    outcome: Literal["applied", "stale"]
    """`stale`: it came too late to change anything."""
    cursor: str
    """The id of its entry in the stream."""
    revision: int | None
    """Counts the states applied to the session, from 1; None for a stale event."""
    previous_status: str | None
    event: Event
    """An `EventWithRequest`, if the relay has PUBLISH_HTTP_REQUEST."""
    session: Session
    partition: int = 0
    """The stream that its cursor belongs to; always 0 unless the relay has PARTITIONS."""
    is_snapshot: bool = False
    """It is the state stored when the feed began, and not news."""
    json: bytes = dataclasses.field(repr=False)
    """The message itself, as it was published."""

    if not TYPE_CHECKING:  # it would hide from type checkers that there is no other attribute

        def __getattr__(self, name: str) -> Any:
            """Make the event or the session, which takes as long as to read the message: many are never looked at."""
            if name == "event":
                made = fast_json.make_event(self._message)
            elif name == "session":
                made = fast_json.make_session(self._message)
            else:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            object.__setattr__(self, name, made)
            return made

    @property
    def position(self) -> str | None:
        """Where `follow(after=…)` goes on; None for a snapshot, since snapshots have no order."""
        return None if self.is_snapshot else self.cursor

    @property
    def is_live(self) -> bool:
        """Tell whether the session is live now: it may have expired since it was published."""
        session = self.session
        return session.live and (session.expire_at is None or session.expire_at > now_ms())


def now_ms() -> int:
    """Return the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def published(
    message: bytes, where: str = "a message", *, partition: int = 0, is_snapshot: bool = False
) -> SessionUpdate:
    """Return what was published, or is stored as a session's state.

    Args:
        message: As it was published.
        where: The channel or the key that it is from, for the error.
        partition: The number of the partition that it is from.
        is_snapshot: See `SessionUpdate`.

    Raises:
        UnreadableMessageError: If another version of the relay has written it.
    """
    if message.startswith(_BEGINNING) and (fast := fast_json.read_session_message(message)) is not None:
        return _update(fast, "applied", fast.cursor, partition, is_snapshot, message)
    read = _read(SessionMessage, message, where)
    return SessionUpdate(
        outcome="applied",
        cursor=read.cursor,
        revision=read.revision,
        previous_status=read.previous_status,
        event=read.event,
        session=read.session,
        partition=partition,
        is_snapshot=is_snapshot,
        json=message,
    )


def streamed(message: bytes, where: str, *, cursor: str, outcome: Any, partition: int) -> SessionUpdate:
    """Return the update in an entry of the stream. Arguments and errors are those of `published`."""
    json = message.replace(b'"cursor":null', b'"cursor":"%b"' % cursor.encode(), 1)
    if message.startswith(_BEGINNING) and (fast := fast_json.read_stream_message(message)) is not None:
        return _update(fast, outcome, cursor, partition, False, json)
    read = _read(StreamMessage, message, where)
    return SessionUpdate(
        outcome=outcome,
        cursor=cursor,
        revision=read.revision,
        previous_status=read.previous_status,
        event=read.event,
        session=read.session,
        partition=partition,
        json=json,
    )


def _update(
    message: fast_json.Message, outcome: Any, cursor: str, partition: int, is_snapshot: bool, json: bytes
) -> SessionUpdate:
    """Return an update whose event and session are made when they are first looked at."""
    update = object.__new__(SessionUpdate)
    put = object.__setattr__  # it is frozen
    put(update, "outcome", outcome)
    put(update, "cursor", cursor)
    put(update, "revision", message.revision)
    put(update, "previous_status", message.previous_status)
    put(update, "partition", partition)
    put(update, "is_snapshot", is_snapshot)
    put(update, "json", json)
    put(update, "_message", message)
    return update


def _read(kind: type, message: bytes, where: str) -> Any:
    try:
        value = lenient_json.loads(message)
        if isinstance(value, dict):
            version = value.get("schema_version")  # the dataclass has a default, and takes `true` for 1
            if type(version) is not int or version != SCHEMA_VERSION:
                raise UnreadableMessageError(f"{where}: schema_version: Input should be {SCHEMA_VERSION}")
        return _reader(kind).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"]))
        raise UnreadableMessageError(f"{where}: {field}: {fault['msg']}") from None
    except ValueError:
        raise UnreadableMessageError(f"{where}: it is no JSON") from None


@functools.cache  # not at import: it takes 30 ms to make them
def _reader(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
