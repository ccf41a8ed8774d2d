"""Settings: the only reader of the environment, and of `.env` in the working directory.

docs/contract.md, section 2, lists them. What consumers need, too (`REDIS_URL` and so on), is in
`clerk_session_feed.settings`. A long module, since each setting stands here with what can be wrong with it.
"""

import base64
import difflib
import ipaddress
import re
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from clerk_session_feed import settings as feed_settings
from clerk_session_feed.errors import ConfigurationError
from clerk_session_feed.settings import CheckedRedisUrl, KeySettings, Name, faults
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, NoDecode, SettingsConfigDict

from service.models import OMITTABLE_FIELDS

_DASHBOARD: Final = "Clerk's Dashboard, Webhooks, your endpoint, Signing Secret"
_API_KEYS: Final = "Clerk's Dashboard, API keys"
_DAY: Final = 86_400
"""Seconds."""
_SIMILARITY: Final = 0.8
"""From this ratio of difflib on, one name may be meant for another: REDIS_TLS_URL for REDIS_URL."""

SHORT_ACCESS_TOKEN: Final = 16
"""Characters below which a token could be guessed, with which users' sessions can be read from anywhere."""

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_ADDRESS: Final = re.compile(
    rf"https?://(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?(?:/[a-z0-9/._~%-]*)?", re.IGNORECASE
)
"""A URL of ASCII, without a user, a query or a fragment."""


