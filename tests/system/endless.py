"""A test that never ends, with everything that tests start: test_interrupted_run.py looks at what is left of it.

Not collected by `make test`.
"""

import os
import signal
from pathlib import Path

from support.children import started
from support.constants import RELAY
from support.network import free_port
from support.services import run_service
from support.topologies import run_sentinel

from service.dev.embedded import EmbeddedRedis


def test_endless(own_redis: EmbeddedRedis, redis_binary: str, tmp_path: Path) -> None:
    dev = (*RELAY, "dev", "--no-simulate", "--own-redis", "--own-secret")
    with (
        run_sentinel(redis_binary, own_redis.port),
        run_service(own_redis.url, WEB_CONCURRENCY="2"),
        started((*RELAY, "expire"), tmp_path, {"REDIS_URL": own_redis.url}) as worker,
        started(dev, tmp_path, {"PORT": str(free_port())}) as program,
    ):
        worker.wait_for("expiry_started", stream="stderr")
        program.wait_for("^Redis")
        Path(os.environ["ENDLESS_RUNS"]).touch()
        signal.pause()
