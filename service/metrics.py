"""Counters for Prometheus, right across worker processes once PROMETHEUS_MULTIPROC_DIR is set."""

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST

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


def render() -> bytes:
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
