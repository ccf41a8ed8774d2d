"""What a delivery gets: every row of docs/contract.md, section 3, over real HTTP.

Most tests run twice: under the production server, and under a plain WSGI server with threads, since
`create_app()` is what anyone may run as they like.
"""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.constants import DEAD_LETTERS_KEY, EVENTS_KEY, MAX_BODY_BYTES, SECRET
from support.events import IGNORED
from support.raw_http import exchange, request_head
from support.relay import make_settings
from support.services import Endpoint, ServiceProcess, run_plain_wsgi
from support.signing import signature, signed

from service.app.factory import create_app
from service.dev import simulator


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def sample(type_: str = "session.created", session_id: str = "sess_1", **values: Any) -> dict[str, Any]:
    return simulator.sample(type_, session_id=session_id, user_id="user_1", **values)


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    """Check for problem details (RFC 9457) that give nothing away."""
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert list(problem) == ["type", "title", "status", "detail", "code"]
    assert problem["status"] == status
    for name in ("type", "title", "detail"):
        assert isinstance(problem[name], str)
        assert problem[name]
    assert "Traceback" not in response.text
    assert SECRET.removeprefix("whsec_") not in response.text
    # A store that is away is asked again after 5 s; nothing else is worth another try.
    assert response.headers.get("retry-after") == ("5" if status == 503 else None)


def assert_answer(response: httpx.Response, status: int, body: dict[str, Any]) -> None:
    assert (response.status_code, response.json()) == (status, body)
    assert list(response.json()) == list(body)
    assert response.headers["content-type"] == "application/json"


# Taken


def test_applied(endpoint: Endpoint, any_client: Any) -> None:
    response = endpoint.deliver(sample(), "msg_1")

    [(cursor, _)] = any_client.xrange(EVENTS_KEY)
    expected = {"outcome": "applied", "session_id": "sess_1", "cursor": cursor, "revision": 1}
    assert_answer(response, 200, expected)


def test_duplicate(endpoint: Endpoint) -> None:
    event = sample()
    first = endpoint.deliver(event, "msg_1").json()
    endpoint.deliver(sample(now_ms=now_ms() + 1000), "msg_2")

    assert_answer(endpoint.deliver(event, "msg_1"), 200, first | {"outcome": "duplicate"})


def test_stale(endpoint: Endpoint, any_client: Any) -> None:
    endpoint.deliver(sample("session.ended"), "msg_2")

    response = endpoint.deliver(sample("session.created"), "msg_1")

    [_, (cursor, _)] = any_client.xrange(EVENTS_KEY)
    expected = {"outcome": "stale", "session_id": "sess_1", "cursor": cursor, "revision": None}
    assert_answer(response, 200, expected)


@pytest.mark.parametrize("type_", ["user.created", "session", "sessions.created", "Session.created", ""])
def test_ignored(endpoint: Endpoint, any_client: Any, type_: str) -> None:
    assert_answer(endpoint.deliver({"type": type_}), 200, {"outcome": "ignored"})
    assert list(any_client.scan_iter("*")) == []


def test_ignored_needs_no_redis(endpoint_without_redis: Endpoint) -> None:
    assert_answer(endpoint_without_redis.deliver(IGNORED), 200, {"outcome": "ignored"})


DEAD: dict[str, dict[str, Any]] = {
    "invalid_data": {"data": 1},
    "invalid_type": {"type": "session." + "x" * 128},
    "invalid_object": {"data.object": "user"},
    "invalid_id": {"data.id": "sess 1"},
    "invalid_user_id": {"data.user_id": None},
    "invalid_status": {"data.status": "asleep"},
    "invalid_time": {"data.expire_at": "tomorrow"},
    "invalid_updated_at": {"data.updated_at": 10**14},
    "invalid_actor": {"data.actor": "someone"},
}


