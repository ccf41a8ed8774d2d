"""How messages look to a person in a terminal."""

import contextlib
import datetime
import json
from collections.abc import Sequence

from clerk_session_feed import lenient_json
from clerk_session_feed.updates import SessionUpdate
from rich.text import Text

from service.telemetry.text import printable

STATUS_STYLES = {"active": "bold green", "pending": "yellow", "revoked": "bold red"}


def line(update: SessionUpdate) -> Text:
    """Return one line: when, what, whose, and what changed from what."""
    text = _what(update)
    return text.append(f"  {update.session.id}  {update.session.user_id}", "dim")


def history(updates: Sequence[SessionUpdate]) -> Text:
    """Return a line for each event of one session: its revision, when, what, and what changed from what."""
    rows = [Text("revision", "bold")]
    for update in updates:
        number = "-" if update.revision is None else str(update.revision)
        rows.append(Text(f"{number:>8}  ").append(_what(update)).append(f"  {update.event.id}", "dim"))
    return Text("\n").join(rows)


def _what(update: SessionUpdate) -> Text:
    is_stale = update.outcome == "stale"
    text = Text(no_wrap=True, overflow="ellipsis", style="dim" if is_stale else "")
    text.append(when(update.event.occurred_at), "dim").append("  ")
    text.append(f"{printable(update.event.type):<17}").append("  ")
    return text.append(f"{update.session.status} (stale)" if is_stale else change(update))


def change(update: SessionUpdate) -> Text:
    """Return what the session is now, and what it was before."""
    status = update.session.status
    text = Text()
    if update.previous_status:
        text.append(f"{update.previous_status} → ", "dim")
    text.append(status, STATUS_STYLES.get(status, "red"))
    return text.append(" (live)" if update.session.live else " (not live)", "dim")


def details(update: SessionUpdate) -> Text:
    """Return the state held of one session, a line for each field."""
    rows = []
    for name, value in lenient_json.loads(update.json)["session"].items():
        shown, style = value if isinstance(value, str) else lenient_json.dumps(value), ""
        if name == "live":
            shown = lenient_json.dumps(update.is_live)
        elif name == "status":
            style = STATUS_STYLES.get(value, "red")
        elif name.endswith("_at") and value is not None:
            shown = f"{when(value)}  ({value})"
        rows.append(_row(name, shown, style))
    event = update.event
    rows.append(_row("revision", str(update.revision)))
    rows.append(_row("cursor", update.cursor))
    rows.append(_row("last event", f"{event.type}  {event.id}  {when(event.occurred_at)}"))
    return Text("\n").join(rows)


def _row(name: str, value: str, style: str = "") -> Text:
    return Text(f"{name:<29}", "bold").append(printable(value), style or "not bold")


def indented(body: str) -> str:
    """Return JSON in many lines; what Python can't write in that way (or at all) stays as it is."""
    with contextlib.suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    return "\n".join(map(printable, body.split("\n")))


def when(unix_ms: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(unix_ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):
        return str(unix_ms)
