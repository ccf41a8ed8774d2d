"""Deliveries that the server takes without ASGI: what happens when the connection or the service ends meanwhile."""

import json
import signal

import pytest
from support.clock import eventually
from support.events import IGNORED, sample_body
from support.raw_http import conversation, genuine, raw_connection, request_head
from support.redis_clients import client_of
from support.redis_servers import frozen
from support.services import ServiceProcess, run_service

from service.dev.embedded import EmbeddedRedis

HEALTHZ = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


def whole(body: bytes, *headers: tuple[bytes, bytes], version: bytes = b"1.1") -> bytes:
    head = request_head([*genuine(body), *headers]).replace(b"HTTP/1.1", b"HTTP/" + version, 1)
    return head + body


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_delivery_that_waits_for_redis_is_answered_though_the_service_is_told_to_stop(
    own_redis: EmbeddedRedis, number: signal.Signals
) -> None:
    with run_service(own_redis.url) as service, raw_connection(service.port) as connection:
        with frozen(own_redis):
            connection.send(whole(sample_body("sess_last")))
            assert service.deliver(IGNORED).status_code == 200  # so the other one was taken, too
            service.process.send_signal(number)
            eventually(lambda: "Shutting down" in service.log_text())
            assert service.process.poll() is None
        response = connection.response()
        assert (response.status, json.loads(response.body)["outcome"]) == (200, "applied")
        assert connection.socket.recv(1) == b""
        assert service.process.wait(timeout=25) == 0


def test_a_delivery_whose_client_left_is_recorded_before_the_service_ends(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url) as service:
        with frozen(own_redis):
            with raw_connection(service.port) as connection:
                connection.send(whole(sample_body("sess_left")))
                assert service.deliver(IGNORED).status_code == 200  # so the other one was taken, too
            service.process.terminate()
            eventually(lambda: "Shutting down" in service.log_text())
        assert service.process.wait(timeout=25) == 0
        assert '"session_id":"sess_left"' in service.log_text()
        with client_of(own_redis.url) as client:
            assert client.exists("{clerk}:session:sess_left")


@pytest.mark.parametrize(
    ("version", "headers"),
    [(b"1.0", []), (b"1.0", [(b"connection", b"keep-alive")]), (b"1.1", [(b"connection", b"close")])],
)
def test_the_connection_closes_where_it_is_not_to_be_kept(
    service: ServiceProcess, version: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    with raw_connection(service.port) as connection:
        connection.send(whole(IGNORED, *headers, version=version))
        response = connection.response()
        assert (response.status, response.headers.get("connection")) == (200, "close")
        assert connection.socket.recv(1) == b""


def test_a_connection_that_goes_amid_deliveries_leaves_no_error_in_the_log(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url) as service:
        with frozen(own_redis), raw_connection(service.port) as connection:
            connection.send(whole(sample_body("sess_1")) + whole(sample_body("sess_2")) + HEALTHZ)
            assert service.deliver(IGNORED).status_code == 200  # so the others were received, too
        with client_of(own_redis.url) as client:
            eventually(lambda: client.exists("{clerk}:session:sess_1"))
        assert service.deliver(sample_body("sess_3")).status_code == 200
        assert "Traceback" not in service.log_text()


def test_a_mix_of_ways_on_one_connection_is_answered_in_order(service: ServiceProcess) -> None:
    large = sample_body("sess_large")[:-1] + b" " * 50_000 + b"}"
    sent = whole(sample_body("sess_mix_1")) + HEALTHZ + whole(large) + HEALTHZ
    last = whole(sample_body("sess_mix_2"), (b"connection", b"close"))
    bodies = [each.body for each in conversation(service.port, sent + last)]
    expected = (b"sess_mix_1", b"status", b"sess_large", b"status", b"sess_mix_2")
    assert [part in body for part, body in zip(expected, bodies, strict=True)] == [True] * 5
