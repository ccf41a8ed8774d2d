"""Clerk's wire format, read leniently: only the fields that matter, in both of Clerk's spellings.

The shapes: https://github.com/clerk/openapi-specs (webhooks, bapi). What is accepted and what becomes of
the rest: CONTRACT, "What is accepted".
"""

import dataclasses
import decimal
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Final, Literal

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from service import lenient_json
from service.contract import ID, Status
from service.errors import MalformedEventError

Reason = Literal[
    "invalid_data",
    "invalid_type",
    "invalid_object",
    "invalid_id",
    "invalid_user_id",
    "invalid_status",
    "invalid_time",
    "invalid_updated_at",
    "invalid_actor",
]

MAX_TEXT: Final = 1024
MAX_TYPE: Final = 128
MAX_ACTOR_BYTES: Final = 4096
MAX_TIME: Final = 10**14
"""Unix milliseconds; the year 5138."""
SECONDS_BELOW: Final = 10**11
"""A smaller number is a time in seconds: as milliseconds it would lie before March 1973."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ignored:
    """A genuine event about something other than a session."""

    type: str


@dataclasses.dataclass(frozen=True, slots=True)
class Unusable:
    """A genuine session event that can't be turned into state."""

    type: str
    reason: Reason
    detail: str
    """Names the field and what is wrong with it; never a value."""


def parse(body: bytes, note_nulled: Callable[[str], None]) -> "SessionEvent | Ignored | Unusable":
    """Read the body of a verified delivery.

    body: UTF-8. note_nulled: is told the name of each odd field that was read as null.
    Raises MalformedEventError if the body is not a JSON object with a string `type`.
    """
    try:
        envelope = lenient_json.loads(body)
    except ValueError:
        raise MalformedEventError("The body is not JSON.") from None
    if not isinstance(envelope, dict) or not isinstance(type_ := envelope.get("type"), str):
        raise MalformedEventError("The body is not a JSON object with a string `type`.")
    if not type_.startswith("session."):
        return Ignored(type_)
    try:
        return SessionEvent.model_validate(envelope, context=note_nulled)
    except ValidationError as error:
        faults = [
            (_REASONS[fault["loc"][:2]], f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        reason, detail = min(faults, key=lambda fault: _PRECEDENCE.index(fault[0]))
        return Unusable(type_, reason, detail)


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


def _null_if_odd(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Metadata never costs an event: what can't be read is null, and counted."""
    try:
        return read(value)
    except ValidationError:
        _note_nulled(info)
        return None


def _note_nulled(info: ValidationInfo) -> None:
    if info.context is not None:
        info.context(info.field_name)


def to_milliseconds(value: object) -> int | None:
    """Read a time in Unix seconds or milliseconds, told apart by magnitude; the fraction of a ms is cut.

    Raises ValueError for anything but a number from 0 to 10^14.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")  # noqa: TRY004  # pydantic reports ValueError
    if not 0 <= value <= MAX_TIME:  # NaN too
        raise ValueError("not a time in Unix milliseconds or seconds")
    scale = 1000 if value < SECONDS_BELOW else 1
    if isinstance(value, int):
        return value * scale
    # In decimal, as it was written: in binary, some times in seconds come out a millisecond short.
    return int(decimal.Decimal(repr(value)) * scale)


def _whole_actor(value: object) -> orjson.Fragment | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("sub"), str):
        raise ValueError("not an object with a string `sub`")  # noqa: TRY004  # pydantic reports ValueError
    try:
        compact = lenient_json.dumps(value, at_most=MAX_ACTOR_BYTES).encode()
    except ValueError:
        raise ValueError("can't be written as UTF-8 JSON again, or not in 4 KiB") from None
    if len(compact) > MAX_ACTOR_BYTES:
        raise ValueError(f"larger than {MAX_ACTOR_BYTES} bytes of compact JSON")
    return orjson.Fragment(compact)


_Lenient = WrapValidator(_null_if_odd)
_Id = Annotated[str, StringConstraints(strict=True, pattern=f"^{ID.pattern}$")]
_LenientId = Annotated[_Id | None, _Lenient]
_Text = Annotated[str, StringConstraints(strict=True, max_length=MAX_TEXT)]
_LenientText = Annotated[_Text | None, _Lenient]
_Time = Annotated[int | None, BeforeValidator(to_milliseconds)]


class _Wire(BaseModel):
    """An object of Clerk's. Every field is optional to begin with: null counts as missing."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    _spellings: ClassVar[tuple[tuple[str, str], ...]]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        cls._spellings = tuple((name, to_camel(name)) for name in cls.model_fields)

    @model_validator(mode="before")
    @classmethod
    def _read_both_spellings(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: value.get(sdk_name) if (found := value.get(name)) is None else found
            for name, sdk_name in cls._spellings
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    key: str


class Activity(_Wire):
    object: _LenientText
    id: _LenientText
    device_type: _LenientText
    is_mobile: Annotated[bool | None, Field(strict=True), _Lenient]
    browser_name: _LenientText
    browser_version: _LenientText
    ip_address: _LenientText
    city: _LenientText
    country: _LenientText


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
        _note_nulled(info)
        return ()
    tasks = tuple(task for task in map(_good_task, value) if task)
    for _ in range(len(value) - len(tasks)):
        _note_nulled(info)
    return tasks


class SessionData(_Wire):
    object: Literal["session"] | None
    id: _Id
    user_id: _Id
    client_id: _LenientId
    actor: Annotated[Any, PlainValidator(_whole_actor)]
    status: Status | None
    last_active_organization_id: _LenientId
    last_active_at: _Time
    latest_activity: Annotated[Activity | None, _Lenient]
    expire_at: _Time
    abandon_at: _Time
    updated_at: _Time
    created_at: _Time
    tasks: Annotated[tuple[Task, ...], PlainValidator(_good_tasks)]


class HttpRequestData(_Wire):
    client_ip: _LenientText
    user_agent: _LenientText


class EventAttributes(_Wire):
    http_request: Annotated[HttpRequestData | None, _Lenient]


class SessionEvent(_Wire):
    """A `session.*` event as Clerk sent it; times in Unix milliseconds."""

    type: Annotated[str, StringConstraints(strict=True, max_length=MAX_TYPE)]
    timestamp: Annotated[_Time, _Lenient]
    instance_id: _LenientId
    event_attributes: Annotated[EventAttributes | None, _Lenient]
    data: SessionData
