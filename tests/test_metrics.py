"""What /metrics counts: deliveries by what became of them, odd fields, and how long it took; docs/metrics.md."""

import importlib.metadata
import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from support import (
    IGNORED,
    ROOT,
    SECRET,
    Endpoint,
    ServiceProcess,
    clerk_event,
    eventually,
    exchange,
    genuine,
    make_settings,
    metric,
    request_head,
    run_plain_wsgi,
    run_service,
    sample_body,
    signed,
    workers_of,
)

from service import metrics, simulator
from service.embedded import EmbeddedRedis

DELIVERIES = "session_relay_deliveries_total"


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
def small(any_redis: EmbeddedRedis, http_client: Any) -> Iterator[Endpoint]:
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


def test_several_processes_tell_their_sum(any_redis: EmbeddedRedis, http_client: Any) -> None:
    with run_service(any_redis.url, WEB_CONCURRENCY="2") as service:

        def deliver(number: int) -> int:
            # Each over a connection of its own, so that both processes get some.
            body = sample_body(f"sess_{number}")
            return exchange(service.port, request_head(genuine(body)) + body).status

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(deliver, range(60))) == {200}
        for _ in range(10):
            text = exchange(service.port, request_head([], method=b"GET", target=b"/metrics")).body.decode()
            assert metric(text, DELIVERIES, outcome="applied") == 60
            assert metric(text, "session_relay_delivery_seconds_count") == 60


def scraped(service: ServiceProcess) -> str:
    """Return nothing while nobody answers."""
    try:
        return service.http.get("/metrics").text
    except httpx.TransportError:
        return ""


def test_a_worker_that_dies_leaves_its_counts_to_its_successor(
    any_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    with run_service(any_redis.url, TMPDIR=str(tmp_path), WEB_CONCURRENCY="2") as service:
        assert service.deliver(IGNORED).status_code == 200
        files = sorted(tmp_path.glob("session-relay-metrics-*/*"))
        before = workers_of(service.process.pid)
        os.kill(min(before), signal.SIGKILL)

        eventually(lambda: len(workers_of(service.process.pid) - {min(before)}) == 2, within=30)

        text = eventually(lambda: scraped(service), within=30)
        service.deliver(IGNORED)
        assert metric(text, DELIVERIES, outcome="ignored") == 1
        assert metric(scraped(service), DELIVERIES, outcome="ignored") == 2
        assert files
        assert sorted(tmp_path.glob("session-relay-metrics-*/*")) == files, "else each would leave some"


def test_each_worker_process_is_described(service: ServiceProcess) -> None:
    resident_kb = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text())

    text = service.http.get("/metrics").text

    assert resident_kb is not None
    told = metric(text, "process_resident_memory_bytes", worker="0")
    assert told == pytest.approx(int(resident_kb[1]) * 1024, rel=0.2)


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


# Histograms of batches


@pytest.fixture(params=["one process", "several processes"])
def registry(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[CollectorRegistry, CollectorRegistry]]:
    """Where to put a histogram, and where to read it."""
    written = CollectorRegistry()
    if request.param == "one process":
        yield written, written
        return
    read = CollectorRegistry()
    MultiProcessCollector(read, tmp_path)  # type: ignore[no-untyped-call]
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    kind = prometheus_client.values.MultiProcessValue()  # type: ignore[no-untyped-call]
    monkeypatch.setattr(prometheus_client.values, "ValueClass", kind)
    yield written, read
    kind.close_all_files()


Registries = tuple[CollectorRegistry, CollectorRegistry]
BOUNDS = (0.5, 1, 2)


