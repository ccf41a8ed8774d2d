"""Settings: the only reader of the environment (and of `.env` in the working directory)."""

import base64
import binascii
import re
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
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from service.contract import OMITTABLE_FIELDS
from service.errors import ConfigurationError
from service.keys import has_hash_tag
from service.redis_url import RedisUrl

_SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # what every secret begins with
_DAY: Final = 86_400


def _split(value: object) -> object:
    return [part for part in re.split(r"[,\s]+", value) if part] if isinstance(value, str) else value


def _check_secrets(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not secrets:
        raise ValueError("holds no secret")
    for number, secret in enumerate(secrets, start=1):
        which = f"secret {number} of {len(secrets)} " if len(secrets) > 1 else ""
        prefix, _, encoded = secret.get_secret_value().partition("_")
        if f"{prefix}_" != _SECRET_PREFIX:
            raise ValueError(
                f"{which}does not start with {_SECRET_PREFIX}: copy it from Clerk's Dashboard, Webhooks"
            )
        try:
            size = len(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            raise ValueError(f"{which}is not base64 after {_SECRET_PREFIX}: was it cut?") from None
        if not 24 <= size <= 64:  # noqa: PLR2004  # https://www.standardwebhooks.com: 24 to 64 bytes
            raise ValueError(f"{which}decodes to {size} bytes, not to 24 to 64: was it cut?")
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
            f"can't leave out {', '.join(unknown)}; what can be: {', '.join(sorted(OMITTABLE_FIELDS))}"
        )
    return names


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )


_LogLevel = Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)]
_LogFormat = Annotated[Literal["json", "console"], BeforeValidator(_lower)]


class LogSettings(_Environment):
    log_level: _LogLevel = "info"
    log_format: _LogFormat = "json"


_SigningSecrets = Annotated[
    tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_secrets)
]
_SIGNING_SECRET_NAMES: Final = AliasChoices("clerk_webhook_signing_secret", "clerk_webhook_secret")
_RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]


class SigningSettings(_Environment):
    clerk_webhook_signing_secret: _SigningSecrets = Field(validation_alias=_SIGNING_SECRET_NAMES)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(secret.get_secret_value() for secret in self.clerk_webhook_signing_secret)


class _RedisNames(_Environment):
    redis_tls_verify: bool = True
    redis_key_prefix: str = Field("{clerk}", min_length=1)
    redis_channel: str = Field("clerk:sessions", min_length=1)
    partitions: Annotated[int, Field(ge=1, le=1024), AfterValidator(_check_partitions)] = 1
    """Each has keys, a stream and an expiry set of its own; chosen once, for the life of the data."""
    redis_timeout: float = Field(2.0, gt=0, le=60, allow_inf_nan=False)
    """Seconds, for connecting and for one command."""


class RedisSettings(_RedisNames):
    redis_url: _RedisUrl


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

    redis_min_replicas: int = Field(0, ge=0, le=1000)
    stream_maxlen: int = Field(5000, ge=1, le=10**12)
    session_retention: int = Field(7 * _DAY, ge=2 * _DAY, le=400 * _DAY)
    """Seconds. The sender retries for 27.6 hours: an id forgotten sooner would be applied twice."""
    dead_letter_max: int = Field(1000, ge=0, le=10**9)
    omit_fields: Annotated[
        frozenset[str], NoDecode, BeforeValidator(_split), AfterValidator(_check_omit_fields)
    ] = frozenset()
    publish_http_request: bool = False


class WorkerSettings(StoreSettings, LogSettings):
    """What `expire` runs with."""


class ListenSettings(_Environment):
    host: str = "0.0.0.0"  # noqa: S104  # a platform's router comes from outside
    port: int = Field(8000, ge=1, le=65535)
    web_concurrency: int = Field(1, ge=1, le=1000)


class Settings(SigningSettings, StoreSettings, ListenSettings, LogSettings):
    """What `serve` runs with."""

    max_body_bytes: int = Field(1_048_576, ge=1, le=2**30)
    metrics_token: SecretStr = SecretStr("")


class DevSettings(_RedisNames):
    """What `dev` is told; it makes up what is missing."""

    clerk_webhook_signing_secret: _SigningSecrets | None = Field(None, validation_alias=_SIGNING_SECRET_NAMES)
    redis_url: _RedisUrl | None = None
    host: str = "127.0.0.1"
    port: int | None = Field(None, ge=1, le=65535)
    log_level: _LogLevel = "warning"
    log_format: _LogFormat = "console"


S = TypeVar("S", bound=_Environment)


def load(kind: type[S], **overrides: Any) -> S:
    """Read settings from the environment and `.env`; the environment wins, overrides win over both.

    Raises ConfigurationError with a line for each wrong or missing setting.
    """
    try:
        return kind(**overrides)
    except ValidationError as error:
        faults = [
            f"{str(fault['loc'][0]).upper()}: {_explain(fault['type'], fault['msg'])}"
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise ConfigurationError(faults) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([f".env: can't be read ({error})"]) from None


def _explain(kind: str, message: str) -> str:
    if kind == "missing":
        return "is missing; set it in the environment or in .env (.env.example explains every setting)"
    return message.removeprefix("Value error, ")
