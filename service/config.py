"""Settings: the only reader of the environment (and of `.env` in the working directory).

A long module, since each fault of a setting says what to do.
"""

import base64
import binascii
import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.contract import OMITTABLE_FIELDS
from service.errors import ConfigurationError
from service.keys import has_hash_tag
from service.redis_url import RedisUrl

_SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # what every secret begins with
_WHERE: Final = "Clerk's Dashboard, Webhooks, your endpoint, Signing Secret"
_DAY: Final = 86_400
_ALIKE: Final = 0.8
"""How much alike two names are, so that one may be meant for the other: REDIS_TLS_URL and REDIS_URL are."""


def _split(value: object) -> object:
    return [part for part in re.split(r"[,\s]+", value) if part] if isinstance(value, str) else value


def _check_secrets(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not secrets:
        raise ValueError(f"holds no secret: copy one from {_WHERE}")
    for number, secret in enumerate(secrets, start=1):
        which = f"secret {number} of {len(secrets)} " if len(secrets) > 1 else ""
        prefix, _, encoded = secret.get_secret_value().partition("_")
        if prefix.startswith(("'", '"')):
            raise ValueError(f"{which}begins with a quotation mark: leave the quotes out")
        if f"{prefix}_" != _SECRET_PREFIX:
            raise ValueError(f"{which}does not start with {_SECRET_PREFIX}: copy it from {_WHERE}")
        try:
            size = len(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            raise ValueError(
                f"{which}is not base64 after {_SECRET_PREFIX}, as if it was cut: copy it whole from {_WHERE}"
            ) from None
        if not 24 <= size <= 64:  # noqa: PLR2004  # https://www.standardwebhooks.com: 24 to 64 bytes
            raise ValueError(
                f"{which}decodes to {size} bytes, not 24 to 64, as if it was cut: copy it whole from {_WHERE}"
            )
    return secrets


def _check_redis_url(url: SecretStr, info: ValidationInfo) -> SecretStr:
    kind = RedisUrl.parse(url.get_secret_value()).kind
    if kind == "cluster" and not has_hash_tag(info.data.get("redis_key_prefix", "{clerk}")):
        raise ValueError("is a cluster's, so REDIS_KEY_PREFIX needs a hash tag in braces, like {clerk}")
    return url


def _check_partitions(partitions: int, info: ValidationInfo) -> int:
    if partitions > 1 and not has_hash_tag(info.data.get("redis_key_prefix", "{clerk}")):
        raise ValueError("are told apart by the hash tag of REDIS_KEY_PREFIX, which has none, like {clerk}")
    return partitions


def _check_omit_fields(names: frozenset[str]) -> frozenset[str]:
    if unknown := sorted(names - OMITTABLE_FIELDS):
        raise ValueError(
            f"can't leave out {', '.join(unknown)}; use only these: {', '.join(sorted(OMITTABLE_FIELDS))}"
        )
    return names


def _check_token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    # https://www.rfc-editor.org/rfc/rfc9110#section-5.5
    if text != text.strip() or re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(
            "has white space at an end, or a control character: leave out what no header carries"
        )
    return token


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",  # some editors begin a file with a mark (BOM)
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )


_LogLevel = Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)]
_LogFormat = Annotated[Literal["json", "console"], BeforeValidator(_lower)]


def _expect(default: Any, expected: str, **limits: Any) -> Any:
    """Declare a field. expected: what has to be there, as a fault puts it after "is not"."""
    return Field(default, description=expected, **limits)


_LEVELS: Final = "debug, info, warning, error or critical"
_FORMATS: Final = "json or console"
_YES_OR_NO: Final = "true or false"
_PORT: Final = "a port number from 1 to 65535"


class LogSettings(_Environment):
    log_level: _LogLevel = _expect("info", _LEVELS)
    log_format: _LogFormat = _expect("json", _FORMATS)


_SigningSecrets = Annotated[
    tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_secrets)
]
_SIGNING_SECRET_NAMES: Final = AliasChoices("clerk_webhook_signing_secret", "clerk_webhook_secret")
_RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]


