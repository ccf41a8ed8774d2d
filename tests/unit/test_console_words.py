"""What the console says: why a session is live or not, what changed, and what of a dead letter is masked."""

import json
from typing import Any

import pytest
from support.constants import DAY_MS, HOUR_MS, NOW_MS
from support.events import event

from service.app.console import explain
from service.app.console.masking import masked
from service.app.console.pages import render
from service.app.console.words import moment, place_of, span

SESSION: dict[str, Any] = {
    "id": "sess_1",
    "status": "active",
    "live": True,
    "expire_at": NOW_MS + 7 * DAY_MS,
    "tasks": [],
    "actor": None,
}


def why(type_: str = "session.created", source: str = "clerk", **session: Any) -> str:
    happened = {"type": type_, "source": source, "occurred_at": NOW_MS - HOUR_MS}
    return explain.why({"session": SESSION | session, "event": happened}, NOW_MS)


OVER = {"live": False, "status": "expired"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (why(), "Live: it is active, and no event has ended it. It ends in 7 d"),
        (why(expire_at=None), "it has no end that is known"),
        (why(actor={"sub": "user_2"}), "Somebody impersonates the user"),
        (why(expire_at=NOW_MS - 65_000), "Not live: it ran out 1 min 5 s ago"),
        (why(status="pending", live=False, tasks=[{"key": "choose-organization"}]), "still to do: choose-organization"),
        (why("session.expired", "synthetic", **OVER), "`session-relay expire` found it"),
        (why("session.revoked", "relay", status="revoked", live=False), "revoked here 1 h ago"),
        (why("session.ended", "clerk-api", status="ended", live=False), "`session-relay reconcile` found it"),
        (why("user.deleted", status="removed", live=False), "its user was deleted 1 h ago"),
        (why("user.updated", status="revoked", live=False), "its user was banned 1 h ago"),
        (why("session.ended", status="ended", live=False), "Clerk reported session.ended 1 h ago"),
        (why(status="dormant", live=False), "does not know its status dormant"),
    ],
)
def test_says_why_a_session_is_live_or_not(said: str, expected: str) -> None:
    assert expected in said


def test_says_that_clerk_has_still_to_be_told() -> None:
    message = {"session": SESSION | {"live": False, "status": "revoked"}, "event": {"source": "relay"}}
    said = explain.why(message, NOW_MS, at_clerk_since_ms=NOW_MS - HOUR_MS)
    assert "Clerk has still to be told: ordered 1 h ago" in said


def test_names_what_changed_and_inside_of_the_activity() -> None:
    before = SESSION | {"latest_activity": {"city": "Oslo", "id": "a"}}
    after = SESSION | {"latest_activity": {"city": "Bergen", "id": "b"}, "status": "ended"}
    assert explain.changes(before, after) == [("status", "active", "ended"), ("latest_activity.city", "Oslo", "Bergen")]


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (0, "0 s"),
        (999, "0 s"),
        (61_000, "1 min 1 s"),
        (DAY_MS + HOUR_MS, "1 d 1 h"),
        (DAY_MS + 1000, "1 d"),
        (-5, "0 s"),
    ],
)
def test_spans_have_two_units_at_most(milliseconds: float, expected: str) -> None:
    assert span(milliseconds) == expected


def test_a_place_is_what_is_known_of_it() -> None:
    activity = {"browser_name": "Chrome", "browser_version": "143.0.1", "city": None, "country": "NO"}
    assert place_of(activity) == "Chrome 143 · NO"
    assert place_of(None) == ""


def test_a_masked_body_has_no_value_of_a_person() -> None:
    body = json.dumps(
        event(
            {
                "data.status": "dormant",
                "data.user": {"email": "sunniva@example.com", "private_metadata": {"sunniva": 1}},
                "data.actor": {"sub": "user_sunniva"},
                "data.latest_activity.city": "Sunniva",
                "data.latest_activity.ip_address": "192.0.2.44",
            }
        )
    )
    # Names can be personal, too.
    shown = masked(body.replace('"data": {', '"data": {"sunniva@example.com": 1, '))
    assert "sunniva" not in shown.lower()
    assert "192.0.2.44" not in shown
    assert json.loads(shown)["data"]["status"] == "dormant"


@pytest.mark.parametrize(
    "body", ["", "null", "[1]", '"x"', '{"data":[]}', '{"type":{"a":1},"data":{"latest_activity":1}}']
)
def test_any_body_can_be_masked(body: str) -> None:
    json.loads(masked(body))


def test_everything_in_a_page_is_escaped() -> None:
    page = render(
        "problem.html", active="", visit=None, form_token="", where="", key_prefix="", may_change=False,
        title="<script>", text='"><img src=x>',
    )  # fmt: skip
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_a_time_of_another_day_has_its_date() -> None:
    noon = 1_796_040_000_000  # 2026-11-30 12:00 UTC
    assert moment(noon + 25, noon + HOUR_MS) == "12:00:00.025"
    assert moment(noon, noon + DAY_MS) == "11-30 12:00:00"
