"""What an answer of Clerk's Backend API says about a session: docs/contract.md, section 10."""

import re
from typing import Any

import pytest
from support.constants import DAY_MS, NOW_MS
from support.events import payload

from service.clerk.api_sessions import ApiSession, read_session
from service.clerk.normalize import reported
from service.models import OPEN, RANKS, TERMINAL, SessionChange, Unusable

UPDATED_AT = NOW_MS - 60_000
ANSWERED_AT = NOW_MS - 1000


def report(*, is_first: bool = False, with_request: bool = False, **fields: Any) -> SessionChange | Unusable:
    item = payload("session.created")["data"] | {"updated_at": UPDATED_AT, **fields}
    session = read_session(item, ANSWERED_AT)
    assert isinstance(session, ApiSession)
    return reported(
        session.data,
        answered_at_ms=ANSWERED_AT,
        instance_id="ins_1",
        is_first=is_first,
        now_ms=NOW_MS,
        with_request=with_request,
    )


def change(**fields: Any) -> SessionChange:
    found = report(**fields)
    assert isinstance(found, SessionChange)
    return found


@pytest.mark.parametrize(
    ("status", "is_first", "type_"),
    [
        ("active", True, "session.created"),
        ("pending", True, "session.created"),
        ("active", False, "session.active"),
        ("pending", False, "session.pending"),
        ("ended", True, "session.ended"),
        ("abandoned", False, "session.abandoned"),
    ],
)
def test_the_type_names_the_status_or_the_creation_of_what_is_open_and_was_never_seen(
    status: str, is_first: bool, type_: str
) -> None:
    assert change(status=status, is_first=is_first).event.type == type_


def test_the_event_is_of_the_api_and_of_the_time_of_the_answer() -> None:
    event = change().event

    assert (event.source, event.occurred_at, event.instance_id) == ("clerk-api", ANSWERED_AT, "ins_1")
    assert re.fullmatch("api_[0-9a-f]{32}", event.id)


def test_the_id_is_a_digest_of_the_state() -> None:
    assert change().event.id == change().event.id
    assert change().event.id != change(last_active_organization_id="org_1").event.id


def test_an_open_state_counts_from_the_answer_or_from_a_later_update() -> None:
    assert change().order[:4] == (OPEN, ANSWERED_AT, ANSWERED_AT, RANKS.index("active"))
    assert change(updated_at=NOW_MS).order[:3] == (OPEN, NOW_MS, ANSWERED_AT)


def test_a_terminal_state_counts_from_its_update() -> None:
    assert change(status="ended").order[:4] == (TERMINAL, UPDATED_AT, ANSWERED_AT, RANKS.index("ended"))


def test_the_published_update_stays_what_clerk_says() -> None:
    assert change().session.updated_at == UPDATED_AT


def test_without_an_update_the_last_use_or_the_creation_or_the_answer_takes_its_place() -> None:
    none = {"updated_at": None, "last_active_at": None, "created_at": None}
    assert change(**none | {"last_active_at": UPDATED_AT + 1}).session.updated_at == UPDATED_AT + 1
    assert change(**none | {"created_at": UPDATED_AT + 2}).session.updated_at == UPDATED_AT + 2
    assert change(**none).session.updated_at == ANSWERED_AT


def test_an_update_over_a_day_in_the_future_is_refused() -> None:
    assert isinstance(report(updated_at=NOW_MS + DAY_MS), SessionChange)
    refused = report(updated_at=NOW_MS + DAY_MS + 1)
    assert isinstance(refused, Unusable)
    assert refused.detail == "updated_at: over a day in the future"


@pytest.mark.parametrize(
    ("fields", "live"),
    [
        ({"expire_at": NOW_MS + 1}, True),
        ({"expire_at": None}, True),
        ({"expire_at": NOW_MS}, False),
        ({"status": "pending"}, False),
        ({"status": "ended"}, False),
    ],
    ids=str,
)
def test_a_session_is_live_if_it_is_active_and_has_not_run_out(fields: dict[str, Any], live: bool) -> None:
    assert change(**fields).session.live is live


def test_where_requests_of_users_are_published_there_is_none() -> None:
    assert getattr(change(with_request=True).event, "http_request", "missing") is None
    assert not hasattr(change().event, "http_request")
