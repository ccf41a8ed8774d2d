"""The commands that show sessions: `tail`, `session` and `sessions`."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Final

import click
from clerk_session_feed import SessionFeed
from clerk_session_feed.cursors import position, whole_cursor
from clerk_session_feed.errors import CursorLostError
from clerk_session_feed.updates import SessionUpdate
from rich.console import Console

from service.cli import ids
from service.cli.check_connect import client_at, clock_ms, keys_of
from service.cli.diagnosis import explain
from service.cli.in_thread import END, in_thread
from service.cli.live import LiveSessions
from service.config import RedisSettings, load
from service.dev import view
from service.telemetry import printable

PAGE: Final = 100
"""Sessions that are listed at once, unless `--limit` says otherwise."""
LARGEST_PAGE: Final = 100_000
"""Its ids are in memory: 20 MB."""


def _parse_start(_: click.Context, __: click.Parameter, value: str) -> str:
    if value not in {"start", "now"}:
        try:
            whole_cursor(value)
        except ValueError:
            raise click.BadParameter("neither start nor now nor a cursor like 1795422761000-0") from None
    return value


@click.command()
@click.option(
    "--from",
    "start",
    metavar="start|now|CURSOR",
    default="now",
    callback=_parse_start,
    help="Where to begin; CURSOR is excluded.",
)
@click.option("--user", metavar="USER_ID", callback=ids.user_ids(), help="Only this user's sessions.")
@click.option("--stale", is_flag=True, help="Also show events that came too late to change anything.")
@click.option("--json", "as_json", is_flag=True, help="One message on each line, as published.")
def tail(start: str, user: str | None, stale: bool, as_json: bool) -> None:
    """Follow the session events, until Ctrl-C."""
    settings = load(RedisSettings)
    console = view.console()
    with contextlib.suppress(KeyboardInterrupt), SessionFeed(settings) as feed, in_thread(feed.close) as call:
        if start not in {"start", "now"}:
            call(_refuse_future, start, feed, settings)
        after = call(feed.now) if start == "now" else _cursors(start, settings.partitions)
        while True:
            updates = feed.follow(after, stale=stale, on_reconnect=_show_reconnect)
            try:
                while (update := call(next, updates, END)) is not END:
                    after[update.partition] = update.cursor
                    if user in {None, update.session.user_id}:
                        click.echo(update.json) if as_json else console.print(view.line(update))
            except CursorLostError as lost:
                click.echo(f"Events after {lost.cursor} were trimmed, or Redis lost them.", err=True)
                after[lost.partition] = "0-0"


def _cursors(start: str, partitions: int) -> dict[int, str]:
    """Return the cursor of each partition. A cursor of one stream is only a time for the others."""
    if partitions > 1 and "-" in start:
        start = start.partition("-")[0]
    return dict.fromkeys(range(partitions), "0-0" if start == "start" else start)


def _refuse_future(cursor: str, feed: SessionFeed, settings: RedisSettings) -> None:
    """Raise BadParameter for a cursor that nothing can have, because it is later than Redis' clock.

    What the stream has is none: that clock may have been put back.
    """
    at = position(whole_cursor(cursor))
    if at > max(map(position, feed.now().values())):
        with client_at(settings, keys_of(settings).split(settings.partitions)[0].events) as client:
            now_ms = clock_ms(client)
        if at[0] > now_ms:
            fault = f"{cursor} is in the future: by Redis' clock, it is {view.utc(round(now_ms))} ({now_ms:.0f})"
            raise click.BadParameter(f"{fault}; use now for what comes next", param_hint="'--from'")


def _show_reconnect(error: Exception) -> None:
    click.echo(f"Redis: {printable(explain(error))}; trying again …", err=True)


@click.command(short_help="Show a session's state and history.")
@click.argument("session_id", callback=ids.session_ids())
@click.option("--json", "as_json", is_flag=True, help="Print state and history as one JSON document.")
def session(session_id: str, as_json: bool) -> None:
    """Show the stored state of a session, and its history as far back as the stream goes."""
    with SessionFeed(load(RedisSettings)) as feed, in_thread(feed.close) as call:
        state = call(feed.get, session_id)
        history = call(feed.history, session_id, state.session.user_id if state else None)
    if state is None and not history:
        raise click.ClickException(printable(f"Nothing is stored about {session_id}."))
    if as_json:
        messages = b",".join(update.json for update in history)
        click.echo(b'{"state":%b,"history":[%b]}' % (state.json if state else b"null", messages))
        return
    console = view.console()
    if state is not None:
        console.print(view.details(state))
    if history:
        console.print()
        console.print(view.history(history))


@click.command()
@click.argument("user_id", required=False, callback=ids.user_ids("session-relay session {0}"))
@click.option(
    "--limit", type=click.IntRange(1, LARGEST_PAGE), help=f"Without USER_ID: how many to list.  [default: {PAGE}]"
)
@click.option(
    "--after",
    metavar="SESSION_ID",
    callback=ids.session_ids(),
    help="Without USER_ID: list those that follow on this one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document: count, sessions and next.")
def sessions(user_id: str | None, limit: int | None, after: str | None, as_json: bool) -> None:
    """Show the sessions that are live now: a user's, or all.

    All are listed in the order of their ids, a page at a time, with their number.
    """
    settings = load(RedisSettings)
    if user_id is None:
        _list_all(settings, limit or PAGE, after or "", as_json)
        return
    if limit is not None or after is not None:
        raise click.UsageError("--limit and --after go without USER_ID: a user's sessions are all shown.")
    with SessionFeed(settings) as feed, in_thread(feed.close) as call:
        updates = call(feed.live_sessions, user_id)
    _show(iter(updates), len(updates), None, as_json)
    if not updates and not as_json:
        click.echo(printable(f"{user_id} has no live session."), err=True)


def _list_all(settings: RedisSettings, limit: int, after: str, as_json: bool) -> None:
    with SessionFeed(settings) as feed, in_thread(feed.close) as call:
        call(feed.now)  # a feed refuses another number of PARTITIONS than the data's
    with contextlib.closing(LiveSessions(settings)) as live, in_thread(live.close) as call:
        with Console(stderr=True).status("Looking at all sessions …"):
            page = call(live.page, after, limit + 1)
        updates = live.updates(page[:limit])
        following = page[limit - 1][0] if len(page) > limit else None
        shown = _show(iter(lambda: call(next, updates, END), END), live.count, following, as_json)
    if not as_json:
        more = "" if following is None else printable(f" The next ones: --after {following}")
        click.echo(f"{live.count:,} session{' is' if live.count == 1 else 's are'} live, {shown:,} shown.{more}")
    for fault in live.unreadable.values():
        click.echo(printable(fault), err=True)
    sys.exit(1 if live.unreadable else 0)


def _show(updates: Iterator[SessionUpdate], count: int, following: str | None, as_json: bool) -> int:
    """Show sessions as they come, and return their number; as JSON, with the count of all and the next `--after`."""
    console, shown = view.console(), 0
    if as_json:
        click.echo(b'{"count":%d,"sessions":[' % count, nl=False)
    for update in updates:
        click.echo(b"," * bool(shown) + update.json, nl=False) if as_json else console.print(view.line(update))
        shown += 1
    if as_json:
        click.echo(f'],"next":{json.dumps(following)}}}')
    return shown
