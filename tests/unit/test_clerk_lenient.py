"""docs/contract.md, section 7: metadata never costs an event, and what is not read costs nothing at all."""

import json
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.constants import PAYLOADS
from support.events import ABSENT, EVENT_PATHS, event, payload
from support.parsing import change, published, read, read_event, reason
from support.strategies import json_values, patient

from service.clerk.events import SessionEvent
from service.errors import MalformedEventError
from service.models import Ignored, Unusable

ACTIVITY_TEXTS: Final = (
    *("object", "id", "device_type", "browser_name", "browser_version", "ip_address", "city", "country"),
)


@pytest.mark.parametrize("odd", [True, 17, "x", [], [{}]])
def test_an_activity_that_is_no_object_is_null_and_counted(odd: object) -> None:
    parsed, nulled = read(event({"data.latest_activity": odd}))
    assert isinstance(parsed, SessionEvent)
    assert parsed.data.latest_activity is None
    assert nulled == ["latest_activity"]


@pytest.mark.parametrize("name", ACTIVITY_TEXTS)
@pytest.mark.parametrize("odd", [True, 17, [], {}, "x" * 1025, "\ud800"], ids=lambda odd: ascii(odd)[:20])
def test_a_bad_field_of_the_activity_is_null_and_counted_and_the_rest_stays(name: str, odd: object) -> None:
    parsed, nulled = read(event({f"data.latest_activity.{name}": odd}))
    assert isinstance(parsed, SessionEvent)
    assert parsed.data.latest_activity
    whole = payload("session.created")["data"]["latest_activity"]
    assert parsed.data.latest_activity.model_dump() == whole | {name: None}
    assert nulled == [name]


@pytest.mark.parametrize("odd", [0, 1, "false", "", [], {}])
def test_is_mobile_is_a_boolean_or_null(odd: object) -> None:
    parsed, nulled = read(event({"data.latest_activity.is_mobile": odd}))
    assert isinstance(parsed, SessionEvent)
    assert parsed.data.latest_activity
    assert parsed.data.latest_activity.is_mobile is None
    assert nulled == ["is_mobile"]


@pytest.mark.parametrize("name", ACTIVITY_TEXTS)
@pytest.mark.parametrize("text", ["", "æ" * 1024, "😀" * 1024, "a\nb\x00\u2028"], ids=lambda text: ascii(text)[:20])
def test_text_of_up_to_1024_characters_is_read(name: str, text: str) -> None:
    activity = read_event(event({f"data.latest_activity.{name}": text})).data.latest_activity
    assert getattr(activity, name) == text


