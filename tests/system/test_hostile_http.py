"""Hostile HTTP, as it comes from the wire: against `session-relay serve`, as users start it.

The `service` fixture sees to it that after each of these a good delivery goes through within a second.
"""

import contextlib
import gzip
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.clock import in_time, stopwatch
from support.constants import EVENTS_KEY
from support.events import IGNORED, sample_body
from support.raw_http import (
    Pairs,
    RawConnection,
    assert_a_good_delivery_passes,
    conversation,
    exchange,
    genuine,
    pairs,
    raw_connection,
    request_head,
    with_length,
)
from support.services import ServiceProcess
from support.signing import signature, signed

CHUNKED = (b"transfer-encoding", b"chunked")
CLOSE = (b"connection", b"close")


def without_length() -> Pairs:
    """Return the headers of a genuine delivery, but for those that say where its body ends."""
    return pairs(signed(IGNORED))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Bytes on a socket


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


@pytest.mark.parametrize("name", [b"svix-id", b"svix-timestamp", b"svix-signature"])
@pytest.mark.parametrize("second", [b"the same", b"", b"x"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_header_twice_is_malformed(service: ServiceProcess, name: bytes, second: bytes, order: int) -> None:
    headers = genuine()
    headers.append((name, dict(headers)[name] if second == b"the same" else second))

    answer = exchange(service.port, request_head(headers[::order]) + IGNORED)

    assert (answer.status, answer.code) == (400, "malformed_signature")


@pytest.mark.parametrize("value", [b"\xff", b"\xc3\xa9", b"a\x80b", "日本".encode()])
def test_bytes_that_are_not_ascii_in_a_header_of_no_concern(service: ServiceProcess, value: bytes) -> None:
    answer = exchange(service.port, request_head([*genuine(), (b"x-forwarded-user", value)]) + IGNORED)

    assert answer.status == 200


@pytest.mark.parametrize("name", [b"svix-id", b"svix-timestamp", b"svix-signature"])
def test_bytes_that_are_not_ascii_in_a_signature_header_are_malformed(service: ServiceProcess, name: bytes) -> None:
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
        (b"/webhooks/clerk#x", 200),
        (b"HTTPS://relay.example:443/webhooks/clerk", 200),
        (b"/webhooks/clerk%2f", 404),
        (b"/webhooks%2fclerk", 404),
        (b"/webhooks%2Fclerk", 404),
        (b"/webhooks/clerk%3Fx", 404),
        (b"/webhooks/clerk%0d%0aX:y", 404),
        (b"/webhooks/clerk/../clerk", 404),
        (b"/./webhooks/clerk", 404),
        (b"/%2e%2e/webhooks/clerk", 404),
        (b"/webhooks/clerk/.", 404),
        (b"/webhooks\\clerk", 404),
        (b"http://relay.example/webhooks/clerk/", 404),
        (b"http://relay.example//webhooks/clerk", 404),
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


@pytest.mark.parametrize("method", [b"CONNECT", b"M-SEARCH", b"PURGE"])
def test_another_method_is_not_allowed(service: ServiceProcess, method: bytes) -> None:
    answer = exchange(service.port, request_head(genuine(), method=method) + IGNORED)

    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize("method", [b"post", b"Post", b"POSTS", b"FOO", b"X" * 10_000])
def test_methods_that_nobody_knows_are_no_http(service: ServiceProcess, method: bytes) -> None:
    assert exchange(service.port, request_head(genuine(), method=method) + IGNORED).status == 400


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\0" * 10_000,
        b"POST /webhooks/clerk HTTP/9.9\r\n\r\n",
        b"POST /webhooks/clerk x HTTP/1.1\r\n\r\n",
        b"P\x00ST /webhooks/clerk HTTP/1.1\r\n\r\n",
        request_head([(b"a b", b"c")]),
        request_head([(b"", b"c")]),
        request_head([(b"svix-id ", b"c")]),
        request_head([(b"x", b"a\0b")]),
        request_head([(b"x", b"a\rb")]),
        request_head([(b"svix-id", b"\r\n folded")]),
    ],
    ids=lambda garbage: ascii(garbage)[-40:],
)
def test_what_is_no_http_is_refused(service: ServiceProcess, garbage: bytes) -> None:
    answers = conversation(service.port, garbage)

    assert [answer.status for answer in answers] in ([400], [])  # HTTP/2 gets no answer at all


def test_http_1_0(service: ServiceProcess) -> None:
    request = request_head(genuine()).replace(b"HTTP/1.1", b"HTTP/1.0")

    assert exchange(service.port, request + IGNORED).status == 200


