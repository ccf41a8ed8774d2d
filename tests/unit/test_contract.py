"""docs/contract.md, section 4: the message, to the letter; and what OMIT_FIELDS leaves out of it."""

import json
from typing import Any, Final, get_args

import orjson
import pytest
from clerk_session_feed.models import SCHEMA_VERSION, STATUSES
from hypothesis import given
from hypothesis import strategies as st
from support.clerks_own import needs_clerks_own, schemas
from support.constants import MESSAGE_ID
from support.events import ABSENT, event, payload
from support.parsing import change, published, read, try_change
from support.strategies import patient

from service.models import OMITTABLE_FIELDS, Ignored, Outcome, Reason, SessionChange, omit

EVENT_KEYS: Final = ["id", "type", "occurred_at", "instance_id", "source"]
SESSION_KEYS: Final = [
    *("object", "id", "user_id", "client_id", "actor", "status", "live", "last_active_organization_id"),
    *("last_active_at", "latest_activity", "expire_at", "abandon_at", "updated_at", "created_at", "tasks"),
]
ACTIVITY_KEYS: Final = [
    *("object", "id", "device_type", "is_mobile", "browser_name", "browser_version", "ip_address", "city"),
    "country",
]
TIMES: Final = ("last_active_at", "expire_at", "abandon_at", "updated_at", "created_at")


def test_a_sample_becomes_the_contracts_message() -> None:
    made = change(event())
    assert (
        orjson.dumps({"event": made.event, "session": made.session})
        == json.dumps(
            {
                "event": {
                    "id": MESSAGE_ID,
                    "type": "session.created",
                    "occurred_at": 1795422700412,
                    "instance_id": "ins_2relaySampleInstance",
                    "source": "clerk",
                },
                "session": {
                    "object": "session",
                    "id": "sess_2relaySampleAda",
                    "user_id": "user_2relaySampleAda",
                    "client_id": "client_2relaySampleAda",
                    "actor": None,
                    "status": "active",
                    "live": True,
                    "last_active_organization_id": "org_2relaySample",
                    "last_active_at": 1795422700300,
                    "latest_activity": {
                        "object": "session_activity",
                        "id": "sess_activity_2relaySample",
                        "device_type": "desktop",
                        "is_mobile": False,
                        "browser_name": "Chrome",
                        "browser_version": "128.0",
                        "ip_address": "192.0.2.7",
                        "city": "Tromsø",
                        "country": "NO",
                    },
                    "expire_at": 1796027500300,
                    "abandon_at": 1798014700300,
                    "updated_at": 1795422700300,
                    "created_at": 1795422700300,
                    "tasks": [],
                },
            },
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
    )


def test_the_least_there_can_be_is_filled_with_nulls() -> None:
    session = published(change(payload("session.revoked.minimal")))["session"]
    assert {name: value for name, value in session.items() if value is not None} == {
        "object": "session",
        "id": "sess_2relaySampleFay",
        "user_id": "user_2relaySampleFay",
        "status": "revoked",
        "live": False,
        "updated_at": 1795422759500,
        "tasks": [],
    }


def test_the_http_request_is_published_only_on_request() -> None:
    assert "http_request" not in published(change(event()))["event"]
    shown = published(change(event(), publish_http_request=True))["event"]
    assert shown["http_request"] == payload("session.created")["event_attributes"]["http_request"]
    assert list(shown)[-1] == "http_request"


@pytest.mark.parametrize(
    "values", [{"event_attributes": None}, {"event_attributes.http_request": ABSENT}, {"event_attributes": 17}]
)
def test_an_http_request_that_is_not_there_is_null(values: dict[str, Any]) -> None:
    assert published(change(event(values), publish_http_request=True))["event"]["http_request"] is None


def test_tasks_are_published_with_their_keys_alone() -> None:
    tasks = published(change(payload("session.pending")))["session"]["tasks"]
    assert tasks == [{"key": "choose-organization"}, {"key": "reset-password"}]


# Whatever comes in.

_texts: Final = st.text() | st.text(st.characters(categories=["Cs", "Cc"]), max_size=4)
_json: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)
_actors: Final = st.dictionaries(_texts, _json, max_size=2).map(lambda actor: actor | {"sub": "user_1"})
_values: Final = st.fixed_dictionaries(
    {},
    optional={
        "data.actor": _actors,
        "data.client_id": _texts,
        "data.last_active_organization_id": _texts,
        "data.expire_at": st.integers(0, 10**14) | st.floats(0, 1e14),
        "data.updated_at": st.integers(0, 10**12) | st.floats(0, 1e12),
        "data.tasks": st.lists(st.fixed_dictionaries({"key": _texts}) | _json, max_size=3),
        "data.latest_activity.city": _texts,
        "data.latest_activity.is_mobile": _json,
        "data.status": st.sampled_from(sorted(STATUSES)),
        "event_attributes.http_request.user_agent": _texts,
        "instance_id": _texts,
        "timestamp": _json,
        "type": _texts.map("session.".__add__),
    },
)


