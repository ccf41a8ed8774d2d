"""docs/contract.md, section 2: settings, and how a wrong one is reported."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from clerk_session_feed.errors import ConfigurationError
from support.constants import OTHER_SECRET, SECRET

from service.config import Settings, SigningSettings, load, misspelt_settings, redis_address, short_tokens, shown
from service.models import OMITTABLE_FIELDS

NEEDED: Final = {"CLERK_WEBHOOK_SIGNING_SECRET": SECRET, "REDIS_URL": "redis://127.0.0.1"}
NAMES: Final = (
    *("CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_WEBHOOK_SECRET", "REDIS_URL", "REDIS_TLS_VERIFY"),
    *("REDIS_KEY_PREFIX", "REDIS_CHANNEL", "REDIS_TIMEOUT", "REDIS_MIN_REPLICAS", "STREAM_MAXLEN"),
    "PARTITIONS",
    *("SESSION_RETENTION", "DEAD_LETTER_MAX", "MAX_BODY_BYTES", "OMIT_FIELDS", "PUBLISH_HTTP_REQUEST"),
    *("HOST", "PORT", "WEB_CONCURRENCY", "LOG_LEVEL", "LOG_FORMAT", "METRICS_TOKEN"),
    *("READ_TOKEN", "CONSOLE_TOKEN"),
)

TOKEN: Final = "a_token-of~16/+="
OTHER_TOKEN: Final = "b" * 64

Environment = Callable[..., None]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    """Start from an environment without settings, in a directory without a `.env`."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def faults() -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(Settings)
    assert all(len(fault.splitlines()) == 1 for fault in caught.value.faults)
    assert str(caught.value).splitlines() == caught.value.faults
    return caught.value.faults


def fault_of(name: str, value: str, environment: Environment) -> str:
    environment(**NEEDED | {name: value})
    [fault] = faults()
    assert fault.startswith(f"{name}: ")
    return fault


def test_the_defaults_are_those_of_the_contract(environment: Environment) -> None:
    environment(**NEEDED)
    settings = load(Settings)
    assert settings.secrets == (SECRET,)
    assert settings.redis_url.get_secret_value() == "redis://127.0.0.1"
    assert settings.metrics_token.get_secret_value() == ""
    plain = settings.model_dump(exclude={"clerk_webhook_signing_secret", "redis_url", "metrics_token"})
    assert plain == {
        "redis_tls_verify": True,
        "redis_key_prefix": "{clerk}",
        "redis_channel": "clerk:sessions",
        "partitions": 1,
        "redis_timeout": 2.0,
        "redis_min_replicas": 0,
        "stream_maxlen": 5000,
        "session_retention": 604_800,
        "dead_letter_max": 1000,
        "max_body_bytes": 1_048_576,
        "serve_fast_lane": True,
        "read_token": (),
        "console_token": (),
        "omit_fields": frozenset(),
        "publish_http_request": False,
        "host": "0.0.0.0",
        "port": 8000,
        "web_concurrency": 1,
        "log_level": "info",
        "log_format": "json",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("REDIS_TLS_VERIFY", "false", False),
        ("REDIS_KEY_PREFIX", "{app}:clerk", "{app}:clerk"),
        ("REDIS_CHANNEL", "sessions", "sessions"),
        ("REDIS_TIMEOUT", "0.25", 0.25),
        ("REDIS_MIN_REPLICAS", "2", 2),
        ("PARTITIONS", "8", 8),
        ("STREAM_MAXLEN", "1", 1),
        ("SESSION_RETENTION", "172800", 172_800),
        ("DEAD_LETTER_MAX", "0", 0),
        ("MAX_BODY_BYTES", "4096", 4096),
        ("PUBLISH_HTTP_REQUEST", "true", True),
        ("HOST", "127.0.0.1", "127.0.0.1"),
        ("HOST", "[::1]", "::1"),
        ("HOST", "[[::]]", "[::]"),
        ("PORT", "65535", 65_535),
        ("WEB_CONCURRENCY", "3", 3),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("LOG_FORMAT", "console", "console"),
    ],
)
def test_each_setting_is_read_under_its_name(name: str, text: str, value: object, environment: Environment) -> None:
    environment(**NEEDED | {name: text})
    assert getattr(load(Settings), name.lower()) == value


def test_the_token_for_metrics_is_read(environment: Environment) -> None:
    environment(**NEEDED, METRICS_TOKEN="hunter2")
    assert load(Settings).metrics_token.get_secret_value() == "hunter2"


