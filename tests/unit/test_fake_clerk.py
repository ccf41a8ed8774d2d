"""The stand-in for Clerk: what happens to users and sessions, what its API answers, and its faults; without HTTP."""

import json
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from support.clerks_own import needs_clerks_own, schemas
from support.constants import DAY_MS, NOW_MS, NOW_S
from support.parsing import change

from service.dev import fake_clerk_http
from service.dev.fake_clerk import ABSENT, FakeClerk
from service.dev.fake_clerk_http import ApiError, RateLimit, Request

Event = dict[str, Any]


class Clock:
    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def clerk(clock: Clock, events: list[Event]) -> FakeClerk:
    return FakeClerk(clock=clock, on_webhook=events.append)


def get(clerk: FakeClerk, path: str, **query: object) -> Any:
    return clerk.answer("GET", f"/v1/{path}", {name: str(value) for name, value in query.items()})


def refusal(clerk: FakeClerk, path: str, **query: object) -> ApiError:
    with pytest.raises(ApiError) as raised:
        get(clerk, path, **query)
    return raised.value


def ids(objects: list[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in objects]


def types(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


# What Clerk tells by webhook, and what not.


def test_a_webhook_is_an_event_that_the_relay_takes(clerk: FakeClerk, events: list[Event]) -> None:
    user = clerk.add_user()
    session = clerk.sign_in(user, actor={"sub": "user_support"})

    made = change(events[-1])

    assert (made.event.type, made.event.occurred_at) == ("session.created", NOW_MS)
    assert made.event.instance_id == clerk.instance_id
    assert (made.session.id, made.session.user_id, made.session.live) == (session, user, True)
    assert (made.session.updated_at, made.session.expire_at) == (NOW_MS, NOW_MS + 7 * DAY_MS)
    assert events[-1]["data"]["user"]["id"] == user


def test_of_a_session_with_a_task_session_pending_tells(clerk: FakeClerk, events: list[Event]) -> None:
    clerk.sign_in(clerk.add_user(), status="pending")
    assert types(events) == ["user.created", "session.pending"]
    assert events[-1]["data"]["tasks"]


@pytest.mark.parametrize("status", ["ended", "removed", "revoked"])
def test_a_webhook_tells_of_this_end(clerk: FakeClerk, events: list[Event], clock: Clock, status: str) -> None:
    session = clerk.sign_in(clerk.add_user())
    clock.now_s += 1
    clerk.end(session, status)
    assert events[-1]["type"] == f"session.{status}"
    assert (events[-1]["data"]["status"], events[-1]["data"]["updated_at"]) == (status, NOW_MS + 1000)
    assert get(clerk, f"sessions/{session}")["status"] == status


@pytest.mark.parametrize("status", ["expired", "abandoned", "replaced"])
def test_no_webhook_tells_of_this_end(clerk: FakeClerk, events: list[Event], status: str) -> None:
    session = clerk.sign_in(clerk.add_user())
    events.clear()
    clerk.end(session, status)
    assert events == []
    assert get(clerk, f"sessions/{session}")["status"] == status


def test_activity_moves_the_times_of_a_session_and_no_webhook_tells(
    clerk: FakeClerk, events: list[Event], clock: Clock
) -> None:
    session = clerk.sign_in(clerk.add_user())
    events.clear()
    before = clerk.get(session)
    clock.now_s += 3600
    clerk.touch(session)
    after = clerk.get(session)
    moved = {"last_active_at", "updated_at", "abandon_at", "latest_activity"}
    assert {name for name in after if after[name] != before[name]} == moved
    assert all(after[name] - before[name] == 3_600_000 for name in moved - {"latest_activity"})
    assert events == []


def test_no_webhook_tells_of_a_later_end(clerk: FakeClerk, events: list[Event]) -> None:
    session = clerk.sign_in(clerk.add_user())
    events.clear()
    clerk.extend(session, NOW_MS + 30 * DAY_MS)
    assert clerk.get(session)["expire_at"] == NOW_MS + 30 * DAY_MS
    assert events == []


def test_a_ban_revokes_the_open_sessions_and_user_updated_tells(clerk: FakeClerk, events: list[Event]) -> None:
    user = clerk.add_user()
    other = clerk.sign_in(clerk.add_user())
    sessions = {status: clerk.sign_in(user, status=status) for status in ("active", "pending", "ended")}
    events.clear()
    clerk.ban(user)
    statuses = {status: clerk.get(session)["status"] for status, session in sessions.items()}
    assert statuses == {"active": "revoked", "pending": "revoked", "ended": "ended"}
    assert clerk.get(other)["status"] == "active"
    assert types(events) == ["user.updated"]
    assert (events[0]["data"]["id"], events[0]["data"]["banned"]) == (user, True)


def test_a_banned_user_cannot_sign_in(clerk: FakeClerk) -> None:
    user = clerk.add_user()
    clerk.ban(user)
    with pytest.raises(ValueError, match="banned"):
        clerk.sign_in(user)


def test_the_sessions_of_a_deleted_user_are_gone_and_user_deleted_tells(clerk: FakeClerk, events: list[Event]) -> None:
    user = clerk.add_user()
    session = clerk.sign_in(user)
    events.clear()
    clerk.delete_user(user)
    assert refusal(clerk, f"users/{user}").status == 404
    assert refusal(clerk, f"sessions/{session}").status == 404
    assert get(clerk, "sessions", user_id=user) == []
    assert types(events) == ["user.deleted"]
    assert events[0]["data"] == {"object": "user", "id": user, "deleted": True}


def test_a_session_that_vanished_is_neither_listed_nor_found(clerk: FakeClerk, events: list[Event]) -> None:
    user = clerk.add_user()
    session, other = clerk.sign_in(user), clerk.sign_in(user)
    events.clear()
    clerk.vanish(session)
    assert ids(get(clerk, "sessions", user_id=user)) == [other]
    assert refusal(clerk, f"sessions/{session}").status == 404
    assert events == []


def test_lost_webhooks_are_not_sent(clerk: FakeClerk, events: list[Event]) -> None:
    user = clerk.add_user()
    with clerk.webhooks_lost():
        session = clerk.sign_in(user)
    clerk.end(session)
    assert types(events) == ["user.created", "session.ended"]


def test_a_share_of_the_webhooks_is_lost_the_same_for_the_same_seed() -> None:
    def told() -> list[int]:
        events: list[Event] = []
        clerk = FakeClerk(lose_webhooks=0.2, seed=7, on_webhook=events.append)
        for n in range(1000):
            clerk.add_user(n=n)
        return [event["data"]["n"] for event in events]

    first = told()
    assert 750 < len(first) < 850
    assert told() == first


def test_an_event_can_be_made_to_be_sent_late(clerk: FakeClerk) -> None:
    session = clerk.sign_in(clerk.add_user())
    late = clerk.event("session.created", session)
    clerk.end(session)
    assert late["data"]["status"] == "active"


# Odd sessions.


def test_any_field_is_set_to_anything_or_left_out(clerk: FakeClerk) -> None:
    user = clerk.add_user()
    session = clerk.sign_in(user)
    clerk.set(session, status="hibernating", created_at="soon", client_id=ABSENT)
    [listed] = get(clerk, "sessions", user_id=user)
    assert (listed["status"], listed["created_at"]) == ("hibernating", "soon")
    assert "client_id" not in listed


def test_a_session_that_changed_users_is_listed_with_the_new_one(clerk: FakeClerk) -> None:
    first, second = clerk.add_user(), clerk.add_user()
    session = clerk.sign_in(first)
    clerk.set(session, user_id=second)
    assert get(clerk, "sessions", user_id=first) == []
    assert ids(get(clerk, "sessions", user_id=second)) == [session]


@pytest.mark.parametrize("change_it", [FakeClerk.end, FakeClerk.touch, FakeClerk.set, FakeClerk.ban, FakeClerk.sign_in])
def test_what_is_not_there_is_not_changed(clerk: FakeClerk, change_it: Any) -> None:
    with pytest.raises(KeyError):
        change_it(clerk, "sess_of_nobody")


# Sessions, as the API lists them.


def test_ten_sessions_are_listed_unless_a_limit_says_otherwise(clerk: FakeClerk) -> None:
    user = clerk.add_user()
    newest_first = [clerk.sign_in(user, created_at=NOW_MS - n) for n in range(25)]
    assert ids(get(clerk, "sessions", user_id=user)) == newest_first[:10]
    assert ids(get(clerk, "sessions", user_id=user, limit=20, offset=3)) == newest_first[3:23]
    assert get(clerk, "sessions", user_id=user, limit=500, offset=25) == []


def test_paginated_sessions_are_an_object_with_their_number(clerk: FakeClerk) -> None:
    user = clerk.add_user()
    for _ in range(3):
        clerk.sign_in(user)
    whole = get(clerk, "sessions", user_id=user)
    assert get(clerk, "sessions", user_id=user, paginated="true", limit=2) == {"data": whole[:2], "total_count": 3}


def test_sessions_are_listed_by_status_client_or_both(clerk: FakeClerk) -> None:
    user, other = clerk.add_user(), clerk.add_user()
    mine, ended = clerk.sign_in(user, client_id="client_1"), clerk.sign_in(user, status="ended")
    theirs = clerk.sign_in(other, client_id="client_1")
    assert ids(get(clerk, "sessions", user_id=user, status="ended")) == [ended]
    assert ids(get(clerk, "sessions", client_id="client_1")) == [theirs, mine]
    assert ids(get(clerk, "sessions", client_id="client_1", user_id=user)) == [mine]


def test_a_session_by_id_has_no_latest_activity(clerk: FakeClerk) -> None:
    user = clerk.add_user()
    session = clerk.sign_in(user)
    [listed] = get(clerk, "sessions", user_id=user)
    assert listed.pop("latest_activity")
    assert get(clerk, f"sessions/{session}") == listed


@needs_clerks_own
def test_a_session_has_the_fields_of_clerks_schema(clerk: FakeClerk) -> None:
    schema = schemas()["Session"]
    user = clerk.add_user()
    session = clerk.sign_in(user)
    assert set(get(clerk, "sessions", user_id=user)[0]) == set(schema["properties"])
    assert set(get(clerk, f"sessions/{session}")) >= set(schema["required"])


def test_a_session_is_revoked_once(clerk: FakeClerk, events: list[Event]) -> None:
    session = clerk.sign_in(clerk.add_user())
    first, second = (clerk.answer("POST", f"/v1/sessions/{session}/revoke", {}) for _ in range(2))
    assert (first["id"], first["status"]) == (session, "revoked")
    assert second == first
    assert types(events)[-2:] == ["session.created", "session.revoked"]


# Users, as the API lists them.


def test_a_cursor_leads_through_all_users_while_some_come_and_go(clerk: FakeClerk) -> None:
    users = [clerk.add_user(created_at=NOW_MS - n // 3) for n in range(35)]  # several at the same time
    seen: list[str] = []
    after: dict[str, str] = {}
    while page := ids(get(clerk, "users", limit=4, **after)):
        seen += page
        after = {"starting_after": page[-1]}
        clerk.delete_user(page[0])
        clerk.add_user(created_at=NOW_MS + len(seen))
    assert len(seen) == len(set(seen)) == 35
    assert set(seen) == set(users)


def test_a_cursor_follows_the_order_of_creation_upwards_too(clerk: FakeClerk) -> None:
    users = [clerk.add_user(created_at=NOW_MS + n) for n in range(5)]
    assert ids(get(clerk, "users", order_by="created_at", starting_after=users[1])) == users[2:]
    assert ids(get(clerk, "users", order_by="-created_at", starting_after=users[3])) == users[2::-1]


def test_users_are_selected_by_milliseconds_and_shown_by_days(clerk: FakeClerk) -> None:
    early, late, never = clerk.add_user(), clerk.add_user(), clerk.add_user()
    clerk.sign_in(early, created_at=NOW_MS)
    clerk.sign_in(late, created_at=NOW_MS + 1)
    for bound in ("last_active_at_after", "last_sign_in_at_after"):
        assert ids(get(clerk, "users", **{bound: NOW_MS})) == [late]
    assert ids(get(clerk, "users", last_sign_in_at_before=NOW_MS + 1)) == [early]
    assert get(clerk, f"users/{late}")["last_active_at"] == NOW_MS // DAY_MS * DAY_MS
    assert get(clerk, f"users/{late}")["last_sign_in_at"] == NOW_MS + 1
    assert get(clerk, f"users/{never}")["last_active_at"] is None


def test_users_are_ordered_by_their_last_sign_in(clerk: FakeClerk) -> None:
    users = [clerk.add_user() for _ in range(3)]
    for n in (2, 0, 1):
        clerk.sign_in(users[n], created_at=NOW_MS - n)
    assert ids(get(clerk, "users", order_by="-last_sign_in_at")) == users
    assert ids(get(clerk, "users", order_by=" last_sign_in_at")) == users[::-1]  # a + that was not escaped


def test_banned_users_are_listed_apart(clerk: FakeClerk) -> None:
    banned, free = clerk.add_user(), clerk.add_user()
    clerk.ban(banned)
    assert ids(get(clerk, "users", banned="true")) == [banned]
    assert ids(get(clerk, "users", banned="false")) == [free]


def test_the_instance_says_its_id_and_environment() -> None:
    clerk = FakeClerk(instance_id="ins_1", environment="production")
    assert get(clerk, "instance")["id"] == "ins_1"
    assert get(clerk, "instance")["environment_type"] == "production"
    assert clerk.secret_key.startswith("sk_live_")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("sessions", {}),
        ("sessions", {"user_id": "u", "status": "pending"}),
        ("sessions", {"user_id": "u", "limit": "0"}),
        ("sessions", {"user_id": "u", "limit": "501"}),
        ("sessions", {"user_id": "u", "offset": "-1"}),
        ("users", {"limit": "501"}),
        ("users", {"limit": "ten"}),
        ("users", {"order_by": "age"}),
        ("users", {"starting_after": "user_1", "order_by": "-last_active_at"}),
        ("users", {"starting_after": "user_1", "offset": "1"}),
        ("users", {"starting_after": "user_of_nobody"}),
        ("users", {"last_active_at_after": "yesterday"}),
    ],
)
def test_this_is_refused(clerk: FakeClerk, path: str, query: dict[str, str]) -> None:
    clerk.add_user(id="user_1")
    error = refusal(clerk, path, **query)
    assert error.status == 422
    assert error.body["errors"][0]["meta"]["param_name"] in {*query, "user_id"}


@pytest.mark.parametrize(("path", "query"), [("sessions", {"user_id": "u", "query": "x"}), ("organizations", {})])
def test_what_the_stand_in_does_not_know_is_not_left_out_of_account(
    clerk: FakeClerk, path: str, query: dict[str, str]
) -> None:
    assert refusal(clerk, path, **query).status == 501


# Keys, limits and faults.


def status(clerk: FakeClerk, target: str = "/v1/instance", method: str = "GET", key: str | None = None) -> int:
    return clerk.respond(method, target, f"Bearer {key or clerk.secret_key}").status


@pytest.mark.parametrize("authorization", [None, "", "Bearer sk_test_other", "Basic sk_test_1", "sk_test_1"])
def test_without_the_key_nothing_is_answered(authorization: str | None) -> None:
    response = FakeClerk(secret_key="sk_test_1").respond("GET", "/v1/instance", authorization)
    assert response.status == 401
    assert set(json.loads(response.body)["errors"][0]) == {"message", "long_message", "code", "meta"}


def test_each_answer_has_the_date_in_whole_seconds(clerk: FakeClerk, clock: Clock) -> None:
    clock.now_s += 0.999
    for key in (clerk.secret_key, "another"):
        assert clerk.respond("GET", "/v1/x", f"Bearer {key}").headers["Date"] == "Mon, 23 Nov 2026 08:33:20 GMT"


def test_a_limit_counts_in_any_window_of_its_length() -> None:
    limit, taken = RateLimit(2, 10), deque[float]()
    assert [limit.wait(taken, now) for now in (0, 6, 7, 9.5)] == [0, 0, 3, 0.5]
    assert [limit.wait(taken, now) for now in (10, 11, 16)] == [0, 5, 0]


def test_over_the_limit_an_answer_says_after_how_many_whole_seconds_to_come_again(
    clerk: FakeClerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    clerk.rate_limit = (2, 10)
    times = iter([0.0, 6.0, 7.5, 10.0])
    monkeypatch.setattr(fake_clerk_http, "time", SimpleNamespace(monotonic=lambda: next(times)))
    responses = [clerk.respond("GET", "/v1/instance", f"Bearer {clerk.secret_key}") for _ in range(4)]
    assert [response.status for response in responses] == [200, 200, 429, 200]
    assert responses[2].headers["Retry-After"] == "3"


def test_a_share_of_the_answers_are_errors_the_same_for_the_same_seed() -> None:
    statuses = [[status(clerk) for _ in range(1000)] for clerk in (FakeClerk(errors=0.1, seed=3) for _ in range(2))]
    assert statuses[0] == statuses[1]
    assert 60 < sum(each >= 500 for each in statuses[0]) < 140
    assert set(statuses[0]) == {200, 500, 502, 503, 504}


def test_a_fault_happens_before_anything_changes(clerk: FakeClerk) -> None:
    session = clerk.sign_in(clerk.add_user())
    clerk.errors = 1
    assert status(clerk, f"/v1/sessions/{session}/revoke", "POST") >= 500
    assert clerk.get(session)["status"] == "active"


def test_what_happens_on_a_request_is_in_its_answer(clerk: FakeClerk) -> None:
    user = clerk.add_user()
    session = clerk.sign_in(user)
    seen: list[tuple[str, str, dict[str, str]]] = []

    def end(method: str, path: str, query: dict[str, str]) -> None:
        seen.append((method, path, query))
        clerk.end(session)

    clerk.on_request = end
    response = clerk.respond("GET", f"/v1/sessions?user_id={user}&limit=1", f"Bearer {clerk.secret_key}")
    assert json.loads(response.body)[0]["status"] == "ended"
    assert seen == [("GET", "/v1/sessions", {"user_id": user, "limit": "1"})]


def test_a_change_after_half_of_the_latency_is_not_in_the_answer(
    clerk: FakeClerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = clerk.sign_in(clerk.add_user(), status="pending")
    clerk.latency = 2
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        clerk.set(session, status=["active", "ended"][len(waited) - 1])

    monkeypatch.setattr(clerk._stopping, "wait", wait)
    response = clerk.respond("GET", f"/v1/sessions/{session}", f"Bearer {clerk.secret_key}")
    assert waited == [1, 1]
    assert json.loads(response.body)["status"] == "active"


def test_of_a_parameter_that_is_given_twice_the_first_counts(clerk: FakeClerk) -> None:
    users = [clerk.add_user(created_at=NOW_MS + n) for n in range(2)]
    response = clerk.respond("GET", "/v1/users?order_by=created_at&order_by=username", f"Bearer {clerk.secret_key}")
    assert ids(json.loads(response.body)) == users
    response = clerk.respond("GET", "/v1/users?limit=1&limit=2", f"Bearer {clerk.secret_key}")
    assert ids(json.loads(response.body)) == users[1:]


@pytest.mark.parametrize("forced", [404, 429, 503])
def test_a_test_can_choose_an_answer(clerk: FakeClerk, forced: int) -> None:
    clerk.on_request = lambda *_: forced
    response = clerk.respond("GET", "/v1/instance", f"Bearer {clerk.secret_key}")
    assert response.status == forced
    assert ("Retry-After" in response.headers) == (forced == 429)


def test_what_else_a_callback_returns_is_no_answer(clerk: FakeClerk) -> None:
    clerk.on_request = lambda *_: clerk.add_user()
    assert status(clerk) == 200


def test_each_request_is_recorded_with_its_status(clerk: FakeClerk) -> None:
    status(clerk, "/v1/users?limit=1")
    status(clerk, "/v1/sessions/sess_1/revoke", "POST")
    status(clerk, key="another")
    assert [request[1:] for request in clerk.requests] == [
        ("GET", "/v1/users?limit=1", 200),
        ("POST", "/v1/sessions/sess_1/revoke", 404),
        ("GET", "/v1/instance", 401),
    ]


def test_requests_are_counted_in_the_window_with_most_of_them(clerk: FakeClerk) -> None:
    assert clerk.most_in_window(10) == 0
    clerk.requests = [Request(at, "GET", "/", 200) for at in (30.0, 0.0, 9.5, 10.0, 19.0, 19.5)]
    assert clerk.most_in_window(10) == 3  # 9.5, 10 and 19; what comes 10 s after the first is in the next window
    assert clerk.most_in_window(10.1) == 4
    assert clerk.most_in_window(1000) == 6


def test_outside_of_its_with_it_has_no_url(clerk: FakeClerk) -> None:
    with pytest.raises(RuntimeError, match="with"):
        _ = clerk.url
