"""What Sentry and OpenTelemetry see, put around the service as their documentation says."""

import contextlib
import gzip
import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clock import eventually
from support.constants import SECRET, TESTS
from support.network import serving
from support.observed_app import MARK
from support.redis_servers import frozen, scripted_redis
from support.services import ServiceProcess, run_service
from support.signing import signed

from service.dev import simulator
from service.dev.embedded import EmbeddedRedis

E_MAIL = "somebody@private.example"
BATCHED = 8


def event(session_id: str = "sess_1") -> dict[str, Any]:
    """Return an event with an embedded user that nobody but Redis' dead letters may see."""
    sample = simulator.sample("session.created", session_id=session_id, user_id="user_1")
    return simulator.with_values(sample, {"data.user": {"email_addresses": [E_MAIL]}})


class Sink(http.server.ThreadingHTTPServer):
    """Takes what Sentry's SDK sends, on loopback."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SinkHandler)
        self.items: list[dict[str, Any]] = []
        self.text = ""

    @property
    def dsn(self) -> str:
        return f"http://key@127.0.0.1:{self.server_port}/1"

    def take(self, envelope: bytes) -> None:
        self.text += envelope.decode()
        for line in envelope.decode().splitlines():
            item = json.loads(line)
            if (
                (item.get("type") == "transaction" and "transaction" in item)
                or "exception" in item
                or ("level" in item and "message" in item)
                or "logentry" in item
            ):
                self.items.append(item)

    def errors(self) -> list[dict[str, Any]]:
        return [item for item in self.items if item.get("type") != "transaction"]

    def transactions(self) -> list[dict[str, Any]]:
        return [item for item in self.items if item.get("type") == "transaction"]


class _SinkHandler(http.server.BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink, serving(sink):
        yield sink


def sentry_service(redis_url: str, sink: Sink, **environment: str) -> contextlib.AbstractContextManager[ServiceProcess]:
    command = [sys.executable, "-m", "service", "serve", "--app", "support.observed_app:with_sentry"]
    environment |= {"SENTRY_SINK": sink.dsn, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    return run_service(redis_url, command=command, **environment)


@pytest.mark.parametrize("where", ["view", "ingest", "parsing", "hook"])
def test_sentry_sees_a_defect_as_one_event(any_redis: EmbeddedRedis, sink: Sink, where: str) -> None:
    with sentry_service(any_redis.url, sink) as service:
        url, body = f"http://127.0.0.1:{service.port}", json.dumps(event()).encode()
        if where == "view":
            response = httpx.get(f"{url}/fails")
        else:
            headers = signed(body) | {MARK: where}
            response = httpx.post(f"{url}/webhooks/clerk", content=body, headers=headers)
        assert (response.status_code, response.json()["code"]) == (500, "internal_error")
        assert service.stop() == 0

    [error] = sink.errors()
    assert error["exception"]["values"][-1]["type"] == "ZeroDivisionError"
    assert E_MAIL not in sink.text
    assert SECRET not in sink.text
    assert E_MAIL not in service.final_log


def test_sentry_sees_a_reply_of_another_shape_as_one_event(sink: Sink) -> None:
    def reply(command: list[bytes]) -> bytes | None:
        return {b"EVALSHA": b":1", b"EXISTS": b":0", b"HMGET": b"*1\r\n$-1"}.get(command[0], b"+OK")

    with scripted_redis(reply) as redis, sentry_service(redis.url, sink) as service:
        assert service.deliver(event(), "msg_1").status_code == 503
        service.stop()

    [error] = sink.errors()
    assert error["logger"] == "service.store.pipeline"
    assert error["exception"]["values"]
    assert E_MAIL not in sink.text


def test_sentry_sees_a_delivery_as_a_transaction(any_redis: EmbeddedRedis, sink: Sink) -> None:
    with sentry_service(any_redis.url, sink) as service:
        assert service.deliver(event(), "msg_1").status_code == 200
        assert service.post(b"{}", {}).status_code == 400
        service.stop()

    deliveries = [each for each in sink.transactions() if "receive_delivery" in each["transaction"]]
    statuses = [each["contexts"]["response"]["status_code"] for each in deliveries]
    assert statuses == [200, 400]
    assert all(each["timestamp"] > each["start_timestamp"] for each in deliveries)
    assert sink.errors() == []
    assert E_MAIL not in sink.text


# OpenTelemetry


def traced_service(redis_url: str, workers: int) -> contextlib.AbstractContextManager[ServiceProcess]:
    instrument = str(Path(sys.executable).parent / "opentelemetry-instrument")
    exporters = {f"OTEL_{each}_EXPORTER": "none" for each in ("METRICS", "LOGS")}
    return run_service(
        redis_url,
        command=[instrument, str(Path(sys.executable).parent / "session-relay"), "serve"],
        WEB_CONCURRENCY=str(workers),
        OTEL_TRACES_EXPORTER="console",
        **exporters,
    )


def spans(text: str) -> list[dict[str, Any]]:
    """Return what OpenTelemetry's console exporter wrote."""
    return [json.loads(each) for each in re.findall(r"^\{\n.*?^\}", text, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("workers", [1, 2])
def test_opentelemetry_sees_a_delivery_as_a_span_with_redis_below_it(any_redis: EmbeddedRedis, workers: int) -> None:
    with traced_service(any_redis.url, workers) as service:
        assert service.deliver(event(), "msg_1").status_code == 200
        assert service.stop() == 0
        text = service.final_log

    seen = spans(text)
    [delivery] = [
        each
        for each in seen
        if each["kind"] == "SpanKind.SERVER" and each["attributes"].get("http.route") == "/webhooks/clerk"
    ]
    attributes = delivery["attributes"]
    assert attributes.get("http.response.status_code", attributes.get("http.status_code")) == 200
    [redis] = [each for each in seen if each["parent_id"] == delivery["context"]["span_id"]]
    assert (redis["kind"], redis["attributes"]["db.system.name"]) == ("SpanKind.CLIENT", "redis")
    assert E_MAIL not in text


def test_a_round_trip_of_many_deliveries_is_linked_to_each(own_redis: EmbeddedRedis) -> None:
    with traced_service(own_redis.url, 1) as service:
        assert service.deliver(event("sess_0"), "msg_0").status_code == 200
        with frozen(own_redis):
            threads = [
                threading.Thread(target=service.deliver, args=(event(f"sess_{number}"), f"msg_{number}"))
                for number in range(1, BATCHED)
            ]
            for thread in threads:
                thread.start()
            eventually(lambda: len(connected(service)) >= BATCHED - 1)
        for thread in threads:
            thread.join()
        service.stop()
        text = service.final_log

    seen = {each["context"]["span_id"]: each for each in spans(text)}
    batches = [each for each in seen.values() if each["name"] == "PIPELINE"]
    assert batches
    for batch in batches:
        assert batch["parent_id"] is None
        for link in batch["links"]:
            assert seen[link["context"]["span_id"]]["kind"] == "SpanKind.SERVER"
        below = [
            each
            for each in seen.values()
            if any(link["context"]["span_id"] == batch["context"]["span_id"] for link in each["links"])
        ]
        assert {each["parent_id"] for each in below} == {link["context"]["span_id"] for link in batch["links"]}


def connected(service: ServiceProcess) -> list[str]:
    """Return the connections of the service's port that are established."""
    port = f":{service.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[1].endswith(port) and line.split()[3] == "01"]