@pytest.mark.parametrize("reason", DEAD)
def test_dead_lettered(endpoint: Endpoint, any_client: Any, reason: str) -> None:
    event = simulator.with_values(sample(), DEAD[reason])

    response = endpoint.deliver(event, "msg_1")

    assert_answer(response, 202, {"outcome": "dead_lettered", "reason": reason})
    assert json.loads(json.loads(any_client.hget(DEAD_LETTERS_KEY, "msg_1"))["body"]) == event
    assert any_client.exists(EVENTS_KEY) == 0


# Not genuine


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


SOME_SIGNATURE = signature("msg_1", "1", b"")


@pytest.mark.parametrize("family", ["svix", "webhook"])
@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
@pytest.mark.parametrize("value", [None, ""])
def test_missing_signature(endpoint: Endpoint, family: str, name: str, value: str | None) -> None:
    headers = without(signed(IGNORED, family=family), f"{family}-{name}")
    if value is not None:
        headers[f"{family}-{name}"] = value

    assert_problem(endpoint.post(IGNORED, headers), 400, "missing_signature")


def test_no_signature_at_all(endpoint: Endpoint) -> None:
    assert_problem(endpoint.post(IGNORED, {}), 400, "missing_signature")


@pytest.mark.parametrize(
    "faulty",
    [
        {"svix-id": "msg 1"},
        {"svix-id": "msg.1"},
        {"svix-id": "m" * 129},
        {"svix-timestamp": "1.5"},
        {"svix-timestamp": "-1"},
        {"svix-timestamp": "0x10"},
        {"svix-timestamp": "1" * 13},
        {"svix-timestamp": "1_0"},
        {"svix-signature": "v1"},
        {"svix-signature": "v1,"},
        {"svix-signature": "v1,abc"},
        {"svix-signature": "v1," + "!" * 44},
        {"svix-signature": SOME_SIGNATURE.replace("v1,", "v2,")},
        {"svix-signature": SOME_SIGNATURE.replace("v1,", "v1a,")},
        {"svix-signature": SOME_SIGNATURE.replace("v1,", "V1,")},
        {"svix-signature": SOME_SIGNATURE.replace(",", ":")},
        {"svix-signature": SOME_SIGNATURE.rstrip("=")},
    ],
    ids=lambda faulty: next(iter(faulty.items())),
)
def test_malformed_signature(endpoint: Endpoint, faulty: dict[str, str]) -> None:
    assert_problem(endpoint.post(IGNORED, signed(IGNORED) | faulty), 400, "malformed_signature")


@pytest.mark.parametrize("seconds", [-3600, -310, 310, 86_400])
def test_timestamp_out_of_tolerance(endpoint: Endpoint, seconds: int) -> None:
    headers = signed(IGNORED, at=time.time() + seconds)

    assert_problem(endpoint.post(IGNORED, headers), 400, "timestamp_out_of_tolerance")


@pytest.mark.parametrize("timestamp", ["0", "1", "000000000001", "9" * 12])
def test_timestamps_from_another_age_are_out_of_tolerance_too(endpoint: Endpoint, timestamp: str) -> None:
    headers = signed(IGNORED) | {"svix-timestamp": timestamp}

    assert_problem(endpoint.post(IGNORED, headers), 400, "timestamp_out_of_tolerance")


@pytest.mark.parametrize("seconds", [-290, 0, 290])
def test_a_timestamp_within_five_minutes_is_taken(endpoint: Endpoint, seconds: int) -> None:
    assert endpoint.post(IGNORED, signed(IGNORED, at=time.time() + seconds)).status_code == 200


def test_another_secrets_signature(endpoint: Endpoint) -> None:
    headers = signed(IGNORED, secret=simulator.new_secret())
    computed = signature(headers["svix-id"], headers["svix-timestamp"], IGNORED)

    response = endpoint.post(IGNORED, headers)

    assert_problem(response, 400, "invalid_signature")
    assert computed.removeprefix("v1,") not in response.text


