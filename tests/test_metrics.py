"""What /metrics counts: deliveries by what became of them, odd fields, and how long it took."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import (
    SECRET,
    Endpoint,
    clerk_event,
    exchange,
    genuine,
    make_settings,
    metric,
    request_head,
    run_plain_wsgi,
    run_service,
    sample_body,
    signed,
)

from service import simulator
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


def test_nothing_secret_is_a_label(small: Endpoint) -> None:
    small.deliver({"type": "session." + "MARKER" * 100, "data": {"id": "MARKER"}})
    small.post(b"{}", signed(b"{}") | {"svix-id": "MARKER!"})
    small.deliver({"type": "MARKER"})

    text = small.http.get("/metrics").text

    assert "MARKER" not in text
    assert SECRET.removeprefix("whsec_") not in text
