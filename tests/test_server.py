"""`session-relay serve`: HTTP as it comes from the wire, slow and hanging partners, and how it ends."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from children import RELAY, started
from support import (
    EVENTS_KEY,
    SECRET,
    RawConnection,
    ServiceProcess,
    client_of,
    eventually,
    exchange,
    free_port,
    frozen,
    raw_connection,
    request_head,
    run_service,
    signed,
)

from service import simulator
from service.embedded import EmbeddedRedis

IGNORED = b'{"type":"user.created"}'
Pairs = list[tuple[bytes, bytes]]


def sample_body(session_id: str = "sess_1", **values: Any) -> bytes:
    event = simulator.sample(session_id=session_id, user_id="user_1")
    return simulator.encode(simulator.with_values(event, values))


def pairs(headers: dict[str, str]) -> Pairs:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def with_length(headers: dict[str, str], body: bytes) -> dict[str, str]:
    return headers | {"content-length": str(len(body))}


def genuine(body: bytes = IGNORED, family: str = "svix") -> Pairs:
    return pairs(with_length(signed(body, family=family), body))


# The wire


def test_a_header_with_an_underscore_is_none_of_ours(service: ServiceProcess) -> None:
    forged = [(b"svix_id", b"msg_1"), (b"svix_timestamp", b"1"), (b"svix_signature", b"v1,x")]

    answer = exchange(service.port, request_head(genuine(family="webhook") + forged) + IGNORED)
    assert answer.status == 200

    genuine_names = [(name.replace(b"-", b"_"), value) for name, value in pairs(signed(IGNORED))]
    length = [(b"content-length", b"%d" % len(IGNORED))]
    answer = exchange(service.port, request_head(genuine_names + length) + IGNORED)
    assert (answer.status, answer.code) == (400, "missing_signature")


def test_header_names_in_any_case(service: ServiceProcess) -> None:
    headers = [(name.upper(), value) for name, value in genuine()]

    assert exchange(service.port, request_head(headers) + IGNORED).status == 200


@pytest.mark.parametrize("name", [b"svix-id", b"svix-timestamp"])
def test_a_header_twice_is_malformed(service: ServiceProcess, name: bytes) -> None:
    headers = genuine()
    headers.append((name, dict(headers)[name]))

    answer = exchange(service.port, request_head(headers) + IGNORED)

    assert (answer.status, answer.code) == (400, "malformed_signature")


@pytest.mark.parametrize("value", [b"\xff", b"\xc3\xa9", b"a\x80b", "日本".encode()])
def test_bytes_that_are_not_ascii_in_a_header_of_no_concern(service: ServiceProcess, value: bytes) -> None:
    answer = exchange(service.port, request_head([*genuine(), (b"x-forwarded-user", value)]) + IGNORED)

    assert answer.status == 200


@pytest.mark.parametrize("name", [b"svix-id", b"svix-timestamp", b"svix-signature"])
def test_bytes_that_are_not_ascii_in_a_signature_header_are_malformed(
    service: ServiceProcess, name: bytes
) -> None:
    headers = [(key, b"\xff" if key == name else value) for key, value in genuine()]

    answer = exchange(service.port, request_head(headers) + IGNORED)

    assert (answer.status, answer.code) == (400, "malformed_signature")


def test_a_svix_header_that_is_not_ascii_is_there_all_the_same(service: ServiceProcess) -> None:
    headers = [*genuine(family="webhook"), (b"svix-id", b"\xff")]

    answer = exchange(service.port, request_head(headers) + IGNORED)

    assert (answer.status, answer.code) == (400, "missing_signature")


def test_an_entry_of_the_signature_that_is_not_ascii_is_skipped(service: ServiceProcess) -> None:
    headers = [(key, b"v9,\xff " + value if key == b"svix-signature" else value) for key, value in genuine()]

    assert exchange(service.port, request_head(headers) + IGNORED).status == 200


@pytest.mark.parametrize(
    "host", [b"", b"a b", b"[::1", b"\xff", b"relay.example:99999", b"x" * 5000, b"a/b?c#d", b"a@b"]
)
def test_the_hosts_name_does_not_matter(service: ServiceProcess, host: bytes) -> None:
    request = request_head(genuine()).replace(b"Host: relay.example", b"Host: " + host)

    answer = exchange(service.port, request + IGNORED)

    assert answer.status == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://relay.example/webhooks/clerk", 200),
        (b"/webhooks/clerk?", 200),
        (b"/webhooks/clerk?a=b&%00", 200),
        (b"/webhooks/cl%65rk", 200),
        (b"/webhooks/clerk%2f", 404),
        (b"/webhooks/clerk/../clerk", 404),
        (b"/%", 404),
        (b"/" + b"x" * 5000, 404),
    ],
)
def test_forms_of_the_target(service: ServiceProcess, target: bytes, status: int) -> None:
    assert exchange(service.port, request_head(genuine(), target=target) + IGNORED).status == status


@pytest.mark.parametrize("target", [b"*", b"relay.example:443", b"/webhooks/cl\xc3\xa9rk", b"?", b"webhooks"])
@pytest.mark.parametrize("method", [b"POST", b"OPTIONS", b"CONNECT"])
def test_odd_targets_make_no_defect(service: ServiceProcess, method: bytes, target: bytes) -> None:
    headers = genuine() if method == b"POST" else []
    body = IGNORED if headers else b""

    answer = exchange(service.port, request_head(headers, method=method, target=target) + body)

    assert 400 <= answer.status < 500


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST /webhooks/clerk HTTP/9.9\r\n\r\n",
        b"POST /webhooks/clerk HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\n",
        b"POST /webhooks/clerk HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /webhooks/clerk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n",
        b"POST /webhooks/clerk HTTP/1.1\r\nHost: x\r\na b: c\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_harms_nobody(service: ServiceProcess, garbage: bytes) -> None:
    with raw_connection(service.port) as connection:
        connection.send(garbage)
        with contextlib.suppress(Exception):
            assert 400 <= connection.answer().status < 500

    assert service.deliver(IGNORED).status_code == 200


def test_a_chunk_that_is_none_harms_nobody(service: ServiceProcess) -> None:
    headers = [*pairs(signed(IGNORED)), (b"transfer-encoding", b"chunked")]
    with raw_connection(service.port) as connection:
        connection.send(request_head(headers) + b"5\r\nhello\r\nnonsense\r\n")
        with contextlib.suppress(Exception):
            assert 400 <= connection.answer().status < 500

    assert service.deliver(IGNORED).status_code == 200


def test_http_1_0(service: ServiceProcess) -> None:
    request = request_head(genuine()).replace(b"HTTP/1.1", b"HTTP/1.0")

    assert exchange(service.port, request + IGNORED).status == 200


def test_one_connection_serves_many_requests_whatever_becomes_of_them(service: ServiceProcess) -> None:
    requests = [
        (request_head(genuine()) + IGNORED, 200),
        (request_head([]), 400),
        (request_head(genuine(), target=b"/x") + IGNORED, 404),
        (request_head([*genuine(), (b"content-encoding", b"gzip")]) + IGNORED, 415),
        (request_head([], method=b"GET"), 405),
        (request_head(genuine()) + IGNORED, 200),
    ]
    with raw_connection(service.port) as connection:
        for request, status in requests:
            connection.send(request)
            assert connection.answer().status == status


def test_a_sender_that_asks_before_it_sends_the_body(service: ServiceProcess) -> None:
    with raw_connection(service.port) as connection:
        connection.send(request_head([*genuine(), (b"expect", b"100-continue")]))
        assert connection.socket.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.send(IGNORED)
        assert connection.answer().status == 200


def test_a_sender_that_leaves_in_the_middle_harms_nobody(service: ServiceProcess) -> None:
    for _ in range(20):
        with raw_connection(service.port) as connection:
            connection.send(request_head(genuine()) + IGNORED[:5])

    assert service.deliver(IGNORED).status_code == 200


def test_a_sender_that_does_not_wait_for_the_answer_may_come_again(
    service: ServiceProcess, http_client: Any
) -> None:
    body = sample_body()
    headers = signed(body)
    for _ in range(5):
        with raw_connection(service.port) as connection:
            connection.send(request_head(with_length(headers, body)) + body)
            connection.socket.shutdown(socket.SHUT_WR)

    assert service.post(body, headers).json()["outcome"] in {"applied", "duplicate"}
    assert http_client.xlen(EVENTS_KEY) == 1


# Large and strange bodies


@pytest.mark.parametrize("megabytes", [2, 5, 30])
def test_a_sender_of_far_too_much_reads_the_refusal(service: ServiceProcess, megabytes: int) -> None:
    size = megabytes * 1_000_000
    with raw_connection(service.port) as connection:

        def send() -> None:
            with contextlib.suppress(OSError):
                connection.send(request_head(signed(IGNORED) | {"content-length": str(size)}))
                for _ in range(megabytes):
                    connection.send(b"x" * 1_000_000)

        sender = threading.Thread(target=send)
        sender.start()
        answer = connection.answer()
        sender.join()

    assert (answer.status, answer.code) == (413, "body_too_large")


HOSTILE: dict[str, bytes] = {
    "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "deep lists": b"[" * 50_000 + b"]" * 50_000,
    "a long integer": b"9" * 500_000,
    "lone surrogates": b'"' + b"\\ud800" * 80_000 + b'"',
    "not a number": b"[NaN,Infinity,-Infinity,1e999,-0]",
    "a wide object": b"{" + b",".join(b'"%d":0' % i for i in range(20_000)) + b"}",
    "nul": b'"\\u0000"',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_users_write_into_their_metadata_hides_no_end_of_a_session(
    service: ServiceProcess, http_client: Any, kind: str
) -> None:
    event = simulator.sample("session.ended", session_id="sess_1", user_id="user_1")
    event["data"]["user"]["unsafe_metadata"] = "HERE"
    body = simulator.encode(event).replace(b'"HERE"', HOSTILE[kind])
    started = time.monotonic()

    response = service.deliver(body)

    assert response.json().get("outcome") == "applied", response.text
    assert time.monotonic() - started < 5
    assert http_client.hget("{clerk}:session:sess_1", "status") == "ended"


# Slow partners


def test_slow_senders_are_answered_in_time_and_delay_nobody(
    service: ServiceProcess, http_client: Any
) -> None:
    body = sample_body("sess_slow")
    head = request_head(genuine(body))

    def stall(sent: bytes) -> tuple[int, str | None, float]:
        with raw_connection(service.port) as connection:
            connection.send(sent)
            before = time.monotonic()
            answer = connection.answer()
            return answer.status, answer.code, time.monotonic() - before

    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(raw_connection(service.port)).send(head + body[:100])
        for _ in range(50):
            stack.enter_context(raw_connection(service.port)).send(b"POST /webhooks/clerk HT")
        threads = stack.enter_context(ThreadPoolExecutor(3))
        stalled = [threads.submit(stall, sent) for sent in (head, head + body[:1], head + body[:-1])]

        # Given 250 connections that take their time, everyone else is served as ever.
        for number in range(20):
            before = time.monotonic()
            assert service.http.get("/healthz").status_code == 200
            assert service.deliver(sample_body(f"sess_{number}")).json()["outcome"] == "applied"
            assert time.monotonic() - before < 1

        for status, code, seconds in [future.result(timeout=30) for future in stalled]:
            assert (status, code) == (408, "request_timeout")
            assert seconds < 5

    assert not http_client.exists("{clerk}:session:sess_slow")
    assert service.deliver(IGNORED).status_code == 200


def drip(connection: RawConnection, body: bytes) -> Iterator[None]:
    """Send a body byte by byte."""
    for start in range(len(body)):
        connection.send(body[start : start + 1])
        yield


def test_a_body_in_single_bytes_is_taken(service: ServiceProcess) -> None:
    with raw_connection(service.port) as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.send(request_head(genuine()))
        for _ in drip(connection, IGNORED):
            pass
        assert connection.answer().status == 200


# Redis


@pytest.fixture
def own_service(own_redis: EmbeddedRedis) -> Iterator[ServiceProcess]:
    with run_service(own_redis.url) as service:
        assert service.deliver(sample_body("sess_0")).status_code == 200
        yield service


def timed(port: int, request: bytes, method: str = "GET") -> tuple[int, float]:
    """Send a request over a connection of its own; return the status, and the seconds it took."""
    before = time.monotonic()
    status = exchange(port, request, method).status
    return status, time.monotonic() - before


def delivery(session_id: str) -> bytes:
    body = sample_body(session_id)
    return request_head(genuine(body)) + body


def test_a_redis_that_hangs_costs_every_delivery_a_503_in_time_and_health_nothing(
    own_service: ServiceProcess, own_redis: EmbeddedRedis
) -> None:
    port = own_service.port
    has_recovered = threading.Event()

    def watch(path: bytes) -> list[tuple[int, float]]:
        answers = [timed(port, request_head([], method=b"GET", target=path))]
        while not has_recovered.is_set():
            answers.append(timed(port, request_head([], method=b"GET", target=path)))
            has_recovered.wait(0.02)
        return answers

    with ThreadPoolExecutor(10) as threads:
        with frozen(own_redis):
            healthz, readyz = threads.submit(watch, b"/healthz"), threads.submit(watch, b"/readyz")
            deliveries = [threads.submit(timed, port, delivery(f"sess_{i}"), "POST") for i in range(8)]
            for future in deliveries:
                status, seconds = future.result(timeout=30)
                assert status == 503
                assert seconds < 5
            # One timeout was enough: for a second, refusals come at once.
            status, seconds = timed(port, delivery("sess_at_once"), "POST")
            assert status == 503
            assert seconds < 1
        eventually(lambda: own_service.deliver(sample_body("sess_after")).status_code == 200)
        eventually(lambda: own_service.http.get("/readyz").status_code == 200)
        has_recovered.set()

    assert {status for status, _ in healthz.result()} == {200}
    assert {status for status, _ in readyz.result()} - {200} == {503}
    assert max(seconds for _, seconds in healthz.result()) < 1
    assert max(seconds for _, seconds in readyz.result()) < 1


def test_a_redis_that_restarts_needs_no_restart_of_the_service(
    own_service: ServiceProcess, own_redis: EmbeddedRedis, start_redis: Callable[..., EmbeddedRedis]
) -> None:
    assert own_redis.process is not None
    own_redis.process.kill()
    own_redis.process.wait()
    assert own_service.deliver(sample_body("sess_1")).status_code == 503
    assert own_service.http.get("/readyz").status_code == 503
    assert own_service.http.get("/healthz").status_code == 200

    start_redis(port=own_redis.port)

    assert own_service.deliver(sample_body("sess_1")).json()["outcome"] == "applied"
    assert own_service.http.get("/readyz").status_code == 200


def test_the_service_starts_without_redis(start_redis: Callable[..., EmbeddedRedis]) -> None:
    port = free_port()
    with run_service(f"redis://127.0.0.1:{port}/0") as service:
        assert service.deliver(sample_body()).status_code == 503
        start_redis(port=port)
        assert service.deliver(sample_body()).json()["outcome"] == "applied"


# Several processes


def test_several_processes_serve_one_port(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url, WEB_CONCURRENCY="2") as service:
        body = sample_body()
        headers = signed(body)

        def deliver(_: int) -> str:
            with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=15) as client:
                outcome: str = client.post("/webhooks/clerk", content=body, headers=headers).json()["outcome"]
                return outcome

        with ThreadPoolExecutor(8) as threads:
            outcomes = list(threads.map(deliver, range(40)))

        assert sorted(outcomes) == ["applied"] + ["duplicate"] * 39
        assert service.stop() == 0


# How it ends


def test_sigterm_lets_what_has_begun_finish(own_service: ServiceProcess, own_redis: EmbeddedRedis) -> None:
    body = sample_body("sess_last")
    with raw_connection(own_service.port) as begun:
        begun.send(request_head(genuine(body)) + body[:100])
        # Answered, so the service has read what came before it, too.
        assert own_service.deliver(IGNORED).status_code == 200

        own_service.process.terminate()
        eventually(lambda: not accepts(own_service.port))
        begun.send(body[100:])

        answer = begun.answer()
        assert (answer.status, json.loads(answer.body)["outcome"]) == (200, "applied")
    assert own_service.process.wait(timeout=25) == 0
    with client_of(own_redis.url) as client:
        assert client.exists("{clerk}:session:sess_last")


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_sigterm_under_load_answers_all_that_it_took(
    own_service: ServiceProcess, own_redis: EmbeddedRedis
) -> None:
    enough = threading.Event()
    stop = threading.Event()

    def deliver_until_the_end(worker: int) -> tuple[set[str], set[str]]:
        """Return the sessions that were answered for, and those whose answer never came."""
        answered, unanswered = set(), set()
        with httpx.Client(base_url=f"http://127.0.0.1:{own_service.port}", timeout=15) as client:
            for number in range(100_000):
                if stop.is_set():
                    break
                session_id = f"sess_{worker}_{number}"
                body = sample_body(session_id)
                try:
                    response = client.post("/webhooks/clerk", content=body, headers=signed(body))
                except httpx.ConnectError:
                    break
                except httpx.TransportError:
                    unanswered.add(session_id)
                    break
                assert response.json()["outcome"] == "applied"
                answered.add(session_id)
                if number == 30:
                    enough.set()
        return answered, unanswered

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(deliver_until_the_end, worker) for worker in range(8)]
        try:
            assert enough.wait(timeout=30)
            assert own_service.stop() == 0
        finally:
            stop.set()
        results = [future.result(timeout=30) for future in futures]

    with client_of(own_redis.url) as client:
        taken = {entry["session_id"] for _, entry in client.xrange(EVENTS_KEY)} - {"sess_0"}
    assert taken == {session_id for answered, _ in results for session_id in answered}


def test_idle_connections_do_not_hold_up_the_end(own_service: ServiceProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            idle = stack.enter_context(raw_connection(own_service.port))
            idle.send(request_head(genuine()) + IGNORED)
            assert idle.answer().status == 200
        stack.enter_context(raw_connection(own_service.port))
        started = time.monotonic()
        assert own_service.stop() == 0
        assert time.monotonic() - started < 20  # a platform kills after 30 s


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_status_0_though_redis_is_away_or_hangs(
    own_service: ServiceProcess, own_redis: EmbeddedRedis, number: signal.Signals
) -> None:
    with frozen(own_redis):
        own_service.process.send_signal(number)
        assert own_service.process.wait(timeout=25) == 0


def test_no_process_is_left_behind(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url, WEB_CONCURRENCY="2") as service:
        children = children_of(service.process.pid)
        assert len(children) >= 2
        assert service.stop() == 0

    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_no_worker_outlives_a_main_process_that_was_killed(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url, WEB_CONCURRENCY="2") as service:
        children = children_of(service.process.pid)
        service.process.kill()

        eventually(lambda: not any(is_running(child) for child in children))


def test_workers_that_die_one_after_the_other_are_replaced(own_service: ServiceProcess) -> None:
    def takes_a_delivery() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return own_service.deliver(sample_body("sess_1")).status_code == 200
        return False

    seen: set[int] = set()
    for _ in range(3):
        eventually(lambda: set(children_of(own_service.process.pid)) - seen)
        (worker,) = set(children_of(own_service.process.pid)) - seen
        eventually(takes_a_delivery, within=30)
        os.kill(worker, signal.SIGKILL)
        seen.add(worker)

    eventually(lambda: set(children_of(own_service.process.pid)) - seen)
    eventually(takes_a_delivery, within=30)
    assert own_service.stop() == 0


def test_it_ends_at_once_while_it_still_starts(tmp_path: Path, any_redis: EmbeddedRedis) -> None:
    environment = {
        "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
        "REDIS_URL": any_redis.url,
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
    }
    with started([*RELAY, "serve"], tmp_path, environment) as program:
        program.wait_for("Spawning worker-1", stream="stderr")
        assert program.stop() == 0

    assert "refused to gracefully stop" not in program.stderr


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    if not listing.exists():
        pytest.skip("needs /proc to look for processes")
    return [int(child) for child in listing.read_text().split()]
