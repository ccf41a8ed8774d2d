"""Deliveries over HTTP as Svix sends them: one life of a session, and what becomes of each delivery."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from service.clerk.signature import Verifier
from service.config import Settings, load
from service.dev import sender, simulator
from service.dev.sender import OutgoingDelivery, Response, one_life
from service.errors import InvalidSignatureError

SECRET = simulator.new_secret()
URL = "http://relay.example/webhooks/clerk"
DELIVERIES = [OutgoingDelivery(b'{"type":"session.created"}', "session.created", f"msg_{n}") for n in range(4)]

Endpoint = Callable[[httpx.Request], httpx.Response]


class Clock:
    """Stands for the `time` module: sleeping makes time pass, and nothing else but `work` does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds


class Post:
    """An endpoint in place of the network: keeps the requests, and responds as it is told to."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.response: Endpoint = lambda _: httpx.Response(200, json={"outcome": "applied"})

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.response(request)

    def message_ids(self) -> list[str]:
        return [request.headers["svix-id"] for request in self.requests]


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Client]:
    return []


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch, clients: list[httpx.Client]) -> Post:
    post = Post()
    real = httpx.Client

    def client(**options: Any) -> httpx.Client:
        clients.append(real(transport=httpx.MockTransport(post), **options))
        return clients[-1]

    monkeypatch.setattr(httpx, "Client", client)
    return post


def send(
    deliveries: Sequence[OutgoingDelivery] = DELIVERIES, secret: str | None = SECRET, **options: Any
) -> list[Response]:
    return list(sender.send(deliveries, url=URL, secret=secret, **options))


# One life


def life(*types: str, **values: Any) -> list[dict[str, Any]]:
    return [json.loads(delivery.body) for delivery in one_life(types, values)]


def test_a_life_has_a_delivery_for_each_type_in_order() -> None:
    types = ["session.pending", "session.created", "user.updated", "session.revoked"]
    deliveries = one_life(types, {})
    assert [delivery.type for delivery in deliveries] == types
    assert [json.loads(delivery.body)["type"] for delivery in deliveries] == types


def test_a_life_is_about_one_session() -> None:
    events = life("session.pending", "session.created", "session.ended")
    same = ("id", "user_id", "client_id", "created_at", "expire_at", "abandon_at")
    assert len({tuple(event["data"][name] for name in same) for event in events}) == 1


def test_each_life_is_about_another_session() -> None:
    assert len({life("session.created")[0]["data"]["id"] for _ in range(10)}) == 10


def test_the_events_of_a_life_are_a_second_apart() -> None:
    events = life("session.pending", "session.created", "session.ended")
    first, *later = [event["data"]["updated_at"] for event in events]
    assert later == [first + 1000, first + 2000]
    assert [event["timestamp"] for event in events] == [first, *later]


def test_a_life_begins_with_the_session() -> None:
    event, *_ = life("session.created", "session.ended")
    assert event["data"]["created_at"] == event["data"]["updated_at"]


def test_each_delivery_has_an_id_of_its_own() -> None:
    deliveries = one_life(["session.created"] * 10, {})
    assert len({delivery.message_id for delivery in deliveries}) == 10


def test_an_event_about_something_else_has_nothing_of_the_session() -> None:
    _, event = life("session.created", "user.updated")
    assert event["data"]["object"] == "user"
    assert "client_id" not in event["data"]
    assert "expire_at" not in event["data"]


def test_values_win_over_what_lasts_a_life() -> None:
    events = [json.loads(delivery.body) for delivery in one_life(["session.created"] * 2, {"data.expire_at": 5})]
    assert [event["data"]["expire_at"] for event in events] == [5, 5]


def test_a_delivery_is_of_the_type_that_was_set() -> None:
    (delivery,) = one_life(["session.created"], {"type": "session.touched"})
    assert delivery.type == "session.touched"


def test_a_value_that_leads_nowhere_is_named() -> None:
    with pytest.raises(KeyError, match=r"data\.status\.now"):
        one_life(["session.created"], {"data.status.now": 1})


def test_no_types_make_no_deliveries() -> None:
    assert one_life([], {}) == []


# Delivery


def test_the_body_is_posted_byte_for_byte(post: Post) -> None:
    body = b' {"type": "user.created",\r\n "data": {} }\n'
    send([OutgoingDelivery(body, "file")])
    (request,) = post.requests
    assert (request.method, str(request.url), request.content) == ("POST", URL, body)


def test_it_looks_like_svix(post: Post) -> None:
    send(DELIVERIES[:1])
    (request,) = post.requests
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("Svix-Webhooks/")
    assert {"svix-id", "svix-timestamp", "svix-signature"} <= set(request.headers)


def verify(request: httpx.Request, secret: str = SECRET) -> str:
    settings = load(Settings, _env_file=None, clerk_webhook_signing_secret=secret, redis_url="redis://127.0.0.1")
    return Verifier(settings.secrets).verify(request.headers, request.content).id


def test_each_delivery_is_signed(post: Post) -> None:
    send()
    assert [verify(request) for request in post.requests] == [delivery.message_id for delivery in DELIVERIES]


def test_a_forged_delivery_is_signed_with_another_secret(post: Post) -> None:
    send(secret=None)
    for request in post.requests:
        with pytest.raises(InvalidSignatureError):
            verify(request)


def test_responses_come_in_the_order_of_the_deliveries(post: Post) -> None:
    responses = send()
    assert [response.delivery for response in responses] == DELIVERIES
    assert post.message_ids() == [delivery.message_id for delivery in DELIVERIES]


def test_nothing_is_sent_before_its_response_is_asked_for(post: Post) -> None:
    responses = sender.send(DELIVERIES, url=URL, secret=SECRET)
    assert post.requests == []
    next(responses)
    assert len(post.requests) == 1


def test_the_connection_is_closed_after_the_last(post: Post, clients: list[httpx.Client]) -> None:
    send()
    (client,) = clients
    assert client.is_closed


def test_a_duplicate_has_the_same_id_and_body(post: Post) -> None:
    send(DELIVERIES[:2], duplicate=True)
    assert post.message_ids() == ["msg_0", "msg_0", "msg_1", "msg_1"]
    assert post.requests[0].content == post.requests[1].content


def test_shuffled_deliveries_are_all_sent(post: Post) -> None:
    deliveries = [OutgoingDelivery(b"{}", "x", f"msg_{n}") for n in range(50)]
    send(deliveries, shuffle=True)
    assert sorted(post.message_ids()) == sorted(delivery.message_id for delivery in deliveries)


def test_shuffle_takes_duplicates_apart(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    def deal(queue: list[int]) -> None:
        queue[:] = queue[::2] + queue[1::2]

    monkeypatch.setattr(random, "shuffle", deal)
    send(DELIVERIES[:2], duplicate=True, shuffle=True)
    assert post.message_ids() == ["msg_0", "msg_1", "msg_0", "msg_1"]


def test_shuffle_leaves_the_deliveries_given_as_they_are(post: Post) -> None:
    deliveries = [OutgoingDelivery(b"{}", "x", f"msg_{n}") for n in range(50)]
    before = list(deliveries)
    send(deliveries, shuffle=True)
    assert deliveries == before


# The pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sender, "time", clock)
    return clock


def test_without_a_rate_nothing_waits(post: Post, clock: Clock) -> None:
    send()
    assert clock.slept == []


def test_a_rate_spreads_deliveries_evenly(post: Post, clock: Clock) -> None:
    send(rate=4)
    assert clock.slept == pytest.approx([0, 0.25, 0.25, 0.25])


def test_a_rate_counts_the_time_that_responses_take(post: Post, clock: Clock) -> None:
    def slow(_: httpx.Request) -> httpx.Response:
        clock.now += 0.2
        return httpx.Response(200, json={})

    post.response = slow
    send(rate=4)
    assert clock.slept == pytest.approx([0, 0.05, 0.05, 0.05])


def test_responses_slower_than_the_rate_are_not_waited_for_further(post: Post, clock: Clock) -> None:
    def slow(_: httpx.Request) -> httpx.Response:
        clock.now += 1
        return httpx.Response(200, json={})

    post.response = slow
    send(rate=4)
    assert clock.slept == [0, 0, 0, 0]


def test_duplicates_count_for_the_rate(post: Post, clock: Clock) -> None:
    send(DELIVERIES[:2], duplicate=True, rate=2)
    assert sum(clock.slept) == pytest.approx(1.5)


# Answers


def response_to(post: Post, endpoint: Endpoint) -> Response:
    post.response = endpoint
    (response,) = send(DELIVERIES[:1])
    return response


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, {"outcome": "applied", "session_id": "sess_1"}, "applied"),
        (202, {"outcome": "dead_lettered", "reason": "invalid_id"}, "dead_lettered"),
        (400, {"code": "invalid_signature", "detail": "no"}, "invalid_signature"),
        (500, {"detail": "oh"}, "oh"),
        (200, {}, ""),
    ],
)
def test_a_response_says_its_outcome_or_its_code(status: int, body: dict[str, str], said: str, post: Post) -> None:
    response = response_to(post, lambda _: httpx.Response(status, json=body))
    assert (response.status, response.body, response.summary) == (status, body, said)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'"text"', b"null", b"\xff\xfe"])
def test_a_response_that_is_not_the_relays_says_so(content: bytes, post: Post) -> None:
    response = response_to(post, lambda _: httpx.Response(200, content=content))
    assert response.status == 200
    assert "is this the relay?" in response.summary


def test_a_redirect_is_an_response_and_not_followed(post: Post) -> None:
    response = response_to(post, lambda _: httpx.Response(307, headers={"location": URL + "/there"}))
    assert response.status == 307
    assert len(post.requests) == 1


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused", request=request)


def time_out(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("timed out", request=request)


@pytest.mark.parametrize(("endpoint", "why"), [(refuse, "refused"), (time_out, "timed out")])
def test_no_response_is_told_with_its_reason(endpoint: Endpoint, why: str, post: Post) -> None:
    response = response_to(post, endpoint)
    assert response.status == 0
    assert response.summary.startswith("no response: ")
    assert why in response.summary


def test_no_response_to_one_does_not_stop_the_others(post: Post) -> None:
    post.response = lambda request: (
        refuse(request) if request.headers["svix-id"] == "msg_1" else httpx.Response(200, json={})
    )
    assert [response.status for response in send()] == [200, 0, 200, 200]


def test_a_response_is_awaited_as_long_as_svix_does(post: Post, clients: list[httpx.Client]) -> None:
    send(DELIVERIES[:1])
    assert clients[0].timeout == httpx.Timeout(15)


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:port/", "http://[::1", ""])
def test_a_url_that_is_none_is_no_answer(url: str) -> None:
    (response,) = sender.send(DELIVERIES[:1], url=url, secret=SECRET)
    assert response.status == 0
    assert response.summary.startswith("no response: ")