@pytest.mark.parametrize("name", ["READ_TOKEN", "CONSOLE_TOKEN"])
def test_tokens_for_readers_are_separated_by_commas(name: str, environment: Environment) -> None:
    environment(**NEEDED, **{name: f" {TOKEN}, {OTHER_TOKEN},"})
    assert getattr(load(Settings), f"{name.lower()}s") == (TOKEN, OTHER_TOKEN)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDED])
def test_an_empty_setting_is_one_left_out(name: str, environment: Environment) -> None:
    environment(**NEEDED)
    before = load(Settings)
    environment(**{name: ""})
    assert load(Settings) == before


# Where settings come from.


def test_a_file_is_read_and_the_environment_wins(environment: Environment, tmp_path: Path) -> None:
    lines = [f"{name}={value}" for name, value in NEEDED.items()]
    lines += ["# a comment", "STREAM_MAXLEN=7", "OMIT_FIELDS='actor,tasks'", 'export HOST="::1"', "UNKNOWN=1"]
    (tmp_path / ".env").write_text("\n".join([*lines, "PORT=1"]), encoding="utf-8")
    environment(PORT="2")
    settings = load(Settings)
    assert (settings.secrets, settings.stream_maxlen, settings.host) == ((SECRET,), 7, "::1")
    assert settings.omit_fields == {"actor", "tasks"}
    assert settings.port == 2


@pytest.mark.parametrize("in_file", ["CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_WEBHOOK_SECRET"])
@pytest.mark.parametrize("outside", ["CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_WEBHOOK_SECRET"])
def test_the_environments_secret_wins_under_either_name(
    in_file: str, outside: str, environment: Environment, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"{in_file}={OTHER_SECRET}\n", encoding="utf-8")
    environment(**{outside: SECRET})
    assert load(SigningSettings).secrets == (SECRET,)


def test_a_file_that_is_no_text_is_one_fault(environment: Environment, tmp_path: Path) -> None:
    environment(**NEEDED)
    (tmp_path / ".env").write_bytes(b"PORT=\xff\xfe")
    [fault] = faults()
    assert fault.startswith(".env: ")


# Faults.


def test_what_is_missing_is_named() -> None:
    first, second = faults()
    assert first.startswith(("CLERK_WEBHOOK_SIGNING_SECRET: ", "REDIS_URL: "))
    assert {fault.partition(":")[0] for fault in (first, second)} == set(NEEDED)
    assert all("missing" in fault for fault in (first, second))


BAD: Final = (
    *(("REDIS_TLS_VERIFY", value) for value in ("maybe", "2", " ")),
    *(("REDIS_TIMEOUT", value) for value in ("0", "-1", "nan", "inf", "2s")),
    *(("REDIS_MIN_REPLICAS", value) for value in ("-1", "1.5", "x")),
    *(("PARTITIONS", value) for value in ("0", "-1", "1025", "many")),
    *(("STREAM_MAXLEN", value) for value in ("0", "-1", "many")),
    *(("SESSION_RETENTION", value) for value in ("172799", "0", "-1", "7d")),
    *(("DEAD_LETTER_MAX", value) for value in ("-1", "x")),
    *(("MAX_BODY_BYTES", value) for value in ("0", "1MB")),
    *(("PUBLISH_HTTP_REQUEST", value) for value in ("maybe",)),
    *(("PORT", value) for value in ("0", "65536", "http", "80.5")),
    *(("WEB_CONCURRENCY", value) for value in ("0", "-1", "auto")),
    *(("LOG_LEVEL", value) for value in ("loud", "17")),
    *(("LOG_FORMAT", value) for value in ("xml", "json\nconsole")),
)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_one_line_that_names_the_variable(name: str, value: str, environment: Environment) -> None:
    assert fault_of(name, value, environment)


@pytest.mark.parametrize("quoted", ['"{}"', "'{}'", ' "{}"\t'])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "CLERK_WEBHOOK_SECRET"])
def test_a_value_in_quotes_is_refused(name: str, quoted: str, environment: Environment) -> None:
    value = NEEDED.get(name) or "1"
    assert fault_of(name, quoted.format(value), environment).endswith("leave the quotes out")


@pytest.mark.parametrize(
    "value",
    [
        *("{clerk} ", "\t{clerk}", "{clerk}\r", "my app", "'{clerk}", '{clerk}"', "{a}\x1b", "{a}\u200b", "`{a}"),
        *("“{a}”", "«{a}»", "\u2039{a}\u203a", "„{a}“", "\u201a{a}\u2018", "「{a}」", "\uff02{a}\uff02", "\uff07{a}"),
        *("\u2032{a}", "{a}\u2033", "{a}\xb4"),
        *("{a}\u3164", "{a}\u115f", "{a}\u1160", "{a}\uffa0", "{a}\ufe0f", "{a}\u034f", "{a}\u2800"),
    ],
)
@pytest.mark.parametrize("name", ["REDIS_KEY_PREFIX", "REDIS_CHANNEL"])
def test_a_name_in_redis_has_only_what_names_have(name: str, value: str, environment: Environment) -> None:
    fault = fault_of(name, value, environment)
    assert fault == f"{name}: has white space, a quotation mark or a control character: leave it out"