@pytest.mark.parametrize(
    ("tasks", "keys", "counted"),
    [
        (ABSENT, [], 0),
        (None, [], 0),
        ([], [], 0),
        ([{"key": "a"}, {"key": "b", "object": 17}], ["a", "b"], 0),
        ([{"key": "a"}, 17, {"key": "b"}, {}, {"key": None}, {"key": 17}, "c", None, []], ["a", "b"], 7),
        ([{"key": "x" * 1024}, {"key": "x" * 1025}, {"key": "\ud800"}], ["x" * 1024], 2),
        (17, [], 1),
        ("a", [], 1),
        ({}, [], 1),
        ({"key": "a"}, [], 1),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_bad_task_is_left_out_and_counted(tasks: object, keys: list[str], counted: int) -> None:
    parsed, nulled = read(event({"data.tasks": tasks}))
    assert isinstance(parsed, SessionEvent)
    assert [task.key for task in parsed.data.tasks] == keys
    assert nulled == ["tasks"] * counted


# The actor.


def actor_of_size(size: int) -> dict[str, str]:
    """Return an actor of that many bytes of compact JSON, most of them in letters of two bytes."""
    empty = len('{"sub":"user_1","note":""}')
    letters, rest = divmod(size - empty, 2)
    return {"sub": "user_1", "note": "æ" * letters + "x" * rest}


@pytest.mark.parametrize(
    "actor",
    [
        {"sub": ""},
        {"z": 1, "sub": "user_1", "a": {"deep": [{"er": [None, True, 1.5, -0.0, 1e300, "æ\u2028\n\x00"]}]}},
        {"sub": "user_1", "big": 2**64, "bigger": 10**1000},
        actor_of_size(4096),
    ],
    ids=lambda actor: ascii(actor)[:30],
)
def test_an_actor_is_kept_whole_and_in_its_order(actor: dict[str, Any]) -> None:
    kept = read_event(event({"data.actor": actor})).data.actor
    text = bytes(orjson.dumps(kept)).decode()
    assert text == json.dumps(actor, ensure_ascii=False, separators=(",", ":"))
    assert "\n" not in text


@pytest.mark.parametrize(
    "actor",
    [
        *(True, 0, "user_1", "", [], [{"sub": "user_1"}], {}, {"sub": None}, {"sub": 17}, {"Sub": "user_1"}),
        *({"sub": "\ud800"}, {"sub": "user_1", "\udc00": 1}, {"sub": "user_1", "x": ["\ud800"]}),
        *({"sub": "user_1", "x": float("nan")}, {"sub": "user_1", "x": float("-inf")}),
        actor_of_size(4097),
    ],
    ids=lambda actor: ascii(actor)[:30],
)
def test_an_actor_that_can_not_be_kept_is_a_dead_letter(actor: object) -> None:
    assert reason(event({"data.actor": actor})) == "invalid_actor"


@pytest.mark.parametrize("depth", [150, 1500])
def test_an_actor_is_kept_however_deep_it_is(depth: int) -> None:
    actor = f'{{"sub":"user_1","deep":{"[" * depth}{"]" * depth}}}'
    body = json.dumps(event({"data.actor": "HERE"})).replace('"HERE"', actor).encode()
    assert orjson.dumps(read_event(body).data.actor) == actor.encode()


# Both spellings.

SPELLINGS: Final = (
    *(("", name) for name in ("instance_id", "event_attributes")),
    ("event_attributes.", "http_request"),
    *(("event_attributes.http_request.", name) for name in ("client_ip", "user_agent")),
    *(("data.", name) for name in ("user_id", "client_id", "last_active_organization_id", "last_active_at")),
    *(("data.", name) for name in ("latest_activity", "expire_at", "abandon_at", "updated_at", "created_at")),
    *(("data.latest_activity.", name) for name in ("device_type", "is_mobile", "browser_name")),
    *(("data.latest_activity.", name) for name in ("browser_version", "ip_address")),
)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def _value(body: Any, path: str) -> Any:
    for name in path.split("."):
        body = body[name]
    return body


@pytest.mark.parametrize(("within", "name"), SPELLINGS)
@pytest.mark.parametrize("wire", [ABSENT, None])
def test_a_field_is_read_in_the_spelling_of_the_sdks(within: str, name: str, wire: object) -> None:
    value = _value(event(), within + name)
    assert value is not None
    respelled = event({within + name: wire, within + _camel(name): value})
    assert read(respelled) == read(event())


@pytest.mark.parametrize(("within", "name"), SPELLINGS)
@pytest.mark.parametrize("other", ["another", None, 17])
def test_the_spelling_of_the_wire_wins(within: str, name: str, other: object) -> None:
    assert read(event({within + _camel(name): other})) == read(event())


def test_the_spelling_of_the_wire_wins_even_where_it_is_odd() -> None:
    assert reason(event({"data.user_id": "not an id", "data.userId": "user_1"})) == "invalid_user_id"


# What is not read.

UNREAD: Final = (
    *(("[" * 2_000 + "]" * 2_000), '{"a":' * 2_000 + "{}" + "}" * 2_000),
    *('"\\ud800"', '{"\\udfff":"\\udc00"}', "9" * 5000, "-" + "9" * 5000, "1e999", "-1E-999", "0." + "1" * 5000),
    *("NaN", "-Infinity", "-0", "true", '"\\u0000"', '{"":{"":[]}}', '{"id":"user_other","status":"ended"}'),
)


@pytest.mark.parametrize("path", ["data.user", "data.extra", "extra", "object", "event_attributes.extra"])
@pytest.mark.parametrize("unread", UNREAD, ids=lambda text: text[:20])
def test_nothing_in_a_field_that_is_not_read_costs_an_event(path: str, unread: str) -> None:
    body = json.dumps(event({path: "HERE"}), ensure_ascii=False).replace('"HERE"', unread)
    assert read(body.encode()) == read(event())


@pytest.mark.parametrize(
    ("path", "becomes"),
    [
        *((path, None) for path in ("instance_id", "timestamp", "event_attributes", "data.client_id")),
        *((path, None) for path in ("data.latest_activity", "data.latest_activity.city", "data.tasks")),
        *((f"data.{name}", f"invalid_{name}") for name in ("object", "id", "user_id", "status", "actor")),
        *((f"data.{name}", "invalid_time") for name in ("updated_at", "expire_at")),
        ("data", "invalid_data"),
    ],
)
def test_the_deepest_nesting_where_another_type_belongs_is_just_another_type(path: str, becomes: str | None) -> None:
    deep = "[" * 2_000 + "]" * 2_000
    assert reason(json.dumps(event({path: "HERE"})).replace('"HERE"', deep).encode()) == becomes


# Whatever comes in.


@patient
@given(st.binary() | st.text().map(str.encode) | json_values.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_body_is_it_is_read_or_malformed(body: bytes) -> None:
    try:
        parsed, _ = read(body)
    except MalformedEventError:
        return
    assert isinstance(parsed, SessionEvent | Ignored | Unusable)


@patient
@given(st.dictionaries(st.sampled_from(EVENT_PATHS), json_values, max_size=3), st.sampled_from(["session.ended", "x"]))
def test_whatever_the_fields_are_the_event_is_read_or_malformed(values: dict[str, Any], type_: str) -> None:
    # Longer paths first: what a shorter one puts there may be no object.
    body = event({"type": type_} | {path: values[path] for path in sorted(values, key=len, reverse=True)})
    try:
        parsed, _ = read(body)
    except MalformedEventError:
        assert not isinstance(body["type"], str)
        return
    assert isinstance(parsed, Ignored) == (not body["type"].startswith("session."))


@patient
@given(st.dictionaries(st.sampled_from(EVENT_PATHS[8:]), st.just("s3cr3t-value") | st.just(["s3cr3t-value"])))
def test_the_detail_of_a_dead_letter_never_quotes_a_value(values: dict[str, Any]) -> None:
    parsed, _ = read(event({path: values[path] for path in sorted(values, key=len, reverse=True)}))
    if isinstance(parsed, Unusable):
        assert parsed.detail
        assert "s3cr3t" not in parsed.detail


@pytest.mark.parametrize("path", sorted(PAYLOADS.glob("session.*.json")), ids=lambda path: path.stem)
def test_no_sample_has_anything_odd_and_none_publishes_the_embedded_user(path: Path) -> None:
    _, nulled = read(path.read_bytes())
    assert nulled == []
    assert b"embedded-user-leaks" not in orjson.dumps(published(change(path.read_bytes())))
