"""How `check` judges what a server says of itself."""

from typing import Any

import pytest
import redis
from support.checking import problems

from service.cli.diagnosis import check_info, explain


@pytest.mark.parametrize(
    ("about", "level", "advice"),
    [
        ({"redis_version": "6.0.16"}, "error", "6.2 or newer"),
        ({"redis_version": "5.0"}, "error", "6.2 or newer"),
        ({"role": "slave"}, "error", "name the primary"),
        ({"connected_slaves": 1}, "error", "REDIS_MIN_REPLICAS is 2: bring"),
        ({"used_memory": 95, "maxmemory": 100}, "warning", "give it more"),
        ({"used_memory": 95, "maxmemory": 0}, "", ""),
        (
            {"aof_enabled": 0, "save": "3600 1"},
            "warning",
            "what came since the last snapshot: appendonly is off. Set append",
        ),
        (
            {"aof_enabled": 0},
            "warning",
            "if there is one at all: appendonly is off. Set appendonly yes",
        ),  # CONFIG is forbidden
        ({"maxclients": 20, "connected_clients": 18}, "warning", "2 of 20 are left"),
        ({"maxclients": 20, "connected_clients": 17}, "", ""),
        ({"redis_version": "6.2.0"}, "", ""),
        ({"redis_version": "10.0.0-rc1"}, "", ""),
        ({"redis_version": None}, "", ""),  # what a managed server leaves out is no finding
    ],
)
def test_what_a_server_says_of_itself_is_judged(about: dict[str, Any], level: str, advice: str) -> None:
    good = {"redis_version": "7.0.15", "role": "master", "connected_slaves": 2}

    found = problems(list(check_info(good | about, web=1, expiry=2, min_replicas=2)))

    assert found.startswith(level)
    assert advice in found
    assert len(found.splitlines()) == bool(level)


@pytest.mark.parametrize(
    ("info", "named"),
    [
        (
            {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"},
            "ok Valkey 9.1.2, which is like Redis 7.2.4",
        ),
        (
            {"redis_version": "7.4.0", "dragonfly_version": "df-v1.30.0"},
            "ok Dragonfly df-v1.30.0, which is like Redis 7.4.0",
        ),
        (
            {"redis_version": "6.3.4", "executable": "/usr/bin/keydb-server"},
            "ok KeyDB 6.3.4, which is like Redis 6.3.4",
        ),
        ({"redis_version": "6.0.9", "valkey_version": "8.0"}, "error Valkey 8.0, which is like Redis 6.0.9 is too old"),
        ({"redis_version": "7.4.0-v1", "executable": "/usr/bin/redis-server"}, "ok Redis 7.4.0-v1"),
    ],
)
def test_a_server_is_called_what_it_is(info: dict[str, Any], named: str) -> None:
    first = next(iter(check_info(info, web=1, expiry=2, min_replicas=0)))

    assert f"{first.level} {first.text}".startswith(named)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("this user has no permissions to run the 'cluster|slots' command", "give the user +cluster|slots, and what"),
        ("User relay has no permissions to run the 'hset' command", "give the user +hset, and what else docs/redis.md"),
        ("No permissions to access a key", "give the user the rights that docs/redis.md lists"),
        ("The user executing the script can't run this command or subcommand", "give the user the rights that docs"),
        ("unknown command 'INFO'", "see that this is a Redis, and that the command was not renamed"),
    ],
)
def test_a_missing_right_is_told_from_a_missing_command(said: str, advice: str) -> None:
    for prefix in ("", "Nobody names the primary; 127.0.0.1:1, asked last, says: "):
        if not prefix or "permissions to" in said:
            assert f": {advice}" in explain(redis.ResponseError(f"{prefix}{said}"))


def test_verification_of_a_certificate_is_not_switched_off_first() -> None:
    said = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"

    text = explain(redis.ConnectionError(said))

    assert 0 < text.index("?ssl_ca_certs=") < text.index("REDIS_TLS_VERIFY=false")