@patient
@given(_values, st.booleans())
def test_whatever_is_published_is_one_line_of_utf8_json_with_the_contracts_keys_in_order(
    values: dict[str, Any], with_request: bool
) -> None:
    made = try_change(event(values), publish_http_request=with_request)
    if not isinstance(made, SessionChange):
        return
    line = orjson.dumps({"event": made.event, "session": made.session})
    assert b"\n" not in line
    message = json.loads(line.decode())  # UTF-8 that is none raises
    json.dumps(message, ensure_ascii=False, allow_nan=False).encode()  # so do lone surrogates and NaN
    assert list(message["event"]) == EVENT_KEYS + ["http_request"] * with_request
    session = message["session"]
    assert list(session) == SESSION_KEYS
    assert session["latest_activity"] is None or list(session["latest_activity"]) == ACTIVITY_KEYS
    assert all(list(task) == ["key"] for task in session["tasks"])
    times = [message["event"]["occurred_at"], *(session[name] for name in TIMES)]
    assert all(time is None or type(time) is int for time in times)


@needs_clerks_own
def test_every_field_of_clerks_own_session_is_published() -> None:
    assert set(SESSION_KEYS) == {*schemas()["Session"]["properties"], "live"}
    assert set(ACTIVITY_KEYS) == set(schemas()["SessionActivityResponse"]["properties"])


# OMIT_FIELDS.


def test_what_can_be_left_out_is_everything_but_what_the_state_is_found_by() -> None:
    kept = {"object", "id", "user_id", "status", "live"}
    inner = {f"latest_activity.{name}" for name in ACTIVITY_KEYS}
    assert {*SESSION_KEYS} - kept | inner == OMITTABLE_FIELDS


def _left_out(*fields: str, body: Any = None) -> dict[str, Any]:
    made = change(body or event({"data.actor": {"sub": "u"}, "data.tasks": [{"key": "k"}]}))
    return dict(orjson.loads(orjson.dumps(omit(made.session, frozenset(fields)))))


@pytest.mark.parametrize("field", sorted(set(SESSION_KEYS) & OMITTABLE_FIELDS))
def test_a_field_left_out_is_null_and_tasks_are_empty_and_the_rest_stays(field: str) -> None:
    whole = _left_out()
    assert whole[field]
    left = _left_out(field)
    assert left == whole | {field: [] if field == "tasks" else None}
    assert list(left) == SESSION_KEYS


@pytest.mark.parametrize("name", ACTIVITY_KEYS)
def test_a_field_of_the_activity_left_out_is_null_and_the_rest_stays(name: str) -> None:
    left, whole = _left_out(f"latest_activity.{name}"), _left_out()
    assert left == whole | {"latest_activity": whole["latest_activity"] | {name: None}}
    assert list(left["latest_activity"]) == ACTIVITY_KEYS


def test_several_fields_are_left_out_at_once() -> None:
    left = _left_out("latest_activity.city", "latest_activity.country", "actor", "tasks")
    assert (left["latest_activity"]["city"], left["latest_activity"]["country"]) == (None, None)
    assert (left["actor"], left["tasks"]) == (None, [])
    assert left["latest_activity"]["browser_name"] == "Chrome"


@pytest.mark.parametrize("fields", [["latest_activity"], ["latest_activity", "latest_activity.city"]])
def test_an_activity_left_out_is_null_whatever_else_is_named(fields: list[str]) -> None:
    assert _left_out(*fields)["latest_activity"] is None


def test_leaving_out_a_part_of_no_activity_makes_none() -> None:
    body = event({"data.latest_activity": ABSENT})
    assert _left_out("latest_activity.city", body=body)["latest_activity"] is None


# The small print.


@pytest.mark.parametrize(
    ("outcome", "status", "body"),
    [
        (
            Outcome("applied", "sess_1", "1-0", 2),
            200,
            {"outcome": "applied", "session_id": "sess_1", "cursor": "1-0", "revision": 2},
        ),
        (
            Outcome("duplicate", "sess_1", "1-0", 2),
            200,
            {"outcome": "duplicate", "session_id": "sess_1", "cursor": "1-0", "revision": 2},
        ),
        (
            Outcome("stale", "sess_1", "1-0"),
            200,
            {"outcome": "stale", "session_id": "sess_1", "cursor": "1-0", "revision": None},
        ),
        (Outcome("applied", sessions=3), 200, {"outcome": "applied", "sessions": 3}),
        (Outcome("ignored"), 200, {"outcome": "ignored"}),
        (Outcome("dead_lettered", reason="invalid_id"), 202, {"outcome": "dead_lettered", "reason": "invalid_id"}),
    ],
)
def test_the_answer_to_each_outcome(outcome: Outcome, status: int, body: dict[str, object]) -> None:
    assert (outcome.status, outcome.body()) == (status, body)
    assert list(outcome.body()) == list(body)


def test_the_names_that_programs_rely_on() -> None:
    assert SCHEMA_VERSION == 1
    assert {"active", "pending", "ended", "removed", "revoked", "replaced", "expired", "abandoned"} == STATUSES
    assert set(get_args(Reason)) == {
        *("invalid_data", "invalid_type", "invalid_object", "invalid_id", "invalid_user_id", "invalid_status"),
        *("invalid_time", "invalid_updated_at", "invalid_actor"),
    }


def test_an_event_about_a_user_is_ignored() -> None:
    assert read(payload("user.updated")) == (Ignored("user.updated"), [])
