"""How messages look to a person in a terminal."""

import datetime
import json
import time
from typing import Any

from rich.table import Table
from rich.text import Text

STATUS_STYLES = {"active": "bold green", "pending": "yellow", "revoked": "bold red"}


def line(message: bytes, *, stale: bool = False) -> Text:
    """Return one line: when, what, whose, and what changed from what."""
    content = json.loads(message)
    event, session = content["event"], content["session"]
    text = Text(no_wrap=True, overflow="ellipsis", style="dim" if stale else "")
    text.append(_time(event["occurred_at"]), "dim").append("  ")
    text.append(f"{_printable(event['type']):<17}").append("  ")
    text.append(f"{session['status']} (stale)") if stale else text.append(change(message))
    return text.append(f"  {session['id']}  {session['user_id']}", "dim")


def change(message: bytes) -> Text:
    """Return what the session is now, and what it was before."""
    content = json.loads(message)
    status = content["session"]["status"]
    text = Text()
    if content["previous_status"]:
        text.append(f"{content['previous_status']} → ", "dim")
    text.append(status, STATUS_STYLES.get(status, "red"))
    return text.append(" (live)" if content["session"]["live"] else " (not live)", "dim")


def details(message: bytes) -> Table:
    """Return the state held of one session, a row for each field."""
    content = json.loads(message)
    event, session = content["event"], content["session"]
    table = Table("field", "value", show_header=False, box=None, pad_edge=False)
    for name, value in session.items():
        if name == "live":
            value = is_live(session)  # noqa: PLW2901
        if isinstance(value, int) and name.endswith("_at"):
            value = f"{_time(value)}  ({value})"  # noqa: PLW2901
        shown = Text(_printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
        if name == "status":
            shown.stylize(STATUS_STYLES.get(value, "red"))
        table.add_row(Text(name, "bold"), shown)
    table.add_section()
    table.add_row(Text("revision", "bold"), str(content["revision"]))
    table.add_row(Text("cursor", "bold"), content["cursor"])
    table.add_row(
        Text("last event", "bold"),
        Text(f"{_printable(event['type'])}  {event['id']}  {_time(event['occurred_at'])}"),
    )
    return table


def is_live(session: dict[str, Any]) -> bool:
    """Tell whether it is live now: it was when it was published, and has not run out since."""
    return bool(session["live"]) and (
        session["expire_at"] is None or session["expire_at"] > time.time() * 1000
    )


def _printable(text: str) -> str:
    """Names of browsers and cities come from outside: none of them shall steer the terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _time(unix_ms: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(unix_ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):
        return str(unix_ms)