def _split(value: object) -> object:
    return [part for part in re.split(r"[,\s]+", value) if part] if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _check_secrets(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not secrets:
        raise ValueError(f"holds no secret: copy one from {_DASHBOARD}")
    for number, secret in enumerate(secrets, start=1):
        if fault := _fault_of_secret(secret.get_secret_value()):
            raise ValueError(f"secret {number} of {len(secrets)} {fault}" if len(secrets) > 1 else fault)
    return secrets


def _fault_of_secret(secret: str) -> str | None:
    if secret.startswith(("'", '"')):
        return "begins with a quotation mark: leave the quotes out"
    if not secret.startswith("whsec_"):
        return f"does not start with whsec_: copy it from {_DASHBOARD}"
    try:
        size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
    except ValueError:
        return f"is not base64 after whsec_, as if it was cut: copy it whole from {_DASHBOARD}"
    if not 24 <= size <= 64:  # noqa: PLR2004  # https://www.standardwebhooks.com: 24 to 64 bytes
        return f"decodes to {size} bytes, not 24 to 64, as if it was cut: copy it whole from {_DASHBOARD}"
    return None


def _check_secret_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if text.startswith(("'", '"')):
        raise ValueError("begins with a quotation mark: leave the quotes out")
    if not text.startswith("sk_"):
        raise ValueError(f"does not start with sk_: copy the secret key from {_API_KEYS}")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{4,512}", text):
        raise ValueError(f"has what no key has, as white space or quotes, or is cut: copy it whole from {_API_KEYS}")
    return key


def _check_api_url(url: str) -> str:
    try:
        is_address = _ADDRESS.fullmatch(url) is not None and urlsplit(url).port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError("is not an address like https://api.clerk.com/v1, with no user, query or fragment in it")
    if urlsplit(url).scheme == "http" and not _is_nearby(str(urlsplit(url).hostname)):
        raise ValueError("begins with http://, so that the secret key could be read on its way: use https://")
    return url.rstrip("/")


def _is_nearby(host: str) -> bool:
    """Tell whether a host is of a private network: it may be a stand-in for Clerk, and can't be Clerk."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".internal", ".local", ".localhost", ".test"))


def _check_omit_fields(names: frozenset[str]) -> frozenset[str]:
    if unknown := sorted(names - OMITTABLE_FIELDS):
        allowed = ", ".join(sorted(OMITTABLE_FIELDS))
        raise ValueError(f"can't leave out {', '.join(unknown)}; use only these: {allowed}")
    return names


def _check_token(token: SecretStr) -> SecretStr:
    if fault := _fault_of_token(token.get_secret_value()):
        raise ValueError(fault)
    return token


def _fault_of_token(token: str) -> str | None:
    # https://www.rfc-editor.org/rfc/rfc9110#section-5.5
    if token != token.strip() or not token.isprintable():
        return "has white space at an end, or a control character: leave out what no header carries"
    if token and any(map(feed_settings.is_quotation_mark, (token[0], token[-1]))):
        return "begins or ends with a quotation mark: leave the quotes out"
    return None


def _split_at_commas(value: object) -> object:
    return [part for each in value.split(",") if (part := each.strip(" \t"))] if isinstance(value, str) else value


def _check_access_tokens(tokens: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for number, token in enumerate(tokens, start=1):
        if fault := _fault_of_token(token.get_secret_value()):
            raise ValueError(f"token {number} of {len(tokens)} {fault}" if len(tokens) > 1 else fault)
    return tokens


def _without_brackets(host: str) -> str:
    """Return an address of IPv6 as the system takes it; with a port, it is written in brackets."""
    in_brackets = re.fullmatch(r"\[(.+)\]", host)
    return in_brackets[1] if in_brackets else host


_LogLevel = Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)]
_LogFormat = Annotated[Literal["json", "console"], BeforeValidator(_lower)]
_SigningSecrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_secrets)]
_AccessTokens = Annotated[
    tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_at_commas), AfterValidator(_check_access_tokens)
]
_SecretKey = Annotated[SecretStr, AfterValidator(_check_secret_key)]
_ApiUrl = Annotated[str, AfterValidator(_check_api_url)]
_Host = Annotated[Name, AfterValidator(_without_brackets)]
_OmitFields = Annotated[frozenset[str], NoDecode, BeforeValidator(_split), AfterValidator(_check_omit_fields)]
_SIGNING_SECRET_NAMES: Final = AliasChoices("clerk_webhook_signing_secret", "clerk_webhook_secret")

# What a setting has to be, as the message about a wrong value says it.
_LEVELS: Final = "debug, info, warning, error or critical"
_FORMATS: Final = "json or console"
_YES_OR_NO: Final = "true or false"
_PORT: Final = "a port number from 1 to 65535"


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

    _refuse_quotes = field_validator("*", mode="before")(feed_settings.refuse_quotes)


class LogSettings(_Environment):
    """What is logged, and how."""

    log_level: _LogLevel = Field("info", description=_LEVELS)
    log_format: _LogFormat = Field("json", description=_FORMATS)
    """If it is not set, a terminal gets `console`."""


class SigningSettings(_Environment):
    """The secrets that deliveries are signed with."""

    clerk_webhook_signing_secret: _SigningSecrets = Field(
        validation_alias=_SIGNING_SECRET_NAMES, description=f"what is at {_DASHBOARD}"
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        """Each as `whsec_` and base64; a delivery is genuine if any of them verifies it."""
        return tuple(secret.get_secret_value() for secret in self.clerk_webhook_signing_secret)


class RedisSettings(feed_settings.RedisSettings, _Environment):
    """Where Redis is, and how keys are named."""

    model_config = _Environment.model_config


class StoreSettings(RedisSettings):
    """How events are stored, by the service and by a replay of dead letters."""

    redis_min_replicas: int = Field(0, description="a number of replicas from 0 to 1000", ge=0, le=1000)
    stream_maxlen: int = Field(5000, description="a number of entries from 1 to 1000000000000", ge=1, le=10**12)
    session_retention: int = Field(
        7 * _DAY,
        description="a number of seconds from 172800 (two days: the sender retries for 27.6 hours) to 34560000",
        ge=2 * _DAY,
        le=400 * _DAY,
    )
    """Seconds. The ids of messages last as long: one forgotten during retries would be applied twice."""
    dead_letter_max: int = Field(1000, description="a number of dead letters from 0 to 1000000000", ge=0, le=10**9)
    omit_fields: _OmitFields = frozenset()
    publish_http_request: bool = Field(False, description=_YES_OR_NO)


class WorkerSettings(StoreSettings, LogSettings):
    """What the command `expire` runs with."""


class ClerkSettings(_Environment):
    """How Clerk's Backend API is reached: by `reconcile`, `revoke` and `check --clerk` alone."""

    clerk_secret_key: _SecretKey = Field(description=f"the secret key (sk_…) at {_API_KEYS}")
    clerk_api_url: _ApiUrl = "https://api.clerk.com/v1"
    """Without a slash at its end."""


class ReconcileSettings(StoreSettings, LogSettings, ClerkSettings):
    """What the commands `reconcile` and `revoke` run with; they need no webhook secret."""


class ListenSettings(_Environment):
    """Where `serve` listens, and in how many processes."""

    host: _Host = "0.0.0.0"  # noqa: S104  # a platform's router comes from outside
    port: int = Field(8000, description=_PORT, ge=1, le=65535)
    web_concurrency: int = Field(1, description="a number of processes from 1 to 1000", ge=1, le=1000)


class Settings(SigningSettings, StoreSettings, ListenSettings, LogSettings):
    """What the command `serve` and `service.app.create_app` run with."""

    max_body_bytes: int = Field(1_048_576, description="a number of bytes from 1 to 1073741824", ge=1, le=2**30)
    metrics_token: Annotated[SecretStr, AfterValidator(_check_token)] = SecretStr("")
    serve_fast_lane: bool = Field(True, description=_YES_OR_NO)
    read_token: _AccessTokens = ()
    console_token: _AccessTokens = ()

    @property
    def read_tokens(self) -> tuple[str, ...]:
        """Each opens what is read over HTTP; without any, that is off."""
        return tuple(token.get_secret_value() for token in self.read_token)

    @property
    def console_tokens(self) -> tuple[str, ...]:
        """Each opens /console; without any, that is off."""
        return tuple(token.get_secret_value() for token in self.console_token)


class DevSettings(KeySettings, _Environment):
    """What the command `dev` runs with; it makes up what is missing."""

    model_config = _Environment.model_config

    clerk_webhook_signing_secret: _SigningSecrets | None = Field(None, validation_alias=_SIGNING_SECRET_NAMES)
    redis_url: CheckedRedisUrl | None = None
    console_token: _AccessTokens = ()
    host: _Host = "127.0.0.1"
    port: int | None = Field(None, description=_PORT, ge=1, le=65535)
    log_level: _LogLevel = Field("warning", description=_LEVELS)
    log_format: _LogFormat = Field("console", description=_FORMATS)


S = TypeVar("S", bound=_Environment)


def load(kind: type[S], **overrides: Any) -> S:
    """Read settings from the environment and `.env`; the environment wins over the file, `overrides` over both.

    Raises:
        ConfigurationError: A setting is wrong or missing; with a line for each.
    """
    try:
        return kind(**overrides)
    except ValidationError as error:
        raise ConfigurationError(faults(kind, error, misspelt)) from None
    except UnicodeDecodeError:
        raise ConfigurationError([".env: is not UTF-8 text: save it as UTF-8"]) from None
    except OSError as error:
        raise ConfigurationError([f".env: can't be read ({error.strerror}): make it readable, or remove it"]) from None


def misspelt(unset: str) -> str | None:
    """Return the variable that is probably meant for a setting that is not set, if there is one.

    Such a variable is no fault by itself: it may be another program's.
    """
    present = {*EnvSettingsSource(Settings).env_vars, *DotEnvSettingsSource(Settings).env_vars}
    others = present - set(Settings.model_fields) - set(ClerkSettings.model_fields) - set(_SIGNING_SECRET_NAMES.choices)
    close = difflib.get_close_matches(unset, others, n=1, cutoff=_SIMILARITY)
    close += sorted(name for name in others if _is_longer_or_shorter(name, unset))
    return close[0].upper() if close else None


def _is_longer_or_shorter(name: str, setting: str) -> bool:
    """Tell whether one is the other with further words at its end: REDIS_TIMEOUT_SECONDS, PUBLISH_HTTP.

    With further words at its beginning, it is another program's (OTEL_LOG_LEVEL), and so is one word (SERVE).
    """
    shorter, longer = sorted((name, setting), key=len)
    return "_" in shorter and longer.startswith(f"{shorter}_")


def misspelt_settings(settings: BaseSettings) -> list[str]:
    """Return a line for each variable that is probably meant for a setting that is not set."""
    unset = sorted(type(settings).model_fields.keys() - settings.model_fields_set)
    found = [(misspelt(name), name.upper()) for name in unset]
    return [f"{alike} is not a setting. If you mean {name}, rename it" for alike, name in found if alike]


def short_tokens(settings: BaseSettings) -> list[str]:
    """Return a line for each setting with a token that is so short that it could be guessed."""
    tokens = {name: getattr(settings, name, ()) for name in ("read_token", "console_token")}
    return [
        f"{name.upper()} has a token of less than {SHORT_ACCESS_TOKEN} characters, which could be guessed:"
        " make one with `openssl rand -hex 32`"
        for name, values in tokens.items()
        if any(len(value.get_secret_value()) < SHORT_ACCESS_TOKEN for value in values)
    ]


def shown(settings: BaseSettings) -> dict[str, object]:
    """Return the settings that are not their defaults, by variable, as a log may show them: without secrets."""
    fields = type(settings).model_fields
    changed = {name: value for name, value in settings if value != fields[name].default}
    return {name.upper(): _shown(name, value) for name, value in changed.items()}


def _shown(name: str, value: object) -> object:
    match value:
        case SecretStr():
            return redis_address(value.get_secret_value()) if name == "redis_url" else "set"
        case tuple():
            return f"{len(value)} set"
        case frozenset():
            return sorted(value)
        case _:
            return value


def redis_address(url: str) -> str:
    """Return a REDIS_URL without its user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
