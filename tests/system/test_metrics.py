"""What /metrics counts: deliveries by what became of them, odd fields, and how long it took; docs/metrics.md."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clock import eventually
from support.constants import ROOT, SECRET
from support.events import IGNORED, clerk_event, sample_body
from support.raw_http import exchange, genuine, request_head
from support.relay import make_settings
from support.services import Endpoint, ServiceProcess, metric, run_plain_wsgi, run_service, workers_of
from support.signing import signed

from service.dev import simulator
from service.dev.embedded import EmbeddedRedis
from service.telemetry import metrics

DELIVERIES = "session_relay_deliveries_total"
STARTED = "session_relay_worker_start_time_seconds"
LAG = "session_relay_publish_lag_seconds"


class Meter:
    """Tells by how much a number has grown; the process may have counted before."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._before = self.read()

    def read(self) -> str:
        return self._endpoint.http.get("/metrics").text

    def growth(self, name: str, **labels: str) -> float:
        return metric(self.read(), name, **labels) - metric(self._before, name, **labels)


@pytest.fixture
def small(any_redis: EmbeddedRedis, any_client: Any) -> Iterator[Endpoint]:
    """A service with little room."""
    settings = make_settings(any_redis.url, dead_letter_max=1, max_body_bytes=20_000)
    with run_plain_wsgi(settings) as endpoint:
        yield endpoint


def test_deliveries_are_counted_by_outcome_and_reason(small: Endpoint) -> None:
    meter = Meter(small)
    new, old = simulator.sample("session.ended", session_id="sess_1"), clerk_event(updated_at=10**12)
    unreadable = {"type": "session.created"}
    small.deliver(new, "msg_1")
    small.deliver(new, "msg_1")
    small.deliver(new, "msg_1")
    small.deliver(new | {"instance_id": "ins_other"}, "msg_1")
    small.deliver(old, "msg_2")
    small.deliver({"type": "user.created"})
    small.deliver(unreadable, "msg_3")
    small.deliver(unreadable, "msg_4")
    small.post(b"{}", {})
    small.post(b"{}", signed(b"{}", secret=simulator.new_secret()))
    small.post(b"{}", signed(b"{}", at=0))
    small.post(b"{}", signed(b"{}") | {"svix-id": "msg 1"})
    small.deliver([])
    small.deliver(b"x" * 20_001)
    small.deliver({}, None, {"content-encoding": "gzip"})
    expected = {
        ("applied", ""): 1,
        ("duplicate", ""): 2,
        ("duplicate", "other_body"): 1,
        ("stale", ""): 1,
        ("ignored", ""): 1,
        ("dead_lettered", "invalid_data"): 1,
        ("failed", "dead_letters_full"): 1,
        ("rejected", "missing_signature"): 1,
        ("rejected", "invalid_signature"): 1,
        ("rejected", "timestamp_out_of_tolerance"): 1,
        ("rejected", "malformed_signature"): 1,
        ("rejected", "malformed_event"): 1,
        ("rejected", "body_too_large"): 1,
        ("rejected", "unsupported_encoding"): 1,
    }

    counted = {key: meter.growth(DELIVERIES, outcome=key[0], reason=key[1]) for key in expected}
    assert counted == expected
    assert meter.growth("session_relay_delivery_seconds_count") == sum(expected.values())
    assert meter.growth("session_relay_delivery_seconds_sum") > 0


def test_a_redis_that_is_away_is_counted(endpoint_without_redis: Endpoint) -> None:
    meter = Meter(endpoint_without_redis)

    endpoint_without_redis.deliver(clerk_event())

    assert meter.growth(DELIVERIES, outcome="failed", reason="store_unavailable") == 1


def test_fields_read_as_null_are_counted(small: Endpoint) -> None:
    event = simulator.with_values(
        simulator.sample(),
        {
            "data.client_id": 17,
            "data.latest_activity.city": ["x"],
            "data.tasks": [{"key": "choose-organization"}, {"key": 1}],
        },
    )
    meter = Meter(small)

    small.deliver(event)

    counted = {
        field: meter.growth("session_relay_nulled_fields_total", field=field)
        for field in ("client_id", "city", "tasks", "country")
    }
    assert counted == {"client_id": 1, "city": 1, "tasks": 1, "country": 0}