@pytest.mark.parametrize("value", ["{clerk}\\n", "\\{clerk}", "${X}", "$PREFIX"])
@pytest.mark.parametrize("name", ["REDIS_KEY_PREFIX", "REDIS_CHANNEL", "HOST"])
def test_what_nothing_replaced_is_no_name(name: str, value: str, environment: Environment) -> None:
    assert "that nothing replaced: write what it stands for" in fault_of(name, value, environment)


@pytest.mark.parametrize("value", ["{müller}", "{日本}:a", "clerk:sessions@eu/1", "{app-1}.x_y"])
def test_a_name_may_have_other_letters_and_signs(value: str, environment: Environment) -> None:
    environment(**NEEDED, REDIS_KEY_PREFIX=value)
    assert load(Settings).redis_key_prefix == value


@pytest.mark.parametrize("host", ["127.0.0.1 ", "\t::", "0.0.0.0\r", "local host", "a\x1bb", "\u200b::", "'::", '::"'])
def test_a_host_has_only_what_names_have(host: str, environment: Environment) -> None:
    assert "leave it out" in fault_of("HOST", host, environment)


@pytest.mark.parametrize("token", ["hunter2 ", "\thunter2", "hun\x1bter2", "hunter2\u200b", "hun\nter2"])
def test_a_token_has_only_what_a_header_carries(token: str, environment: Environment) -> None:
    fault = fault_of("METRICS_TOKEN", token, environment)
    assert "leave out what no header carries" in fault
    assert "hun" not in fault


@pytest.mark.parametrize("token", ["'hunter2", 'hunter2"', "“hunter2”", "hunter2`"])
def test_a_token_with_one_quotation_mark_at_an_end_is_refused(token: str, environment: Environment) -> None:
    fault = fault_of("METRICS_TOKEN", token, environment)
    assert fault == "METRICS_TOKEN: begins or ends with a quotation mark: leave the quotes out"


def test_a_quotation_mark_inside_is_part_of_a_value(environment: Environment) -> None:
    environment(**NEEDED, METRICS_TOKEN="it's")
    assert load(Settings).metrics_token.get_secret_value() == "it's"


@pytest.mark.parametrize("name", ["READ_TOKEN", "CONSOLE_TOKEN"])
@pytest.mark.parametrize(
    ("token", "what"),
    [
        ("hunter2hunter2\x7f", "leave out what no header carries"),
        ("hunter2'", "quotation mark"),
        (f"{TOKEN},hunter2'", "token 2 of 2 begins or ends with a quotation mark"),
    ],
)
def test_a_token_for_readers_has_only_what_a_header_carries(
    name: str, token: str, what: str, environment: Environment
) -> None:
    fault = fault_of(name, token, environment)
    assert what in fault
    assert "hunter2" not in fault


@pytest.mark.parametrize("name", ["READ_TOKEN", "CONSOLE_TOKEN"])
@pytest.mark.parametrize("token", ["x", "hunter2 hunter2", "hunter2é"])
def test_a_token_for_readers_may_be_anything_else(name: str, token: str, environment: Environment) -> None:
    environment(**NEEDED, **{name: token})
    assert getattr(load(Settings), f"{name.lower()}s") == (token,)


# What the log tells of them.


def test_settings_are_shown_without_secrets(environment: Environment) -> None:
    environment(
        CLERK_WEBHOOK_SIGNING_SECRET=f"{SECRET},{OTHER_SECRET}",
        REDIS_URL="rediss://someone:hunter2@h:6380/0?ssl_password=hunter3",
        METRICS_TOKEN="hunter4",
        READ_TOKEN="hunter5hunter5hunter5",
        OMIT_FIELDS="tasks,actor",
        PORT="8000",
        STREAM_MAXLEN="7",
    )
    assert shown(load(Settings)) == {
        "CLERK_WEBHOOK_SIGNING_SECRET": "2 set",
        "REDIS_URL": "rediss://h:6380/0",
        "METRICS_TOKEN": "set",
        "READ_TOKEN": "1 set",
        "OMIT_FIELDS": ["actor", "tasks"],
        "STREAM_MAXLEN": 7,
    }


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", "redis://h"),
        ("unix://someone:hunter2@/run/redis.sock?db=0", "unix:///run/redis.sock"),
        ("redis+sentinel://:hunter2@a:1,b:2/main/0", "redis+sentinel://a:1,b:2/main/0"),
        ("redis+cluster://:hunter2@a:1,b:2?sentinel_password=hunter3", "redis+cluster://a:1,b:2"),
    ],
)
def test_an_address_has_no_credentials(url: str, address: str) -> None:
    assert redis_address(url) == address