@pytest.mark.parametrize("changed", ["id", "timestamp", "body"])
def test_a_signature_of_something_else(endpoint: Endpoint, changed: str) -> None:
    headers = signed(IGNORED, "msg_1")
    if changed == "id":
        headers["svix-id"] = "msg_2"
    elif changed == "timestamp":
        headers["svix-timestamp"] = str(int(headers["svix-timestamp"]) - 1)

    response = endpoint.post(IGNORED + b" " if changed == "body" else IGNORED, headers)

    assert_problem(response, 400, "invalid_signature")


@pytest.mark.parametrize("body", [b'{"type":"user.created","x":"\xff"}', b"\xed\xa0\x80", b"\x80"])
def test_a_body_that_is_not_utf_8_has_no_valid_signature(endpoint: Endpoint, body: bytes) -> None:
    assert_problem(endpoint.post(body, signed(body)), 400, "invalid_signature")


# Header families


def test_both_families_work(endpoint: Endpoint) -> None:
    for family in ["svix", "webhook"]:
        assert endpoint.post(IGNORED, signed(IGNORED, family=family)).status_code == 200


def test_a_wrong_svix_signature_is_not_made_good_by_the_other_family(endpoint: Endpoint) -> None:
    headers = signed(IGNORED, secret=simulator.new_secret()) | signed(IGNORED, family="webhook")

    assert_problem(endpoint.post(IGNORED, headers), 400, "invalid_signature")


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
def test_one_svix_header_makes_that_family_count(endpoint: Endpoint, name: str) -> None:
    headers = signed(IGNORED, family="webhook")
    headers[f"svix-{name}"] = headers[f"webhook-{name}"]

    assert_problem(endpoint.post(IGNORED, headers), 400, "missing_signature")


def test_empty_svix_headers_count_as_none(endpoint: Endpoint) -> None:
    empty = dict.fromkeys(signed(b""), "")

    assert endpoint.post(IGNORED, empty | signed(IGNORED, family="webhook")).status_code == 200


@pytest.mark.parametrize(
    "form",
    [
        "{other} {good}",
        "{good} {other}",
        "v2,{other} {good}",
        "v1,x {good}",
        "v1a,abc {good} v3",
        "{good} {good}",
        "nonsense  {good}",
        "nonsense {good}",
    ],
)
def test_any_good_entry_of_the_signature_header_will_do(endpoint: Endpoint, form: str) -> None:
    headers = signed(IGNORED)
    headers["svix-signature"] = form.format(good=headers["svix-signature"], other=SOME_SIGNATURE)

    assert endpoint.post(IGNORED, headers).status_code == 200


def test_any_of_several_secrets_will_do(any_redis: Any) -> None:
    old, new = simulator.new_secret(), simulator.new_secret()
    settings = make_settings(any_redis.url, clerk_webhook_signing_secret=f"{old}, {new}")
    with run_plain_wsgi(settings) as endpoint:
        for secret in (old, new):
            assert endpoint.post(IGNORED, signed(IGNORED, secret=secret)).status_code == 200
        response = endpoint.post(IGNORED, signed(IGNORED, secret=SECRET))
        assert_problem(response, 400, "invalid_signature")


# Genuine, but no event


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[]",
        b"null",
        b'"session.created"',
        b"{}",
        b'{"type":null}',
        b'{"type":1}',
        b'{"type":["session.created"]}',
        b'{"type":"session.created"',
        b'{"type":"session.created"}{}',
        b"{'type':'session.created'}",
        b"\xef\xbb\xbf{}",
        '{"type":"session.created"}'.encode("utf-16-le"),
        b"type=session.created",
        b"[" * 100_000,
    ],
    ids=lambda body: body[:30],
)
def test_malformed_event(endpoint: Endpoint, body: bytes) -> None:
    assert_problem(endpoint.deliver(body), 400, "malformed_event")