@pytest.mark.parametrize("pipelined", [False, True], ids=["one by one", "in one segment"])
def test_one_connection_serves_many_requests_whatever_becomes_of_them(service: ServiceProcess, pipelined: bool) -> None:
    requests = [
        (request_head(genuine()) + IGNORED, 200),
        (request_head([]), 400),
        (request_head(genuine(), target=b"/x") + IGNORED, 404),
        (request_head([*genuine(), (b"content-encoding", b"gzip")]) + IGNORED, 415),
        (request_head([], method=b"GET"), 405),
        (request_head([*without_length(), CHUNKED]) + chunk(IGNORED) + chunk(b""), 200),
        (request_head([], method=b"GET", target=b"/healthz"), 200),
    ]
    if pipelined:
        last = request_head([(b"connection", b"close")], method=b"PUT")
        answers = conversation(service.port, b"".join(request for request, _ in requests) + last)
        statuses = [answer.status for answer in answers]
        assert statuses == [200, 400, 404, 415, 405, 200, 200, 405]
    else:
        with raw_connection(service.port) as connection:
            for request, status in requests:
                connection.send(request)
                assert connection.response().status == status


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0"])
def test_another_protocol_is_not_taken_up(service: ServiceProcess, upgrade: bytes) -> None:
    asked = [(b"connection", b"Upgrade"), (b"upgrade", upgrade), (b"http2-settings", b"AAMAAABk")]
    asked += [(b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="), (b"sec-websocket-version", b"13")]

    assert exchange(service.port, request_head([*genuine(), *asked]) + IGNORED).status == 200


@pytest.mark.parametrize("header", [b"x-http-method-override", b"content_length", b"content_encoding", b"expect"])
def test_headers_that_say_something_else_elsewhere(service: ServiceProcess, header: bytes) -> None:
    answer = exchange(service.port, request_head([*genuine(), (header, b"PUT")]) + IGNORED)

    assert answer.status == 200


@pytest.mark.parametrize(
    ("values", "status"),
    [([b"identity"] * 2, 200), ([b"", b"identity"], 200), ([b"identity", b"gzip"], 415), ([b"\xff"], 415)],
)
def test_content_encodings_repeated(service: ServiceProcess, values: list[bytes], status: int) -> None:
    encodings = [(b"content-encoding", value) for value in values]

    assert exchange(service.port, request_head([*genuine(), *encodings]) + IGNORED).status == status


@pytest.mark.parametrize(("encoding", "code"), [("gzip", "unsupported_encoding"), ("identity", "invalid_signature")])
def test_a_gzip_bomb_is_not_unpacked(service: ServiceProcess, encoding: str, code: str) -> None:
    bomb = gzip.compress(bytes(30_000_000))
    headers = with_length(signed(bomb), bomb) | {"content-encoding": encoding}

    assert exchange(service.port, request_head(headers) + bomb).code == code


WRONG = signature("msg_1", "1", b"").encode()


@pytest.mark.parametrize(
    ("before", "status"),
    [
        pytest.param(b" ".join([WRONG] * 1365) + b" %b", 200, id="wrong ones, the right one last"),
        pytest.param(b"%b " + b" ".join([WRONG] * 1365), 200, id="the right one first"),
        pytest.param(b" ".join([WRONG] * 1365), 400, id="wrong ones"),
        pytest.param(b"v2,x " * 13_000 + b"%b", 200, id="other versions"),
        pytest.param(b"v1, " * 16_000 + b"%b", 200, id="empty ones"),
        pytest.param(b"v1," + b" " * 65_000 + b"%b", 200, id="spaces"),
        pytest.param(b"," * 65_000 + b" %b", 200, id="commas"),
    ],
)
def test_64_kb_of_signatures(service: ServiceProcess, before: bytes, status: int) -> None:
    headers = dict(genuine())
    headers[b"svix-signature"] = before.replace(b"%b", headers[b"svix-signature"])
    with in_time(5):
        answer = exchange(service.port, request_head([*headers.items()]) + IGNORED)

    assert (answer.status, answer.code) == (status, None if status == 200 else "invalid_signature")


@pytest.mark.parametrize(("number", "status"), [(90, 200), (1000, 200), (40_000, 431)])
def test_many_headers(service: ServiceProcess, number: int, status: int) -> None:
    more = [(b"x-%d" % i, b"y") for i in range(number)]

    assert conversation(service.port, request_head([*genuine(), *more, CLOSE]) + IGNORED)[0].status == status


# Where a body ends (https://www.rfc-editor.org/rfc/rfc9112#section-6)

CHUNKS = chunk(IGNORED) + chunk(b"")
SMUGGLED = request_head([], method=b"GET", target=b"/healthz")


def lengths(*values: bytes) -> Pairs:
    return [(b"content-length", value) for value in values]


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ([*lengths(b"23"), CHUNKED], CHUNKS, 400),
        ([CHUNKED, *lengths(b"23")], CHUNKS, 400),
        ([*lengths(b"3"), CHUNKED], CHUNKS, 400),
        ([*lengths(b"99999999"), CHUNKED], CHUNKS, 400),
        ([*lengths(b"23"), CHUNKED], IGNORED, 400),
        (lengths(b"23", b"5"), IGNORED, 400),
        (lengths(b"23, 5"), IGNORED, 400),
        (lengths(b"+23"), IGNORED, 400),
        (lengths(b"-23"), IGNORED, 400),
        (lengths(b"0x17"), IGNORED, 400),
        (lengths(b"2_3"), IGNORED, 400),
        (lengths(b"23;"), IGNORED, 400),
        (lengths(b""), IGNORED, 400),
        (lengths(b"9" * 30), IGNORED, 400),
        ([(b"transfer-encoding", b"chunked, gzip")], CHUNKS, 400),
        ([(b"transfer-encoding", b"identity")], IGNORED, 400),
        ([(b"transfer-encoding", b"xchunked")], CHUNKS, 400),
        ([(b"transfer-encoding", b"chunked;q=1")], CHUNKS, 400),
        ([(b"transfer-encoding", b"\x0bchunked")], CHUNKS, 400),
        ([(b"transfer-encoding", b"")], CHUNKS, 400),
        ([CHUNKED], b"-1\r\n" + IGNORED, 400),
        ([CHUNKED], b"0x17\r\n" + IGNORED + b"\r\n" + chunk(b""), 400),
        ([CHUNKED], b"f" * 17 + b"\r\n" + IGNORED, 400),
        ([CHUNKED], b"17\r\n" + IGNORED + b"XX" + chunk(b""), 400),
        ([CHUNKED], b"17\n" + IGNORED + b"\n0\n\n", 400),
        ([CHUNKED], b'17;a="\r\n"\r\n' + IGNORED + b"\r\n" + chunk(b""), 400),
        ([CHUNKED], b"5\r\nhello\r\nnonsense\r\n", 400),
    ],
    ids=ascii,
)
def test_a_body_that_ends_in_two_places_or_in_none_hides_no_request(
    service: ServiceProcess, headers: Pairs, body: bytes, status: int
) -> None:
    request = request_head([*without_length(), *headers]) + body

    # Until the connection is closed: what comes after such a body is nobody's request.
    answers = conversation(service.port, request + SMUGGLED)

    assert [answer.status for answer in answers] == [status]


