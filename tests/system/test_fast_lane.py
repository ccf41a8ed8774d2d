"""The fast lane gives what Flask would give: responses, log lines and metrics."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import prometheus_client
import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.asgi import Client, chunk, scope
from support.constants import SECRET
from support.events import IGNORED, clerk_event
from support.relay import make_settings
from support.services import metric, run_service
from support.signing import signed

from service.app.factory import RelayFlask, create_app
from service.dev.embedded import EmbeddedRedis
from service.server.bridge import FlaskBridge
from service.telemetry import access_log

PATH = "/webhooks/clerk"


class Lanes:
    """Two applications on one Redis: one with the fast lane, one that goes through Flask."""

    def __init__(self, redis_url: str) -> None:
        self.runner = asyncio.Runner()
        self.apps = [
            create_app(make_settings(redis_url, redis_key_prefix=prefix, serve_fast_lane=is_on))
            for prefix, is_on in (("{fast}", True), ("{flask}", False))
        ]
        for app in self.apps:
            app.store.bind_loop(self.runner.get_loop())

    def compare(self, headers: list[tuple[bytes, bytes]], body: bytes) -> list[Any]:
        """Send both the same request; return what was seen of each."""
        return [self._see(app, headers, body) for app in self.apps]

    def _see(self, app: RelayFlask, headers: list[tuple[bytes, bytes]], body: bytes) -> Any:
        client = Client(chunk(body))
        before = samples()
        logger = structlog.testing.CapturingLogger()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(access_log, "log", logger)
            self.runner.run(FlaskBridge(app)(scope(PATH, *headers), client.receive, client.send))
        lines = [(call.method_name, call.kwargs | {"duration_ms": 0}) for call in logger.calls]
        counted = {name: value - before.get(name, 0) for name, value in samples().items()}
        answer = {**json.loads(client.body), "cursor": None}
        lengths = client.headers.pop(b"content-length")
        assert int(lengths) == len(client.body)
        shown = {name: value for name, value in client.headers.items() if name != b"content-length"}
        return client.status, shown, answer, lines, {name: value for name, value in counted.items() if value}

    def close(self) -> None:
        for app in self.apps:
            self.runner.run(asyncio.to_thread(app.store.close))
        self.runner.close()


def samples() -> dict[str, float]:
    """Return what deliveries count; of durations, only how many."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in prometheus_client.REGISTRY.collect()
        for sample in family.samples
        if sample.name
        in (
            *("session_relay_deliveries_total", "session_relay_nulled_fields_total"),
            *("session_relay_delivery_seconds_count", "session_relay_publish_lag_seconds_count"),
        )
    }


@pytest.fixture(scope="module")
def lanes(any_redis: EmbeddedRedis) -> Iterator[Lanes]:
    lanes = Lanes(any_redis.url)
    with contextlib.closing(lanes):
        yield lanes


EVENTS = st.builds(
    clerk_event,
    st.sampled_from(["active", "pending", "ended", "revoked", "removed", "asleep", None]),
    type_=st.sampled_from([None, "session.updated", "user.updated", "session." + "x" * 130]),
    session_id=st.sampled_from(["sess_1", "sess_2", "sess 3"]),
    updated_at=st.integers(-1, 10**15),
    client_id=st.sampled_from(["client_1", 7, None]),
    latest_activity=st.sampled_from([None, 1, {"city": "Oslo", "is_mobile": "no"}]),
    actor=st.sampled_from([None, {"sub": "user_2"}, "someone"]),
)

BODIES = st.one_of(
    EVENTS.map(lambda event: json.dumps(event).encode()),
    st.binary(max_size=40),
    st.sampled_from([IGNORED, b"[]", b"{}", b"[" * 5000, b'{"type":"user.created","x":"\xff"}']),
)

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("svix-id", "svix-timestamp", "svix-signature", "svix_id", "webhook-id", "content-encoding"),
                *("transfer-encoding", "content-length", "content-type", "host", "upgrade", "x-forwarded-for"),
            ]
        ),
        st.one_of(
            st.sampled_from(["", "0", "gzip", "identity", "chunked", "gzip, chunked", "5000000", "msg 1", "v1,x"]),
            st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=20),
        ),
    ),
    max_size=2,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODIES, CHANGES, st.booleans(), st.sampled_from(["svix", "webhook"]))
@example(IGNORED, [("host", "a b\xff"), ("upgrade", "h2c")], True, "svix")
@example(IGNORED, [("content-type", "application/x-www-form-urlencoded")], True, "svix")
@example(IGNORED, [("svix-id", "msg_2")], False, "svix")
def test_both_ways_give_the_same_response_log_line_and_metrics(
    lanes: Lanes, body: bytes, changes: list[tuple[str, str]], replaces: bool, family: str
) -> None:
    headers = [*signed(body, "msg_1", family=family).items()]
    if replaces:
        headers = [pair for pair in headers if pair[0] not in dict(changes)]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in [*headers, *changes]]

    fast, through_flask = lanes.compare(raw, body)

    assert fast == through_flask
    assert fast[3], "a delivery has a line in the log"


def test_a_defect_is_the_same_both_ways(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.ingest.normalize", lambda *_, **__: 1 / 0)
    body = json.dumps(clerk_event()).encode()
    raw = [(name.encode(), value.encode()) for name, value in signed(body).items()]

    fast, through_flask = lanes.compare(raw, body)

    assert fast == through_flask
    assert (fast[0], fast[2]["code"]) == (500, "internal_error")


@pytest.mark.parametrize(("setting", "expected"), [("true", 1), ("false", 0)])
def test_metrics_and_the_first_log_line_say_which_is_in_use(
    any_redis: EmbeddedRedis, setting: str, expected: int
) -> None:
    with run_service(any_redis.url, SERVE_FAST_LANE=setting) as service:
        [line] = [line for line in service.log_lines() if line["event"] == "listening"]
        assert line["fast_lane"] is bool(expected)
        assert metric(service.http.get("/metrics").text, "session_relay_fast_lane") == expected
        assert SECRET not in service.log_text()
