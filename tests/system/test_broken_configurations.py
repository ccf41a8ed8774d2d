"""Whoever breaks the configuration is told what is wrong, of which variable, and what to do; never a secret."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from support.certificates import make_certificates, with_certificate
from support.constants import OTHER_SECRET, SECRET
from support.network import free_port, unused_port
from support.redis_clients import client_of
from support.redis_servers import redis_server
from support.topologies import await_sync

from service.cli import main
from service.cli.check import run_checks
from service.config import Settings, load
from service.dev.embedded import EmbeddedRedis
from service.errors import StartError
from service.server import processes as server
from service.telemetry import log

Environment = dict[str, str | None]

PASSWORD: Final = "s3cr3t"
SIGNING: Final = "CLERK_WEBHOOK_SIGNING_SECRET"
BARE: Final = SECRET.removeprefix("whsec_")
GOOD: Final[Environment] = {
    **dict.fromkeys((name.upper() for name in Settings.model_fields), None),
    SIGNING: SECRET,
    "REDIS_URL": "redis://127.0.0.1:6379/0",
}
"""None: not set."""


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty directory, and never with a server of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log, "configure", lambda _: None)
    monkeypatch.setattr(server, "OneProcess", lambda *_, **__: pytest.fail("it starts with these settings"))


def said_by(command: str, environment: Environment) -> str:
    result = CliRunner().invoke(main, [command], env=GOOD | environment)
    assert (result.exit_code, result.stdout) == (2, "")
    assert BARE[:8] not in result.stderr
    assert PASSWORD not in result.stderr
    return result.stderr


FROM_CLERK: Final = "copy it whole from Clerk's Dashboard, Webhooks, your endpoint, Signing Secret"
USE: Final = "use redis://[user:password@]host[:port][/db], "
ENCODE: Final = "in a password, write @ as %40"
OR_ELSE: Final = "correct it, or leave it out, for "

SETTINGS: Final[list[tuple[Environment, str, str, str]]] = [
    (
        {SIGNING: None},
        SIGNING,
        "is missing",
        "set it, in the environment or in .env, to what is at Clerk's Dash",
    ),
    (
        {SIGNING: ""},
        SIGNING,
        "or empty",
        "set it, in the environment or in .env, to what is at Clerk's Dashboard",
    ),
    ({SIGNING: BARE}, SIGNING, "does not start with whsec_", "copy it from Clerk's Dashboard"),
    ({SIGNING: SECRET[:-3]}, SIGNING, "as if it was cut", FROM_CLERK),
    ({SIGNING: SECRET[:-4]}, SIGNING, "21 bytes, not 24 to 64, as if it was cut", FROM_CLERK),
    ({SIGNING: "whsec_…"}, SIGNING, "is not base64 after whsec_", FROM_CLERK),
    ({SIGNING: f'"{SECRET}"'}, SIGNING, "begins with a quotation mark", "leave the quotes out"),
    ({SIGNING: f"{SECRET},{OTHER_SECRET[:-1]}"}, SIGNING, "secret 2 of 2", FROM_CLERK),
    ({SIGNING: None, "CLERK_WEBHOOK_SIGNING_SECRETS": SECRET}, SIGNING, "CRETS is there", "rename it"),
    ({SIGNING: None, "CLERK_SIGNING_SECRET": SECRET}, SIGNING, "CLERK_SIGNING_SECRET is there", "rename it"),
    ({"REDIS_URL": None}, "REDIS_URL", "is missing", "to where Redis is, like redis://127.0.0.1:6379/0"),
    ({"REDIS_URL": None, "REDIS_URI": "redis://h"}, "REDIS_URL", "REDIS_URI is there", "rename it"),
    ({"REDIS_URL": None, "REDIS_TLS_URL": "x"}, "REDIS_URL", "REDIS_TLS_URL is there", "rename it"),
    ({"REDIS_URL": "http://h:6379"}, "REDIS_URL", "does not begin with a scheme that is known", USE),
    ({"REDIS_URL": "localhost:6379"}, "REDIS_URL", "does not begin with a scheme that is known", USE),
    ({"REDIS_URL": "127.0.0.1:6379"}, "REDIS_URL", "does not begin with a scheme", USE),
    ({"REDIS_URL": "'redis://h'"}, "REDIS_URL", "begins with a quotation mark", "leave the quotes out"),
    ({"REDIS_URL": "redis://h:http"}, "REDIS_URL", "port that is no number from 1 to 65535", USE),
    ({"REDIS_URL": "redis://h:637900"}, "REDIS_URL", "port that is no number", USE),
    ({"REDIS_URL": f"redis://:{PASSWORD}/x@h:1"}, "REDIS_URL", "names no host", ENCODE),
    ({"REDIS_URL": f"redis://:{PASSWORD}#x@h:1"}, "REDIS_URL", "names no host", ENCODE),
    ({"REDIS_URL": "redis://h/main"}, "REDIS_URL", "names a database that is no number", USE),
    ({"PORT": "http"}, "PORT", "is not a port number from 1 to 65535", f"{OR_ELSE}8000"),
    ({"PORT": "0"}, "PORT", "is not a port number from 1 to 65535", f"{OR_ELSE}8000"),
    ({"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY", "is not a number of processes from 1", f"{OR_ELSE}1"),
    ({"WEB_CONCURRENCY": "two"}, "WEB_CONCURRENCY", "is not a number of processes from 1", f"{OR_ELSE}1"),
    ({"OMIT_FIELDS": "actr"}, "OMIT_FIELDS", "can't leave out actr", "use only these: abandon_at, actor, "),
    ({"LOG_FORMAT": "text"}, "LOG_FORMAT", "is not json or console", f"{OR_ELSE}json"),
    ({"REDIS_TLS_VERIFY": "never"}, "REDIS_TLS_VERIFY", "is not true or false", f"{OR_ELSE}true"),
    ({"REDIS_TIMEOUT": "2s"}, "REDIS_TIMEOUT", "is not a number of seconds, more than 0", f"{OR_ELSE}2"),
    ({"SESSION_RETENTION": "3600"}, "SESSION_RETENTION", "from 172800 (two days", f"{OR_ELSE}604800"),
    ({"SESSION_RETENTION": "7d"}, "SESSION_RETENTION", "is not a number of seconds", f"{OR_ELSE}604800"),
    ({"MAX_BODY_BYTES": "1MB"}, "MAX_BODY_BYTES", "is not a number of bytes", f"{OR_ELSE}1048576"),
    (
        {"METRICS_TOKEN": f"{PASSWORD}\n"},
        "METRICS_TOKEN",
        "white space at an end",
        "leave out what no header",
    ),
    ({"PARTITIONS": "8", "REDIS_KEY_PREFIX": "x"}, "PARTITIONS", "has none", "like {clerk}"),
]


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("broken", "variable", "what", "to_do"),
    SETTINGS,
    ids=[" ".join(f"{name}={value}" for name, value in broken.items()) for broken, *_ in SETTINGS],
)
def test_a_broken_setting_is_one_line_with_what_is_wrong_and_what_to_do(
    command: str, broken: Environment, variable: str, what: str, to_do: str
) -> None:
    said = said_by(command, broken)

    assert said.startswith(f"{variable}: ")
    assert len(said.splitlines()) == 1
    assert what in said
    assert to_do in said


def test_a_level_that_is_none_is_told_with_those_that_are() -> None:
    """By `serve`: `check` has a level of its own."""
    assert said_by("serve", {"LOG_LEVEL": "verbose"}) == (
        f"LOG_LEVEL: is not debug, info, warning, error or critical: {OR_ELSE}info\n"
    )


def test_a_port_in_use_is_named() -> None:
    with unused_port() as port:
        said = said_by("serve", {"HOST": "127.0.0.1", "PORT": str(port)})

    assert said.startswith(f"HOST, PORT: can't listen on 127.0.0.1 port {port}: Address already in use")


def test_every_limit_of_a_setting_is_told() -> None:
    for name, field in Settings.model_fields.items():
        limits = [
            getattr(limit, side)
            for limit in field.metadata
            for side in ("gt", "ge", "le")
            if hasattr(limit, side)
        ]
        told = (field.description or "").replace(",", "").split()
        assert {str(limit) for limit in limits} <= set(told), name


# .env


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff{signing}={secret}\nREDIS_URL={url}\n",
        "export {signing}={secret}\nexport REDIS_URL={url}\n",
        "{signing}=\"{secret}\"\nREDIS_URL='{url}'\n",
        "{signing} = {secret} \r\nREDIS_URL = {url} # ours\r\n",
    ],
    ids=["BOM", "export", "quotes", "white space"],
)
def test_what_editors_and_shells_do_to_a_file_is_no_fault(text: str) -> None:
    filled = text.format(signing=SIGNING, secret=SECRET, url=GOOD["REDIS_URL"])
    Path(".env").write_bytes(filled.encode())

    settings = load(Settings)

    assert settings.secrets == (SECRET,)
    assert settings.redis_url.get_secret_value() == GOOD["REDIS_URL"]


def test_a_misspelt_name_in_the_file_is_told() -> None:
    Path(".env").write_text(f"CLERK_WEBHOOK_SIGNIN_SECRET={SECRET}\n")

    assert "CLERK_WEBHOOK_SIGNIN_SECRET is there: if that is it, rename it" in said_by(
        "serve", {SIGNING: None}
    )


def test_a_file_in_another_encoding_is_told() -> None:
    Path(".env").write_text(f"{SIGNING}={SECRET}\n", encoding="utf-16")

    assert said_by("serve", {}) == ".env: is not text in UTF-8: save it as that\n"


def test_a_file_that_can_not_be_read_is_told() -> None:
    Path(".env").symlink_to("/proc/self/mem")  # even root can't read the beginning of it
    if not Path(".env").is_file():
        pytest.skip("needs /proc")

    assert said_by("serve", {}) == (
        ".env: can't be read (Input/output error): let this user read it, or remove it\n"
    )


# Redis. `serve` starts all the same, and answers 503 until Redis takes deliveries.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def redis_servers(redis_binary: str, certificates: Path) -> Iterator[dict[str, int]]:
    """Return the ports, by name: of one server with a password and TLS, of its replica, and of no server."""
    ports = {"tls": free_port()}
    tls = {"tls-port": str(ports["tls"])} | with_certificate(certificates, "own")
    words = [word for option, value in tls.items() for word in (f"--{option}", value)]
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> EmbeddedRedis:
            return stack.enter_context(redis_server(redis_binary, "--appendonly", "yes", *options))

        try:
            primary = start("--repl-diskless-sync-delay", "0", *words)
        except StartError as error:
            if "tls" not in str(error).lower():
                raise
            pytest.skip("needs a redis-server that was built with TLS")
        replica = start("--replicaof", "127.0.0.1", str(primary.port))
        await_sync(replica)
        with client_of(primary.url) as client:
            client.config_set("requirepass", PASSWORD)
        nobody = stack.enter_context(unused_port())
        yield ports | {"plain": primary.port, "replica": replica.port, "nobody": nobody}


def findings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the errors and warnings of `check`."""
    for name, value in {SIGNING: SECRET, **environment}.items():
        monkeypatch.setenv(name, value)
    found = [f"{each.level}: {each.text}" for each in run_checks(load(Settings)) if each.level != "ok"]
    assert PASSWORD not in "".join(found)
    assert "hunter2" not in "".join(found)
    return found


