"""Messages, as the package for consumers reads them."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any, Final

import pytest
from clerk_session_feed import SessionUpdate, UnreadableMessageError, fast_json, updates
from clerk_session_feed.updates import published, streamed
from support.conformance_drivers import FOLDER
from support.conformance_matching import message_with

MESSAGES: Final = json.loads((FOLDER / "messages.json").read_text())
"""The client for TypeScript has the same: test/update.test.ts."""


def message(values: dict[str, Any], without: str | None = None) -> bytes:
    made = message_with({"cursor": "7-0"} | values)
    if without is not None:
        parent, _, key = without.rpartition(".")
        del (made[parent] if parent else made)[key]
    return json.dumps(made, separators=(",", ":")).encode()  # as the relay writes it


@pytest.mark.parametrize("values", MESSAGES["read"])
def test_what_a_later_version_may_add_is_read(values: dict[str, Any]) -> None:
    """docs/contract.md, section 4."""
    update = published(message(values))
    entry = streamed(message(values | {"cursor": None}), "the stream", cursor="8-0", outcome="applied", partition=0)

    told = {"cursor": update.cursor, "revision": update.revision, "previous_status": update.previous_status}
    told |= {f"event.{name}": value for name, value in dataclasses.asdict(update.event).items()}
    told |= {f"session.{name}": value for name, value in dataclasses.asdict(update.session).items()}
    plain = {path: value for path, value in values.items() if path in told and not isinstance(value, dict | list)}
    assert plain == {path: told[path] for path in plain}
    assert entry.session == update.session


@pytest.mark.parametrize("values", MESSAGES["read"])
def test_space_in_the_json_makes_no_difference(values: dict[str, Any]) -> None:
    compact = message(values)
    spaced = json.dumps(json.loads(compact), indent=1).encode()
    assert dataclasses.replace(published(spaced), json=compact) == published(compact)


@pytest.mark.parametrize("value", ['"\\ud800"', "9" * 5000, "[" * 1500 + "]" * 1500, "NaN", '{"a":1,"a":2}'])
def test_what_fast_parsers_give_up_on_is_read_in_a_key_that_a_later_version_adds(value: str) -> None:
    text = message({}).removesuffix(b"}") + f',"later":{value}}}'.encode()
    assert published(text).session == published(message({})).session


@pytest.mark.parametrize("values", MESSAGES["unreadable"])
def test_a_message_of_another_kind_is_unreadable(values: dict[str, Any]) -> None:
    [field] = values
    with pytest.raises(UnreadableMessageError, match=f"^the key: {field.partition('.')[0]}"):
        published(message(values), "the key")


@pytest.mark.parametrize("field", MESSAGES["unreadable_without"])
def test_a_message_that_lacks_a_key_is_unreadable(field: str) -> None:
    with pytest.raises(UnreadableMessageError, match=f"^the key: {field.partition('.')[0]}"):
        published(message({}, without=field), "the key")


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[]", b"5", b'"text"'])
def test_what_is_no_object_is_unreadable(text: bytes) -> None:
    with pytest.raises(UnreadableMessageError, match=r"^the key: "):
        published(text, "the key")


# Most messages are read by msgspec (fast_json), and others by pydantic.


def with_request(request: Any) -> dict[str, Any]:
    return {"event.http_request": request}


@pytest.mark.parametrize(
    "values",
    [
        {},
        with_request(None),
        with_request({"client_ip": "192.0.2.7", "user_agent": None}),
        {"session.tasks": [{"key": "choose-organization"}]},
    ],
)
def test_what_the_relay_writes_nearly_always_is_read_without_pydantic(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "_read", None)
    assert published(message(values)).session.id == "sess_1"


ODD: Final = [
    None,
    True,
    0,
    -1,
    1.0,
    2**70,
    "",
    "a b",
    "x" * 129,
    "\n",
    "é",
    "\0",
    [],
    {},
    [{"key": "a"}],
    {"sub": "a"},
]
PATHS: Final = [*MESSAGES["unreadable_without"], "event.http_request", "session.object"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", ODD)
def test_msgspec_takes_nothing_that_pydantic_refuses_or_reads_in_another_way(path: str, value: Any) -> None:
    text = message({path: value})
    if fast_json.read_session_message(text) is not None:
        assert published(text) == dataclasses.replace(published(b" " + text), json=text)  # pydantic's, for the space


@pytest.mark.parametrize("later", [b'"\xff":1', b'"later":"\xff"'])
def test_a_message_that_is_not_utf_8_is_unreadable_also_where_nothing_is_read(later: bytes) -> None:
    with pytest.raises(UnreadableMessageError):
        published(message({}).removesuffix(b"}") + b"," + later + b"}")


def unseen() -> SessionUpdate:
    """Return an update whose event and session nobody has looked at."""
    return published(message({"session.tasks": [{"key": "choose-organization"}]}))


def seen() -> SessionUpdate:
    update = unseen()
    assert update.event
    assert update.session
    return update


@pytest.mark.parametrize(
    "use",
    [repr, dataclasses.asdict, copy.copy, copy.deepcopy, lambda update: pickle.loads(pickle.dumps(update))],
    ids=["repr", "asdict", "copy", "deepcopy", "pickle"],
)
def test_it_makes_no_difference_whether_an_update_was_looked_at(use: Callable[[SessionUpdate], object]) -> None:
    assert use(unseen()) == use(seen())


def test_the_session_of_an_update_is_made_once() -> None:
    update = unseen()
    assert update.session is update.session


def test_an_update_has_no_other_attribute() -> None:
    with pytest.raises(AttributeError, match="'SessionUpdate' object has no attribute 'sesion'"):
        unseen().sesion  # type: ignore[attr-defined]  # noqa: B018


def test_an_update_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        unseen().cursor = "9-0"  # type: ignore[misc]
