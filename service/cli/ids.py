"""Ids on the command line: whether they can be ids, and are of the kind that is asked for."""

from collections.abc import Callable
from typing import Any

import click
from clerk_session_feed.models import ID

from service.telemetry import printable

Callback = Callable[[click.Context, click.Parameter, Any], Any]


def session_ids(hint: str = "session-relay sessions {0} lists the user's sessions") -> Callback:
    """Return a callback for ids of sessions; the hint tells what to do with a user's."""
    return _checking("user_", f"{{0}} is a user's id: {hint}")


def user_ids(hint: str = "session-relay session {0} shows whose session it is") -> Callback:
    """Return a callback for ids of users; the hint tells what to do with a session's."""
    return _checking("sess_", f"{{0}} is a session's id: {hint}")


def _checking(other: str, fault: str) -> Callback:
    def check(_: click.Context, __: click.Parameter, value: Any) -> Any:
        for each in (value,) if isinstance(value, str) else value or ():
            if not ID.fullmatch(each):
                shown = printable(each)[:128]
                raise click.BadParameter(f"{shown} is no id: it takes 1 to 128 letters, digits, _ and -.")
            if each.startswith(other):
                raise click.BadParameter(fault.format(each))
        return value

    return check
