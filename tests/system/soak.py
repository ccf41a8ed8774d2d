"""The long form of test_faults.py: `make soak`. One load of thousands of deliveries, and every fault in it, in turn.

Not collected by `make test`: it takes a minute, and its counts are there to be read.
"""

import itertools
import os
from pathlib import Path

import pytest
from support.counting import count
from support.faults import LONG, Faults
from support.load import relay_service, under_load
from support.onlookers import our_client
from support.redis_servers import durable_redis

DELIVERIES = int(os.environ.get("SOAK_DELIVERIES", "6000"))
SESSIONS = int(os.environ.get("SOAK_SESSIONS", "1000"))
SEED = int(os.environ.get("SOAK_SEED", "1"))

faults = Faults(LONG).all()
FAULTS = int(os.environ.get("SOAK_FAULTS", len(faults)))


@pytest.mark.real_redis
def test_nothing_is_lost_under_all_faults(redis_binary: str, tmp_path: Path) -> None:
    happening = list(itertools.islice(itertools.cycle(faults), FAULTS))
    with durable_redis(redis_binary, tmp_path) as server, relay_service(server.url) as service:
        with under_load(server, service, DELIVERIES, SESSIONS, SEED) as load:
            for fault in happening:
                load.suffer(fault, DELIVERIES // len(happening) + 1)
        counts = count(load)
        with our_client(server.url) as client:
            about = client.info("server")

    version = f"Valkey {about['valkey_version']}" if "valkey_version" in about else f"Redis {about['redis_version']}"
    print(f"\n{version}: {', '.join(fault.__name__ for fault in happening)}\n\n{counts}")
    assert counts.wrong_ones == {}