LOGIN: Final = f":{PASSWORD}@127.0.0.1"


@pytest.mark.parametrize(
    ("url", "what", "to_do"),
    [
        ("redis://127.0.0.1:{nobody}", "Connection refused", "see that it runs where REDIS_URL says"),
        ("redis://127.0.0.1:{plain}", "Authentication required", "let REDIS_URL be like redis://:password@h"),
        (
            "redis://:hunter2@127.0.0.1:{plain}",
            "invalid username-password",
            "correct user and password in RED",
        ),
        ("redis://127.0.0.1:{tls}", "Connection", "if it wants TLS, with rediss://"),
        ("rediss://" + LOGIN + ":{plain}", "Timeout connecting", "rediss:// only if it speaks TLS"),
        ("rediss://" + LOGIN + ":{tls}", "self-signed certificate", "set REDIS_TLS_VERIFY=false"),
        ("redis://" + LOGIN + ":{replica}", "without any password", "leave it out of REDIS_URL"),
        ("redis://127.0.0.1:{replica}", "read only replica", "let REDIS_URL name the primary"),
        (
            "redis://" + LOGIN + ":{plain}/99",
            "DB index is out of range",
            "let REDIS_URL name a database that",
        ),
        (
            "redis+cluster://" + LOGIN + ":{plain}",
            "cluster support disabled",
            "REDIS_URL begin with redis://",
        ),
        ("redis+sentinel://127.0.0.1:{replica}/main", "unknown command", "let REDIS_URL name the sentinels"),
    ],
)
def test_a_redis_that_does_not_fit_is_an_error_with_what_to_do(
    url: str, what: str, to_do: str, redis_servers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = {"REDIS_TIMEOUT": "0.2"} if what.startswith("Timeout") else {}

    first, *_ = findings({"REDIS_URL": url.format(**redis_servers), **timeout}, monkeypatch)

    assert first.startswith("error: Redis takes no deliveries: ")
    assert what in first
    assert to_do in first


@pytest.mark.parametrize("reason", ["Name or service not known", "Temporary failure in name resolution"])
def test_a_host_that_is_not_found_is_an_error_with_what_to_do(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, reason)

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    first, *_ = findings({"REDIS_URL": "redis://redis.exmaple"}, monkeypatch)

    assert first.startswith("error: ")
    assert f"{reason}: correct the name of the host in REDIS_URL" in first


def test_a_misspelt_name_of_an_optional_setting_is_a_warning(
    redis_servers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"redis://{LOGIN}:{redis_servers['plain']}"

    found = findings({"REDIS_URL": url, "WEB_CONCURENCY": "2", "REDIS_TLS_URL": "rediss://h"}, monkeypatch)

    assert found == ["warning: WEB_CONCURENCY is no setting: if it is meant for WEB_CONCURRENCY, rename it"]
