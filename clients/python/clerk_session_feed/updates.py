"""SessionUpdate, and how it is read from a message of the relay."""

import dataclasses
import functools
import time
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from clerk_session_feed import lenient_json
from clerk_session_feed.errors import UnreadableMessageError
from clerk_session_feed.models import SCHEMA_VERSION, Event, Session, SessionMessage, StreamMessage

_BEGINNING: Final = f'{{"schema_version":{SCHEMA_VERSION},'.encode()
"""How the relay begins each message of the version that is read here."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdate:
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
    read = _read(StreamMessage, message, where)
    return SessionUpdate(
        outcome=outcome,
        cursor=cursor,
        revision=read.revision,
        previous_status=read.previous_status,
        event=read.event,
        session=read.session,
        partition=partition,
        json=message.replace(b'"cursor":null', f'"cursor":"{cursor}"'.encode(), 1),
    )


def _read(kind: type, message: bytes, where: str) -> Any:
    # Nearly every message is read in this one step. What is refused here may be valid: pydantic's parser gives up where
    # `lenient_json` does not.
    if message.startswith(_BEGINNING):
        try:
            return _reader(kind).validate_json(message)
        except ValidationError:
            pass
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