# Other requests


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_another_method_on_the_path(endpoint: Endpoint, method: str) -> None:
    response = endpoint.http.request(method, "/webhooks/clerk")

    assert response.headers["allow"] == "POST"
    if method == "HEAD":
        assert (response.status_code, response.content) == (405, b"")
    else:
        assert_problem(response, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_another_method_on_the_other_paths(endpoint: Endpoint, path: str) -> None:
    response = endpoint.http.post(path)

    assert_problem(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/webhooks",
        "/webhooks/",
        "/webhooks/clerk/",
        "/webhooks/clerk//",
        "/webhooks//clerk",
        "/webhooks/Clerk",
        "/WEBHOOKS/CLERK",
        "/webhooks/clerk.json",
        "/webhooks/clerk/x",
        "/webhooks/clerk%00",
        "/webhooks/clerk%20",
        "/webhooks/clerk;x=1",
        "/webhooks/clerk%ff",
        "/webhooks/./clerk/..",
        "/static/x",
        "/healthz/",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_another_path_is_never_a_redirect(endpoint: Endpoint, method: str, path: str) -> None:
    response = endpoint.http.request(
        method,
        httpx.URL(f"http://127.0.0.1:{endpoint.port}").copy_with(raw_path=path.encode()),
        content=IGNORED if method == "POST" else None,
        headers=signed(IGNORED),
    )

    assert_problem(response, 404, "not_found")


@pytest.mark.parametrize("path", ["//webhooks/clerk", "///webhooks/clerk", "//relay.example/webhooks/clerk"])
def test_leading_slashes_make_another_path(service: ServiceProcess, path: str) -> None:
    request = request_head(signed(IGNORED) | {"content-length": str(len(IGNORED))}, target=path.encode())
    answer = exchange(service.port, request + IGNORED)

    assert (answer.status, answer.code) == (404, "not_found")


def test_a_query_string_is_nobodys_business(endpoint: Endpoint) -> None:
    response = endpoint.http.post("/webhooks/clerk?x=%ff&y", content=IGNORED, headers=signed(IGNORED))

    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "gzip, identity", "nonsense"])
def test_unsupported_encoding(endpoint: Endpoint, encoding: str) -> None:
    response = endpoint.post(IGNORED, signed(IGNORED) | {"content-encoding": encoding})

    assert_problem(response, 415, "unsupported_encoding")


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", "identity, identity", ",\tidentity"])
def test_identity_is_no_encoding(endpoint: Endpoint, encoding: str) -> None:
    response = endpoint.post(IGNORED, signed(IGNORED) | {"content-encoding": encoding})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "text/plain; charset=utf-16",
        "application/json; charset=latin-1",
        "nonsense",
        "",
    ],
)
def test_the_raw_body_counts_whatever_the_content_type_says(
    endpoint: Endpoint, any_client: Any, content_type: str
) -> None:
    event = simulator.with_values(sample(), {"data.latest_activity.city": "Troms\u00f8 & a=b"})

    response = endpoint.deliver(event, "msg_1", {"content-type": content_type})

    assert (response.status_code, response.json()["outcome"]) == (200, "applied")
    held = json.loads(any_client.hget("{clerk}:session:sess_1", "state"))
    assert held["session"]["latest_activity"]["city"] == "Troms\u00f8 & a=b"


def padded(size: int) -> bytes:
    """Return an ignored event of this many bytes."""
    head, tail = b'{"type":"user.created","x":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


def test_a_chunked_body(endpoint: Endpoint) -> None:
    body = json.dumps(sample()).encode()
    chunks = (body[start : start + 7] for start in range(0, len(body), 7))

    response = endpoint.post(chunks, signed(body))

    assert (response.status_code, response.json()["outcome"]) == (200, "applied")


@pytest.mark.parametrize("chunked", [False, True], ids=["with length", "chunked"])
def test_a_body_of_the_largest_size_is_taken(endpoint: Endpoint, chunked: bool) -> None:
    body = padded(MAX_BODY_BYTES)

    response = endpoint.post(iter([body]) if chunked else body, signed(body))

    assert_answer(response, 200, {"outcome": "ignored"})


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 3 * MAX_BODY_BYTES])
@pytest.mark.parametrize("chunked", [False, True], ids=["with length", "chunked"])
def test_a_body_too_large(service: ServiceProcess, size: int, chunked: bool) -> None:
    body = padded(size)

    response = service.post(iter([body]) if chunked else body, signed(body))

    assert_problem(response, 413, "body_too_large")


