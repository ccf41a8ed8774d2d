"""What operators see at /metrics. docs/metrics.md has the table.

With PROMETHEUS_MULTIPROC_DIR set, it is right across worker processes: the Prometheus client's multi-process
mode. Every label's values are a closed set, so that nobody can make them grow.
"""

import functools
import importlib.metadata
import logging
import os
import platform
import threading
from collections.abc import Iterable, Iterator
from typing import Final, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from service.errors import RelayError
from service.models import Reason

CONTENT_TYPE = CONTENT_TYPE_LATEST

OTHER: Final = "other"
"""Stands for a label's value that this version does not know."""

_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
_IS_SHARED: Final = _DIRECTORY in os.environ
"""As the client itself found it, when it was imported."""

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
    "From a complete request to its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
STORE = Histogram(
    "session_relay_store_seconds",
    "One round trip to Redis.",
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
BATCH = Histogram(
    "session_relay_batch_commands",
    "Commands in one round trip to Redis.",
    buckets=(1, 2, 4, 8, 16, 32),
)
LAG = Histogram(
    "session_relay_publish_lag_seconds",
    "From the time that Clerk gives an event to its publishing.",
    # The sender's retries come after 5 s, 5 min, 35 min, 2.6 h, 7.6 h, 17.6 h and 27.6 h.
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600, 3600, 10_800, 28_800, 86_400),
)
REDIS_ERRORS = Counter("session_relay_redis_errors", "What Redis, or the way to it, failed with.", ["kind"])

REDIS_ERROR_KINDS: Final = {
    "connection": ("ConnectionError", "MaxConnectionsError"),
    "timeout": ("TimeoutError",),
    "rights": (
        "AuthenticationError",
        "AuthenticationWrongNumberOfArgsError",
        "AuthorizationError",
        "NoPermissionError",
        "NOAUTH",
        "NOPERM",
        "WRONGPASS",
    ),
    "loading": ("BusyLoadingError", "LOADING"),
    "out_of_memory": ("OutOfMemoryError", "OOM"),
    "read_only": ("ReadOnlyError", "READONLY"),
    "persistence": ("MISCONF",),
    "replicas": ("NOREPLICAS", "TooFewReplicasError"),
    "cluster": (
        "AskError",
        "ClusterDownError",
        "MasterDownError",
        "MovedError",
        "TryAgainError",
        "CLUSTERDOWN",
        "MASTERDOWN",
        "MOVED",
        "TRYAGAIN",
    ),
    OTHER: (),
}
"""To the names that an error goes by in the log's `redis_failed`."""


def outcomes() -> Iterator[tuple[str, str]]:
    """Return every outcome of a delivery, with each reason that it can have."""
    for outcome in ("applied", "duplicate", "stale", "ignored"):
        yield outcome, ""
    yield "duplicate", "other_body"
    for reason in get_args(Reason):
        yield "dead_lettered", reason
    yield from _problems(RelayError)


_ELSEWHERE: Final = {"unauthorized", "not_found", "method_not_allowed"}
"""Codes of what is no request to the endpoint."""


def _problems(error: type[RelayError]) -> Iterator[tuple[str, str]]:
    if "code" in vars(error) and error.code not in _ELSEWHERE:
        yield outcome_of(error.status), error.code
    for kind in error.__subclasses__():
        yield from _problems(kind)


def outcome_of(status: int) -> str:
    """Return the outcome of a request that was answered with a problem."""
    return "failed" if status >= 500 else "rejected"  # noqa: PLR2004


# Made at once: a counter that is not there until something fails hides the first failure from rate().
_DELIVERIES: Final = {each: DELIVERIES.labels(*each) for each in outcomes()}
_REDIS_ERRORS: Final = {
    name: REDIS_ERRORS.labels(kind) for kind, names in REDIS_ERROR_KINDS.items() for name in (*names, kind)
}