@pytest.mark.parametrize("coding", [[b"gzip, chunked"], [b"chunked, chunked"], [b"chunked"] * 2, [b"gzip", b"chunked"]])
def test_transfer_codings_beside_chunked(service: ServiceProcess, coding: list[bytes]) -> None:
    headers = [*without_length(), *((b"transfer-encoding", each) for each in coding)]

    answer = exchange(service.port, request_head(headers) + CHUNKS)

    assert answer.status in {400, 415}  # some the server refuses, in words of its own


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (lengths(b" 23\t"), IGNORED),
        ([(b"transfer-encoding", b"Chunked ")], CHUNKS),
        ([CHUNKED], b"17;a=b;c\r\n" + IGNORED + b"\r\n0;d\r\n\r\n"),
        ([CHUNKED], b"0000000017\r\n" + IGNORED + b"\r\n000\r\n\r\n"),
        ([CHUNKED], b"".join(chunk(bytes([byte])) for byte in IGNORED) + chunk(b"")),
        ([CHUNKED], chunk(IGNORED) + b"0\r\nsvix-id: msg_forged\r\nx: y\r\n\r\n"),
    ],
    ids=ascii,
)
def test_odd_ways_to_say_where_a_body_ends(service: ServiceProcess, headers: Pairs, body: bytes) -> None:
    assert exchange(service.port, request_head([*without_length(), *headers]) + body).status == 200


def test_a_signature_after_the_body_comes_too_late(service: ServiceProcess) -> None:
    trailers = b"".join(name + b": " + value + b"\r\n" for name, value in without_length())

    answer = exchange(service.port, request_head([CHUNKED]) + chunk(IGNORED) + b"0\r\n" + trailers + b"\r\n")

    assert (answer.status, answer.code) == (400, "missing_signature")


def test_a_sender_that_asks_before_it_sends_the_body(service: ServiceProcess) -> None:
    with raw_connection(service.port) as connection:
        connection.send(request_head([*genuine(), (b"expect", b"100-continue")]))
        assert connection.socket.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.send(IGNORED)
        assert connection.response().status == 200


def test_senders_that_leave_in_the_middle(service: ServiceProcess) -> None:
    for number in range(100):
        with raw_connection(service.port) as connection:
            connection.send(request_head(genuine()) + IGNORED[:5])
            if number % 2:  # with a reset
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_sender_that_does_not_wait_for_the_answer_may_come_again(service: ServiceProcess, any_client: Any) -> None:
    body = sample_body()
    headers = signed(body)
    for _ in range(5):
        with raw_connection(service.port) as connection:
            connection.send(request_head(with_length(headers, body)) + body)
            connection.socket.shutdown(socket.SHUT_WR)

    assert service.post(body, headers).json()["outcome"] in {"applied", "duplicate"}
    assert any_client.xlen(EVENTS_KEY) == 1


