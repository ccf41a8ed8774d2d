"""What lists and timelines show of sessions. Pure."""

from collections.abc import Sequence
from typing import Any

from service.app.console.explain import changes, is_live
from service.app.console.rows import Entry, loads, row, tone
from service.app.console.words import place_of, span


def is_first(entry: Entry) -> bool:
    """Tell whether an entry is the first of its session: none can be before it."""
    return entry.outcome == "applied" and loads(entry.message).get("revision") == 1


def timeline(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the events of a session, the newest first, each with what it changed."""
    shown = []
    before: dict[str, Any] | None = None
    for entry in reversed(entries):
        message = loads(entry.message)
        is_applied = entry.outcome == "applied"
        changed = changes(before, message["session"]) if is_applied else []
        shown.append({**row(entry), "changed": changed, "event_id": str(message["event"].get("id") or "")})
        before = message["session"] if is_applied else before
    return shown[::-1]


def listed(message: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """Return what a list shows of a session, from its state. now_ms: Unix milliseconds."""
    session = message["session"]
    status, live = str(session.get("status")), is_live(session, now_ms)
    end = session.get("expire_at")
    return {
        "session": str(session.get("id")),
        "status": status,
        "tone": tone(status, live=live),
        "is_live": live,
        "actor": bool(session.get("actor")),
        "place": place_of(session.get("latest_activity")),
        "ends": "no end" if end is None else f"in {span(end - now_ms)}" if end > now_ms else "ran out",
        "created_at": session.get("created_at"),
        "last_active_at": session.get("last_active_at"),
    }
