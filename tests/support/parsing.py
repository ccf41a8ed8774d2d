"""What the relay makes of a body, without Redis."""

import json
from typing import Any

import orjson

from service.clerk.events import SessionEvent, parse
from service.clerk.normalize import normalize
from service.clerk.ordinary import OrdinaryEvent
from service.clerk.users import UserEvent
from service.models import Ignored, SessionChange, Unusable
from support.constants import MESSAGE_ID, NOW_MS


def read(
    body: object, *, with_request: bool = True
) -> tuple[SessionEvent | OrdinaryEvent | UserEvent | Ignored | Unusable, list[str]]:
    """Parse the body (bytes, or what is to be written as JSON); also return what was read as null."""
    nulled: list[str] = []
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse(raw, nulled.append, with_request=with_request), nulled


def read_event(body: object) -> SessionEvent:
    parsed, _ = read(body)
    assert isinstance(parsed, SessionEvent), parsed
    return parsed


def change(
    body: object, *, message_id: str = MESSAGE_ID, now_ms: int = NOW_MS, publish_http_request: bool = False
) -> SessionChange:
    made = try_change(body, message_id=message_id, now_ms=now_ms, publish_http_request=publish_http_request)
    assert isinstance(made, SessionChange), made
    return made


def try_change(
    body: object, *, message_id: str = MESSAGE_ID, now_ms: int = NOW_MS, publish_http_request: bool = False
) -> SessionChange | Unusable:
    parsed, _ = read(body, with_request=publish_http_request)
    assert not isinstance(parsed, Ignored | UserEvent)
    if isinstance(parsed, Unusable):
        return parsed
    return normalize(parsed, message_id=message_id, now_ms=now_ms)


def reason(body: object) -> str | None:
    """Return why the body becomes a dead letter; None if it does not."""
    made = try_change(body)
    return made.reason if isinstance(made, Unusable) else None


def published(made: SessionChange) -> dict[str, Any]:
    """Return the part of the message that Python writes, read again by a strict parser."""
    return dict(orjson.loads(orjson.dumps({"event": made.event, "session": made.session})))
