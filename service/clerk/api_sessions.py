"""What Clerk's Backend API answers about sessions. Does no I/O.

A session is read as leniently as one in a webhook (`service.clerk.events`), and each by itself: one that can't be read
costs no other.
"""

import dataclasses
import re
from typing import Any, Final

import orjson
import pydantic
from clerk_session_feed import lenient_json
from clerk_session_feed.models import ID, STATUSES

from service.clerk.events import SessionData

_STATUS: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a status looks like that may be printed and logged."""


@dataclasses.dataclass(frozen=True, slots=True)
class ApiSession:
    """A session as Clerk has it now."""

    data: SessionData
    """Its `status` is never None."""
    answered_at_ms: int
    """The time of Clerk's answer, in Unix milliseconds, cut to whole seconds."""

    @property
    def id(self) -> str:
        """The session's id."""
        return self.data.id


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableSession:
    """A session that this version can't read."""

    id: str | None
    """None if that can't be read either."""
    detail: str
    """Names the field and says what is wrong with it, without its value."""
    unknown_status: str | None
    """The status, if it is one that this version doesn't know."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionNotFound:
    """Clerk has no session of this id."""

    id: str
    answered_at_ms: int
    """As in `ApiSession`."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionRefused:
    """Clerk refused a request about one session, and says nothing about its state."""

    id: str
    status: int
    """Of HTTP: 400 to 499."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionList:
    """The sessions that Clerk lists for a user, each once."""

    sessions: tuple[ApiSession, ...]
    unreadable: tuple[UnreadableSession, ...]


def load(body: bytes) -> Any:
    """Parse JSON; orjson takes a fifth of the time, but refuses some JSON that Clerk may send.

    Raises:
        ValueError: It is none.
    """
    try:
        value = orjson.loads(body)
    except ValueError:
        return lenient_json.loads(body)
    listed = value.get("data") if isinstance(value, dict) else value
    items = listed if isinstance(listed, list) else [value]
    if any(isinstance(item, dict) and item.get("actor") is not None for item in items):
        # An actor is published as it came, and orjson makes floats of long integers.
        return lenient_json.loads(body)
    return value


def read_session(item: Any, answered_at_ms: int) -> ApiSession | UnreadableSession:
    """Read a session in Clerk's JSON."""
    try:
        data = SessionData.model_validate(item)
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return _unreadable(item, "; ".join(sorted({_describe(fault["loc"], fault["msg"]) for fault in faults})))
    if data.status is None:
        return _unreadable(item, "status: missing")
    return ApiSession(data, answered_at_ms)


def _describe(location: tuple[int | str, ...], message: str) -> str:
    field = str(location[0]) if location else "session"
    return f"{field}: {message.removeprefix('Value error, ')}"


def _unreadable(item: Any, detail: str) -> UnreadableSession:
    found = item if isinstance(item, dict) else {}
    id_, status = found.get("id"), found.get("status")
    return UnreadableSession(
        id=id_ if isinstance(id_, str) and ID.fullmatch(id_) else None,
        detail=detail,
        unknown_status=(
            status if isinstance(status, str) and status not in STATUSES and _STATUS.fullmatch(status) else None
        ),
    )
