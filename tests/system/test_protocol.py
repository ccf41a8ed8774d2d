"""What uvicorn's HTTP would leave open: found by attack, over raw sockets."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clock import in_time
from support.events import IGNORED, sample_body
from support.raw_http import conversation, genuine, raw_connection, request_head
from support.redis_servers import frozen
from support.services import ServiceProcess, run_service

from service.dev.embedded import EmbeddedRedis

HEALTHZ = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
UNKNOWN = b"FOO /webhooks/clerk HTTP/1.1\r\nhost: x\r\n\r\n"
UPGRADE = [(b"connection", b"upgrade"), (b"upgrade", b"h2c")]


def statuses(port: int, sent: bytes) -> list[int]:
    return [answer.status for answer in conversation(port, sent)]


def test_a_delivery_before_an_unknown_method_is_answered_once(service: ServiceProcess) -> None:
    assert statuses(service.port, request_head(genuine()) + IGNORED + UNKNOWN) == [200]


def test_many_requests_before_an_unknown_method_are_not_read_again(service: ServiceProcess) -> None:
    before = service.log_text().count("Traceback")

    assert set(statuses(service.port, HEALTHZ * 300 + UNKNOWN)) == {200}
    assert service.log_text().count("Traceback") == before


def test_what_is_no_http_waits_for_the_answer_to_what_came_before(own_redis: EmbeddedRedis) -> None:
    body = sample_body("sess_1")
    with run_service(own_redis.url) as service, raw_connection(service.port) as connection:
        with frozen(own_redis):
            connection.send(request_head(genuine(body)) + body + b"\0\0\r\n\r\n")
        assert connection.response().status == 200
        assert connection.socket.recv(1) == b""


@pytest.mark.parametrize("cut", [20, 60, 100])
def test_a_body_is_no_request_though_its_head_asks_for_another_protocol(service: ServiceProcess, cut: int) -> None:
    head = request_head([*genuine(HEALTHZ), *UPGRADE])
    with raw_connection(service.port) as connection:
        connection.send(head[:cut])
        connection.socket.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            connection.socket.recv(1)
        connection.socket.settimeout(10)
        connection.send(head[cut:] + HEALTHZ)
        assert connection.response().status == 400
        assert connection.socket.recv(1) == b"", "the body was answered as a request"


def test_a_trailer_without_an_end_holds_up_nobody(service: ServiceProcess) -> None:
    with raw_connection(service.port) as connection:
        chunked = [(b"transfer-encoding", b"chunked")]
        connection.send(request_head([*genuine(b""), *chunked]) + b"0\r\na: " + b"x" * 1_000_000)
        with in_time(1):
            assert service.http.get("/healthz").status_code == 200
        assert connection.response().status in {400, 408}


@pytest.fixture
def memory(any_redis: EmbeddedRedis) -> Iterator[tuple[ServiceProcess, Any]]:
    with run_service(any_redis.url) as service:
        status = Path(f"/proc/{service.process.pid}/status")
        if not status.exists():
            pytest.skip("needs /proc to look at memory")

        def megabytes() -> float:
            return int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1000

        yield service, megabytes


def test_a_client_that_asks_and_never_reads_takes_no_memory(memory: tuple[ServiceProcess, Any]) -> None:
    service, megabytes = memory
    before = megabytes()
    with raw_connection(service.port) as connection:
        connection.socket.settimeout(2)
        with contextlib.suppress(TimeoutError, OSError):
            for _ in range(300):
                connection.socket.sendall(HEALTHZ * 1000)

        assert megabytes() - before < 60


def test_a_client_that_asks_one_by_one_and_never_reads_is_given_up(memory: tuple[ServiceProcess, Any]) -> None:
    service, megabytes = memory
    before = megabytes()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError, OSError):
            for _ in range(3000):
                connection.sendall(HEALTHZ.replace(b"/healthz", b"/metrics"))

        assert megabytes() - before < 60
        assert service.http.get("/healthz").status_code == 200


def in_one_piece(body: bytes) -> list[bytes]:
    return [request_head(genuine(body)) + body]


def in_many_pieces(body: bytes) -> list[bytes]:
    whole = in_one_piece(body)[0]
    return [whole[:40], whole[40:-5], whole[-5:]]


def in_chunks(body: bytes) -> list[bytes]:
    headers = [pair for pair in genuine(body) if pair[0].lower() != b"content-length"]
    head = request_head([*headers, (b"transfer-encoding", b"chunked")])
    return [head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)]


@pytest.mark.parametrize("send", [in_one_piece, in_many_pieces, in_chunks])
@pytest.mark.parametrize("size", [0, 100_000])
def test_a_delivery_is_applied_however_it_arrives(
    service: ServiceProcess, send: Callable[[bytes], list[bytes]], size: int
) -> None:
    body = sample_body(f"sess_{send.__name__}_{size}")[:-1] + b" " * size + b"}"
    with raw_connection(service.port) as connection:
        for piece in send(body):
            connection.send(piece)
            time.sleep(0.02)  # else the pieces arrive as one
        response = connection.response()

    assert response.status == 200
    assert json.loads(response.body)["outcome"] == "applied"


def test_deliveries_sent_together_are_answered_in_their_order(service: ServiceProcess) -> None:
    ids = [f"sess_together_{number}" for number in range(5)]
    sent = b"".join(in_one_piece(sample_body(each))[0] for each in ids)
    with raw_connection(service.port) as connection:
        connection.send(sent)
        answered = [json.loads(connection.response().body)["session_id"] for _ in ids]

    assert answered == ids


def test_a_delivery_that_asks_for_it_is_the_last_of_its_connection(service: ServiceProcess) -> None:
    body = sample_body("sess_last")
    head = request_head([*genuine(body), (b"connection", b"close")])
    with raw_connection(service.port) as connection:
        connection.send(head + body)
        assert connection.response().status == 200
        assert connection.socket.recv(1) == b""