# Without end


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
        answer = connection.response()
        sender.join()

    assert (answer.status, answer.code) == (413, "body_too_large")


ENDLESS: dict[str, tuple[bytes, bytes, int]] = {
    "body": (request_head([*without_length(), *lengths(b"99999999999")]), b"x" * 65_536, 413),
    "chunks": (request_head([*without_length(), CHUNKED]), chunk(b"x" * 65_536), 413),
    "small chunks": (request_head([*without_length(), CHUNKED]), chunk(b"x") * 10_000, 408),
    "chunk extension": (request_head([*without_length(), CHUNKED]) + b"1;", b"a" * 65_536, 408),
    "trailers": (request_head([*without_length(), CHUNKED]) + chunk(IGNORED) + b"0\r\n", b"a: b\r\n" * 1000, 408),
    "body of a GET": (request_head(lengths(b"99999999999"), method=b"GET", target=b"/healthz"), b"x" * 65_536, 200),
    "headers": (request_head(genuine())[:-2], b"a: b\r\n" * 1000, 431),
    "header": (request_head(genuine())[:-2] + b"a: ", b"b" * 65_536, 431),
    "target": (b"POST /", b"b" * 65_536, 431),
    "empty lines": (b"", b"\r\n" * 10_000, 431),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_has_no_end_is_answered_in_time(service: ServiceProcess, kind: str) -> None:
    begin, more, status = ENDLESS[kind]
    with raw_connection(service.port) as connection:
        answered = threading.Event()

        def send() -> None:
            with contextlib.suppress(OSError):  # it is closed when enough was read
                connection.send(begin)
                while not answered.is_set():
                    connection.send(more)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            with in_time(5):
                answer = connection.response()
        finally:
            answered.set()
            sender.join()

    assert answer.status == status


# Slow

CUT = request_head(genuine()) + IGNORED[:-1]
STALLED: dict[str, tuple[bytes, int, str | None]] = {
    "nothing of the body": (request_head(genuine()), 408, "request_timeout"),
    "one byte missing": (CUT, 408, "request_timeout"),
    "between two chunks": (request_head([*without_length(), CHUNKED]) + chunk(IGNORED), 408, "request_timeout"),
    "in the size of a chunk": (request_head([*without_length(), CHUNKED]) + b"00", 408, "request_timeout"),
    "in a trailer": (request_head([*without_length(), CHUNKED]) + CHUNKS[:-2] + b"a: b", 408, "request_timeout"),
    "too large already": (request_head([*without_length(), *lengths(b"9999999")]) + b"x", 413, "body_too_large"),
    "another path": (CUT.replace(b"/clerk", b"/x"), 404, "not_found"),
    "another method": (CUT.replace(b"POST", b"PUT"), 405, "method_not_allowed"),
    "an encoding": (request_head([*genuine(), (b"content-encoding", b"br")]), 415, "unsupported_encoding"),
    "a body that nobody reads": (CUT.replace(b"POST /webhooks/clerk", b"GET /healthz"), 200, None),
}


def test_slow_senders_are_answered_in_time_and_delay_nobody(service: ServiceProcess, any_client: Any) -> None:
    body = sample_body("sess_slow")
    begun = (request_head(genuine(body)) + body[:100], request_head(genuine())[:-40], b"POST /webhooks/clerk HT")

    def stall(sent: bytes) -> tuple[int, str | None, float]:
        with raw_connection(service.port) as connection:
            connection.send(sent)
            with stopwatch() as measured:
                answer = connection.response()
            assert connection.socket.recv(1) == b"", "half a body keeps the connection open"
            return answer.status, answer.code, measured.seconds

    with contextlib.ExitStack() as stack:
        for _ in range(200):
            for sent in begun:
                stack.enter_context(raw_connection(service.port)).send(sent)
        threads = stack.enter_context(ThreadPoolExecutor(len(STALLED)))
        stalled = {kind: threads.submit(stall, sent) for kind, (sent, _, _) in STALLED.items()}

        # Given 600 connections that take their time, everyone else is served as ever.
        for _ in range(20):
            with in_time(1):
                assert service.http.get("/healthz").status_code == 200
            assert_a_good_delivery_passes(service.port)

        for kind, future in stalled.items():
            status, code, seconds = future.result(timeout=30)
            assert (kind, status, code) == (kind, *STALLED[kind][1:])
            assert seconds < 5

    assert not any_client.exists("{clerk}:session:sess_slow")


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
        assert connection.response().status == 200