def test_what_reconcile_recorded_in_redis_is_told(small: Endpoint, any_client: Any) -> None:
    recorded = {"drift_missing": 7, "last_success_at": 1_795_422_800_000, "state_as_of": 1_795_422_700_000}
    any_client.hset("{clerk}:reconcile", mapping=recorded | {"instance_id": "ins_1"})
    any_client.zadd("{clerk}:revokes", {"sess_1": 1, "sess_2": 2})
    for key in ("{clerk}:reconcile", "{clerk}:revokes"):
        any_client.expire(key, 100)

    text = small.http.get("/metrics").text

    assert metric(text, "session_relay_reconcile_drift_total", kind="missing") == 7
    assert 'session_relay_reconcile_drift_total{kind="gone"} 0.0' in text
    assert metric(text, "session_relay_reconcile_last_success_timestamp_seconds") == 1_795_422_800
    assert metric(text, "session_relay_state_age_seconds") == pytest.approx(time.time() - 1_795_422_700, abs=60)
    assert metric(text, "session_relay_pending_revokes") == 2


def test_what_others_wrote_in_its_place_is_left_out(small: Endpoint, any_client: Any) -> None:
    any_client.hset("{clerk}:reconcile", mapping={"drift_missing": "MARKER", "last_success_at": "-1"})
    any_client.expire("{clerk}:reconcile", 100)

    response = small.http.get("/metrics")

    assert response.status_code == 200
    assert metric(response.text, "session_relay_redis_up") == 1
    assert "session_relay_reconcile" not in response.text


def test_pending_revokes_of_all_partitions_are_counted(any_redis: EmbeddedRedis, any_client: Any) -> None:
    for number in range(3):
        any_client.zadd(f"{{clerk:{number}}}:revokes", {f"sess_{number}": 1})
        any_client.expire(f"{{clerk:{number}}}:revokes", 100)

    with run_plain_wsgi(make_settings(any_redis.url, partitions=3)) as endpoint:
        assert metric(endpoint.http.get("/metrics").text, "session_relay_pending_revokes") == 3


def delivery(body: bytes) -> bytes:
    """Return a request for a connection of its own, so that either process may get it."""
    return request_head(genuine(body)) + body


def test_several_processes_tell_their_sum(any_redis: EmbeddedRedis, any_client: Any) -> None:
    with run_service(any_redis.url, WEB_CONCURRENCY="2") as service:

        def deliver(number: int) -> int:
            return exchange(service.port, delivery(sample_body(f"sess_{number}"))).status

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(deliver, range(60))) == {200}
        for _ in range(10):  # whichever answers
            text = exchange(service.port, request_head([], method=b"GET", target=b"/metrics")).body.decode()
            assert metric(text, DELIVERIES, outcome="applied") == 60
            assert metric(text, "session_relay_delivery_seconds_count") == 60


def scraped(service: ServiceProcess) -> str:
    """Return nothing while nobody answers."""
    try:
        return service.http.get("/metrics").text
    except httpx.TransportError:
        return ""


def started(text: str) -> set[int]:
    """Return the process ids of the workers that /metrics tells of."""
    return {int(pid) for pid in re.findall(rf'^{STARTED}{{pid="(\d+)"}}', text, re.MULTILINE)}


def test_a_worker_that_dies_takes_no_count_along(any_redis: EmbeddedRedis) -> None:
    with run_service(any_redis.url, WEB_CONCURRENCY="2") as service:
        for _ in range(10):
            assert exchange(service.port, delivery(IGNORED)).status == 200
        before = workers_of(service.process.pid)
        os.kill(min(before), signal.SIGKILL)

        eventually(lambda: len(workers_of(service.process.pid) - {min(before)}) == 2, within=30)

        after = workers_of(service.process.pid)
        text = eventually(lambda: text if started(text := scraped(service)) == after else "", within=30)
        assert metric(text, DELIVERIES, outcome="ignored") == 10


