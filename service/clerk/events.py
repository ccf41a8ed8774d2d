"""The body of a delivery, read as a session event.

The payloads: https://github.com/clerk/openapi-specs (webhooks, bapi). What is accepted: docs/contract.md,
section 7. Only the fields that matter are read, so nothing in the others can make an event unreadable.
"""

import contextlib
import decimal
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

import orjson
import pydantic
from clerk_session_feed import lenient_json
from clerk_session_feed.models import MAX_TEXT, Id, SessionTask, Status, Text
from pydantic import Field, PlainValidator, ValidationInfo
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from service.errors import MalformedEventError
from service.models import Ignored, Reason, Unusable

MAX_TYPE: Final = 128
"""Characters of an event's type."""
MAX_ACTOR_BYTES: Final = 4096
"""Bytes of compact JSON that an actor may have."""
MAX_TIME: Final = 10**14
"""The latest time that is read, in Unix milliseconds: the year 5138."""
SECONDS_BELOW: Final = 10**11
"""A smaller number is a time in seconds: in milliseconds it would be a time before March 1973."""


def parse(
    body: bytes, on_nulled: Callable[[str], None], *, with_request: bool = False
) -> "SessionEvent | Ignored | Unusable":
    """Read the body of a verified delivery.

    Args:
        body: UTF-8.
        on_nulled: called with the name of each field that is read as null because its value is invalid.
        with_request: return a SessionEventWithRequest.

    Raises:
        MalformedEventError: The body is not a JSON object with a string `type`.
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


def _record_nulled(field: str | None, info: ValidationInfo) -> None:
    """Tell the caller of `parse` that a field with an invalid value is read as null."""
    if info.context is not None:
        info.context(field)


def _to_milliseconds(value: object) -> int:
    """Return a time in seconds or milliseconds as whole Unix milliseconds; raise ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")  # noqa: TRY004  # pydantic reports ValueError
    if not 0 <= value <= MAX_TIME:  # NaN too
        raise ValueError("not a time in Unix milliseconds or seconds")
    scale = 1000 if value < SECONDS_BELOW else 1
    if isinstance(value, int):
        return value * scale
    # In decimal, as it was written: binary arithmetic makes some times a millisecond too early.
    return int(decimal.Decimal(repr(value)) * scale)


def _compact_actor(value: object) -> orjson.Fragment:
    if not isinstance(value, dict) or not isinstance(value.get("sub"), str):
        raise ValueError("not an object with a string `sub`")  # noqa: TRY004  # pydantic reports ValueError
    with contextlib.suppress(ValueError):
        compact = lenient_json.dumps(value, at_most=MAX_ACTOR_BYTES).encode()
        if len(compact) <= MAX_ACTOR_BYTES:
            return orjson.Fragment(compact)
    raise ValueError(f"not in {MAX_ACTOR_BYTES} bytes of compact UTF-8 JSON")


class NullIfInvalid:
    """Marks metadata, which never costs an event: an invalid value is read as null, and recorded."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_default_schema(handler(source), default=None, on_error="default")


class _UnixTime:
    """A time; one in milliseconds, as nearly all are, is read without calling Python code."""

    @staticmethod
    def __get_pydantic_core_schema__(_: Any, __: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.union_schema(
            [
                core_schema.int_schema(strict=True, ge=SECONDS_BELOW, le=MAX_TIME),
                core_schema.none_schema(),
                core_schema.no_info_plain_validator_function(_to_milliseconds),
            ],
            mode="left_to_right",
            custom_error_type="time",
            custom_error_message="not a time in Unix milliseconds or seconds",
        )


OptionalId = Annotated[Id | None, NullIfInvalid]
OptionalText = Annotated[Text | None, NullIfInvalid]
Time = Annotated[int | None, _UnixTime]
Actor = Annotated[Any, PlainValidator(_compact_actor)] | None
Flag = Annotated[Annotated[bool, Field(strict=True)] | None, NullIfInvalid]


class ClerkModel(pydantic.BaseModel):
    """An object in a payload, read in both spellings of Clerk's; null counts as missing."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")
    _sdk_names: ClassVar[dict[str, str]]
    """Names as Clerk's SDKs write them (`userId`), where they differ from the webhooks' (`user_id`)."""
    _null_if_invalid: ClassVar[tuple[str, ...]]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        cls._sdk_names = {sdk: name for name in cls.model_fields if (sdk := to_camel(name)) != name}
        cls._null_if_invalid = tuple(
            name for name, field in cls.model_fields.items() if NullIfInvalid in field.metadata
        )

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, read: pydantic.ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if not isinstance(value, dict):
            return read(value)
        if not cls._sdk_names.keys().isdisjoint(value):
            sdk_values = {name: value[sdk] for sdk, name in cls._sdk_names.items() if sdk in value}
            value = value | {name: each for name, each in sdk_values.items() if value.get(name) is None}
        model = read(value)
        for name in cls._null_if_invalid:
            if getattr(model, name) is None and value.get(name) is not None:
                _record_nulled(name, info)
        return model


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
        _record_nulled(info.field_name, info)
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
