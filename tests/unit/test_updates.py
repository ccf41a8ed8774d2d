"""Messages, as the package for consumers reads them."""

import dataclasses
import json
from typing import Any, Final

import pytest
from clerk_session_feed import UnreadableMessageError
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