def test_a_single_process_is_described(service: ServiceProcess) -> None:
    resident_kb = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text())

    text = service.http.get("/metrics").text

    assert resident_kb is not None
    told = metric(text, "process_resident_memory_bytes")
    assert told == pytest.approx(int(resident_kb[1]) * 1024, rel=0.2)
    assert metric(text, STARTED) >= metric(text, "process_start_time_seconds") - 1


def test_what_runs_is_told(small: Endpoint) -> None:
    version = importlib.metadata.version("clerk-session-relay")

    assert metric(small.http.get("/metrics").text, "session_relay_build_info", version=version) == 1


def test_nothing_secret_is_a_label(small: Endpoint) -> None:
    small.deliver({"type": "session." + "MARKER" * 100, "data": {"id": "MARKER"}})
    small.post(b"{}", signed(b"{}") | {"svix-id": "MARKER!"})
    small.deliver({"type": "MARKER"})

    text = small.http.get("/metrics").text

    assert "MARKER" not in text
    assert SECRET.removeprefix("whsec_") not in text


# Several processes


class Processes:
    """Processes that count in one directory, one after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"import os\nfrom service.telemetry import metrics\n{script}"],
            cwd=ROOT,
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(self._directory)},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout

    def work(self, script: str) -> int:
        """Return the id that the process had."""
        return int(self.run(f"{script}\nprint(os.getpid())"))

    def rendered(self) -> str:
        return self.run("print(metrics.render().decode())")


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path)


def test_counts_of_processes_that_ended_stay(processes: Processes) -> None:
    for _ in range(2):
        pid = processes.work("metrics.count_delivery('applied', None)\nmetrics.observe_lag(0.2)")
        processes.work(f"metrics.forget_worker({pid})")

    text = processes.rendered()

    assert metric(text, DELIVERIES, outcome="applied") == 2
    assert metric(text, f"{LAG}_bucket", le="0.25") == 2
    assert metric(text, f"{LAG}_sum") == pytest.approx(0.4)


def test_each_worker_has_its_start(processes: Processes) -> None:
    pids = {processes.work("metrics.mark_worker_started(has_fast_lane=True)") for _ in range(2)}

    assert started(processes.rendered()) == pids


def test_a_worker_that_was_forgotten_has_no_start(processes: Processes) -> None:
    dead, alive = (processes.work("metrics.mark_worker_started(has_fast_lane=True)") for _ in range(2))

    processes.work(f"metrics.forget_worker({dead})")

    assert started(processes.rendered()) == {alive}


def test_a_supervisor_that_shares_what_it_did_not_itself_forgets_too(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = processes.work("metrics.mark_worker_started(has_fast_lane=True)")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    metrics.forget_worker(pid)

    assert started(processes.rendered()) == set()


@pytest.mark.parametrize(("workers", "expected"), [((True, True), 1), ((True, False), 0), ((False, False), 0)])
def test_the_fast_lane_is_on_if_all_workers_have_it(
    processes: Processes, workers: tuple[bool, ...], expected: int
) -> None:
    for is_used in workers:
        processes.work(f"metrics.mark_worker_started(has_fast_lane={is_used})")

    text = processes.rendered()

    assert f"\nsession_relay_fast_lane {expected}.0\n" in text


def test_who_only_reads_has_neither_start_nor_fast_lane(processes: Processes) -> None:
    text = processes.rendered()

    assert STARTED not in text
    assert "session_relay_fast_lane" not in text


# One process


def test_processes_that_share_warn_of_nothing(processes: Processes) -> None:
    script = "import logging, sys\nlogging.basicConfig(stream=sys.stdout)\nmetrics.warn_if_not_shared(True)"

    assert processes.run(script) == ""


# Labels


# docs/metrics.md, docs/grafana-dashboard.json
