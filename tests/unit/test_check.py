"""How `check` judges what a server says of itself."""

from typing import Any

import pytest

from service.cli.diagnosis import CheckResult, check_info


def problems(found: list[CheckResult]) -> str:
    """Return what is not as it should be, a line for each."""
    return "\n".join(f"{finding.level} {finding.text}" for finding in found if finding.level != "ok")


@pytest.mark.parametrize(
    ("about", "level", "advice"),
    [
        ({"redis_version": "6.0.16"}, "error", "6.2 or newer"),
        ({"redis_version": "5.0"}, "error", "6.2 or newer"),
        ({"role": "slave"}, "error", "name the primary"),
        ({"connected_slaves": 1}, "error", "REDIS_MIN_REPLICAS is 2: bring"),
        ({"used_memory": 95, "maxmemory": 100}, "warning", "give it more"),
        ({"used_memory": 95, "maxmemory": 0}, "", ""),
        ({"aof_enabled": 0, "save": "3600 1"}, "warning", "what came since the last snapshot: set append"),
        ({"aof_enabled": 0}, "warning", "if there is one at all: set appendonly yes"),  # CONFIG is forbidden
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
