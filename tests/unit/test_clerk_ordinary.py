"""An ordinary event is read in one step, with the same result as by the models that define what is accepted."""

import json
from collections.abc import Iterator
from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clerks_own import examples, needs_clerks_own
from support.constants import MESSAGE_ID, NOW_MS, PAYLOADS
from support.events import ABSENT, EVENT_PATHS, event, payload
from support.strategies import json_values, patient

from service.clerk import events, ordinary
from service.clerk.normalize import normalize
from service.models import SessionChange

HOSTILE: Final = {
    "deep": "[" * 5_000 + "]" * 5_000,
    "unclosed": "[" * 5_000,
    "lone surrogate": r'"\ud800"',
    "surrogates": r'"\ud83d\ude00"',
    "swapped surrogates": r'"\ude00\ud83d"',
    "digits": "1" * 5_000,
    "large": "1e400",
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "leading zero": "01",
    "plus": "+1",
    "no fraction": "1.",
    "hexadecimal": "0x1",
    "no exponent": "1e",
    "fraction": "1795422700300.0",
    "exponent": "1795422700300e0",
    "minus": "-",
    "minus zero": "-0",
    "control character": '"\x01"',
    "line feed": '"\n"',
    "delete": '"\x7f"',
    "bad escape": r'"\x41"',
    "short escape": r'"\u12"',
    "escaped zero": r'"\u0000"',
    "trailing comma": "[1,]",
    "no key": "{1:2}",
    "no colon": '{"a" 1}',
    "trailing comma after a member": '{"a":1,}',
    "same key": '{"id":"a","id":"b"}',
    "form feed": "\f1",
    "no-break space": "\u00a01",
    "comment": "/**/1",
    "single quotes": "'a'",
    "word": "nul",
    "capital": "True",
    "empty": "",
    "two": "1 2",
    "null": "null",
    "text": '"x"',
    "id at its end": '"sess_1\\n"',
    "time in seconds": "1795422700",
    "longest text": f'"{"x" * 1024}"',
    "longer text": f'"{"x" * 1025}"',
    "longest text of four bytes each": f'"{"😀" * 1024}"',
    "longest id": f'"{"x" * 128}"',
    "longer id": f'"{"x" * 129}"',
    "tasks": '[{"key":"a","object":1},{"key":"b"}]',
    "odd tasks": '[{"key":"a"},{"key":1},null]',
}

PIECES: Final = '{}[],:"\\0123456789.eE+-untrfalsx\x00\u00e9'
"""Characters that mean something in JSON, and two that mean nothing."""


