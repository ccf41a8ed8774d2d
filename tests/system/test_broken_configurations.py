"""Whoever breaks the configuration is told what is wrong, of which variable, and what to do; never a secret."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.certificates import make_certificates, with_certificate
from support.constants import SECRET
from support.network import free_port, unused_port
from support.redis_clients import client_of
from support.redis_servers import redis_server, takes_tls
from support.topologies import await_sync

from service.cli.check import run_checks
from service.config import Settings, load
from service.dev.embedded import EmbeddedRedis
from service.errors import StartError

PASSWORD: Final = "s3cr3t"
SIGNING: Final = "CLERK_WEBHOOK_SIGNING_SECRET"


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty directory, away from any .env."""
    monkeypatch.chdir(tmp_path)


# Redis. `serve` starts all the same, and answers 503 until Redis takes deliveries.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def redis_servers(redis_binary: str, certificates: Path) -> Iterator[dict[str, int]]:
    """Return the ports, by name: of one server with a password and TLS, of its replica, and of no server."""
    if not takes_tls(redis_binary):
        pytest.skip("needs a redis-server that was built with TLS")
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
        ("redis://:hunter2@127.0.0.1:{plain}", "invalid username-password", "correct user and password in RED"),
        ("redis://127.0.0.1:{tls}", "Connection", "if it wants TLS, with rediss://"),
        ("rediss://" + LOGIN + ":{plain}", "Timeout connecting", "rediss:// only if it speaks TLS"),
        ("rediss://" + LOGIN + ":{tls}", "self-signed certificate", "set REDIS_TLS_VERIFY=false"),
        ("redis://" + LOGIN + ":{replica}", "without any password", "leave it out of REDIS_URL"),
        ("redis://127.0.0.1:{replica}", "read only replica", "let REDIS_URL name the primary"),
        ("redis://" + LOGIN + ":{plain}/99", "DB index is out of range", "let REDIS_URL name a database that"),
        ("redis+cluster://" + LOGIN + ":{plain}", "cluster support disabled", "REDIS_URL begin with redis://"),
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
def test_a_host_that_is_not_found_is_an_error_with_what_to_do(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
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

    assert found == ["warning: WEB_CONCURENCY is not a setting. If you mean WEB_CONCURRENCY, rename it"]
