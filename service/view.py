"""How messages look to a person in a terminal."""

import contextlib
import datetime
import json
import time
from typing import Any

from rich.text import Text

from service import lenient_json
from service.text import printable

STATUS_STYLES = {"active": "bold green", "pending": "yellow", "revoked": "bold red"}


def line(message: bytes, *, stale: bool = False) -> Text:
    """Return one line: when, what, whose, and what changed from what."""
    content = lenient_json.loads(message)
    event, session = content["event"], content["session"]
    text = Text(no_wrap=True, overflow="ellipsis", style="dim" if stale else "")
    text.append(when(event["occurred_at"]), "dim").append("  ")
    text.append(f"{printable(event['type']):<17}").append("  ")
    text.append(f"{session['status']} (stale)") if stale else text.append(change(message))
    return text.append(f"  {session['id']}  {session['user_id']}", "dim")


def change(message: bytes) -> Text:
    """Return what the session is now, and what it was before."""
    content = lenient_json.loads(message)
    status = content["session"]["status"]
    text = Text()
    if content["previous_status"]:
        text.append(f"{content['previous_status']} → ", "dim")
    text.append(status, STATUS_STYLES.get(status, "red"))
    return text.append(" (live)" if content["session"]["live"] else " (not live)", "dim")


def details(message: bytes) -> Text:
    """Return the state held of one session, a line for each field."""
    rows = []
    content = lenient_json.loads(message)
    event, session = content["event"], content["session"]
    for name, value in session.items():
        shown, style = value if isinstance(value, str) else lenient_json.dumps(value), ""
        if name == "live":
            shown = lenient_json.dumps(is_live(session))
        elif name == "status":
            style = STATUS_STYLES.get(value, "red")
        elif name.endswith("_at") and value is not None:
            shown = f"{when(value)}  ({value})"
        rows.append(_row(name, shown, style))
    rows.append(_row("revision", str(content["revision"])))
    rows.append(_row("cursor", content["cursor"]))
    rows.append(_row("last event", f"{event['type']}  {event['id']}  {when(event['occurred_at'])}"))
    return Text("\n").join(rows)


def _row(name: str, value: str, style: str = "") -> Text:
    return Text(f"{name:<29}", "bold").append(printable(value), style or "not bold")


def is_live(session: dict[str, Any]) -> bool:
    """Tell whether it is live now: it was when it was published, and has not run out since."""
    return bool(session["live"]) and (
        session["expire_at"] is None or session["expire_at"] > time.time() * 1000
    )


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
