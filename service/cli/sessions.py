"""The commands that show sessions: `tail`, `session` and `sessions`."""

import contextlib

import click
from clerk_session_feed import SessionFeed
from clerk_session_feed.connections import explain
from clerk_session_feed.cursors import whole_cursor
from clerk_session_feed.errors import CursorLostError

from service.config import RedisSettings, load
from service.dev import view
from service.telemetry import printable

_json_option = click.option("--json", "as_json", is_flag=True, help="One message on each line, as published.")


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
@click.option("--user", metavar="USER_ID", help="Only this user's sessions.")
@click.option("--stale", is_flag=True, help="Also show events that came too late to change anything.")
@_json_option
def tail(start: str, user: str | None, stale: bool, as_json: bool) -> None:
    """Follow the session events, until Ctrl-C."""
    settings = load(RedisSettings)
    console = view.console()
    with SessionFeed(settings) as feed, contextlib.suppress(KeyboardInterrupt):
        after = feed.now() if start == "now" else _cursors(start, settings.partitions)
        while True:
            try:
                for update in feed.follow(after, stale=stale, on_reconnect=_show_reconnect):
                    after[update.partition] = update.cursor
                    if user in {None, update.session.user_id}:
                        click.echo(update.json) if as_json else console.print(view.line(update))
            except CursorLostError as lost:
                click.echo(f"Events after {lost.cursor} were trimmed, or Redis lost them.", err=True)
                after[lost.partition] = "0-0"


def _cursors(start: str, partitions: int) -> dict[int, str]:
    """Return the cursor of each partition. A cursor of one stream is only a time for the others."""
    if partitions > 1 and "-" in start:
        start = str(max(0, int(start.partition("-")[0]) - 1))
    return dict.fromkeys(range(partitions), "0-0" if start == "start" else start)


def _show_reconnect(error: Exception) -> None:
    click.echo(f"Redis: {printable(explain(error))}; trying again …", err=True)


@click.command(short_help="Show a session's state and history.")
@click.argument("session_id")
@_json_option
def session(session_id: str, as_json: bool) -> None:
    """Show the stored state of a session, and its history as far back as the stream goes."""
    with SessionFeed(load(RedisSettings)) as feed:
        state = feed.get(session_id)
        history = feed.history(session_id, state.session.user_id if state else None)
    if state is None and not history:
        raise click.ClickException(f"Nothing is stored about {session_id}.")
    if as_json:
        if state is not None and state.cursor not in {update.cursor for update in history}:
            click.echo(state.json)
        for update in history:
            click.echo(update.json)
        return
    console = view.console()
    if state is not None:
        console.print(view.details(state))
    if history:
        console.print()
        console.print(view.history(history))


@click.command()
@click.argument("user_id")
@_json_option
def sessions(user_id: str, as_json: bool) -> None:
    """Show a user's sessions that are live now."""
    console = view.console()
    with SessionFeed(load(RedisSettings)) as feed:
        updates = feed.live_sessions(user_id)
    for update in updates:
        click.echo(update.json) if as_json else console.print(view.line(update))
    if not updates and not as_json:
        click.echo(f"{user_id} has no live session.", err=True)
