"""The metrics at /metrics; docs/metrics.md lists them.

With PROMETHEUS_MULTIPROC_DIR set, they are the sums of all worker processes: the Prometheus client's
multi-process mode. Each label has a closed set of values, so that no input can add one.

A long module: each metric is defined, counted and rendered here.
"""

import dataclasses
import functools
import importlib.metadata
import logging
import os
import platform
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from service.errors import errors_with_code
from service.models import Reason
from service.telemetry import relay_version

OTHER: Final = "other"
"""The value of a label where the true one is none of its closed set."""

_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
_IS_SHARED: Final = _DIRECTORY in os.environ
"""Looked for at import, as the Prometheus client does."""

DELIVERIES = Counter(
    "session_relay_deliveries",
    "Requests to the endpoint, by outcome; `rejected` and `failed` have the problem's code as reason.",
    ["outcome", "reason"],
)
NULLED_FIELDS = Counter(
    "session_relay_nulled_fields", "Odd metadata of a session that was read as null, by field.", ["field"]
)
DURATION = Histogram(
    "session_relay_delivery_seconds",
    "From a complete request to its response.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
STORE = Histogram(
    "session_relay_store_seconds",
    "One round trip to Redis.",
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
BATCH = Histogram("session_relay_batch_commands", "Commands in one round trip to Redis.", buckets=(1, 2, 4, 8, 16, 32))
LAG = Histogram(
    "session_relay_publish_lag_seconds",
    "From the time that Clerk gives an event to its publishing.",
    # The sender's retries come after 5 s, 5 min, 35 min, 2.6 h, 7.6 h, 17.6 h and 27.6 h.
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600, 3600, 10_800, 28_800, 86_400),
)
REDIS_ERRORS = Counter("session_relay_redis_errors", "What Redis, or the way to it, failed with.", ["kind"])

REDIS_ERROR_KINDS: Final = {
    "connection": "ConnectionError MaxConnectionsError",
    "timeout": "TimeoutError",
    "rights": "AuthenticationError AuthenticationWrongNumberOfArgsError AuthorizationError NoPermissionError "
    "NOAUTH NOPERM WRONGPASS",
    "loading": "BusyLoadingError LOADING",
    "out_of_memory": "OutOfMemoryError OOM",
    "read_only": "ReadOnlyError READONLY",
    "persistence": "MISCONF",
    "replicas": "NOREPLICAS TooFewReplicasError",
    "cluster": "AskError ClusterDownError MasterDownError MovedError TryAgainError "
    "CLUSTERDOWN MASTERDOWN MOVED TRYAGAIN",
    OTHER: "",
}
"""From a value of the label `kind` to the names that `count_redis_error` gets, separated by spaces."""


_OTHER_ENDPOINTS: Final = {"unauthorized", "not_found", "method_not_allowed", "invalid_parameter", "too_many_streams"}
"""Codes that no delivery gets."""


def outcomes() -> Iterator[tuple[str, str]]:
    """Return every outcome of a delivery, with each reason that it can have."""
    for outcome in ("applied", "duplicate", "stale", "ignored"):
        yield outcome, ""
    yield "duplicate", "other_body"
    for reason in get_args(Reason):
        yield "dead_lettered", reason
    for error in errors_with_code():
        if error.code not in _OTHER_ENDPOINTS:
            yield outcome_of(error.status), error.code


def outcome_of(status: int) -> str:
    """Return the outcome of a delivery whose response has this HTTP status, 400 or above."""
    return "failed" if status >= 500 else "rejected"  # noqa: PLR2004


# Created before they are needed: rate() does not see the first failure of a counter that begins with it.
_DELIVERIES: Final = {each: DELIVERIES.labels(*each) for each in outcomes()}
_REDIS_ERRORS: Final = {
    name: REDIS_ERRORS.labels(kind) for kind, names in REDIS_ERROR_KINDS.items() for name in (*names.split(), kind)
}


def count_delivery(outcome: str, reason: str | None) -> None:
    """Count a delivery, under the reason `other` if nobody knows its reason."""
    (_DELIVERIES.get((outcome, reason or "")) or DELIVERIES.labels(outcome, OTHER)).inc()


def observe_round_trip(commands: int, seconds: float) -> None:
    """Count a round trip to Redis, which carried so many commands and took so many seconds."""
    BATCH.observe(commands)
    STORE.observe(seconds)


def observe_lag(seconds: float) -> None:
    """Count how long after its event a message was published."""
    LAG.observe(max(seconds, 0.0))  # clocks differ, and Prometheus takes a sum that falls for a restart


def count_redis_error(name: str) -> None:
    """Count an error of Redis.

    Args:
        name: redis-py's exception class, or the first word of Redis' error; unknown ones count as `other`.
    """
    _REDIS_ERRORS.get(name, _REDIS_ERRORS[OTHER]).inc()


def mark_worker_started(*, has_fast_lane: bool) -> None:
    """Record that this process serves from now on, and whether its deliveries skip Flask's contexts."""
    start, fast_lane = _worker_gauges()
    start.set_to_current_time()
    fast_lane.set(has_fast_lane)


@functools.cache
def _worker_gauges() -> tuple[Gauge, Gauge]:
    # Created when they are set: before, and in a process that only reads, there are none rather than zeros.
    start = Gauge(
        "session_relay_worker_start_time_seconds",
        "When the worker process was ready, in Unix time.",
        multiprocess_mode="liveall",
    )
    fast_lane = Gauge(
        "session_relay_fast_lane",
        "Whether deliveries skip Flask's contexts; 0 if Flask is called.",
        multiprocess_mode="livemin",
    )
    return start, fast_lane


def forget_worker(pid: int) -> None:
    """Drop the gauges of a worker that died; its counts stay."""
    if _DIRECTORY in os.environ:  # the supervisor may set it after it imports this module
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def warn_if_not_shared(multiprocess: bool) -> None:
    """Warn, once in a process, if it is one of several (`wsgi.multiprocess`) that do not share counts."""
    if multiprocess and not _IS_SHARED and _FIRST_WARNING.acquire(blocking=False):
        logging.getLogger(__name__).warning(
            "metrics_not_shared: /metrics tells the counts of one of several worker processes, so they jump. "
            "Set %s to an empty directory before the server starts.",
            _DIRECTORY,
        )


_FIRST_WARNING: Final = threading.Lock()
"""Acquired by the thread that warns first, and never released."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reconciled:
    """What `session-relay reconcile` recorded in Redis."""

    drift: Mapping[str, int]
    """How many stored states differed from Clerk's so far, by kind, also those of which there were none."""
    last_success_at: float | None
    """In Unix seconds; None if no run has succeeded yet."""
    state_age: float | None
    """Seconds since the last run that succeeded began; None as above."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """What is read from Redis for one scrape."""

    dead_letters: int
    expiry_lag: float
    """Seconds since the session that is longest overdue should have expired."""
    pending_revokes: int
    reconciled: Reconciled | None
    """None if nothing was ever reconciled."""


def render(stored: Stored | None = None) -> bytes:
    """Return all metrics in Prometheus' text format; without those of Redis if it did not answer."""
    registry = CollectorRegistry()
    if _IS_SHARED:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(_Now(stored))
    return generate_latest(registry)


@dataclasses.dataclass(eq=False)  # the registry keeps it in a dict
class _Now(Collector):
    """Values of this moment. No process keeps them, so none of a dead one remain."""

    stored: Stored | None

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily("session_relay_build_info", "What runs here.", labels=[*_build()])
        build.add_metric([*_build().values()], 1)
        yield build
        is_up = self.stored is not None
        yield GaugeMetricFamily("session_relay_redis_up", "Whether Redis answered just now.", is_up)
        if self.stored is not None:
            yield from _of_redis(self.stored)


def _of_redis(stored: Stored) -> Iterator[Metric]:
    yield GaugeMetricFamily("session_relay_dead_letters", "Dead letters stored.", stored.dead_letters)
    yield GaugeMetricFamily(
        "session_relay_expiry_lag_seconds",
        "How long ago the session that is longest overdue should have been expired; 0 if none is.",
        stored.expiry_lag,
    )
    yield GaugeMetricFamily(
        "session_relay_pending_revokes", "Sessions that Clerk has still to revoke.", stored.pending_revokes
    )
    if (reconciled := stored.reconciled) is None:
        return
    drift = CounterMetricFamily(
        "session_relay_reconcile_drift",
        "Stored states that differed from Clerk's, by kind, since the first reconcile.",
        labels=["kind"],
    )
    for kind, count in reconciled.drift.items():
        drift.add_metric([kind], count)
    yield drift
    if reconciled.last_success_at is not None:
        yield GaugeMetricFamily(
            "session_relay_reconcile_last_success_timestamp_seconds",
            "When reconcile last succeeded, in Unix time.",
            reconciled.last_success_at,
        )
    if reconciled.state_age is not None:
        yield GaugeMetricFamily(
            "session_relay_state_age_seconds",
            "How long ago the last reconcile that succeeded began: what is stored agreed with Clerk's since then.",
            reconciled.state_age,
        )


@functools.cache
def _build() -> dict[str, str]:
    return {
        "version": relay_version(),
        "python": platform.python_version(),
        "redis_py": importlib.metadata.version("redis"),
    }