def count_deliveries(outcome: str, reason: str | None, times: int = 1) -> None:
    """Count requests that had the same outcome, for the same reason, if it has one."""
    counter = _DELIVERIES.get((outcome, reason or ""))
    if counter is None:
        counter = DELIVERIES.labels(outcome, OTHER)
    counter.inc(times)


def observe_round_trip(commands: int, seconds: float) -> None:
    """Count a round trip to Redis."""
    BATCH.observe(commands)
    STORE.observe(seconds)


def observe_lag(seconds: float) -> None:
    """Count how long after its event something was published; below zero, since clocks differ, is zero."""
    LAG.observe(max(seconds, 0.0))  # a sum that falls looks like a restart


def count_redis_error(name: str) -> None:
    """name: redis-py's class, or the first word of what Redis says; an unknown one is of the kind `other`."""
    _REDIS_ERRORS.get(name, _REDIS_ERRORS[OTHER]).inc()


@functools.cache
def _worker_start() -> Gauge:
    # Made when it is set: until then a process has none, rather than one of 0. The same below.
    return Gauge(
        "session_relay_worker_start_time_seconds",
        "When the worker process was ready, in Unix time.",
        multiprocess_mode="liveall",
    )


@functools.cache
def _fast_lane() -> Gauge:
    return Gauge(
        "session_relay_fast_lane",
        "Whether deliveries skip Flask's contexts; 0 if Flask is called.",
        multiprocess_mode="livemin",
    )


def mark_worker_started() -> None:
    """Say that this process serves from now on."""
    _worker_start().set_to_current_time()


def set_fast_lane(is_used: bool) -> None:
    """Say whether this process takes deliveries without Flask's contexts."""
    _fast_lane().set(is_used)


def forget_worker(pid: int) -> None:
    """Drop what only a living worker has, after it died; what it counted stays."""
    if _DIRECTORY in os.environ:  # the supervisor may have set it after this module was imported
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def warn_if_not_shared(multiprocess: bool) -> None:
    """Warn, once in a process, if it is one of several (`wsgi.multiprocess`) that count each for itself."""
    if multiprocess and not _IS_SHARED and _NOT_WARNED_YET.acquire(blocking=False):
        logging.getLogger(__name__).warning(
            "metrics_not_shared: /metrics tells the counts of one of several worker processes, so they jump. "
            "Set %s to an empty directory before the server starts.",
            _DIRECTORY,
        )


_NOT_WARNED_YET: Final = threading.Lock()
"""Taken with the first warning, by one thread of many, and never given back."""


def render(dead_letters: int | None = None, expiry_lag: float | None = None) -> bytes:
    """Write what all workers counted, and what is held now.

    expiry_lag: seconds. Both are None if Redis could not be asked.
    """
    registry = CollectorRegistry()
    if _IS_SHARED:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(_Now(dead_letters, expiry_lag))
    return generate_latest(registry)


class _Now(Collector):
    """What no worker counts: asked when it is read, so nothing of a worker that died stays."""

    def __init__(self, dead_letters: int | None, expiry_lag: float | None) -> None:
        self._dead_letters = dead_letters
        self._expiry_lag = expiry_lag

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily("session_relay_build_info", "What runs here.", labels=[*_build()])
        build.add_metric([*_build().values()], 1)
        yield build
        is_up = self._dead_letters is not None
        yield GaugeMetricFamily("session_relay_redis_up", "Whether Redis answered just now.", is_up)
        if self._dead_letters is not None:
            yield GaugeMetricFamily("session_relay_dead_letters", "Dead letters held.", self._dead_letters)
        if self._expiry_lag is not None:
            yield GaugeMetricFamily(
                "session_relay_expiry_lag_seconds",
                "How long ago the session that is longest overdue should have been expired; 0 if none is.",
                self._expiry_lag,
            )


@functools.cache
def _build() -> dict[str, str]:
    return {
        "version": _version("clerk-session-relay"),
        "python": platform.python_version(),
        "redis_py": _version("redis"),
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # run from a folder
        return "unknown"