# What is wrong first is what is answered

OLD = str(int(time.time()) - 3600)
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("not_found", {"path": "/webhook"}),
    ("method_not_allowed", {"method": "PUT"}),
    ("unsupported_encoding", {"content-encoding": "gzip"}),
    ("body_too_large", {"body": b"x" * (MAX_BODY_BYTES + 1)}),
    ("missing_signature", {"svix-id": ""}),
    ("malformed_signature", {"svix-signature": "v1,x"}),
    ("timestamp_out_of_tolerance", {"svix-timestamp": OLD}),
    ("invalid_signature", {"svix-signature": SOME_SIGNATURE}),
    ("malformed_event", {"body": b"[]"}),
]


@pytest.mark.parametrize("first", range(len(FAULTS)), ids=[code for code, _ in FAULTS])
def test_what_is_wrong_first_is_what_is_answered(service: ServiceProcess, first: int) -> None:
    # All the faults from this one on; of two in the same place, the earlier one.
    request: dict[str, Any] = {}
    for _, fault in reversed(FAULTS[first:]):
        request |= fault
    body = request.pop("body")
    method, path = request.pop("method", "POST"), request.pop("path", "/webhooks/clerk")

    response = service.http.request(method, path, content=body, headers=signed(body) | request)

    assert response.json()["code"] == FAULTS[first][0]


# Redis


def test_a_redis_that_is_away(endpoint_without_redis: Endpoint) -> None:
    assert_problem(endpoint_without_redis.deliver(sample()), 503, "store_unavailable")
    unreadable = endpoint_without_redis.deliver({"type": "session.created"})
    assert_problem(unreadable, 503, "store_unavailable")


def test_what_is_wrong_with_the_request_is_said_without_redis(endpoint_without_redis: Endpoint) -> None:
    assert_problem(endpoint_without_redis.post(IGNORED, {}), 400, "missing_signature")
    assert_problem(endpoint_without_redis.deliver(b"[]"), 400, "malformed_event")


def test_a_full_dead_letter_box(any_redis: Any) -> None:
    with run_plain_wsgi(make_settings(any_redis.url, dead_letter_max=0)) as endpoint:
        assert_problem(endpoint.deliver({"type": "session.created"}), 503, "dead_letters_full")


# The factory


def test_without_arguments_the_application_is_as_the_environment_says(
    any_redis: Any, any_client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret, body = simulator.new_secret(), json.dumps(sample()).encode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLERK_WEBHOOK_SIGNING_SECRET", secret)
    monkeypatch.setenv("REDIS_KEY_PREFIX", "{elsewhere}")
    (tmp_path / ".env").write_text(f"REDIS_URL={any_redis.url}\n")
    app = create_app()

    response = app.test_client().post("/webhooks/clerk", data=body, headers=signed(body, secret=secret))

    assert (response.status_code, response.get_json()["outcome"]) == (200, "applied")
    assert any_client.exists("{elsewhere}:session:sess_1")
    app.store.close()


def test_no_answer_quotes_the_body(endpoint: Endpoint) -> None:
    marker = "MARKER"
    said = [
        endpoint.deliver(f'"{marker}"'.encode()),
        endpoint.deliver({"type": marker}),
        endpoint.deliver({"type": "session.created", "data": marker}),
        endpoint.deliver({"type": "session.created", "data": {"id": f" {marker}"}}),
        endpoint.deliver(simulator.with_values(sample(), {"data.status": marker})),
        endpoint.post(marker.encode(), signed(b"")),
        endpoint.post(IGNORED, signed(IGNORED) | {"svix-id": f"!{marker}"}),
        endpoint.post(IGNORED, signed(IGNORED) | {"svix-timestamp": marker}),
        endpoint.post(IGNORED, signed(IGNORED) | {"svix-signature": marker}),
    ]

    assert [response.status_code for response in said] == [400, 200, 202, 202, 202, 400, 400, 400, 400]
    assert marker not in "".join(response.text for response in said)
