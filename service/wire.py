"""How leniently each kind of Clerk's fields is read, in both of Clerk's spellings."""

import decimal
from typing import Annotated, Any, ClassVar, Final

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from service import lenient_json
from service.contract import Id, Text

MAX_ACTOR_BYTES: Final = 4096
MAX_TIME: Final = 10**14
"""Unix milliseconds; the year 5138."""
SECONDS_BELOW: Final = 10**11
"""A smaller number is a time in seconds: as milliseconds it would lie before March 1973."""


def _null_if_odd(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Metadata never costs an event: what can't be read is null, and counted."""
    try:
        return read(value)
    except ValidationError:
        note_nulled(info)
        return None


def note_nulled(info: ValidationInfo) -> None:
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


Lenient = WrapValidator(_null_if_odd)
LenientId = Annotated[Id | None, Lenient]
LenientText = Annotated[Text | None, Lenient]
Time = Annotated[int | None, BeforeValidator(to_milliseconds)]


class Wire(BaseModel):
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


Actor = Annotated[Any, PlainValidator(_whole_actor)]
Flag = Annotated[bool | None, Field(strict=True), Lenient]
