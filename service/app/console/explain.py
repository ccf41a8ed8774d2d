"""Why a session is live or not, and what changed between two of its states. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from clerk_session_feed.models import OPEN_STATUSES, STATUSES

from service.app.console.words import span, text_of, utc

QUIET: Final = frozenset({"updated_at", "object", "latest_activity.object", "latest_activity.id"})
"""Fields whose changes say nothing to people."""


class Change(NamedTuple):
    """A field that differs between two states."""

    field: str
    before: str
    after: str


def is_live(session: Mapping[str, Any], now_ms: int) -> bool:
    """Tell whether a session is live now: it may have run out since its state was published."""
    end = session.get("expire_at")
    return bool(session.get("live")) and (end is None or end > now_ms)


def why(message: Mapping[str, Any], now_ms: int, *, at_clerk_since_ms: int | None = None) -> str:
    """Return in a sentence or two why a session is live, or why it is not.

    Args:
        message: its last applied message.
        now_ms: Unix milliseconds.
        at_clerk_since_ms: since when Clerk has still to revoke it; None if Clerk has not.
    """
    session = message["session"]
    text = _why_live(session, now_ms) if is_live(session, now_ms) else _why_not(session, message["event"], now_ms)
    if at_clerk_since_ms is not None:
        text += (
            f" Clerk has still to be told: ordered {span(now_ms - at_clerk_since_ms)} ago. "
            "`session-relay revoke --pending` lists such sessions; `reconcile` sends them again."
        )
    return text


def _why_live(session: Mapping[str, Any], now_ms: int) -> str:
    end = session.get("expire_at")
    text = "Live: it is active, and "
    if end is None:
        text += "it has no end that is known. Only an event ends it."
    else:
        text += f"no event has ended it. It ends in {span(end - now_ms)}, unless Clerk extends it."
    if session.get("actor"):
        text += " Somebody impersonates the user in it."
    return text


def _why_not(session: Mapping[str, Any], event: Mapping[str, Any], now_ms: int) -> str:
    status, end = session.get("status"), session.get("expire_at")
    if status in OPEN_STATUSES and end is not None and end <= now_ms:
        ago = span(now_ms - end)
        return (
            f"Not live: it ran out {ago} ago, by its expire_at. No event says so yet: `session-relay expire` sends one."
        )
    if status == "pending":
        tasks = ", ".join(str(each.get("key")) for each in session.get("tasks") or ())
        todo = f"the user has still to do: {tasks}" if tasks else "the user has tasks to do"
        return f"Not live: it is pending, since {todo}. Until then, Clerk does not let the user in."
    if status not in STATUSES:
        return f"Not live, as it was published. This version does not know its status {status}."
    return f"Not live: {_ended_by(str(status), event, now_ms)}"


def _ended_by(status: str, event: Mapping[str, Any], now_ms: int) -> str:
    at = event.get("occurred_at")
    when = f"{span(now_ms - at)} ago ({utc(at)})" if isinstance(at, int) else "at a time that is not known"
    match event.get("source"), event.get("type"):
        case "synthetic", _:
            return f"it ran out {when}. Clerk sends no event for that; `session-relay expire` found it."
        case "relay", _:
            return f"it was revoked here {when}, by `session-relay revoke`. Nothing brings it back."
        case "clerk-api", _:
            return (
                f"Clerk's API said {when} that it is {status}; no webhook had told. `session-relay reconcile` found it."
            )
        case _, "user.deleted":
            return f"its user was deleted {when}. That ends all sessions of the user."
        case _, "user.updated":
            return f"its user was banned {when}. That ends all sessions of the user."
        case _, kind:
            return f"Clerk reported {kind} {when}, so it is {status}. A session that ended never comes back."


def changes(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[Change]:
    """Return which fields of a session differ; nothing if there is no state before."""
    if before is None:
        return []
    old, new = _flat(before), _flat(after)
    return [
        Change(name, text_of(name, old.get(name)), text_of(name, new.get(name)))
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name) and name not in QUIET
    ]


def _flat(session: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in session.items():
        if name == "latest_activity" and isinstance(value, dict):
            flat |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            flat[name] = value
    return flat


def facts(session: Mapping[str, Any], now_ms: int) -> Sequence[tuple[str, str]]:
    """Return what is known of a session, in the order in which people ask."""
    shown = []
    for name, value in _flat(session).items():
        if (
            name in QUIET - {"updated_at"}
            or name in {"id", "user_id", "status", "live"}
            or value is None
            or value == []
        ):
            continue
        text = text_of(name, value)
        if name == "tasks":
            text = ", ".join(str(each.get("key")) for each in value)
        elif name.endswith("_at") and isinstance(value, int):
            text += f" (in {span(value - now_ms)})" if value > now_ms else f" ({span(now_ms - value)} ago)"
        shown.append((name.removeprefix("latest_activity."), text))
    return shown
