"""The stand-in for Clerk's Backend API over HTTP: connections, faults, and sessions that change while a reader pages."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.clock import eventually
from support.constants import ROOT, SECRET
from support.documents import fenced
from support.fake_clerk import api_client, clerk_api, fake_clerk

from service.clerk.signature import Verifier
from service.dev.fake_clerk import FakeClerk

__all__ = ["clerk_api", "fake_clerk"]


def all_users(client: httpx.Client, limit: int) -> Iterator[str]:
    after: dict[str, str] = {}
    while page := client.get("/users", params={"limit": str(limit), **after}).json():
        yield from (user["id"] for user in page)
        after = {"starting_after": page[-1]["id"]}


def test_a_program_reads_an_instance_with_its_url_and_key(fake_clerk: FakeClerk, clerk_api: httpx.Client) -> None:
    user = fake_clerk.add_user()
    session = fake_clerk.sign_in(user)

    listed = clerk_api.get("/sessions", params={"user_id": user})
    revoked = clerk_api.post(f"/sessions/{session}/revoke")

    assert (listed.status_code, listed.headers["content-type"]) == (200, "application/json")
    assert [each["id"] for each in listed.json()] == [session]
    assert revoked.json()["status"] == clerk_api.get(f"/sessions/{session}").json()["status"] == "revoked"
    assert clerk_api.get("/sessions/sess_of_nobody").json()["errors"][0]["code"] == "resource_not_found"
    assert httpx.get(f"{fake_clerk.url}/users", trust_env=False).status_code == 401


def test_a_connection_is_kept_also_after_a_request_with_a_body(fake_clerk: FakeClerk) -> None:
    session = fake_clerk.sign_in(fake_clerk.add_user())
    accepted: set[Any] = set()

    def look(*_: object) -> None:
        assert fake_clerk._server is not None
        accepted.update(fake_clerk._server.connections)

    fake_clerk.on_request = look
    with api_client(fake_clerk) as client:
        statuses = [client.post(f"/sessions/{session}/revoke", json={"n": n}).status_code for n in range(3)]
        statuses.append(client.get(f"/sessions/{session}").status_code)
    assert statuses == [200] * 4
    assert len(accepted) == 1


def test_many_connections_are_answered_at_once(fake_clerk: FakeClerk) -> None:
    together = threading.Barrier(16, timeout=30)
    fake_clerk.on_request = lambda *_: together.wait()

    def ask(_: int) -> int:
        with api_client(fake_clerk) as client:
            return client.get("/instance").status_code

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == [200] * 16
    assert fake_clerk.most_in_window(3600) == len(fake_clerk.requests) == 16


def test_a_client_that_waits_as_it_is_told_is_served_again(fake_clerk: FakeClerk, clerk_api: httpx.Client) -> None:
    fake_clerk.rate_limit = (3, 0.5)
    statuses = [clerk_api.get("/instance").status_code for _ in range(3)]
    refused = eventually(lambda: response if (response := clerk_api.get("/instance")).status_code == 429 else None)
    assert statuses == [200] * 3
    assert refused is not None
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["errors"][0]["code"] == "too_many_requests"
    assert eventually(lambda: clerk_api.get("/instance").status_code == 200)


def test_an_answer_takes_as_long_as_latency_says(fake_clerk: FakeClerk, clerk_api: httpx.Client) -> None:
    clerk_api.get("/instance")
    fake_clerk.latency = 0.2
    assert clerk_api.get("/instance").elapsed.total_seconds() >= 0.2


def test_a_reader_finds_each_user_once_while_users_come_and_go(fake_clerk: FakeClerk, clerk_api: httpx.Client) -> None:
    users = [fake_clerk.add_user() for _ in range(40)]

    def change(*_: object) -> None:
        user = fake_clerk.add_user()
        fake_clerk.sign_in(user)
        fake_clerk.delete_user(user)

    fake_clerk.on_request = change
    seen = list(all_users(clerk_api, 7))
    assert len(seen) == 40
    assert set(seen) == set(users)


def test_offsets_shift_when_a_session_is_created_between_two_pages(
    fake_clerk: FakeClerk, clerk_api: httpx.Client
) -> None:
    user = fake_clerk.add_user()
    sessions = [fake_clerk.sign_in(user) for _ in range(4)][::-1]
    pages = []
    for offset in ("0", "2"):
        page = clerk_api.get("/sessions", params={"user_id": user, "limit": "2", "offset": offset}).json()
        pages.append([session["id"] for session in page])
        fake_clerk.sign_in(user)
    assert pages == [sessions[:2], sessions[1:3]]


def test_threads_may_change_sessions_while_others_read_them(fake_clerk: FakeClerk) -> None:
    users = [fake_clerk.add_user() for _ in range(4)]
    told: list[str] = []
    fake_clerk.on_webhook = lambda event: told.append(event["type"])

    def live(user: str) -> None:
        for _ in range(50):
            session = fake_clerk.sign_in(user)
            fake_clerk.touch(session)
            fake_clerk.end(session)

    def read(user: str) -> list[int]:
        with api_client(fake_clerk) as client:
            return [
                client.get("/sessions", params={"user_id": user, "limit": "500"}).status_code for _ in range(50)
            ] + [client.get("/users").status_code]

    with ThreadPoolExecutor(8) as pool:
        readings = [pool.submit(read, user) for user in users]
        lives = [pool.submit(live, user) for user in users]
        assert [reading.result() for reading in readings] == [[200] * 51] * 4
        assert [each.result() for each in lives] == [None] * 4
    assert sorted(told) == ["session.created"] * 200 + ["session.ended"] * 200


def test_a_client_that_goes_away_in_the_middle_disturbs_nobody(fake_clerk: FakeClerk, clerk_api: httpx.Client) -> None:
    port = httpx.URL(fake_clerk.url).port
    assert port is not None
    for sent in (b"", b"GET /v1/inst", b"POST /v1/x HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", b"\x00\xff\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
    assert clerk_api.get("/instance").status_code == 200


def test_what_a_callback_raises_is_answered_with_500_and_raised_at_the_end() -> None:
    def fail(*_: object) -> None:
        raise LookupError("of the test")

    with (
        pytest.raises(LookupError, match="of the test"),
        FakeClerk(on_request=fail) as clerk,
        api_client(clerk) as client,
    ):
        assert client.get("/instance").status_code == 500


def test_nothing_answers_after_its_end_nor_on_connections_that_were_kept() -> None:
    before = threading.active_count()
    with FakeClerk() as clerk, api_client(clerk) as client:
        url = clerk.url
        assert client.get("/instance").status_code == 200
        clerk.__exit__(None, None, None)
        with pytest.raises(httpx.TransportError):
            client.get("/instance")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/instance", trust_env=False)
    assert threading.active_count() == before


def test_the_examples_of_its_document_do_what_they_say() -> None:
    sent: list[httpx.Request] = []

    def take(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    relay = httpx.Client(transport=httpx.MockTransport(take), trust_env=False)
    using, delivering = fenced(ROOT / "docs" / "fake-clerk.md", "python")
    exec(using, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "post", relay.post)
        exec(delivering, {"RELAY_URL": "http://relay.example/webhooks/clerk", "SIGNING_SECRET": SECRET})

    types = []
    for request in sent:
        delivery = Verifier([SECRET]).verify(request.headers, request.content)
        types.append(json.loads(delivery.body)["type"])
    assert types == ["user.created", "session.created", "session.created"]
