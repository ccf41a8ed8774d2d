"""Whatever bytes come in, the response is one of docs/contract.md, section 3, over real HTTP."""

import json
from typing import Any, Final

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.constants import SECRET
from support.events import ABSENT, EVENT_PATHS, event
from support.raw_http import Pairs, RawResponse, conversation, pairs, request_head
from support.services import ServiceProcess
from support.signing import signed
from support.strategies import json_values

PROBLEMS: Final = {
    400: {
        *("missing_signature", "malformed_signature", "timestamp_out_of_tolerance", "invalid_signature"),
        *("malformed_event", "bad_request"),
    },
    404: {"not_found"},
    405: {"method_not_allowed"},
    413: {"body_too_large"},
    415: {"unsupported_encoding"},
}
TAKEN: Final = {200: {"applied", "duplicate", "stale", "ignored"}, 202: {"dead_lettered"}}
CLOSE: Final = (b"connection", b"close")

bounded: Final = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""The service that the examples share is meant to: none may harm the next."""


def assert_of_the_contract(answer: RawResponse) -> None:
    assert "location" not in answer.headers
    assert b"Traceback" not in answer.body
    assert SECRET.removeprefix("whsec_").encode() not in answer.body
    if answer.body == b"This is no request in HTTP/1.1.":  # the parser's refusal, before any route is looked at
        assert answer.status == 400
        return
    body = json.loads(answer.body)
    if answer.status in TAKEN:
        assert answer.headers["content-type"] == "application/json"
        assert body["outcome"] in TAKEN[answer.status]
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert list(body) == ["type", "title", "status", "detail", "code"]
        assert body["status"] == answer.status
        assert body["code"] in PROBLEMS[answer.status]


# Requests that are HTTP

tokens = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=12).map(str.encode)
methods = st.sampled_from([b"GET", b"HEAD", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"post"]) | tokens
targets = st.one_of(
    st.sampled_from([b"*", b"/", b"//", b"/webhooks//clerk", b"http://[::1]/webhooks/clerk", b"x:1"]),
    st.text("/webhooks.clerk%2fF;?#[]@", max_size=30).map(lambda text: b"/" + text.encode()),
    st.text("/.?%#", max_size=4).map(lambda text: b"/webhooks/clerk" + text.encode()),
)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=80).map(
    lambda text: text.encode("latin-1")
)
names = st.sampled_from(
    [
        *(f"{family}{dash}{part}".encode() for family in ("svix", "webhook", "SVIX") for dash in "-_"
          for part in ("id", "timestamp", "signature")),
        *(b"content-type", b"content-encoding", b"accept", b"upgrade", b"cookie", b"x-forwarded-for", b"host_"),
    ]
) | tokens.map(lambda token: b"x-" + token)  # fmt: skip
headers = st.lists(st.tuples(names, values), max_size=6)


def mutated(values: dict[str, Any], type_: str, cut: tuple[int, int, bytes] | None) -> bytes:
    """Return a session event with odd values and, if so told, with a place in its text changed."""
    longest_first = {path: values[path] for path in sorted(values, key=len, reverse=True)}
    body = json.dumps(event({"type": type_} | longest_first)).encode()
    if cut is not None:
        at, length, put = cut
        at %= len(body)
        body = body[:at] + put + body[at + length :]
    return body


bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.builds(
        mutated,
        st.dictionaries(st.sampled_from(EVENT_PATHS), json_values | st.just(ABSENT), max_size=4),
        st.sampled_from(["session.created", "session.ended", "session.x", "user.created"]),
        st.none() | st.tuples(st.integers(0, 2000), st.integers(0, 3), st.binary(max_size=3)),
    ),
)


@bounded
@given(
    method=st.just(b"POST") | methods,
    target=st.just(b"/webhooks/clerk") | targets,
    more=headers,
    body=bodies,
    is_signed=st.booleans(),
    is_chunked=st.booleans(),
)
def test_whatever_is_asked_for(
    service: ServiceProcess, method: bytes, target: bytes, more: Pairs, body: bytes, is_signed: bool, is_chunked: bool
) -> None:
    framing = (b"transfer-encoding", b"chunked") if is_chunked else (b"content-length", b"%d" % len(body))
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked and body else body
    if is_chunked and not body:
        sent = b"0\r\n\r\n"
    signature = pairs(signed(body)) if is_signed else []
    head = request_head([*signature, *more, framing, CLOSE], method=method, target=target)

    [answer] = conversation(service.port, head + sent)

    if not answer.body:
        # To a HEAD; or the target is none (the one thing made up here that need not be HTTP).
        assert method == b"HEAD" or (answer.status == 400 and target != b"/webhooks/clerk")
    else:
        assert_of_the_contract(answer)


@bounded
@given(body=bodies)
def test_whatever_is_signed(service: ServiceProcess, body: bytes) -> None:
    head = request_head([*pairs(signed(body)), (b"content-length", b"%d" % len(body)), CLOSE])

    [answer] = conversation(service.port, head + body)

    assert_of_the_contract(answer)
    code = json.loads(answer.body).get("code")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        assert code == "invalid_signature"
    else:
        assert code in {None, "malformed_event"}
        if code == "malformed_event":
            assert not is_an_event(text)


def is_an_event(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and isinstance(value.get("type"), str)


# Bytes that may be anything


@bounded
@given(
    head=st.binary(max_size=300)
    | st.lists(st.sampled_from([
        *(b"POST", b" ", b"/webhooks/clerk", b" HTTP/1.1", b"\r\n", b"\n", b"\r", b":", b"svix-id", b"\0", b"\xff"),
        *(b"content-length", b"0", b"5", b"transfer-encoding", b"chunked", b"host: x", b",", b"\t", b"hello"),
    ])).map(b"".join)
)  # fmt: skip
@example(b"POST /webhooks/clerk HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
def test_whatever_bytes_come(service: ServiceProcess, head: bytes) -> None:
    """A request that is no HTTP is the server's to refuse, and says so with a 400 or by hanging up."""
    for answer in conversation(service.port, head, then_end=True):
        if answer.body:
            assert_of_the_contract(answer)
        else:
            assert answer.status in {400, 414, 431}
