"""A message of the relay, read: what the feed hands to those who follow it."""

import dataclasses
import time
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from clerk_session_feed import lenient_json
from clerk_session_feed.errors import UnreadableMessageError
from clerk_session_feed.models import Event, Session, SessionMessage, Status, StreamMessage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdate:
    """What a session is, and what made it so.

    The fields are those of the message (README, "Consume"). Times are Unix milliseconds.
    """

    outcome: Literal["applied", "stale"]
    """`stale`: it came too late to change anything."""
    cursor: str
    """The id of its entry in the stream."""
    revision: int | None
    """Counts the states applied to the session, from 1; None for a stale event."""
    previous_status: Status | None
    event: Event
    """An `EventWithRequest`, if the relay has PUBLISH_HTTP_REQUEST."""
    session: Session
    partition: int = 0
    """Which stream its cursor counts in; always 0 unless the relay has PARTITIONS."""
    is_snapshot: bool = False
    """It is the state held when the feed began, and not news."""
    json: bytes = dataclasses.field(repr=False)
    """The message itself, as it was published."""

    @property
    def position(self) -> str | None:
        """What `follow(after=…)` goes on from; None as long as snapshots come, since they have no order."""
        return None if self.is_snapshot else self.cursor

    @property
    def is_live(self) -> bool:
        """Tell whether the session is live by now: it may have run out since it was published."""
        session = self.session
        return session.live and (session.expire_at is None or session.expire_at > now_ms())


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def published(message: bytes, **more: Any) -> SessionUpdate:
    """Read what was published, or is kept as a session's state.

    Raises UnreadableMessageError.
    """
    read = _read(_PUBLISHED, message)
    return SessionUpdate(
        outcome="applied",
        cursor=read.cursor,
        revision=read.revision,
        previous_status=read.previous_status,
        event=read.event,
        session=read.session,
        json=message,
        **more,
    )


def streamed(cursor: str, outcome: Any, message: bytes, partition: int) -> SessionUpdate:
    """Read an entry of the stream.

    Raises UnreadableMessageError.
    """
    read = _read(_STREAMED, message)
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


def _read(kind: TypeAdapter[Any], message: bytes) -> Any:
    try:
        return kind.validate_python(lenient_json.loads(message))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise UnreadableMessageError(f"{where}: {fault['msg']}") from None
    except ValueError:
        raise UnreadableMessageError("it is no JSON") from None


_PUBLISHED: Final = TypeAdapter(SessionMessage)
_STREAMED: Final = TypeAdapter(StreamMessage)
