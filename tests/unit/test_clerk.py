"""docs/contract.md, section 7: what is accepted of a delivery's body, and what becomes of the rest."""

import json
from typing import Final

import pytest
from clerk_session_feed.models import STATUSES
from support.events import ABSENT, event
from support.parsing import read, read_event, reason

from service.clerk.events import SessionEvent
from service.errors import MalformedEventError
from service.models import Ignored

ODD: Final[tuple[object, ...]] = (True, 0, 17, -1.5, "", "odd", [], ["x"], {}, {"a": 1}, [[]])
TIMES: Final = ("last_active_at", "expire_at", "abandon_at", "updated_at", "created_at")


# The envelope.


MALFORMED: Final = (
    *(b"", b"not JSON", b"\xff", b"\xef\xbb\xbf{}", b"null", b"17", b'"session.ended"', b"[]", b"{}", b"[{}]"),
    *(b'{"type":null}', b'{"type":17}', b'{"type":["session.ended"]}', b'{"Type":"session.ended"}'),
    *(b'{"type":"session.ended"} {}', b'{"data":{"type":"session.ended"}}', b'{"type":"session.ended","x":1.}'),
)


@pytest.mark.parametrize("body", MALFORMED, ids=ascii)
def test_what_is_no_json_object_with_a_string_type_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedEventError) as caught:
        read(body)
    assert (caught.value.status, caught.value.code) == (400, "malformed_event")


@pytest.mark.parametrize("type_", ["user.created", "", "session", "sessions.ended", "Session.ended", "x" * 500])
def test_an_event_about_something_else_is_ignored_whatever_else_is_in_it(type_: str) -> None:
    assert read({"type": type_, "data": 17, "timestamp": "odd"}) == (Ignored(type_), [])


@pytest.mark.parametrize("type_", ["session.updated", "session.", "session." + "x" * 120])
def test_an_unknown_session_type_of_up_to_128_characters_is_read(type_: str) -> None:
    assert read_event(event({"type": type_})).type == type_


@pytest.mark.parametrize("type_", ["session." + "x" * 121, "session.\ud800"])
def test_a_session_type_that_is_too_long_or_no_text_is_a_dead_letter(type_: str) -> None:
    assert reason(event({"type": type_})) == "invalid_type"


@pytest.mark.parametrize("odd", [*ODD, ABSENT, None, "event", "\ud800"])
def test_the_object_of_the_envelope_does_not_matter(odd: object) -> None:
    assert reason(event({"object": odd})) is None


@pytest.mark.parametrize("name", ["instance_id", "event_attributes", "timestamp"])
@pytest.mark.parametrize("value", [ABSENT, None])
def test_what_is_missing_of_the_envelope_is_null(name: str, value: object) -> None:
    parsed, nulled = read(event({name: value}))
    assert getattr(parsed, name) is None
    assert nulled == []


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        *(("instance_id", odd) for odd in [True, 17, "", "ins 1", "ins_é", "i" * 129, [], {}, "\ud800"]),
        *(("event_attributes", odd) for odd in [True, 17, "x", [], [{}]]),
        *(("timestamp", odd) for odd in [True, "1795422761000", -1, 10**14 + 1, float("nan"), [], {}, 10**400]),
    ],
)
def test_what_is_odd_of_the_envelope_is_null_and_counted(name: str, odd: object) -> None:
    parsed, nulled = read(event({name: odd}))
    assert getattr(parsed, name) is None
    assert nulled == [name]


@pytest.mark.parametrize(
    ("path", "odd", "nulled"),
    [
        ("event_attributes.http_request", 17, "http_request"),
        ("event_attributes.http_request.client_ip", 17, "client_ip"),
        ("event_attributes.http_request.user_agent", "x" * 1025, "user_agent"),
    ],
)
def test_what_is_odd_of_the_http_request_is_null_and_counted(path: str, odd: object, nulled: str) -> None:
    parsed, counted = read(event({path: odd}))
    assert isinstance(parsed, SessionEvent)
    assert counted == [nulled]


# The session.


@pytest.mark.parametrize("data", [ABSENT, None, True, 17, "x", [], [{}]])
def test_data_that_is_no_object_is_a_dead_letter(data: object) -> None:
    assert reason(event({"data": data})) == "invalid_data"


@pytest.mark.parametrize("value", ["session", ABSENT, None])
def test_the_object_of_the_session_may_be_missing(value: object) -> None:
    assert reason(event({"data.object": value})) is None