def samples(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """Return the buckets by their bounds, `sum` and `count`."""
    return {
        sample.labels.get("le", sample.name.rpartition("_")[2]): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if family.name == name and not sample.name.endswith("_created")
    }


@pytest.mark.parametrize(
    "batches",
    [
        [[0.25]],
        [[0.5, 1, 2, 1, 0.5]],
        [[4, 0.25, 1.5, 0.0, 2.5, 0.75, 0.75]],
        [[1.5], [], [1.5, 0.25]],
    ],
)
def test_a_batch_counts_as_its_values_do(registry: Registries, batches: list[list[float]]) -> None:
    written, read = registry
    batch = metrics.BatchHistogram("batch", "", buckets=BOUNDS, registry=written)
    plain = Histogram("plain", "", buckets=BOUNDS, registry=written)
    for values in batches:
        batch.observe_many(values)
        for value in values:
            plain.observe(value)

    assert samples(read, "batch") == samples(read, "plain")
    assert samples(read, "batch")["count"] == sum(map(len, batches))


def test_values_below_zero_count_as_zero(registry: Registries) -> None:
    written, read = registry
    metrics.BatchHistogram("lag", "", buckets=BOUNDS, registry=written).observe_many([-3, 1.5, -0.5])

    assert samples(read, "lag") == {"0.5": 2, "1.0": 2, "2.0": 3, "+Inf": 3, "sum": 1.5, "count": 3}


# Labels


class Counted:
    """The counts of this process, before and after."""

    def __init__(self) -> None:
        self._before = metrics.render().decode()

    def growth(self, name: str, **labels: str) -> float:
        return metric(metrics.render().decode(), name, **labels) - metric(self._before, name, **labels)


def test_deliveries_are_counted_together() -> None:
    counted = Counted()

    metrics.count_deliveries("applied", None, 16)
    metrics.count_deliveries("rejected", "invalid_signature")

    assert counted.growth(DELIVERIES, outcome="applied", reason="") == 16
    assert counted.growth(DELIVERIES, outcome="rejected", reason="invalid_signature") == 1


def test_a_reason_that_nobody_knows_becomes_no_label() -> None:
    counted = Counted()

    metrics.count_deliveries("rejected", "MARKER")

    assert counted.growth(DELIVERIES, outcome="rejected", reason="other") == 1
    assert b"MARKER" not in metrics.render()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("OOM", "out_of_memory"),
        ("OutOfMemoryError", "out_of_memory"),
        ("ConnectionError", "connection"),
        ("TimeoutError", "timeout"),
        ("MISCONF", "persistence"),
        ("TooFewReplicasError", "replicas"),
        ("MARKER", "other"),
    ],
)
def test_redis_errors_are_counted_by_kind(name: str, kind: str) -> None:
    counted = Counted()

    metrics.count_redis_error(name)

    assert counted.growth("session_relay_redis_errors_total", kind=kind) == 1
    assert b"MARKER" not in metrics.render()


# docs/metrics.md, docs/grafana-dashboard.json

DOCS = (ROOT / "docs/metrics.md").read_text()
NAME = r"\b(?:session_relay|process)_\w+"


def families() -> dict[str, str]:
    """Return the type of every metric by its name."""
    told = re.findall(rf"^# TYPE ({NAME}) (\w+)$", metrics.render(0, 0.0).decode(), re.MULTILINE)
    return {name: kind for name, kind in told if not name.endswith("_created")}


def test_the_docs_name_every_metric_and_no_other() -> None:
    rows = re.findall(rf"^\| `({NAME})` \| (\w+) \|", DOCS, re.MULTILINE)

    assert dict(rows) == families()
    assert len(rows) == len(families()), "each has one row"


def test_the_docs_name_every_value_of_a_label() -> None:
    values = {each for pair in metrics.outcomes() for each in pair if each} | metrics.REDIS_ERROR_KINDS.keys()

    assert {value for value in values if f"`{value}`" not in DOCS} == set()


def expressions() -> list[str]:
    """Return the PromQL of the dashboard, and of the rules in the docs."""
    dashboard = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
    return [
        *(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])),
        *re.findall(r"^ +expr: (.+)$", DOCS, re.MULTILINE),
    ]


def test_dashboard_and_rules_use_only_what_there_is() -> None:
    known = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
    series = {name + suffix for name, kind in families().items() for suffix in known[kind]}
    labels = {
        *("job", "instance", "outcome", "reason", "field", "kind", "worker", "le"),
        *("version", "python", "redis_py"),
    }

    assert len(expressions()) > 20
    for expression in expressions():
        used = set(re.findall(NAME, expression))
        by = {label for group in re.findall(r"\bby \((.*?)\)", expression) for label in group.split(", ")}
        matched = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression))
        assert used, expression
        assert used <= series, expression
        assert by | matched <= labels, expression
