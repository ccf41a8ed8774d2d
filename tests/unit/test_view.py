"""How messages look in a terminal, and that none of them can steer it."""

import dataclasses
import json
import re
import time
from typing import Any

import orjson
import pytest
from clerk_session_feed.updates import SessionUpdate, streamed
from rich.console import Console
from rich.text import Text
from support.constants import DAY_MS
from support.events import clerk_event

from service.clerk.events import SessionEvent, parse
from service.clerk.normalize import normalize
from service.clerk.ordinary import OrdinaryEvent
from service.dev import view
from service.models import SessionChange

OCCURRED_MS = 1_795_422_761_000  # 2026-11-23 08:32:41 UTC
HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\t\x9b31m\u202e\u2028[bold red]Oslo[/] :smile:"


def message(
    status: str = "active", *, previous_status: str | None = None, revision: int | None = 1, **data: Any
) -> SessionUpdate:
    """Return what is read of an event at OCCURRED_MS. revision: None for one that came too late."""
    body = clerk_event(status, **{"updated_at": OCCURRED_MS, "expire_at": OCCURRED_MS + DAY_MS} | data)
    event = parse(json.dumps(body).encode(), lambda _: None)
    assert isinstance(event, SessionEvent | OrdinaryEvent)
    change = normalize(event, message_id="msg_1", now_ms=OCCURRED_MS)
    assert isinstance(change, SessionChange)
    head = {"schema_version": 1, "cursor": None, "revision": revision, "previous_status": previous_status}
    content = orjson.dumps(head | {"event": change.event, "session": change.session})
    outcome = "applied" if revision else "stale"
    return streamed(content, "stream", cursor="1795422761000-0", outcome=outcome, partition=0)


def plain(text: Text, width: int = 1000) -> str:
    """Return what a terminal of this width shows, colours aside."""
    console = Console(width=width, soft_wrap=True, highlight=False)
    with console.capture() as capture:
        console.print(text)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def rows(content: SessionUpdate) -> dict[str, str]:
    found = {}
    for row in plain(view.details(content)).splitlines():
        if row:
            name, _, value = row.partition("  ")
            found[name] = value.strip()
    return found


# A line


def test_a_line_tells_when_what_whose_and_what_changed() -> None:
    line = plain(view.line(message()))
    assert re.split(" {2,}", line) == [
        "2026-11-23 08:32:41 UTC",
        "session.created",
        "active (live)",
        "sess_1",
        "user_1",
    ]


def test_a_line_tells_what_the_session_was_before() -> None:
    line = plain(view.line(message("ended", previous_status="active")))
    assert "active → ended (not live)" in line


def test_a_line_about_a_late_event_says_that_it_is_stale() -> None:
    line = plain(view.line(message(revision=None)))
    assert "active (stale)" in line
    assert "live" not in line


def test_a_line_is_one_line_in_a_narrow_terminal() -> None:
    shown = plain(view.line(message("ended", previous_status="active")), width=20)
    assert "\n" not in shown
    assert shown.endswith("user_1")


def test_a_line_lets_no_type_steer_the_terminal() -> None:
    shown = plain(view.line(message(type_=f"session.{HOSTILE}")))
    assert shown.isprintable()
    assert "[bold red]Oslo[/] :smile:" in shown


def test_a_line_lets_no_status_of_a_later_version_steer_the_terminal() -> None:
    content = message(previous_status=HOSTILE)
    content = dataclasses.replace(content, session=dataclasses.replace(content.session, status=HOSTILE))
    assert plain(view.line(content)).count("[bold red]Oslo[/] :smile:") == 2
    for outcome in ("applied", "stale"):
        assert plain(view.line(dataclasses.replace(content, outcome=outcome))).isprintable()


# A change


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (message(), "active (live)"),
        (message("pending"), "pending (not live)"),
        (message("revoked", previous_status="active"), "active → revoked (not live)"),
        (message("active", previous_status="pending"), "pending → active (live)"),
        (message("active", previous_status="active"), "active → active (live)"),
    ],
)
def test_a_change_tells_what_became_of_what(content: SessionUpdate, expected: str) -> None:
    assert plain(view.change(content)) == expected


# Details


def test_details_have_a_row_for_each_field_and_what_led_to_it() -> None:
    content = message()
    session = json.loads(content.json)["session"]
    assert list(rows(content)) == [*session, "revision", "cursor", "last event"]


def test_details_show_times_for_people_and_for_programs() -> None:
    assert rows(message())["updated_at"] == "2026-11-23 08:32:41 UTC  (1795422761000)"


def test_details_show_what_is_missing_as_null() -> None:
    shown = rows(message(client_id=None, latest_activity=None, expire_at=None))
    assert [shown[name] for name in ("client_id", "latest_activity", "expire_at")] == ["null"] * 3


def test_details_show_what_is_nested_as_json() -> None:
    content = message(actor={"sub": "user_Åse"})
    assert json.loads(rows(content)["actor"]) == {"sub": "user_Åse"}
    assert "Åse" in rows(content)["actor"]


def test_details_tell_the_last_event() -> None:
    assert rows(message())["last event"] == "session.created  msg_1  2026-11-23 08:32:41 UTC"


@pytest.mark.parametrize("expire_at", [0, 10**14, 9_999_999_999_999])
def test_details_show_any_time_that_is_accepted(expire_at: int) -> None:
    assert f"({expire_at})" in rows(message(expire_at=expire_at))["expire_at"]


def test_details_let_no_name_steer_the_terminal() -> None:
    hostile = dict.fromkeys(("browser_name", "browser_version", "city", "country", "device_type"), HOSTILE)
    content = message(
        latest_activity=hostile,
        actor={"sub": HOSTILE, HOSTILE: 1},
        tasks=[{"key": HOSTILE}],
        type_=f"session.{HOSTILE}",
    )
    shown = plain(view.details(content), width=5000)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("[bold red]Oslo[/] :smile:") == 9


def test_details_are_a_line_for_each_field_in_a_narrow_terminal() -> None:
    content = message()
    assert plain(view.details(content), width=20) == plain(view.details(content))


def test_details_show_a_session_that_has_run_out_as_not_live() -> None:
    now_ms = int(time.time() * 1000)
    content = message()
    has_run_out = dataclasses.replace(content.session, live=True, expire_at=now_ms - 1)
    assert rows(dataclasses.replace(content, session=has_run_out))["live"] == "false"


# History


def test_a_history_has_a_line_for_each_event_with_its_revision() -> None:
    events = [message(), message("ended", previous_status="active", revision=2), message(revision=None)]
    _, *lines = plain(view.history(events)).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "-"]
    assert "active → ended" in lines[1]
    assert "stale" in lines[2]
    assert all(line.endswith("msg_1") and "2026-11-23 08:32:41 UTC" in line for line in lines)


def test_a_history_lets_no_type_steer_the_terminal() -> None:
    shown = plain(view.history([message(type_=f"session.{HOSTILE}")]))
    assert all(line.isprintable() for line in shown.splitlines())