class SigningSettings(_Environment):
    clerk_webhook_signing_secret: _SigningSecrets = Field(
        validation_alias=_SIGNING_SECRET_NAMES, description=f"what is at {_WHERE}"
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(secret.get_secret_value() for secret in self.clerk_webhook_signing_secret)


class _RedisNames(_Environment):
    redis_tls_verify: bool = _expect(True, _YES_OR_NO)
    redis_key_prefix: str = Field("{clerk}", min_length=1)
    redis_channel: str = Field("clerk:sessions", min_length=1)
    partitions: Annotated[int, AfterValidator(_check_partitions)] = _expect(
        1, "a number from 1 to 1024", ge=1, le=1024
    )
    """Each has keys, a stream and an expiry set of its own; chosen once, for the life of the data."""
    redis_timeout: float = _expect(
        2.0, "a number of seconds, more than 0 and up to 60", gt=0, le=60, allow_inf_nan=False
    )
    """Seconds, for connecting and for one command."""


class RedisSettings(_RedisNames):
    redis_url: _RedisUrl = Field(description="where Redis is, like redis://127.0.0.1:6379/0")


class ExplicitRedisSettings(RedisSettings):
    """What a program says by itself: the environment is not read."""

    model_config = SettingsConfigDict(extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # pydantic-settings passes it
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class StoreSettings(RedisSettings):
    """What events become in Redis, whoever brings them: the service, or a replay of dead letters."""

    redis_min_replicas: int = _expect(0, "a number of replicas from 0 to 1000", ge=0, le=1000)
    stream_maxlen: int = _expect(5000, "a number of entries from 1 to 1000000000000", ge=1, le=10**12)
    session_retention: int = _expect(
        7 * _DAY,
        "a number of seconds from 172800 (two days: the sender retries for 27.6 hours) to 34560000",
        ge=2 * _DAY,
        le=400 * _DAY,
    )
    """An id forgotten while the sender still retries would be applied twice."""
    dead_letter_max: int = _expect(1000, "a number of dead letters from 0 to 1000000000", ge=0, le=10**9)
    omit_fields: Annotated[
        frozenset[str], NoDecode, BeforeValidator(_split), AfterValidator(_check_omit_fields)
    ] = frozenset()
    publish_http_request: bool = _expect(False, _YES_OR_NO)


class WorkerSettings(StoreSettings, LogSettings):
    """What `expire` runs with."""


class ListenSettings(_Environment):
    host: str = "0.0.0.0"  # noqa: S104  # a platform's router comes from outside
    port: int = _expect(8000, _PORT, ge=1, le=65535)
    web_concurrency: int = _expect(1, "a number of processes from 1 to 1000", ge=1, le=1000)


class Settings(SigningSettings, StoreSettings, ListenSettings, LogSettings):
    """What `serve` runs with."""

    max_body_bytes: int = _expect(1_048_576, "a number of bytes from 1 to 1073741824", ge=1, le=2**30)
    metrics_token: Annotated[SecretStr, AfterValidator(_check_token)] = SecretStr("")
    serve_fast_lane: bool = _expect(True, _YES_OR_NO)


class DevSettings(_RedisNames):
    """What `dev` is told; it makes up what is missing."""

    clerk_webhook_signing_secret: _SigningSecrets | None = Field(None, validation_alias=_SIGNING_SECRET_NAMES)
    redis_url: _RedisUrl | None = None
    host: str = "127.0.0.1"
    port: int | None = _expect(None, _PORT, ge=1, le=65535)
    log_level: _LogLevel = _expect("warning", _LEVELS)
    log_format: _LogFormat = _expect("console", _FORMATS)


S = TypeVar("S", bound=_Environment)


def load(kind: type[S], **overrides: Any) -> S:
    """Read settings from the environment and `.env`; the environment wins, overrides win over both.

    Raises ConfigurationError with a line for each wrong or missing setting.
    """
    try:
        return kind(**overrides)
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_url=False, include_context=False, include_input=False):
            name = str(fault["loc"][0])
            faults.append(f"{name.upper()}: {_explain(kind, name, fault['type'], fault['msg'])}")
        raise ConfigurationError(faults) from None
    except UnicodeDecodeError:
        raise ConfigurationError([".env: is not text in UTF-8: save it as that"]) from None
    except OSError as error:
        reason = f"({error.strerror}): let this user read it, or remove it"
        raise ConfigurationError([f".env: can't be read {reason}"]) from None


def _explain(kind: type[_Environment], name: str, error: str, message: str) -> str:
    field = kind.model_fields.get(name)
    if error == "value_error" or field is None or field.description is None:
        return message.removeprefix("Value error, ")
    if error == "missing":
        if alike := misspelt([name]).get(name):
            return f"is missing, but {alike} is there: if that is it, rename it"
        return f"is missing or empty: set it, in the environment or in .env, to {field.description}"
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    instead = "" if default is None else f", for {default}"
    return f"is not {field.description}: correct it, or leave it out{instead}"


def misspelt(unset: Iterable[str]) -> dict[str, str]:
    """Return settings that are not there, with the variable that looks as if it were meant for each.

    Such a variable is no fault by itself: it may be another program's.
    """
    there = {*EnvSettingsSource(Settings).env_vars, *DotEnvSettingsSource(Settings).env_vars}
    others = there - set(Settings.model_fields) - set(_SIGNING_SECRET_NAMES.choices)
    found = {}
    for name in unset:
        for alike in difflib.get_close_matches(name, others, n=1, cutoff=_ALIKE):
            found[name] = alike.upper()
    return found
