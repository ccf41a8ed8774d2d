"""docs/contract.md, section 2: the settings that hold a secret are checked at the start and never quoted."""

import base64
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import pytest
from clerk_session_feed.connections import connect
from clerk_session_feed.errors import ConfigurationError
from hypothesis import given
from hypothesis import strategies as st
from support.constants import OTHER_SECRET, SECRET
from support.strategies import patient

from service.config import RedisSettings, Settings, SigningSettings, load


def secret_of(size: int) -> str:
    return "whsec_" + base64.b64encode(bytes(size)).decode()


def secrets_in(text: str) -> tuple[str, ...]:
    return load(SigningSettings, clerk_webhook_signing_secret=text).secrets


def faults_of(start: Callable[[str], object], value: str) -> list[str]:
    try:
        start(value)
    except ConfigurationError as error:
        return error.faults
    return []


def fault_of_secrets(text: str) -> str:
    [fault] = faults_of(secrets_in, text)
    assert fault.startswith("CLERK_WEBHOOK_SIGNING_SECRET: ")
    assert len(fault.splitlines()) == 1
    return fault


def connect_to(url: str) -> dict[str, object]:
    """Go the way of the service's start; return what the client would connect with."""
    checked = load(RedisSettings, redis_url=url).redis_url.get_secret_value()
    with connect(checked) as client:
        return dict(client.connection_pool.connection_kwargs)


def fault_of_url(url: str) -> str:
    [fault] = faults_of(connect_to, url)
    assert fault.startswith("REDIS_URL: ")
    assert len(fault.splitlines()) == 1
    return fault


# Signing secrets.


@pytest.mark.parametrize("between", [",", " ", "\n", "\t", ", ", " ,\n,", "\r\n"])
def test_several_secrets_are_separated_by_commas_or_white_space(between: str) -> None:
    assert secrets_in(f"{SECRET}{between}{OTHER_SECRET}") == (SECRET, OTHER_SECRET)
    assert secrets_in(f"{between}{SECRET}{between}") == (SECRET,)


@pytest.mark.parametrize("size", [24, 25, 32, 64])
def test_a_secret_of_24_to_64_bytes_is_one(size: int) -> None:
    assert secrets_in(secret_of(size)) == (secret_of(size),)


@pytest.mark.parametrize("size", [0, 1, 23, 65, 1000])
def test_a_secret_of_another_size_stops_the_start(size: int) -> None:
    assert f"{size} bytes" in fault_of_secrets(secret_of(size))


@pytest.mark.parametrize(
    "text",
    [
        *(",", " ", "whsec", "whsec_", "hunter2", SECRET.removeprefix("whsec_"), SECRET.upper()),
        *(f" {SECRET}x", f"whsec_{SECRET}", f"{SECRET[:20]}\u00e9{SECRET[21:]}", f"{SECRET[:20]}*{SECRET[20:]}"),
        *(f"{SECRET},hunter2", f"hunter2 {SECRET}", f"{SECRET},{SECRET[:-8]}", f"{SECRET};{OTHER_SECRET}"),
    ],
    ids=ascii,
)
def test_what_is_no_secret_stops_the_start_and_is_not_quoted(text: str) -> None:
    fault = fault_of_secrets(text)
    assert "hunter2" not in fault
    assert SECRET.removeprefix("whsec_")[:8] not in fault


def test_of_several_secrets_the_wrong_one_is_told_by_its_number() -> None:
    assert "secret 2 of 3" in fault_of_secrets(f"{SECRET},{secret_of(23)},{OTHER_SECRET}")


@patient
@given(st.text().map("hunter2".__add__) | st.text().map("whsec_hunter2".__add__))
def test_nothing_of_a_faulty_secret_is_quoted(text: str) -> None:
    assert "hunter2" not in fault_of_secrets(f"{text}-")


