"""What operators see at /metrics, right across worker processes once PROMETHEUS_MULTIPROC_DIR is set.

docs/metrics.md has the table. Every label's values are a closed set, so that nobody can make them grow.

A long module, but half of it is names: what is counted; then, how it is counted by one or more processes.
"""

import fcntl
import functools
import importlib.metadata
import itertools
import os
import platform
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.clerk import Reason
from service.errors import RelayError

CONTENT_TYPE = CONTENT_TYPE_LATEST

OTHER: Final = "other"
"""Stands for a label's value that this version does not know."""

_DIRECTORY: Final = os.environ.get("PROMETHEUS_MULTIPROC_DIR")


class _Place:
    """A number for this process's files that no other living process has.

    Whoever comes after a worker that died takes it over, and counts on in its files. By the process's id, as
    is usual, each one would leave files for ever, and /metrics would take longer with each.
    """

    number: int

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._take()
        os.register_at_fork(after_in_child=self._take)

    def _take(self) -> None:
        for number in itertools.count():
            file = os.open(self._directory / f"{number}.pid", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
            except BlockingIOError:
                os.close(file)
                continue
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            self.number = number
            return


if _DIRECTORY:
    _PLACE: Final = _Place(Path(_DIRECTORY))
    # Meant for that: https://github.com/prometheus/client_python/issues/509
    values.ValueClass = values.MultiProcessValue(lambda: _PLACE.number)  # type: ignore[no-untyped-call]


class BatchHistogram(Histogram):
    """A histogram without labels that takes many values at once. Values below zero count as zero."""

    def observe_many(self, values: Sequence[float]) -> None:
        """Count them with one write for each bucket that they fall into, and one for their sum.

        In multi-process mode a write takes about 1 µs, and `observe` needs two for each value.
        """
        if not values:
            return
        ordered = sorted(values)
        if ordered[0] < 0:  # a sum that falls looks like a restart
            ordered = [max(value, 0.0) for value in ordered]
        self._sum.inc(sum(ordered))
        start = 0
        while start < len(ordered):
            bucket = bisect_left(self._upper_bounds, ordered[start])
            end = bisect_right(ordered, self._upper_bounds[bucket], start)
            self._buckets[bucket].inc(end - start)
            start = end


DELIVERIES = Counter(
    "session_relay_deliveries",
    "Requests to the endpoint, by outcome; `rejected` and `failed` have the problem's code as reason.",
    ["outcome", "reason"],
)
NULLED_FIELDS = Counter(
    "session_relay_nulled_fields", "Odd metadata of a session that was read as null, by field.", ["field"]
)
DURATION = BatchHistogram(
    "session_relay_delivery_seconds",
    "From a complete request to its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
STORE = BatchHistogram(
    "session_relay_store_seconds",
    "One round trip to Redis.",
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
BATCH = BatchHistogram(
    "session_relay_batch_commands",
    "Commands in one round trip to Redis.",
    buckets=(1, 2, 4, 8, 16, 32),
)
LAG = BatchHistogram(
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
    BATCH.observe_many((commands,))
    STORE.observe_many((seconds,))


def count_redis_error(name: str) -> None:
    """name: redis-py's class, or the first word of what Redis says; an unknown one is of the kind `other`."""
    _REDIS_ERRORS.get(name, _REDIS_ERRORS[OTHER]).inc()


def render(dead_letters: int | None = None, expiry_lag: float | None = None) -> bytes:
    """Write what all workers counted, and what is held now.

    expiry_lag: seconds. Both are None if Redis could not be asked.
    """
    registry = CollectorRegistry()
    if _DIRECTORY:
        MultiProcessCollector(registry, _DIRECTORY)  # type: ignore[no-untyped-call]
        registry.register(_Workers(Path(_DIRECTORY)))
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


class _Workers(Collector):
    """Memory, time and files of each worker process; without workers, the default registry has them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for file in sorted(self._directory.glob("*.pid")):
            if not (pid := file.read_text()):  # just begun
                continue
            for metric in ProcessCollector(pid=pid.strip, registry=None).collect():
                name = metric.name
                merged = found.setdefault(name, Metric(name, metric.documentation, metric.type))
                for sample in metric.samples:
                    merged.add_sample(sample.name, {"worker": file.stem}, sample.value)
        return found.values()


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
