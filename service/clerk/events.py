"""The body of a delivery, read as an event about a session, or about a user whose sessions end.

The payloads: https://github.com/clerk/openapi-specs (webhooks, bapi). What is accepted: docs/contract.md,
section 7. Only the fields that matter are read, so nothing in the others can make an event unreadable.
"""

import contextlib
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, get_args

import orjson
import pydantic
from clerk_session_feed import lenient_json
from clerk_session_feed.models import MAX_TEXT, Id, SessionTask, Status
from pydantic import Field, PlainValidator, ValidationInfo
from pydantic_core import ErrorDetails

from service.clerk import ordinary, users
from service.clerk.fields import ClerkModel, Flag, NullIfInvalid, OptionalId, OptionalText, Time, record_nulled
from service.errors import MalformedEventError
from service.models import Ignored, Reason, Unusable

MAX_TYPE: Final = 128
"""Characters of an event's type."""
MAX_ACTOR_BYTES: Final = 4096
"""Bytes of compact JSON that an actor may have."""


def parse(
    body: bytes, on_nulled: Callable[[str], None], *, with_request: bool = False
) -> "SessionEvent | ordinary.OrdinaryEvent | users.UserEvent | Ignored | Unusable":
    """Read the body of a verified delivery.

    Args:
        body: UTF-8.
        on_nulled: called with the name of each field that is read as null because its value is invalid.
        with_request: return a SessionEventWithRequest, never an OrdinaryEvent.

    Raises:
        MalformedEventError: The body is not a JSON object with a string `type`.
    """
    if not with_request and (event := ordinary.read(body)) is not None:
        return event
    try:
        envelope = _load(body)
    except ValueError:
        raise MalformedEventError("The body is not JSON.") from None
    if not isinstance(envelope, dict) or not isinstance(type_ := envelope.get("type"), str):
        raise MalformedEventError("The body is not a JSON object with a string `type`.")
    if not type_.startswith("session."):
        return users.read(type_, envelope, on_nulled)
    try:
        model = SessionEventWithRequest if with_request else SessionEvent
        return model.model_validate(envelope, context=on_nulled)
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return Unusable(type_, *min(map(_describe, faults), key=lambda fault: _PRECEDENCE.index(fault[0])))


def _load(body: bytes) -> Any:
    """Parse JSON; orjson takes a fifth of the time, but refuses some JSON that Clerk may send."""
    try:
        envelope = orjson.loads(body)
    except ValueError:
        return lenient_json.loads(body)
    data = envelope.get("data") if isinstance(envelope, dict) else None
    if isinstance(data, dict) and data.get("actor") is not None:
        # An actor is published as it came, and orjson makes floats of long integers.
        return lenient_json.loads(body)
    return envelope


_PRECEDENCE: Final[tuple[Reason, ...]] = get_args(Reason)


def _describe(fault: ErrorDetails) -> tuple[Reason, str]:
    """Return the reason and the detail of a dead letter."""
    location, message = fault["loc"], fault["msg"].removeprefix("Value error, ")
    field = str(location[:2][-1])  # of the envelope or of its data
    reason: Any = "invalid_time" if field.endswith("_at") else f"invalid_{field}"
    return reason, f"{'.'.join(map(str, location))}: {message}"


def _compact_actor(value: object) -> orjson.Fragment:
    if not isinstance(value, dict) or not isinstance(value.get("sub"), str):
        raise ValueError("not an object with a string `sub`")  # noqa: TRY004  # pydantic reports ValueError
    with contextlib.suppress(ValueError):
        compact = lenient_json.dumps(value, at_most=MAX_ACTOR_BYTES).encode()
        if len(compact) <= MAX_ACTOR_BYTES:
            return orjson.Fragment(compact)
    raise ValueError(f"not in {MAX_ACTOR_BYTES} bytes of compact UTF-8 JSON")


Actor = Annotated[Any, PlainValidator(_compact_actor)] | None


class Activity(ClerkModel):
    """Where and with what a session was last used."""

    object: OptionalText = None
    id: OptionalText = None
    device_type: OptionalText = None
    is_mobile: Flag = None
    browser_name: OptionalText = None
    browser_version: OptionalText = None
    ip_address: OptionalText = None
    city: OptionalText = None
    country: OptionalText = None


def _read_tasks(value: object, info: ValidationInfo) -> tuple[SessionTask, ...]:
    """Leave invalid tasks out. Pydantic would describe each of them: half a million fit into a body."""
    items = [] if value is None else value if isinstance(value, list) else [None]
    keys = [item.get("key") if isinstance(item, dict) else None for item in items]
    tasks = tuple(
        SessionTask(key=key)
        for key in keys
        if isinstance(key, str) and len(key) <= MAX_TEXT and lenient_json.is_unicode(key)
    )
    for _ in range(len(items) - len(tasks)):
        record_nulled(info.field_name, info)
    return tasks


class SessionData(ClerkModel):
    """The session in an event's `data`."""

    object: Literal["session"] | None = None
    id: Id
    user_id: Id
    client_id: OptionalId = None
    actor: Actor = None
    status: Status | None = None
    last_active_organization_id: OptionalId = None
    last_active_at: Time = None
    latest_activity: Annotated[Activity | None, NullIfInvalid] = None
    expire_at: Time = None
    abandon_at: Time = None
    updated_at: Time = None
    created_at: Time = None
    tasks: Annotated[tuple[SessionTask, ...], PlainValidator(_read_tasks)] = ()


class HttpRequestData(ClerkModel):
    """The request of the user that caused an event."""

    client_ip: OptionalText = None
    user_agent: OptionalText = None


class EventAttributes(ClerkModel):
    """What Clerk adds about the cause of an event."""

    http_request: Annotated[HttpRequestData | None, NullIfInvalid] = None


class SessionEvent(ClerkModel):
    """A `session.*` event as Clerk sent it, with times in Unix milliseconds."""

    type: Annotated[str, Field(strict=True, max_length=MAX_TYPE)]
    timestamp: Annotated[Time, NullIfInvalid] = None
    instance_id: OptionalId = None
    data: SessionData


class SessionEventWithRequest(SessionEvent):
    """The same with the user's HTTP request, which is read only if PUBLISH_HTTP_REQUEST is set."""

    event_attributes: Annotated[EventAttributes | None, NullIfInvalid] = None
