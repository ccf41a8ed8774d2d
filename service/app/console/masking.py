"""The body of a dead letter without what is personal: its shape, and the few values that tell why it was not read.

A body is whatever Clerk sent: names of fields, too, can be an end user's (metadata). So only known names are shown.
"""

import dataclasses
import json
from typing import Any, Final

from clerk_session_feed import lenient_json
from clerk_session_feed.models import ID, Session, SessionActivity

MASK: Final = "•••"
_ENVELOPE: Final = frozenset({"type", "object", "instance_id", "timestamp", "data", "event_attributes"})
_DATA: Final = frozenset(field.name for field in dataclasses.fields(Session)) | {"userId", "user"}
_ACTIVITY: Final = frozenset(field.name for field in dataclasses.fields(SessionActivity))
_IDS: Final = frozenset({"id", "user_id", "userId", "client_id", "instance_id", "last_active_organization_id"})
_WORDS: Final = frozenset({"type", "object", "status"})
_LONGEST_WORD: Final = 40


def masked(body: str) -> str:
    """Return JSON with the same known fields; the values of most of them are masked."""
    try:
        event = lenient_json.loads(body.encode())
    except ValueError:
        return json.dumps(MASK, ensure_ascii=False)
    shown = _object(event, _ENVELOPE)
    if isinstance(shown, dict) and isinstance(event.get("data"), dict):
        data = shown["data"] = _object(event["data"], _DATA)
        activity = event["data"].get("latest_activity")
        if isinstance(activity, dict):
            data["latest_activity"] = _object(activity, _ACTIVITY)
    return json.dumps(shown, ensure_ascii=False)


def _object(value: Any, known: frozenset[str]) -> Any:
    if not isinstance(value, dict):
        return _masked("", value)
    shown = {name: _masked(name, each) for name, each in value.items() if name in known}
    if others := len(value) - len(shown):
        shown[f"({others} more)"] = MASK
    return shown


def _masked(name: str, value: Any) -> Any:
    """Return a value if it says nothing about a person; else what kind it is."""
    is_word = isinstance(value, str) and name in _WORDS and value.replace("_", "").replace(".", "").isalnum()
    if is_word and value.isascii() and len(value) <= _LONGEST_WORD:
        return value
    if isinstance(value, str) and name in _IDS and ID.fullmatch(value):
        return value
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        is_time = name.endswith("_at") or name == "timestamp"
        return value if is_time else "number"
    kind = "text" if isinstance(value, str) else "list" if isinstance(value, list) else "object"
    return f"{MASK} ({kind})"
