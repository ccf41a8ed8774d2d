"""Messages, as the package for consumers reads them."""

from typing import Any

import orjson
import pytest
from clerk_session_feed import UnreadableMessageError
from clerk_session_feed.updates import published

from service.schema.json_schema import EXAMPLE, json_of


def message(**event: Any) -> bytes:
    example = json_of(EXAMPLE)
    return orjson.dumps(example | {"event": example["event"] | event})


@pytest.mark.parametrize(
    "event",
    [
        {"source": "clerk-api", "type": "session.removed", "id": f"api_{'0' * 32}"},
        {"source": "relay", "type": "session.revoked", "id": f"rev_{'f' * 32}"},
        {"source": "clerk", "type": "user.deleted"},
        {"source": "of a later version"},
    ],
)
def test_an_event_of_any_source_is_read(event: dict[str, Any]) -> None:
    """docs/contract.md, section 4."""
    update = published(message(**event))
    assert {name: getattr(update.event, name) for name in event} == event


@pytest.mark.parametrize("event", [{"source": None}, {"source": 1}, {"type": None}, {"type": "t" * 129}, {"id": "a b"}])
def test_an_event_that_is_none_is_unreadable(event: dict[str, Any]) -> None:
    with pytest.raises(UnreadableMessageError, match=r"event\."):
        published(message(**event))
