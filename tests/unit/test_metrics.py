"""Metrics of one process; and that docs, dashboard and rules name what there is."""

import dataclasses
import json
import re
import threading

import pytest
from support.constants import ROOT
from support.services import metric

from service.app.health import _DRIFT
from service.telemetry import metrics
from service.telemetry.metrics import Reconciled, Stored

DELIVERIES = "session_relay_deliveries_total"
STARTED = "session_relay_worker_start_time_seconds"
LAG = "session_relay_publish_lag_seconds"


def started(text: str) -> set[int]:
    """Return the process ids of the workers that /metrics tells of."""
    return {int(pid) for pid in re.findall(rf'^{STARTED}{{pid="(\d+)"}}', text, re.MULTILINE)}


@pytest.fixture
def fresh_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_FIRST_WARNING", threading.Lock())


@pytest.mark.usefixtures("fresh_warning")
def test_several_processes_that_do_not_share_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    metrics.warn_if_not_shared(multiprocess=True)
    metrics.warn_if_not_shared(multiprocess=True)

    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "PROMETHEUS_MULTIPROC_DIR" in record.getMessage()


@pytest.mark.usefixtures("fresh_warning")
def test_a_single_process_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    metrics.warn_if_not_shared(multiprocess=False)

    assert caplog.records == []


def test_a_single_process_has_its_start_without_an_id() -> None:
    metrics.mark_worker_started(has_fast_lane=False)

    text = metrics.render().decode()

    assert f"\n{STARTED} " in text
    assert started(text) == set()


def test_a_lag_below_zero_counts_as_zero() -> None:
    counted = Counted()

    metrics.observe_lag(-3)

    assert counted.growth(f"{LAG}_bucket", le="0.05") == 1
    assert counted.growth(f"{LAG}_sum") == 0


class Counted:
    """The counts of this process, before and after."""

    def __init__(self) -> None:
        self._before = metrics.render().decode()

    def growth(self, name: str, **labels: str) -> float:
        return metric(metrics.render().decode(), name, **labels) - metric(self._before, name, **labels)


def test_deliveries_are_counted_by_outcome_and_reason() -> None:
    counted = Counted()

    metrics.count_delivery("applied", None)
    metrics.count_delivery("applied", None)
    metrics.count_delivery("rejected", "invalid_signature")

    assert counted.growth(DELIVERIES, outcome="applied", reason="") == 2
    assert counted.growth(DELIVERIES, outcome="rejected", reason="invalid_signature") == 1


def test_a_reason_that_nobody_knows_becomes_no_label() -> None:
    counted = Counted()

    metrics.count_delivery("rejected", "MARKER")

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
        ("NOPERM", "rights"),
        ("TooFewReplicasError", "replicas"),
        ("MARKER", "other"),
    ],
)
def test_redis_errors_are_counted_by_kind(name: str, kind: str) -> None:
    counted = Counted()

    metrics.count_redis_error(name)

    assert counted.growth("session_relay_redis_errors_total", kind=kind) == 1
    assert b"MARKER" not in metrics.render()


NEVER = Stored(dead_letters=0, expiry_lag=0, pending_revokes=2, reconciled=None)
RECONCILED = dataclasses.replace(
    NEVER, reconciled=Reconciled(drift=dict.fromkeys(_DRIFT.values(), 3), last_success_at=1_795_422_800, state_age=60)
)


def test_what_reconcile_recorded_is_told() -> None:
    text = metrics.render(RECONCILED).decode()

    assert metric(text, "session_relay_pending_revokes") == 2
    assert {metric(text, "session_relay_reconcile_drift_total", kind=kind) for kind in _DRIFT.values()} == {3}
    assert metric(text, "session_relay_reconcile_last_success_timestamp_seconds") == 1_795_422_800
    assert metric(text, "session_relay_state_age_seconds") == 60


def test_what_was_never_reconciled_has_no_metrics_of_it() -> None:
    text = metrics.render(NEVER).decode()

    assert metric(text, "session_relay_pending_revokes") == 2
    assert "session_relay_reconcile" not in text
    assert "session_relay_state_age" not in text


def test_a_reconcile_that_has_never_succeeded_has_drift_only() -> None:
    drift = Reconciled(drift=dict.fromkeys(_DRIFT.values(), 3), last_success_at=None, state_age=None)

    text = metrics.render(dataclasses.replace(NEVER, reconciled=drift)).decode()

    assert metric(text, "session_relay_reconcile_drift_total", kind="gone") == 3
    assert "last_success" not in text
    assert "session_relay_state_age" not in text


DOCS = (ROOT / "docs/metrics.md").read_text()
NAME = r"\b(?:session_relay|process)_\w+"


def families() -> dict[str, str]:
    """Return the type of every metric by its name."""
    metrics.mark_worker_started(has_fast_lane=False)
    told = re.findall(rf"^# TYPE ({NAME}) (\w+)$", metrics.render(RECONCILED).decode(), re.MULTILINE)
    return {name: kind for name, kind in told if not name.endswith("_created")}


def test_the_docs_name_every_metric_and_no_other() -> None:
    rows = re.findall(rf"^\| `({NAME})` \| (\w+) \|", DOCS, re.MULTILINE)

    assert dict(rows) == families()
    assert len(rows) == len(families()), "each has one row"


def test_the_docs_name_every_value_of_a_label() -> None:
    values = {each for pair in metrics.outcomes() for each in pair if each}
    values |= {*metrics.REDIS_ERROR_KINDS, *_DRIFT.values()}

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
        *("job", "instance", "outcome", "reason", "field", "kind", "pid", "le"),
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
