"""How leniently each kind of Clerk's fields is read, in both of Clerk's spellings."""

import decimal
from typing import Annotated, Any, ClassVar, Final, Self

import orjson
from clerk_session_feed import lenient_json
from clerk_session_feed.models import Id, Text
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

MAX_ACTOR_BYTES: Final = 4096
MAX_TIME: Final = 10**14
"""Unix milliseconds; the year 5138."""
SECONDS_BELOW: Final = 10**11
"""A smaller number is a time in seconds: as milliseconds it would lie before March 1973."""


def note_nulled(field: str | None, info: ValidationInfo) -> None:
    if info.context is not None:
        info.context(field)


def to_milliseconds(value: object) -> int:
    """Read a time in Unix seconds or milliseconds, told apart by magnitude; the fraction of a ms is cut.

    Raises ValueError for anything but a number from 0 to 10^14.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")  # noqa: TRY004  # pydantic reports ValueError
    if not 0 <= value <= MAX_TIME:  # NaN too
        raise ValueError("not a time in Unix milliseconds or seconds")
    scale = 1000 if value < SECONDS_BELOW else 1
    if isinstance(value, int):
        return value * scale
    # In decimal, as it was written: in binary, some times in seconds come out a millisecond short.
    return int(decimal.Decimal(repr(value)) * scale)


def _whole_actor(value: object) -> orjson.Fragment:
    if not isinstance(value, dict) or not isinstance(value.get("sub"), str):
        raise ValueError("not an object with a string `sub`")  # noqa: TRY004  # pydantic reports ValueError
    try:
        compact = lenient_json.dumps(value, at_most=MAX_ACTOR_BYTES).encode()
    except ValueError:
        raise ValueError("can't be written as UTF-8 JSON again, or not in 4 KiB") from None
    if len(compact) > MAX_ACTOR_BYTES:
        raise ValueError(f"larger than {MAX_ACTOR_BYTES} bytes of compact JSON")
    return orjson.Fragment(compact)


class Lenient:
    """Metadata never costs an event: what can't be read is null, and counted (by `Wire`)."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_default_schema(handler(source), default=None, on_error="default")


class _UnixTime:
    """Nearly all are in milliseconds already: those never leave pydantic's own code."""

    @staticmethod
    def __get_pydantic_core_schema__(_: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.union_schema(
            [
                core_schema.int_schema(strict=True, ge=SECONDS_BELOW, le=MAX_TIME),
                core_schema.none_schema(),
                core_schema.no_info_plain_validator_function(to_milliseconds),
            ],
            mode="left_to_right",
            custom_error_type="time",
            custom_error_message="not a time in Unix milliseconds or seconds",
        )


LenientId = Annotated[Id | None, Lenient]
LenientText = Annotated[Text | None, Lenient]
Time = Annotated[int | None, _UnixTime]
Actor = Annotated[Any, PlainValidator(_whole_actor)] | None
Flag = Annotated[Annotated[bool, Field(strict=True)] | None, Lenient]


class Wire(BaseModel):
    """An object of Clerk's, read in both of Clerk's spellings: null counts as missing."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    _sdk_names: ClassVar[dict[str, str]]
    """How Clerk's SDKs spell a field, where it differs from the wire."""
    _lenient: ClassVar[tuple[str, ...]]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        cls._sdk_names = {sdk: name for name in cls.model_fields if (sdk := to_camel(name)) != name}
        cls._lenient = tuple(name for name, field in cls.model_fields.items() if Lenient in field.metadata)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, read: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if not isinstance(value, dict):
            return read(value)
        if not cls._sdk_names.keys().isdisjoint(value):
            sdk_values = {name: value[sdk] for sdk, name in cls._sdk_names.items() if sdk in value}
            value = value | {name: each for name, each in sdk_values.items() if value.get(name) is None}
        model = read(value)
        for name in cls._lenient:
            if getattr(model, name) is None and value.get(name) is not None:
                note_nulled(name, info)
        return model
