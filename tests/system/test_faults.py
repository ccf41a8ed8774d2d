"""Nothing acknowledged is lost, whatever happens meanwhile: `serve` with two workers, and what Svix does.

The short form of each fault. `make soak` runs the long one (soak.py).
"""

import pytest
from support.constants import PROC
from support.counting import count
from support.faults import SHORT, Fault, Faults
from support.load import under_load
from support.redis_servers import DurableRedis
from support.services import ServiceProcess

DELIVERIES = 200
SESSIONS = 40

faults = Faults(SHORT)


@pytest.mark.parametrize("fault", faults.all(), ids=lambda fault: fault.__name__)
def test_nothing_is_lost_when(durable_server: DurableRedis, durable_service: ServiceProcess, fault: Fault) -> None:
    if fault in faults.of_workers and not PROC.exists():
        pytest.skip("needs /proc to look for processes")
    with under_load(durable_server, durable_service, DELIVERIES, SESSIONS, seed=1) as load:
        load.suffer(fault, DELIVERIES)

    counts = count(load)
    print(counts)
    assert counts.wrong_ones == {}