@pytest.mark.parametrize("name", ["READ_TOKEN", "CONSOLE_TOKEN"])
@pytest.mark.parametrize(("tokens", "is_short"), [("a" * 15, True), (f"{TOKEN},a", True), (TOKEN, False)])
def test_a_short_token_for_readers_is_told(name: str, tokens: str, is_short: bool, environment: Environment) -> None:
    environment(**NEEDED, **{name: tokens})
    advice = (
        f"{name} has a token of less than 16 characters, which could be guessed: make one with `openssl rand -hex 32`"
    )
    assert short_tokens(load(Settings)) == [advice] * is_short


def test_misspelt_settings_are_found(environment: Environment) -> None:
    environment(**NEEDED, METRIC_TOKEN="hunter2", PARTITION="8", DEBUG="1", REDIS_TLS_URL="rediss://h")
    assert misspelt_settings(load(Settings)) == [
        "METRIC_TOKEN is not a setting. If you mean METRICS_TOKEN, rename it",
        "PARTITION is not a setting. If you mean PARTITIONS, rename it",
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("REDIS_TIMEOUT_SECONDS", "REDIS_TIMEOUT"),
        ("METRICS_TOKEN_FILE", "METRICS_TOKEN"),
        ("PUBLISH_HTTP", "PUBLISH_HTTP_REQUEST"),
    ],
)
def test_a_setting_with_further_words_at_its_end_or_without_some_is_misspelt(
    name: str, meant: str, environment: Environment
) -> None:
    environment(**NEEDED, **{name: "1"})
    assert misspelt_settings(load(Settings)) == [f"{name} is not a setting. If you mean {meant}, rename it"]


@pytest.mark.parametrize("name", ["OTEL_LOG_LEVEL", "SERVE", "PORT_HTTP", "HOSTNAME", "REDIS_PORT_6379_TCP", "REDIS"])
def test_a_variable_of_another_program_is_no_misspelt_setting(name: str, environment: Environment) -> None:
    environment(**NEEDED, **{name: "1"})
    assert misspelt_settings(load(Settings)) == []


@pytest.mark.parametrize("prefix", ["clerk", "{}", "{}{clerk}", "}clerk{"])
@pytest.mark.parametrize(("name", "value"), [("PARTITIONS", "2"), ("REDIS_URL", "redis+cluster://127.0.0.1:7000")])
def test_what_needs_a_hash_tag_says_so(name: str, value: str, prefix: str, environment: Environment) -> None:
    environment(REDIS_KEY_PREFIX=prefix)
    assert "REDIS_KEY_PREFIX" in fault_of(name, value, environment)


def test_each_of_several_faults_has_its_line(environment: Environment) -> None:
    environment(PORT="x", CLERK_WEBHOOK_SECRET="whsec_hunter2", OMIT_FIELDS="nickname", REDIS_TIMEOUT="0")
    named = [fault.partition(":")[0] for fault in faults()]
    assert len(named) == 5
    assert {"PORT", "OMIT_FIELDS", "REDIS_TIMEOUT", "REDIS_URL"} < set(named)
    assert {"CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_WEBHOOK_SECRET"} & set(named)


# OMIT_FIELDS.


@pytest.mark.parametrize(
    "text", ["actor,latest_activity.city", " actor  latest_activity.city ", "actor,\n,latest_activity.city,"]
)
def test_fields_to_omit_are_separated_by_commas_or_space(text: str, environment: Environment) -> None:
    environment(**NEEDED, OMIT_FIELDS=text)
    assert load(Settings).omit_fields == {"actor", "latest_activity.city"}


def test_all_that_can_be_omitted_may_be_omitted(environment: Environment) -> None:
    environment(**NEEDED, OMIT_FIELDS=",".join(OMITTABLE_FIELDS))
    assert load(Settings).omit_fields == OMITTABLE_FIELDS


@pytest.mark.parametrize(
    "name",
    [
        *("object", "id", "user_id", "status", "live", "user", "Actor", "session.actor", "city", "tasks.key"),
        *("latest_activity.", "latest_activity.mood", "actor.sub", "userId", "event"),
    ],
)
def test_a_field_that_can_not_be_omitted_stops_the_start(name: str, environment: Environment) -> None:
    fault = fault_of("OMIT_FIELDS", f"actor,{name}", environment)
    assert f" {name};" in fault
