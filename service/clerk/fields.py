"""The types of the fields in Clerk's objects, and the model that reads them: docs/contract.md, section 7."""

import decimal
from typing import Annotated, Any, ClassVar, Final, Self

import pydantic
from clerk_session_feed.models import Id, Text
from pydantic import Field, ValidationInfo
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

MAX_TIME: Final = 10**14
"""The latest time that is read, in Unix milliseconds: the year 5138."""
SECONDS_BELOW: Final = 10**11
"""A smaller number is a time in seconds: in milliseconds it would be a time before March 1973."""


def record_nulled(field: str | None, info: ValidationInfo) -> None:
    """Tell the caller of `parse` that a field with an invalid value is read as null."""
    if info.context is not None:
        info.context(field)


def to_milliseconds(value: object) -> int:
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
                core_schema.no_info_plain_validator_function(to_milliseconds),
            ],
            mode="left_to_right",
            custom_error_type="time",
            custom_error_message="not a time in Unix milliseconds or seconds",
        )


OptionalId = Annotated[Id | None, NullIfInvalid]
OptionalText = Annotated[Text | None, NullIfInvalid]
Time = Annotated[int | None, _UnixTime]
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
                record_nulled(name, info)
        return model
