"""Pages of sessions for readers: by the indexes that there are, each session once."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.constants import DAY_MS, HOUR_MS
from support.events import clerk_event
from support.relay import Relay, make_settings

from service.dev.embedded import EmbeddedRedis
from service.store import listing
from service.store.listing import WANTED, list_sessions
from service.store.queries import Queries

Put = Callable[..., None]


@pytest.fixture
def relay(partitioned_relay: Relay) -> Relay:
    return partitioned_relay


@pytest.fixture
def queries(real_redis: EmbeddedRedis, partitions: int) -> Iterator[Queries]:
    with contextlib.closing(Queries(make_settings(real_redis.url, partitions=partitions))) as queries:
        yield queries


@pytest.fixture
def put(relay: Relay, now_ms: int) -> Put:
    def put(session_id: str, status: str = "active", user_id: str = "user_1", **values: Any) -> None:
        values = {"updated_at": now_ms - 1000, "expire_at": now_ms + DAY_MS} | values
        event = clerk_event(status, session_id=session_id, user_id=user_id, **values)
        assert relay.take(event, f"msg_{session_id}_{status}_{values['updated_at']}").outcome == "applied"

    return put


def ids_of(messages: list[bytes]) -> list[str]:
    return [json.loads(message)["session"]["id"] for message in messages]


def listed(queries: Queries, status: str = "live", user_id: str | None = None, limit: int = 3) -> list[str]:
    """Return all that the pages have, as one list."""
    found: list[str] = []
    after = None
    for _ in range(1000):
        page = list_sessions(queries, status, user_id, after, limit)
        assert len(page.messages) <= limit
        found += ids_of(page.messages)
        if page.next is None:
            return found
        assert page.next != after
        after = page.next
    raise AssertionError("the list has no end")


@pytest.fixture
def some(put: Put, now_ms: int) -> None:
    for number in range(8):
        put(f"sess_live_{number}", user_id=f"user_{number}", expire_at=now_ms + HOUR_MS + number)
        put(f"sess_over_{number}", user_id=f"user_{number}")
        put(f"sess_over_{number}", "revoked", user_id=f"user_{number}", updated_at=now_ms - 500)
    put("sess_pending", "pending", user_id="user_2")
    put("sess_run_out", user_id="user_2", updated_at=now_ms - 2 * HOUR_MS, expire_at=now_ms - HOUR_MS)
    put("sess_ended", "ended", user_id="user_3")


LIVE = {f"sess_live_{number}" for number in range(8)}
OVER = {f"sess_over_{number}" for number in range(8)}


@pytest.mark.usefixtures("some")
class TestAll:
    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            ("live", LIVE),
            ("pending", {"sess_pending"}),
            ("ended", OVER | {"sess_ended", "sess_run_out"}),
            ("active", LIVE | {"sess_run_out"}),
            ("revoked", OVER),
            ("removed", set()),
        ],
    )
    @pytest.mark.parametrize("limit", [1, 3, 500])
    def test_each_session_of_a_status_is_listed_once(
        self, queries: Queries, status: str, expected: set[str], limit: int
    ) -> None:
        found = listed(queries, status, limit=limit)

        assert sorted(found) == sorted(expected)

    @pytest.mark.parametrize("status", WANTED)
    def test_those_of_a_user_are_those_of_all_that_are_the_users(self, queries: Queries, status: str) -> None:
        everything, of_user = (
            {
                json.loads(each)["session"]["id"]: each
                for each in list_sessions(queries, status, user, None, 500).messages
            }
            for user in (None, "user_2")
        )

        assert of_user == {id_: each for id_, each in everything.items() if b'"user_id":"user_2"' in each}

    def test_a_session_that_has_run_out_is_not_live_in_what_is_answered(self, queries: Queries) -> None:
        (message,) = [
            each for each in list_sessions(queries, "active", "user_2", None, 500).messages if b"sess_run_out" in each
        ]

        assert json.loads(message)["session"]["live"] is False


def test_open_sessions_come_in_the_order_in_which_they_run_out(put: Put, queries: Queries, now_ms: int) -> None:
    for number in (5, 2, 9, 1):
        put(f"sess_{number}", expire_at=now_ms + HOUR_MS + number)

    assert listed(queries) == ["sess_1", "sess_2", "sess_5", "sess_9"]


def test_ended_sessions_come_the_latest_first(put: Put, queries: Queries) -> None:
    for number in (5, 2, 9, 1):
        put(f"sess_{number}", "ended")

    assert listed(queries, "ended") == ["sess_1", "sess_9", "sess_2", "sess_5"]


def test_sessions_without_an_end_are_in_the_list_of_their_user(put: Put, queries: Queries) -> None:
    for number in range(7):
        put(f"sess_{number}", expire_at=None)

    assert listed(queries, user_id="user_1") == [f"sess_{number}" for number in range(7)]
    assert listed(queries) == []


def test_many_that_run_out_at_the_same_time_are_each_listed_once(
    put: Put, queries: Queries, now_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK", 4)
    for number in range(15):
        put(f"sess_{number:02}", expire_at=now_ms + HOUR_MS)

    assert listed(queries) == [f"sess_{number:02}" for number in range(15)]


def test_what_stays_is_listed_once_while_others_come_and_go(
    put: Put, queries: Queries, now_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK", 4)
    for number in range(20):
        put(f"sess_{number:02}", expire_at=now_ms + HOUR_MS)
    found: list[str] = []
    after = None
    for number in range(100):
        page = list_sessions(queries, "live", "user_1", after, 3)
        found += ids_of(page.messages)
        if page.next is None:
            break
        after = page.next
        if number < 10:  # one before the place, and one behind it; and others come at both ends
            put(f"sess_{number:02}", "ended", updated_at=now_ms - 100)
            put(f"sess_{number:02}_new", expire_at=now_ms + HOUR_MS - 1)
            put(f"sess_99_{number:02}", expire_at=now_ms + HOUR_MS)

    assert len(found) == len(set(found))
    assert set(found) >= {f"sess_{number:02}" for number in range(10, 20)}


def test_a_page_looks_at_a_bounded_number_and_says_where_to_go_on(
    put: Put, queries: Queries, now_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK", 4)
    monkeypatch.setattr(listing, "LOOKED_AT", 4)
    for number in range(12):
        put(f"sess_{number:02}", expire_at=now_ms + HOUR_MS + number)
    put("sess_last", "pending", expire_at=now_ms + 2 * HOUR_MS)

    assert list_sessions(queries, "pending", None, None, 3).messages == []
    assert listed(queries, "pending") == ["sess_last"]
    assert listed(queries, "ended") == []


@pytest.mark.parametrize("after", ["", "x", "0.1.sess_1", "0.1-1", "-1.5.1.sess_1", "0.1e9.1.sess_1", "0.1.1.sess 1"])
def test_what_is_no_place_in_the_list_is_refused(queries: Queries, after: str) -> None:
    with pytest.raises(ValueError, match="no `next`"):
        list_sessions(queries, "live", None, after, 3)


@pytest.mark.parametrize("after", ["", "x", "0.1", "0.1.1.sess_1", "0.-1", f"0.{2**64}-0"])
def test_what_is_no_place_in_the_list_of_ended_ones_is_refused(queries: Queries, after: str) -> None:
    with pytest.raises(ValueError, match="no `next`"):
        list_sessions(queries, "ended", None, after, 3)


@pytest.mark.parametrize("after", ["99999.5.1.sess_1", "0.inf.999999999.sess_1", "0.0.999999999.sess_1"])
def test_a_place_that_was_made_up_is_dealt_with_in_a_few_round_trips(put: Put, queries: Queries, after: str) -> None:
    put("sess_1")

    assert len(list_sessions(queries, "live", None, after, 3).messages) <= 1
