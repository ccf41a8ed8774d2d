"""The way of one delivery, after its signature: where each kind of event goes. No Redis, no HTTP."""

import json
from concurrent.futures import Future
from typing import Any
from unittest import mock

import pytest
from support.constants import NOW_MS
from support.events import clerk_event, user_event

from service.errors import MalformedEventError, StoreUnavailableError
from service.ingest import Ingest
from service.models import Delivery, DeliveryInfo, Outcome, SessionChange, Unusable
from service.waiting import Steps


class Store:
    """Writes down what it is asked to keep, and answers what the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answer: Outcome | Exception = Outcome("applied", "sess_1", "1-0", 1)

    def apply(self, change: SessionChange, body: bytes, now_ms: int) -> Steps[Outcome]:
        self.asked.append(("apply", change, body, now_ms))
        answer: Future[Outcome] = Future()
        if isinstance(self.answer, Exception):
            answer.set_exception(self.answer)
        else:
            answer.set_result(self.answer)
        return (yield answer)  # type: ignore[no-any-return]

    def keep_dead_letter(self, delivery: Delivery, why: Unusable, now_ms: int) -> Outcome:
        self.asked.append(("keep_dead_letter", delivery, why, now_ms))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def ingest(store: Store) -> Ingest:
    return Ingest(store, clock=lambda: NOW_MS / 1000)  # type: ignore[arg-type]


def delivery(event: object) -> Delivery:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    return Delivery("msg_1", NOW_MS // 1000, body)


def test_a_session_event_is_applied_and_its_answer_is_the_stores(ingest: Ingest, store: Store) -> None:
    assert ingest(delivery(clerk_event("active"))) is store.answer

    [(asked, change, body, now_ms)] = store.asked
    assert (asked, json.loads(body)["type"], now_ms) == ("apply", "session.created", NOW_MS)
    assert change.event.id == "msg_1"
    assert change.session.status == "active"


@pytest.mark.parametrize(
    "type_", ["user.created", "organization.deleted", "session", "sessionx.created", "user.updated"]
)
def test_another_event_is_ignored_without_the_store(ingest: Ingest, store: Store, type_: str) -> None:
    assert ingest(delivery({"type": type_, "data": 1})) == Outcome("ignored")
    assert store.asked == []


@pytest.mark.parametrize(("type_", "status"), [("user.deleted", "removed"), ("user.updated", "revoked")])
def test_an_event_that_ends_a_users_sessions_does_so(
    ingest: Ingest, store: Store, monkeypatch: pytest.MonkeyPatch, type_: str, status: str
) -> None:
    answer = Outcome("applied", sessions=3)
    end_sessions = mock.Mock(return_value=answer)
    monkeypatch.setattr("service.ingest.end_sessions", end_sessions)
    info = DeliveryInfo()

    assert ingest(delivery(user_event(type_)), info) is answer

    asked, end, now_ms = end_sessions.call_args.args
    assert (asked, end.user_id, end.status, end.event.id, now_ms) == (store, "user_1", status, "msg_1", NOW_MS)
    assert (info.type, info.user_id, info.session_id) == (type_, "user_1", None)
    assert store.asked == []


def test_an_event_about_a_user_without_an_id_is_kept_without_the_profile(ingest: Ingest, store: Store) -> None:
    assert ingest(delivery(user_event(id=None, first_name="Ada"))) is store.answer

    [(asked, _, why, _)] = store.asked
    assert (asked, why.reason) == ("keep_dead_letter", "invalid_user_id")
    assert b"Ada" not in why.kept


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"type": "session.created"}, "invalid_data"),
        (clerk_event("active", id="sess 1"), "invalid_id"),
        # Known only once it is normalized:
        (clerk_event(None, type_="session.created"), "invalid_status"),
        (clerk_event("active", updated_at=NOW_MS + 86_400_001), "invalid_updated_at"),
    ],
)
def test_what_can_not_be_turned_into_state_becomes_a_dead_letter(
    ingest: Ingest, store: Store, event: dict[str, Any], reason: str
) -> None:
    sent = delivery(event)

    assert ingest(sent) is store.answer

    [(asked, kept, why, now_ms)] = store.asked
    assert (asked, kept, why.reason, now_ms) == ("keep_dead_letter", sent, reason, NOW_MS)


def test_what_is_no_event_is_an_error_and_not_kept(ingest: Ingest, store: Store) -> None:
    with pytest.raises(MalformedEventError):
        ingest(delivery(b"[]"))

    assert store.asked == []


def test_odd_metadata_is_noted_by_field(ingest: Ingest, store: Store) -> None:
    info = DeliveryInfo()
    event = clerk_event("active", client_id=17, latest_activity={"city": 4, "country": "NO"})

    ingest(delivery(event), info)

    [(_, read, *_)] = store.asked
    assert sorted(info.nulled) == ["city", "client_id"]
    assert read.session.latest_activity is not None
    assert read.session.latest_activity.country == "NO"


def test_whether_a_session_is_live_is_told_by_the_clock(store: Store) -> None:
    for now_ms in [NOW_MS, NOW_MS + 2000]:
        ingest = Ingest(store, clock=lambda now_ms=now_ms: now_ms / 1000)  # type: ignore[arg-type,misc]
        ingest(delivery(clerk_event("active", expire_at=NOW_MS + 1000)))

    assert [change.session.live for _, change, *_ in store.asked] == [True, False]


def test_the_http_request_comes_along_only_on_request(store: Store) -> None:
    for publish in [False, True]:
        Ingest(store, publish_http_request=publish, clock=lambda: NOW_MS / 1000)(  # type: ignore[arg-type]
            delivery(clerk_event("active"))
        )

    without, with_request = [change.event for _, change, *_ in store.asked]
    assert not hasattr(without, "http_request")
    assert with_request.http_request.client_ip == "192.0.2.44"


def test_a_store_that_refuses_is_heard(ingest: Ingest, store: Store) -> None:
    store.answer = StoreUnavailableError("Redis timed out a moment ago.")

    with pytest.raises(StoreUnavailableError):
        ingest(delivery(clerk_event("active")))
