"""docs/contract.md, section 10: what is read of an event about a user, and what it says about the user's sessions."""

import json
from typing import Any, Final

import pytest
from support.constants import DAY_MS, NOW_MS
from support.events import ABSENT, payload, user_event
from support.parsing import read

from service.clerk.normalize import ending
from service.clerk.users import UserEvent
from service.models import RANKS, TERMINAL, Ignored, Unusable, UserEnding

BOTH: Final = pytest.mark.parametrize("type_", ["user.deleted", "user.updated"])


def changed(event: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Set values of `data`; ABSENT removes one."""
    data = {name: value for name, value in (event["data"] | values).items() if value is not ABSENT}
    return event | {"data": data}


def read_user_event(body: object) -> tuple[UserEvent, list[str]]:
    parsed, nulled = read(body)
    assert isinstance(parsed, UserEvent), parsed
    return parsed, nulled


def ending_of(body: object, *, with_request: bool = False) -> UserEnding:
    return ending(read_user_event(body)[0], message_id="msg_1", now_ms=NOW_MS, with_request=with_request)


# Which events end sessions


@pytest.mark.parametrize("says", [{}, {"deleted": ABSENT}, {"deleted": False}, {"deleted": "odd"}, {"banned": False}])
def test_a_deletion_ends_whatever_else_it_says(says: dict[str, Any]) -> None:
    parsed, _ = read_user_event(changed(user_event(), says))
    assert (parsed.type, parsed.data.id) == ("user.deleted", "user_1")


@pytest.mark.parametrize("banned", [ABSENT, None, False, 0, 1, "true", "banned", [True], {"banned": True}], ids=repr)
def test_an_update_ends_only_if_it_bans(banned: object) -> None:
    assert read(changed(user_event("user.updated"), {"banned": banned})) == (Ignored("user.updated"), [])


@pytest.mark.parametrize("data", [ABSENT, None, True, 17, "banned", [], ["banned"]], ids=repr)
def test_an_update_without_data_is_ignored(data: object) -> None:
    event = user_event("user.updated") | {"data": data}
    if data is ABSENT:
        del event["data"]
    assert read(event) == (Ignored("user.updated"), [])


def test_an_ordinary_update_is_ignored() -> None:
    assert read(payload("user.updated")) == (Ignored("user.updated"), [])


@pytest.mark.parametrize("type_", ["user.created", "user.Deleted", "user.deleted ", "users.deleted", "user", "user."])
def test_another_event_about_a_user_is_ignored_even_of_a_banned_one(type_: str) -> None:
    assert read(user_event(type_, banned=True)) == (Ignored(type_), [])


# What is read


@BOTH
def test_it_is_read_in_both_spellings(type_: str) -> None:
    event = changed(user_event(type_), {"updated_at": ABSENT, "updatedAt": NOW_MS - 5})
    del event["instance_id"]
    parsed, nulled = read_user_event(event | {"instanceId": "ins_2"})
    assert (parsed.data.updated_at, parsed.instance_id, nulled) == (NOW_MS - 5, "ins_2", [])


@BOTH
def test_a_time_in_seconds_is_read_in_milliseconds(type_: str) -> None:
    event = user_event(type_, occurred_at=NOW_MS // 1000, updated_at=NOW_MS / 1000 - 0.5)
    parsed, _ = read_user_event(event)
    assert (parsed.timestamp, parsed.data.updated_at) == (NOW_MS, NOW_MS - 500)


@pytest.mark.parametrize("odd", [True, "odd", -1, 10**14 + 1, float("nan"), [], {}, 10**400, "\ud800"], ids=repr)
@pytest.mark.parametrize("name", ["timestamp", "updated_at"])
@BOTH
def test_an_odd_time_is_null_and_counted(type_: str, name: str, odd: object) -> None:
    event = changed(user_event(type_), {"updated_at": odd}) if name == "updated_at" else user_event(type_)
    parsed, nulled = read_user_event(event if name == "updated_at" else event | {"timestamp": odd})
    assert (parsed.data.updated_at if name == "updated_at" else parsed.timestamp) is None
    assert nulled == [name]


@pytest.mark.parametrize("hostile", ["[" * 100_000 + "]" * 100_000, "9" * 5000, '"\\ud800"', "NaN"], ids=len)
@BOTH
def test_nothing_in_a_users_profile_costs_the_event(type_: str, hostile: str) -> None:
    body = json.dumps(user_event(type_, unsafe_metadata="HERE")).replace('"HERE"', hostile).encode()
    parsed, nulled = read_user_event(body)
    assert (parsed.data.id, nulled) == ("user_1", [])


# What is kept of one that does not say whose sessions end


@pytest.mark.parametrize(
    "id_", [ABSENT, None, True, 17, "", "user 1", "user_1\n", "u" * 129, [], {}, "\ud800"], ids=repr
)
@BOTH
def test_without_the_users_id_it_is_unusable(type_: str, id_: object) -> None:
    parsed, _ = read(changed(user_event(type_), {"id": id_, "first_name": "Ada"}))
    assert isinstance(parsed, Unusable)
    assert (parsed.type, parsed.reason) == (type_, "invalid_user_id")
    assert parsed.detail.startswith("data.id: ")
    assert "user 1" not in parsed.detail
    kept = json.loads(parsed.kept or b"")
    assert set(kept) == {"type", "timestamp", "instance_id", "data"}
    assert set(kept["data"]) == {"id", "banned", "updated_at", "deleted"}


@pytest.mark.parametrize("data", [ABSENT, None, True, 17, "user_1", [], [{"id": "user_1"}]], ids=repr)
def test_a_deletion_without_data_is_unusable(data: object) -> None:
    event = user_event() | {"data": data}
    if data is ABSENT:
        del event["data"]
    parsed, _ = read(event)
    assert isinstance(parsed, Unusable)
    assert (parsed.reason, json.loads(parsed.kept or b"")["data"]) == ("invalid_user_id", None)


def test_what_could_hold_a_profile_is_not_kept() -> None:
    profile = {"email": "ada@example.com"}
    event = user_event("user.deleted", id=profile, deleted=[profile], updated_at=profile, banned=profile)
    parsed, _ = read(event | {"timestamp": profile, "instance_id": "ada" * 1000})
    assert isinstance(parsed, Unusable)
    kept = json.loads(parsed.kept or b"")
    assert kept["data"] == {"id": None, "banned": None, "updated_at": None, "deleted": None}
    assert kept["timestamp"] is None
    assert len(kept["instance_id"]) == 256


@pytest.mark.parametrize(
    ("id_", "kept"), [("user.1", "user.1"), ("ada@example.com", None), ("Ada\u00a0Lovelace", None)]
)
def test_of_an_id_that_is_none_what_looks_like_a_person_is_not_kept(id_: str, kept: str | None) -> None:
    parsed, _ = read(user_event(id=id_) | {"instance_id": id_})
    assert isinstance(parsed, Unusable)
    event = json.loads(parsed.kept or b"")
    assert (event["data"]["id"], event["instance_id"]) == (kept, kept)


@pytest.mark.parametrize("name", ["timestamp", "updated_at", "banned", "deleted"])
def test_a_text_is_not_kept_where_a_number_or_a_flag_belongs(name: str) -> None:
    parsed, _ = read(changed(user_event(id=17), {name: "Ada"}) | ({"timestamp": "Ada"} if name == "timestamp" else {}))
    assert isinstance(parsed, Unusable)
    assert b"Ada" not in (parsed.kept or b"")


@pytest.mark.parametrize("number", [10**400, -(10**400), float("inf"), float("nan"), 2**63, 2**63 - 1])
def test_any_number_can_be_kept(number: float) -> None:
    parsed, _ = read(user_event(id=None) | {"timestamp": number})
    assert isinstance(parsed, Unusable)
    assert json.loads(parsed.kept or b"")["timestamp"] == (number if number == 2**63 - 1 else None)


# What it says


@pytest.mark.parametrize(("type_", "status"), [("user.deleted", "removed"), ("user.updated", "revoked")])
def test_the_end_has_the_users_event(type_: str, status: str) -> None:
    end = ending_of(user_event(type_))
    event = end.event
    assert (end.user_id, end.status) == ("user_1", status)
    assert (event.id, event.type, event.source) == ("msg_1", type_, "clerk")
    assert (event.occurred_at, event.instance_id) == (NOW_MS - 1000, "ins_1")
    assert not hasattr(event, "http_request")
    assert ending_of(user_event(type_), with_request=True).event.http_request is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("type_", "timestamp", "updated_at", "at"),
    [
        ("user.deleted", NOW_MS - 1, NOW_MS - 2, NOW_MS - 1),
        ("user.deleted", None, NOW_MS - 2, NOW_MS),
        ("user.updated", NOW_MS - 1, NOW_MS - 2, NOW_MS - 2),
        ("user.updated", NOW_MS - 1, None, NOW_MS - 1),
        ("user.updated", None, None, NOW_MS),
        ("user.updated", NOW_MS - 1, NOW_MS + DAY_MS, NOW_MS + DAY_MS),
        # Over a day in the future: no time.
        ("user.deleted", NOW_MS + DAY_MS + 1, None, NOW_MS),
        ("user.updated", NOW_MS - 1, NOW_MS + DAY_MS + 1, NOW_MS - 1),
    ],
)
def test_its_time_is_that_of_the_deletion_or_of_the_ban(
    type_: str, timestamp: int | None, updated_at: int | None, at: int
) -> None:
    end = ending_of(changed(user_event(type_, occurred_at=timestamp), {"updated_at": updated_at}))
    assert end.at_ms == at
    assert end.order == (TERMINAL, at, end.event.occurred_at, RANKS.index(end.status), "msg_1")


@pytest.mark.parametrize(
    ("type_", "created_at", "ends"),
    [
        ("user.deleted", None, True),
        ("user.deleted", NOW_MS, True),
        ("user.updated", None, True),
        ("user.updated", NOW_MS - 1500, True),
        ("user.updated", NOW_MS - 1499, False),
    ],
)
def test_a_ban_spares_sessions_that_began_later(type_: str, created_at: int | None, *, ends: bool) -> None:
    assert ending_of(user_event(type_)).ends(created_at) is ends