# REDIS_URL.


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://127.0.0.1", {"host": "127.0.0.1"}),
        ("redis://redis.example:6380/3", {"host": "redis.example", "port": 6380, "db": 3}),
        ("redis://[::1]:6379/0", {"host": "::1", "port": 6379, "db": 0}),
        ("redis://:s3cr3t@h", {"host": "h", "password": "s3cr3t"}),
        ("redis://app:s3cr3t@h:1", {"host": "h", "port": 1, "username": "app", "password": "s3cr3t"}),
        ("rediss://:s3cr3t@h:6380", {"host": "h", "port": 6380, "password": "s3cr3t"}),
        ("unix:///run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2}),
        ("unix://app:s3cr3t@/run/redis.sock", {"path": "/run/redis.sock", "password": "s3cr3t"}),
    ],
)
def test_each_form_of_url_is_understood(url: str, options: dict[str, object]) -> None:
    assert connect_to(url).items() >= options.items()


@pytest.mark.parametrize(
    "url",
    [
        *("hunter2", "127.0.0.1:6379", "http://:hunter2@h", "redis:h", "redis://", "redis:///0", "redis://:6379"),
        *("redis://h:port", "redis://h:65536", "redis://h:0", "redis://h/hunter2", "redis://h/0/1", "redis://h/-1"),
        *("unix://", "unix:///", "unix:///s?db=hunter2", "redis://h?db=hunter2", "redis://h?nonsense=hunter2"),
        *("redis://h?socket_read_size=hunter2", "redis://[::1", "redis://h]", "rediss://h?ssl_cert_reqs=hunter2"),
        *(" redis://h", "REDIS://h", "redis://h:1,i:2", "unix+cluster://h", "redis+hunter2://h", "redis://a..b"),
        *("redis+sentinel://h:1", "redis+sentinel://h:1/", "redis+sentinel:///m", "redis+sentinel://h,,i/m"),
        *("redis+sentinel://h:1/m/hunter2", "redis+sentinel://h:1/m/0/1", "redis+sentinel://h:0/m"),
        *("redis+cluster://", "redis+cluster://h:1,i:port", "redis+cluster://h/1", "redis+cluster://h?db=3"),
        *("redis+sentinel://:hunter2@h:1:2/m", "redis+sentinel://h/m?sentinel_nonsense=hunter2"),
    ],
)
def test_a_url_that_can_not_be_used_stops_the_start_and_is_not_quoted(url: str) -> None:
    assert "hunter2" not in fault_of_url(url)


ODD: Final = "#?/[]@:%&=\\\"'<>{}|^`~!$*()+,; \n\t\u2100é"
FORMS: Final = (
    *("redis://app:{}@h:1", "rediss://:{}@h/0", "unix://:{}@/s", "redis://h?password={}"),
    *("redis+sentinel://:{}@h:1,i:2/m/0", "rediss+cluster://app:{}@h,i"),
)


@pytest.mark.parametrize("form", FORMS)
def test_a_password_percent_encoded_is_understood(form: str) -> None:
    for character in ODD:
        password = f"hunter2{character}s3cr3t"
        assert connect_to(form.format(quote(password, safe="")))["password"] == password


@pytest.mark.parametrize("form", FORMS)
def test_of_a_password_not_encoded_nothing_is_quoted(form: str) -> None:
    for character in ODD.replace("&", "") if "?" in form else ODD:  # behind & is the name of an option, which is told
        text = "\n".join(faults_of(connect_to, form.format(f"12{character}s3cr3t=hunter2")))
        assert not [part for part in ("s3cr3t", "hunter2") if part in text], character


@patient
@given(st.text(), st.text(), st.sampled_from(["redis", "rediss", "unix", "redis+sentinel", "redis+cluster"]))
def test_whatever_the_password_is_the_url_is_understood_or_one_fault(before: str, after: str, scheme: str) -> None:
    faults = faults_of(connect_to, f"{scheme}://app:{before}hunter2{after}@h/{'m' * ('sentinel' in scheme)}")
    assert len(faults) <= 1
    assert "hunter2" not in "".join(faults)


def test_settings_printed_or_logged_show_no_secret() -> None:
    settings = load(
        Settings,
        clerk_webhook_signing_secret=f"{SECRET},{OTHER_SECRET}",
        redis_url="redis://:hunter2@h",
        metrics_token="s3cr3t",
        read_token="s3cr3t-to-read-with",
        console_token="s3cr3t-to-look-with",
    )
    for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "hunter2" not in text
        assert "s3cr3t" not in text
        assert SECRET.removeprefix("whsec_") not in text