@pytest.mark.parametrize("value", ["user", "Session", "", True, 17, [], {}, ["session"], "\ud800"])
def test_data_that_is_another_object_is_a_dead_letter(value: object) -> None:
    assert reason(event({"data.object": value})) == "invalid_object"


IDS: Final = ("a", "0", "-", "_", "sess_2X-y_Z", "s" * 128)
NO_IDS: Final = ("", " ", "s" * 129, "sess 1", "sess.1", "sess:1", "sess_é", "sess_1\n", "{clerk}", "\x00", "\ud800")


@pytest.mark.parametrize("name", ["id", "user_id"])
@pytest.mark.parametrize("value", IDS)
def test_ids_of_1_to_128_letters_digits_and_dashes_are_read(name: str, value: str) -> None:
    assert getattr(read_event(event({f"data.{name}": value})).data, name) == value


@pytest.mark.parametrize("name", ["id", "user_id"])
@pytest.mark.parametrize("value", [*NO_IDS, ABSENT, None, True, 17, [], {}], ids=ascii)
def test_a_session_without_its_ids_is_a_dead_letter(name: str, value: object) -> None:
    assert reason(event({f"data.{name}": value})) == f"invalid_{name}"


@pytest.mark.parametrize("name", ["client_id", "last_active_organization_id"])
@pytest.mark.parametrize("value", [*NO_IDS, True, 17, [], {}], ids=ascii)
def test_other_ids_of_another_shape_are_null_and_counted(name: str, value: object) -> None:
    parsed, nulled = read(event({f"data.{name}": value}))
    assert isinstance(parsed, SessionEvent)
    assert getattr(parsed.data, name) is None
    assert nulled == [name]


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_each_of_the_eight_statuses_is_read(status: str) -> None:
    assert read_event(event({"data.status": status})).data.status == status


@pytest.mark.parametrize("type_", ["session.created", "session.ended"])
@pytest.mark.parametrize("status", ["", "Active", "unknown", " active", "activ\u00e9", True, 17, [], {}, "\ud800"])
def test_another_status_is_a_dead_letter_whatever_the_type(type_: str, status: object) -> None:
    assert reason(event({"type": type_, "data.status": status})) == "invalid_status"


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (0, 0),
        (1, 1000),
        (-0.0, 0),
        (99_999_999_999, 99_999_999_999_000),
        (100_000_000_000, 100_000_000_000),
        (99_999_999_999.5, 99_999_999_999_500),
        (100_000_000_000.5, 100_000_000_000),
        (10**14, 10**14),
        (1e14, 10**14),
        (1795422761, 1795422761000),
        (1795422761000, 1795422761000),
        (1795422761.0, 1795422761000),
        (1795422761.9999, 1795422761999),
        (1795422761000.999, 1795422761000),
        (1.001, 1001),  # in binary, a thousand of these is a hair less
        (70358031990.678, 70358031990678),
    ],
)
def test_a_time_is_read_in_seconds_or_milliseconds_and_its_fraction_cut(value: float, ms: int) -> None:
    data = read_event(event({f"data.{name}": value for name in TIMES})).data
    for name in TIMES:
        read_ms = getattr(data, name)
        assert (read_ms, type(read_ms)) == (ms, int), name


NO_TIMES: Final[tuple[object, ...]] = (
    *(True, False, "1795422761000", "", [], {}, [1795422761000], -1, -0.5, -1795422761000),
    *(10**14 + 1, 1e14 + 0.5, 10**15, 1e300, 10**400, -(10**400)),
    *(float("nan"), float("inf"), float("-inf")),
)


@pytest.mark.parametrize("value", NO_TIMES, ids=lambda value: repr(value)[:20])
def test_a_time_that_is_none_is_a_dead_letter(value: object) -> None:
    assert {name: reason(event({f"data.{name}": value})) for name in TIMES} == dict.fromkeys(TIMES, "invalid_time")


def test_a_time_of_thousands_of_digits_is_a_dead_letter() -> None:
    body = json.dumps(event({"data.expire_at": 424242})).replace("424242", "9" * 5000)
    assert reason(body.encode()) == "invalid_time"


@pytest.mark.parametrize(
    "name", [*TIMES, "client_id", "last_active_organization_id", "latest_activity", "actor", "status"]
)
@pytest.mark.parametrize("value", [ABSENT, None])
def test_what_is_missing_of_the_session_is_null(name: str, value: object) -> None:
    parsed, nulled = read(event({f"data.{name}": value}))
    assert isinstance(parsed, SessionEvent)
    assert getattr(parsed.data, name) is None
    assert nulled == []
