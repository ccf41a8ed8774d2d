"""Messages as relays write them nearly always, read several times as fast as by pydantic.

`updates` has pydantic read whatever is refused here: `models` alone says what a message is. So this may refuse what is
valid, as it does with actors, but must not take anything that `models` refuses.

What is read here are structs of msgspec's. The objects of `models` that consumers get are made of them.
"""

import re
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from clerk_session_feed.models import Event, EventWithRequest, HttpRequest, Session, SessionActivity, SessionTask

_Id = Annotated[str, Meta(min_length=1, max_length=128)]
"""Of which characters it is made is seen later, for all ids together."""
_UnixMs = Annotated[int, Meta(ge=0, le=10**14)]
_Revision = Annotated[int, Meta(ge=1)]
_Cursor = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})\Z")]
_OF_IDS: Final = re.compile(r"[A-Za-z0-9_-]+")


# The fields of each have the order of the JSON: msgspec looks for each key first where it comes next.


class _Activity(Struct, gc=False):
    object: str | None
    id: str | None
    device_type: str | None
    is_mobile: bool | None
    browser_name: str | None
    browser_version: str | None
    ip_address: str | None
    city: str | None
    country: str | None


class _Task(Struct, gc=False):
    key: str


class _Request(Struct, gc=False):
    client_ip: str | None
    user_agent: str | None


class _Event(Struct, kw_only=True, gc=False):
    id: _Id
    type: Annotated[str, Meta(max_length=128)]
    occurred_at: _UnixMs
    instance_id: _Id | None
    source: str
    http_request: _Request | UnsetType | None = UNSET


class _Session(Struct, kw_only=True, gc=False):
    object: Literal["session"] = "session"
    id: _Id
    user_id: _Id
    client_id: _Id | None
    actor: None
    """An actor can hold anything, which two parsers would not read alike."""
    status: str
    live: bool
    last_active_organization_id: _Id | None
    last_active_at: _UnixMs | None
    latest_activity: _Activity | None
    expire_at: _UnixMs | None
    abandon_at: _UnixMs | None
    updated_at: _UnixMs | None
    created_at: _UnixMs | None
    tasks: list[_Task]


class SessionMessage(Struct, gc=False):
    """As in `models`."""

    schema_version: Literal[1]
    cursor: _Cursor
    revision: _Revision
    previous_status: str | None
    event: _Event
    session: _Session


class StreamMessage(Struct, gc=False):
    """As in `models`."""

    schema_version: Literal[1]
    cursor: None
    revision: _Revision | None
    previous_status: str | None
    event: _Event
    session: _Session


Message = SessionMessage | StreamMessage
M = TypeVar("M", SessionMessage, StreamMessage)
_SESSION_MESSAGES: Final = msgspec.json.Decoder(SessionMessage)
_STREAM_MESSAGES: Final = msgspec.json.Decoder(StreamMessage)


def read_session_message(message: bytes) -> SessionMessage | None:
    """Return what a SessionMessage says, or None if this can't tell."""
    return _read(_SESSION_MESSAGES, message)


def read_stream_message(message: bytes) -> StreamMessage | None:
    """Return what a StreamMessage says, or None if this can't tell."""
    return _read(_STREAM_MESSAGES, message)


def _read(decoder: msgspec.json.Decoder[M], message: bytes) -> M | None:
    try:
        if not message.isascii():
            message.decode()  # msgspec passes over what is not read, whether it is UTF-8 or not
        read = decoder.decode(message)
    except (ValueError, RecursionError):  # ValueError is the base of msgspec's errors, too
        return None
    event, session = read.event, read.session
    # One that is missing adds "None" to the text, which makes no difference.
    ids = f"{session.id}{session.user_id}{session.client_id}{session.last_active_organization_id}"
    return read if _OF_IDS.fullmatch(f"{ids}{event.id}{event.instance_id}") else None


def make_event(message: Message) -> Event:
    """Return the event of a message."""
    fields = asdict(message.event)
    if message.event.http_request is UNSET:
        del fields["http_request"]
        return Event(**fields)
    if message.event.http_request is not None:
        fields["http_request"] = HttpRequest(**asdict(message.event.http_request))
    return EventWithRequest(**fields)


def make_session(message: Message) -> Session:
    """Return the session of a message."""
    fields = asdict(message.session)
    if message.session.latest_activity is not None:
        fields["latest_activity"] = SessionActivity(**asdict(message.session.latest_activity))
    fields["tasks"] = tuple([SessionTask(key=task.key) for task in message.session.tasks])
    return Session(**fields)
