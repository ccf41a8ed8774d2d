"""What is read over HTTP with READ_TOKEN: docs/read.md. Under `serve`, and under a plain WSGI server."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from support.constants import DAY_MS, HOUR_MS
from support.events import clerk_event
from support.redis_servers import frozen
from support.relay import make_settings
from support.services import Endpoint, run_plain_wsgi, run_service

from service.app.factory import create_app
from service.dev.embedded import EmbeddedRedis

TOKEN: Final = "a-token-to-read-with"
OTHER_TOKEN: Final = "another-token-to-read-with"
AUTHORIZED: Final = {"authorization": f"Bearer {TOKEN}"}
PATHS: Final = (
    *("/sessions", "/sessions/sess_1", "/sessions/sess_1/history", "/users/user_1/sessions"),
    *("/dead-letters", "/stats", "/events"),
)


@pytest.fixture(scope="module")
def served(any_redis: EmbeddedRedis) -> Iterator[Endpoint]:
    with run_service(any_redis.url, READ_TOKEN=f"{TOKEN}, {OTHER_TOKEN}") as service:
        yield service


@pytest.fixture(scope="module")
def plain(any_redis: EmbeddedRedis) -> Iterator[Endpoint]:
    with run_plain_wsgi(make_settings(any_redis.url, read_token=f"{TOKEN},{OTHER_TOKEN}")) as endpoint:
        yield endpoint


@pytest.fixture(params=["served", "plain"], ids=["serve", "plain WSGI"])
def reads(request: pytest.FixtureRequest, any_client: Any) -> Endpoint:
    endpoint: Endpoint = request.getfixturevalue(request.param)
    return endpoint


def get(reads: Endpoint, path: str, **headers: str) -> httpx.Response:
    sent = AUTHORIZED | {name.replace("_", "-"): value for name, value in headers.items()}
    return reads.http.get(path, headers=sent)


def put(reads: Endpoint, session_id: str = "sess_1", status: str = "active", **values: Any) -> dict[str, Any]:
    now_ms = time.time_ns() // 1_000_000
    values = {"updated_at": now_ms, "expire_at": now_ms + DAY_MS} | values
    response = reads.deliver(clerk_event(status, session_id=session_id, **values))
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    assert answer["outcome"] == "applied"
    return answer


# Whether it is there, and for whom


def test_without_a_token_in_the_settings_none_of_it_is_there(endpoint: Endpoint) -> None:
    for path in PATHS:
        response = endpoint.http.get(path, headers=AUTHORIZED)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    response = endpoint.http.post("/events/token", json={"user_id": "user_1"}, headers=AUTHORIZED)
    assert response.status_code == 404


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", "Bearer", "Bearer x", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, f"Basic {TOKEN}"),
        *(f"Bearer {TOKEN},{OTHER_TOKEN}", "Bearer \xe9\xe9", f"Bearer{TOKEN}"),
    ],
)
def test_without_the_token_it_is_401(reads: Endpoint, path: str, authorization: str | None) -> None:
    headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
    response = reads.http.get(path, headers=headers)

    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer {OTHER_TOKEN}", f"BEARER  {TOKEN}"])
def test_each_token_opens(reads: Endpoint, authorization: str) -> None:
    assert reads.http.get("/stats", headers={"authorization": authorization}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_405(reads: Endpoint, path: str, method: str) -> None:
    response = reads.http.request(method, path, headers=AUTHORIZED)

    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/sessions", "/stats", "/dead-letters", "/events"])
def test_head_is_answered_without_a_body(reads: Endpoint, path: str) -> None:
    response = reads.http.head(path, headers=AUTHORIZED)

    assert (response.status_code, response.content) == (200, b"")
    assert reads.http.head(path).status_code == 401


def test_the_fast_lane_stays_open(any_redis: EmbeddedRedis) -> None:
    app = create_app(make_settings(any_redis.url, read_token=TOKEN))

    assert app.fast_lane.closed_by() == ""
    app.store.close()
    assert app.reader is not None
    app.reader.close()


# Sessions


def test_a_session_is_answered_as_it_was_published(reads: Endpoint, any_client: Any) -> None:
    put(reads)
    response = get(reads, "/sessions/sess_1")

    assert response.text == any_client.hget("{clerk}:session:sess_1", "state")
    assert response.headers["cache-control"] == "no-store"


def test_a_session_that_has_run_out_is_not_live(reads: Endpoint) -> None:
    now_ms = time.time_ns() // 1_000_000
    put(reads, expire_at=now_ms + 3000, actor={"sub": "user_2", "live": True, "last_active_organization_id": 1})
    before = get(reads, "/sessions/sess_1")
    time.sleep(max(0.0, (now_ms + 3010) / 1000 - time.time()))  # until its end
    after = get(reads, "/sessions/sess_1")

    assert before.json()["session"]["live"] is True
    assert after.json() == before.json() | {"session": before.json()["session"] | {"live": False}}
    assert after.headers["etag"] != before.headers["etag"]


def test_what_has_not_changed_is_304(reads: Endpoint) -> None:
    put(reads)
    for path in ("/sessions/sess_1", "/sessions", "/users/user_1/sessions", "/sessions/sess_1/history", "/stats"):
        etag = get(reads, path).headers["etag"]
        for header in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            response = get(reads, path, if_none_match=header)
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == etag
        assert get(reads, path, if_none_match='"x"').status_code == 200
    etag = get(reads, "/sessions/sess_1").headers["etag"]
    put(reads, status="ended")
    assert get(reads, "/sessions/sess_1", if_none_match=etag).status_code == 200


def test_what_is_not_stored_is_404(reads: Endpoint) -> None:
    for path in ("/sessions/sess_unknown", "/sessions/sess_unknown/history"):
        assert get(reads, path).json()["code"] == "not_found"
    assert get(reads, "/users/user_unknown/sessions").json() == {"sessions": [], "next": None}


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/sessions/a%20b",
            "/sessions/%0d%0aset-cookie:x",
            "/sessions/é",
            f"/sessions/{'a' * 129}",
            "/users/*/sessions",
        ),
        *(
            "/sessions/%00/history",
            "/sessions?user=a%0ab",
            "/sessions?user=",
            "/sessions?status=dead",
            "/sessions?status=",
        ),
        *("/sessions?limit=0", "/sessions?limit=501", "/sessions?limit=x", "/sessions?limit=-1", "/sessions?limit=1e2"),
        *("/sessions?limit=%D9%A1", "/sessions?after=x", "/sessions?after=", "/sessions?status=ended&after=0.1.1.s"),
        *(
            "/dead-letters?after=x",
            "/dead-letters?after=-1",
            f"/dead-letters?after={2**64}",
            f"/sessions/sess_1/history?after=0.{2**64}-0",
            "/dead-letters?limit=0",
        ),
        *("/sessions/sess_1/history?after=1-1", "/events?after=x", "/events?after=1-1-1", "/events?user=%0a"),
    ],
)
def test_a_wrong_parameter_is_400_and_named(reads: Endpoint, path: str) -> None:
    response = get(reads, path)

    assert (response.status_code, response.json()["code"]) == (400, "invalid_parameter")
    assert response.headers["cache-control"] == "no-store"


def test_lists_are_of_live_sessions_unless_told_otherwise(reads: Endpoint) -> None:
    put(reads, "sess_1")
    put(reads, "sess_2", user_id="user_2")
    put(reads, "sess_3", "ended")
    put(reads, "sess_4", "pending")

    def ids(path: str) -> list[str]:
        return [each["session"]["id"] for each in get(reads, path).json()["sessions"]]

    assert ids("/sessions") == ["sess_1", "sess_2"]
    assert ids("/sessions?user=user_2") == ["sess_2"]
    assert ids("/users/user_1/sessions") == ["sess_1"]
    assert ids("/users/user_1/sessions?status=pending") == ["sess_4"]
    assert ids("/sessions?status=ended&user=user_1") == ["sess_3"]


def test_pages_lead_to_each_other(reads: Endpoint) -> None:
    now_ms = time.time_ns() // 1_000_000
    for number in range(5):
        put(reads, f"sess_{number}", expire_at=now_ms + HOUR_MS + number)
    found, query = [], "?limit=2"
    for _ in range(3):
        page = get(reads, f"/sessions{query}").json()
        found += [each["session"]["id"] for each in page["sessions"]]
        query = f"?limit=2&after={page['next']}"

    assert found == [f"sess_{number}" for number in range(5)]
    assert page["next"] is None


def test_the_history_has_each_event_with_its_cursor(reads: Endpoint) -> None:
    first = put(reads)
    put(reads, "sess_2")
    late = reads.deliver(clerk_event(updated_at=time.time_ns() // 1_000_000 - HOUR_MS)).json()
    last = put(reads, status="ended")
    history = get(reads, "/sessions/sess_1/history").json()

    assert [(each["cursor"], each["revision"]) for each in history["events"]] == [
        (first["cursor"], 1),
        (late["cursor"], None),
        (last["cursor"], 2),
    ]
    assert history["next"] is None
    page = get(reads, "/sessions/sess_1/history?limit=2").json()
    rest = get(reads, f"/sessions/sess_1/history?after={page['next']}").json()
    assert page["events"] + rest["events"] == history["events"]


def test_dead_letters_are_listed_without_their_bodies(reads: Endpoint) -> None:
    for number in range(3):
        assert (
            reads.deliver({"type": "session.odd", "data": {"secret": f'MARKER","body":"{number}'}}).status_code == 202
        )
    listed = get(reads, "/dead-letters")

    assert "MARKER" not in listed.text
    letters = listed.json()["dead_letters"]
    assert [letter["reason"] for letter in letters] == ["invalid_id"] * 3
    assert all(letter["body_bytes"] > 50 for letter in letters)
    assert listed.json()["next"] is None


def test_dead_letters_come_in_pages(reads: Endpoint) -> None:
    for _ in range(40):
        assert reads.deliver({"type": "session.odd", "data": {"x": "x" * 100}}).status_code == 202
    found, after = set(), "0"
    for _ in range(100):
        page = get(reads, f"/dead-letters?limit=10&after={after}").json()
        found |= {letter["id"] for letter in page["dead_letters"]}
        after = page["next"]
        if after is None:
            break

    assert len(found) == 40


def test_the_stats_count(reads: Endpoint) -> None:
    put(reads)
    put(reads, "sess_2", "ended")
    reads.deliver({"type": "session.odd"})
    stats = get(reads, "/stats").json()

    assert {name: stats[name] for name in ("open_sessions", "dead_letters", "pending_revokes", "reconciled_at")} == {
        "open_sessions": 1,
        "dead_letters": 1,
        "pending_revokes": 0,
        "reconciled_at": None,
    }
    assert [stream["length"] for stream in stats["streams"]] == [2]


def test_omitted_fields_are_not_answered(any_redis: EmbeddedRedis, any_client: Any) -> None:
    settings = make_settings(any_redis.url, read_token=TOKEN, omit_fields="latest_activity.city,expire_at")
    with run_plain_wsgi(settings) as reads:
        put(reads)
        for path in ("/sessions/sess_1", "/sessions/sess_1/history", "/sessions"):
            assert '"city":null' in get(reads, path).text
            assert '"expire_at":null' in get(reads, path).text


def test_the_embedded_user_is_nowhere(reads: Endpoint) -> None:
    event = clerk_event(updated_at=time.time_ns() // 1_000_000)
    event["data"]["user"] = {"id": "user_1", "email": "MARKER@example.com"}
    assert reads.deliver(event).status_code == 200

    for path in ("/sessions/sess_1", "/sessions/sess_1/history", "/sessions", "/stats"):
        assert "MARKER" not in get(reads, path).text


def test_while_redis_hangs_it_is_503_in_time_and_deliveries_are_not_worse_off(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url, READ_TOKEN=TOKEN) as service:
        put(service)
        with frozen(own_redis):
            for path in ("/sessions/sess_1", "/sessions", "/stats", "/dead-letters"):
                response = get(service, path)
                assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
                assert response.headers["retry-after"] == "5"


def test_a_session_that_another_program_wrote_is_no_defect(reads: Endpoint, any_client: Any) -> None:
    put(reads)
    any_client.hset("{clerk}:session:sess_1", mapping={"_expire_at": "soon"})
    try:
        assert get(reads, "/sessions/sess_1").status_code == 503
        assert get(reads, "/sessions").status_code == 200
    finally:
        any_client.flushall()


def test_partitions_are_all_read(real_redis: EmbeddedRedis, real_client: Any) -> None:
    with run_plain_wsgi(make_settings(real_redis.url, read_token=TOKEN, partitions=4)) as reads:
        for number in range(8):
            put(reads, f"sess_{number}", user_id=f"user_{number}")
        assert len(get(reads, "/sessions").json()["sessions"]) == 8
        assert get(reads, "/sessions/sess_5").json()["session"]["user_id"] == "user_5"
        assert len(get(reads, "/sessions/sess_5/history").json()["events"]) == 1
        assert get(reads, "/stats").json()["open_sessions"] == 8
        assert json.loads(get(reads, "/users/user_3/sessions").text)["sessions"][0]["session"]["id"] == "sess_3"