def outcome(body: bytes, *, is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[object, list[str]]:
    """Return what is published and counted of a body; or why nothing is."""
    nulled: list[str] = []
    with monkeypatch.context() as patch:
        if not is_fast:
            patch.setattr(ordinary, "read", lambda _: None)
        try:
            found = events.parse(body, nulled.append)
        except Exception as error:  # noqa: BLE001  # which error it is is compared, too
            return (type(error), str(error)), nulled
    if isinstance(found, events.SessionEvent | ordinary.OrdinaryEvent):
        return normalize(found, message_id=MESSAGE_ID, now_ms=NOW_MS), nulled
    return found, nulled


def assert_read_alike(body: bytes) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fast, slow = (outcome(body, is_fast=is_fast, monkeypatch=monkeypatch) for is_fast in (True, False))
    assert _comparable(fast) == _comparable(slow)


def _comparable(result: tuple[object, list[str]]) -> object:
    made, nulled = result
    if isinstance(made, SessionChange):
        return orjson.dumps([made.event, made.session]), made.order, nulled
    return made, nulled


def with_raw(path: str, raw: str) -> bytes:
    """Return the body of an event with this text, which may be no JSON, as a value."""
    return json.dumps(event({path: "@raw"}), ensure_ascii=False).replace('"@raw"', raw).encode()


@pytest.mark.parametrize("path", sorted(PAYLOADS.glob("session.*.json")), ids=lambda path: path.stem)
def test_samples_are_read_alike(path: Any) -> None:
    assert_read_alike(path.read_bytes())


@pytest.mark.parametrize("name", ["session.created", "session.pending", "session.removed"])
def test_what_clerk_sends_every_day_is_ordinary(name: str) -> None:
    assert ordinary.read(json.dumps(payload(name)).encode()) is not None


@needs_clerks_own
def test_clerks_own_examples_are_read_alike() -> None:
    for each in examples():
        assert_read_alike(json.dumps(each).encode())


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_value_is_read_alike_wherever_it_is(raw: str) -> None:
    for path in (*EVENT_PATHS, "data.user.private_metadata", "unknown", "data.unknown"):
        assert_read_alike(with_raw(path, raw))


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_body_is_read_alike(raw: str) -> None:
    assert_read_alike(raw.encode())


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf%b", b"%b \n", b"%b\x00", b"%b{}", b"\xff%b", b"[%b]"], ids=ascii)
def test_what_is_around_an_event_is_read_alike(body: bytes) -> None:
    assert_read_alike(body % json.dumps(payload("session.created")).encode())


@pytest.mark.parametrize("path", EVENT_PATHS)
@pytest.mark.parametrize("odd", [ABSENT, None], ids=["absent", "null"])
def test_a_field_that_is_missing_is_read_alike(path: str, odd: object) -> None:
    assert_read_alike(json.dumps(event({path: odd})).encode())


@pytest.mark.parametrize("type_", ["session.updated", "session.x" * 20, "session", "user.created", "user.deleted", ""])
def test_other_types_are_read_alike(type_: str) -> None:
    assert_read_alike(json.dumps(event({"type": type_})).encode())


def in_both_spellings() -> Iterator[tuple[str, str]]:
    for prefix, model in (
        ("", events.SessionEvent),
        ("data.", events.SessionData),
        ("data.latest_activity.", events.Activity),
    ):
        for sdk, name in model._sdk_names.items():
            yield f"{prefix}{name}", f"{prefix}{sdk}"


@pytest.mark.parametrize(("name", "sdk_name"), [*in_both_spellings()])
def test_the_spelling_of_sdks_is_read_alike(name: str, sdk_name: str) -> None:
    sdk_values: tuple[Any, ...] = (None, "user_2", 1_795_422_700_999, 0, {"city": "Oslo"}, [], True)
    for value in (ABSENT, None):
        for sdk_value in sdk_values:
            assert_read_alike(json.dumps(event({name: value, sdk_name: sdk_value})).encode())


@pytest.mark.parametrize("names", [("user_id", "user_id"), ("userId", "userId"), ("user_id", "userId")])
@pytest.mark.parametrize("values", [('"a"', '"b"'), ('"a"', "null"), ("null", '"a"'), ("17", '"a"'), ('"a"', "17")])
def test_the_last_of_duplicate_keys_wins(names: tuple[str, str], values: tuple[str, str]) -> None:
    members = ",".join(f'"{name}":{value}' for name, value in zip(names, values, strict=True))
    body = json.dumps(event({"data.user_id": "@raw"})).replace('"user_id": "@raw"', members)
    assert_read_alike(body.encode())


def test_keys_may_be_escaped() -> None:
    body = json.dumps(payload("session.created")).replace('"user_id"', r'"user_\u0069d"')
    assert_read_alike(body.encode())
    assert_read_alike(body.replace('"client_id"', r'"user\u0049d"').encode())


@patient
@given(st.dictionaries(st.sampled_from(EVENT_PATHS), json_values, max_size=4))
def test_any_values_are_read_alike(values: dict[str, Any]) -> None:
    # Longer paths first: what a shorter one puts there may be no object.
    body = event({path: values[path] for path in sorted(values, key=len, reverse=True)})
    assert_read_alike(json.dumps(body).encode())


@patient
@given(st.data())
def test_damaged_bodies_are_read_alike(data: st.DataObject) -> None:
    body = bytearray(json.dumps(payload("session.created")).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(body) - 1))
        width = data.draw(st.integers(0, 3))
        body[position : position + width] = data.draw(st.text(PIECES, max_size=3)).encode()
    assert_read_alike(bytes(body))


def test_all_fields_of_the_models_are_known() -> None:
    for model, struct in (
        (events.SessionEvent, ordinary.OrdinaryEvent),
        (events.SessionData, ordinary.OrdinaryData),
        (events.Activity, ordinary.Activity),
    ):
        assert set(struct.__struct_fields__) == {*model.model_fields, *model._sdk_names}
