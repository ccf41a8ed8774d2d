"""Where the relay's Redis is, and how its keys are named; validated, with a line for each fault.

The description of a field says what has to be there, as a fault puts it after "is not".
"""

import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from clerk_session_feed.errors import ConfigurationError
from clerk_session_feed.keys import has_hash_tag
from clerk_session_feed.redis_url import RedisUrl


def _check_redis_url(url: SecretStr, info: ValidationInfo) -> SecretStr:
    kind = RedisUrl.parse(url.get_secret_value()).kind
    if kind == "cluster" and not has_hash_tag(info.data.get("redis_key_prefix", "{clerk}")):
        raise ValueError("is a cluster's, so REDIS_KEY_PREFIX needs a hash tag in braces, like {clerk}")
    return url


def _check_partitions(partitions: int, info: ValidationInfo) -> int:
    if partitions > 1 and not has_hash_tag(info.data.get("redis_key_prefix", "{clerk}")):
        raise ValueError("are told apart by the hash tag of REDIS_KEY_PREFIX, which has none, like {clerk}")
    return partitions


def refuse_quotes(value: object) -> object:
    """Refuse a value in quotes: shells and `.env` files remove them, `docker run --env-file` does not."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and re.fullmatch(r"""\s*(['"]).*\1\s*""", text, re.DOTALL):
        raise ValueError("begins with a quotation mark: leave the quotes out")
    return value


_QUOTES: Final = re.compile(
    r"[\"'`\u00b4\u2032-\u2037\u201a\u201e\u300c-\u300f\u301d-\u301f\ufe41-\ufe44\uff02\uff07\uff40\uff62\uff63]"
)
"""Beside those that Unicode calls quotation marks at the beginning (Pi) or at the end (Pf), like «, and “."""
_UNSEEN: Final = re.compile(
    r"[\s\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""White space, and fillers and selectors, which count as printable."""


def is_quotation_mark(character: str) -> bool:
    """Tell whether a character is a quotation mark, or looks like one."""
    return unicodedata.category(character) in {"Pi", "Pf"} or _QUOTES.fullmatch(character) is not None


def check_name(name: str) -> str:
    """Refuse what no name has, and what is hard to see in one."""
    if _UNSEEN.search(name) or not name.isprintable() or any(map(is_quotation_mark, name)):
        raise ValueError("has white space, a quotation mark or a control character: leave it out")
    if found := re.search(r"[\\$]", name):
        raise ValueError(
            f"has a {found[0]}, as of an escape or a variable that nothing replaced: write what it stands for"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
CheckedRedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]


class KeySettings(BaseModel):
    """How the relay's keys are named, and how long a command may take."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)

    redis_tls_verify: bool = Field(True, description="true or false")
    redis_key_prefix: Name = Field("{clerk}", min_length=1)
    redis_channel: Name = Field("clerk:sessions", min_length=1)
    partitions: Annotated[int, AfterValidator(_check_partitions)] = Field(
        1, description="a number from 1 to 1024", ge=1, le=1024
    )
    """Each has keys, a stream and an expiry set of its own; chosen once, for the life of the data."""
    redis_timeout: float = Field(
        2.0, description="a number of seconds, more than 0 and up to 60", gt=0, le=60, allow_inf_nan=False
    )
    """Seconds, for connecting and for one command."""

    _refuse_quotes = field_validator("*", mode="before")(refuse_quotes)


class RedisSettings(KeySettings):
    """What is needed to reach the relay's Redis."""

    redis_url: CheckedRedisUrl = Field(description="where Redis is, like redis://127.0.0.1:6379/0")

    @classmethod
    def from_env(cls) -> "RedisSettings":
        """Read the relay's own variables, REDIS_URL and so on; an empty one counts as not set.

        A file `.env` in the working directory is read too, if python-dotenv is installed. The environment wins.

        Raises:
            ConfigurationError: With a line for each fault.
        """
        in_file: Mapping[str, str | None] = {}
        unread = ""
        try:
            from dotenv import dotenv_values  # noqa: PLC0415  # optional

            in_file = dotenv_values(".env", encoding="utf-8-sig")  # some editors begin a file with a BOM
        except ImportError:
            if Path(".env").exists():
                unread = ". The file .env is not read: python-dotenv is not installed"
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError([".env: can't be read: it has to be UTF-8 that this user may read"]) from None
        found = {name.lower(): value for name, value in {**in_file, **os.environ}.items() if value}
        try:
            return load(cls, {name: value for name, value in found.items() if name in cls.model_fields})
        except ConfigurationError as error:
            lines = [line + unread if " is missing" in line else line for line in error.faults]
            raise ConfigurationError(lines) from None


S = TypeVar("S", bound=BaseModel)


def load(kind: type[S], values: Mapping[str, Any]) -> S:
    """Return validated settings.

    Raises:
        ConfigurationError: With a line for each fault.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigurationError(faults(kind, error)) from None


def faults(
    kind: type[BaseModel], error: ValidationError, misspelt: Callable[[str], str | None] = lambda _: None
) -> list[str]:
    """Return a line for each fault: the variable, what is wrong with it, and what to do.

    Args:
        kind: what was to be made.
        error: what pydantic raised.
        misspelt: returns a variable that may be meant for one that is missing.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [f"{str(fault['loc'][0]).upper()}: {_explain(kind, fault, misspelt)}" for fault in found]


def _explain(kind: type[BaseModel], fault: Mapping[str, Any], misspelt: Callable[[str], str | None]) -> str:
    name = str(fault["loc"][0])
    field = kind.model_fields.get(name)
    if fault["type"] == "value_error" or field is None or field.description is None:
        return str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        if alike := misspelt(name):
            return f"is missing, but {alike} is there: if that is it, rename it"
        return f"is missing or empty: set it, in the environment or in .env, to {field.description}"
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    instead = "" if default is None else f", for {default}"
    return f"is not {field.description}: correct it, or leave it out{instead}"
