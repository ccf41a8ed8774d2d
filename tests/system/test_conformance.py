"""The scenarios of clients/conformance, with the clients of all languages at the same time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.conformance import played, scenarios
from support.conformance_drivers import Drivers, running_drivers
from support.conformance_servers import place
from support.redis_clients import client_of, counts_entries

from service.dev.embedded import EmbeddedRedis

SCENARIOS = scenarios()


@pytest.fixture(scope="module")
def drivers() -> Iterator[Drivers]:
    with running_drivers() as drivers:
        yield drivers


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_client_sees_what_the_scenario_demands(
    name: str, drivers: Drivers, real_redis: EmbeddedRedis, redis_binary: str, tmp_path: Path
) -> None:
    scenario: dict[str, Any] = SCENARIOS[name]
    if "redis" in scenario:
        with client_of(real_redis.url) as client:
            if not counts_entries(client):
                pytest.skip("Redis 6.2 can't do it")
    with (
        place(scenario.get("server", "shared"), real_redis, redis_binary, tmp_path) as where,
        played(scenario, drivers, where) as play,
    ):
        play.play()
