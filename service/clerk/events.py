"""Clerk's wire format, read leniently: only the fields that matter, in both of Clerk's spellings.

The shapes: https://github.com/clerk/openapi-specs (webhooks, bapi). What is accepted and what becomes of
the rest: CONTRACT, "What is accepted".
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import orjson
from clerk_session_feed import lenient_json
from clerk_session_feed.models import MAX_TEXT, Id, Status
from pydantic import PlainValidator, StringConstraints, ValidationError, ValidationInfo

from service.clerk.fields import (
    Actor,
    Flag,
    Lenient,
    LenientId,
    LenientText,
    Time,
    Wire,
    note_nulled,
)
from service.errors import MalformedEventError
from service.models import Ignored, Reason, Unusable

MAX_TYPE: Final = 128


def parse(
    body: bytes, note_nulled: Callable[[str], None], *, with_request: bool = False
) -> "SessionEvent | Ignored | Unusable":
    """Read the body of a verified delivery.

    body: UTF-8. note_nulled: is told the name of each odd field that was read as null.
    with_request: return a SessionEventWithRequest.
    Raises MalformedEventError if the body is not a JSON object with a string `type`.
    """
    try:
        envelope = _load(body)
    except ValueError:
        raise MalformedEventError("The body is not JSON.") from None
    if not isinstance(envelope, dict) or not isinstance(type_ := envelope.get("type"), str):
        raise MalformedEventError("The body is not a JSON object with a string `type`.")
    if not type_.startswith("session."):
        return Ignored(type_)
    try:
        kind = SessionEventWithRequest if with_request else SessionEvent
        return kind.model_validate(envelope, context=note_nulled)
    except ValidationError as error:
        faults = [
            (_REASONS[fault["loc"][:2]], _detail(fault["loc"], fault["msg"]))
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        reason, detail = min(faults, key=lambda fault: _PRECEDENCE.index(fault[0]))
        return Unusable(type_, reason, detail)


def _load(body: bytes) -> Any:
    """Parse with orjson what it can parse: nearly everything, in a fifth of the time.

    Raises ValueError if it is no JSON.
    """
    try:
        envelope = orjson.loads(body)
    except ValueError:
        return lenient_json.loads(body)
    data = envelope.get("data") if isinstance(envelope, dict) else None
    if isinstance(data, dict) and data.get("actor") is not None:
        return lenient_json.loads(
            body
        )  # orjson makes floats of long integers, and an actor is kept as it came
    return envelope


def _detail(location: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, location))}: {message.removeprefix('Value error, ')}"


_PRECEDENCE: Final[tuple[Reason, ...]] = Reason.__args__  # type: ignore[attr-defined]
_REASONS: Final[dict[tuple[int | str, ...], Reason]] = {
    ("data",): "invalid_data",
    ("type",): "invalid_type",
    ("data", "object"): "invalid_object",
    ("data", "id"): "invalid_id",
    ("data", "user_id"): "invalid_user_id",
    ("data", "status"): "invalid_status",
    ("data", "last_active_at"): "invalid_time",
    ("data", "expire_at"): "invalid_time",
    ("data", "abandon_at"): "invalid_time",
    ("data", "updated_at"): "invalid_time",
    ("data", "created_at"): "invalid_time",
    ("data", "actor"): "invalid_actor",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    key: str


class Activity(Wire):
    object: LenientText = None
    id: LenientText = None
    device_type: LenientText = None
    is_mobile: Flag = None
    browser_name: LenientText = None
    browser_version: LenientText = None
    ip_address: LenientText = None
    city: LenientText = None
    country: LenientText = None


def _good_task(value: object) -> Task | None:
    """Not by pydantic: half a million bad tasks, of which it would describe each, fit into a body."""
    key = value.get("key") if isinstance(value, dict) else None
    if not isinstance(key, str) or len(key) > MAX_TEXT or not lenient_json.is_unicode(key):
        return None
    return Task(key=key)


def _good_tasks(value: object, info: ValidationInfo) -> tuple[Task, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        note_nulled(info.field_name, info)
        return ()
    tasks = tuple(task for task in map(_good_task, value) if task)
    for _ in range(len(value) - len(tasks)):
        note_nulled(info.field_name, info)
    return tasks


class SessionData(Wire):
    object: Literal["session"] | None = None
    id: Id
    user_id: Id
    client_id: LenientId = None
    actor: Actor = None
    status: Status | None = None
    last_active_organization_id: LenientId = None
    last_active_at: Time = None
    latest_activity: Annotated[Activity | None, Lenient] = None
    expire_at: Time = None
    abandon_at: Time = None
    updated_at: Time = None
    created_at: Time = None
    tasks: Annotated[tuple[Task, ...], PlainValidator(_good_tasks)] = ()


class HttpRequestData(Wire):
    client_ip: LenientText = None
    user_agent: LenientText = None


class EventAttributes(Wire):
    http_request: Annotated[HttpRequestData | None, Lenient] = None


class SessionEvent(Wire):
    """A `session.*` event as Clerk sent it; times in Unix milliseconds."""

    type: Annotated[str, StringConstraints(strict=True, max_length=MAX_TYPE)]
    timestamp: Annotated[Time, Lenient] = None
    instance_id: LenientId = None
    data: SessionData


class SessionEventWithRequest(SessionEvent):
    """The same with where the request behind it came from: read only where that is published."""

    event_attributes: Annotated[EventAttributes | None, Lenient] = None
