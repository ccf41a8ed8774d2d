"""How session updates look in a terminal: for the commands that show some."""

import contextlib
import datetime
import json
from collections.abc import Sequence

from clerk_session_feed import lenient_json
from clerk_session_feed.updates import SessionUpdate
from rich.console import Console
from rich.text import Text

from service.telemetry import printable

STATUS_STYLES = {"active": "bold green", "pending": "yellow", "revoked": "bold red"}


def console() -> Console:
    """Return a terminal whose lines are not cut, and in which nothing but our own styles is coloured."""
    return Console(soft_wrap=True, highlight=False)


def line(update: SessionUpdate) -> Text:
    """Return one line: time, type, the status before and now, session and user."""
    return _summary(update).append(f"  {update.session.id}  {update.session.user_id}", "dim")


def history(updates: Sequence[SessionUpdate]) -> Text:
    """Return a line for each event of one session: revision, time, type, status before and now, event id."""
    rows = [Text("revision", "bold")]
    for update in updates:
        number = "-" if update.revision is None else str(update.revision)
        rows.append(Text(f"{number:>8}  ").append(_summary(update)).append(f"  {update.event.id}", "dim"))
    return Text("\n").join(rows)


def _summary(update: SessionUpdate) -> Text:
    is_stale = update.outcome == "stale"
    text = Text(no_wrap=True, overflow="ellipsis", style="dim" if is_stale else "")
    text.append(utc(update.event.occurred_at), "dim").append("  ")
    text.append(f"{printable(update.event.type):<17}").append("  ")
    return text.append(f"{printable(update.session.status)} (stale)" if is_stale else change(update))


def change(update: SessionUpdate) -> Text:
    """Return the status before and now, and whether the session is live."""
    status = update.session.status
    text = Text()
    if update.previous_status:
        text.append(f"{printable(update.previous_status)} → ", "dim")
    text.append(printable(status), STATUS_STYLES.get(status, "red"))
    return text.append(" (live)" if update.session.live else " (not live)", "dim")


def details(update: SessionUpdate) -> Text:
    """Return the state of one session, a line for each field."""
    rows = []
    for name, value in lenient_json.loads(update.json)["session"].items():
        shown, style = value if isinstance(value, str) else lenient_json.dumps(value), ""
        if name == "live":
            shown = lenient_json.dumps(update.is_live)
        elif name == "status":
            style = STATUS_STYLES.get(value, "red")
        elif name.endswith("_at") and value is not None:
            shown = f"{utc(value)}  ({value})"
        rows.append(_row(name, shown, style))
    event = update.event
    rows += [_row("revision", str(update.revision)), _row("cursor", update.cursor)]
    rows.append(_row("last event", f"{event.type}  {event.id}  {utc(event.occurred_at)}"))
    return Text("\n").join(rows)


def _row(name: str, value: str, style: str = "") -> Text:
    return Text(f"{name:<29}", "bold").append(printable(value), style or "not bold")


def indented(body: str) -> str:
    """Return JSON with one value on each line; what Python can't read as JSON stays as it is."""
    with contextlib.suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    return "\n".join(map(printable, body.split("\n")))


def utc(unix_ms: int) -> str:
    """Return a time as `2026-11-29 09:17:25 UTC`; one that Python can't show, as Unix milliseconds."""
    try:
        return datetime.datetime.fromtimestamp(unix_ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError):
        return str(unix_ms)
