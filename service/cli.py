"""The commands."""

import contextlib
import sys
from typing import Any

import click
import redis
from rich.console import Console

from service import check as check_mode
from service import dev as dev_mode
from service import log, view
from service import server as server_mode
from service.cli_dead_letters import dead_letters
from service.cli_schema import schema
from service.cli_send import send
from service.config import DevSettings, RedisSettings, Settings, WorkerSettings, load
from service.connections import explain
from service.errors import (
    ConfigurationError,
    CursorLostError,
    FeedError,
    StartError,
    StoreUnavailableError,
)
from service.expiry import ExpiryWorker
from service.feed import SessionFeed
from service.feed_steps import whole_cursor
from service.text import printable


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; settings that stop it end it with status 2, other known failures with 1."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            for fault in error.faults:
                click.echo(fault, err=True)
            ctx.exit(2)
        except (redis.RedisError, StoreUnavailableError) as error:
            click.echo(f"Redis: {printable(explain(error.__cause__ or error))}", err=True)
            ctx.exit(1)
        except FeedError as error:
            click.echo(printable(str(error)), err=True)
            ctx.exit(1)
        except StartError as error:
            click.echo(str(error), err=True)
            ctx.exit(1)


@click.group(
    cls=_Group,
    commands=[dead_letters, schema, send],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="clerk-session-relay")
def main() -> None:
    """Keeps the state of every Clerk session in Redis, as Clerk's webhooks tell it.

    Settings come from the environment and from .env in the working directory.
    """


@main.command()
def serve() -> None:
    """Run the service for production."""
    settings = load(Settings)
    log.configure(settings)
    server_mode.serve(settings)


@main.command()
@click.option(
    "--simulate/--no-simulate", default=True, help="Send sample deliveries first.  [default: simulate]"
)
def dev(simulate: bool) -> None:
    """Run the service with nothing set up, and show what subscribers get."""
    sys.exit(dev_mode.run(load(DevSettings), simulate=simulate, console=Console()))


@main.command()
def check() -> None:
    """Tell whether this configuration can work, and what to do if not."""
    settings = load(Settings, log_level="critical")
    log.configure(settings)
    can_work = True
    for finding in check_mode.check(settings):
        can_work &= finding.level != "error"
        click.echo(f"{finding.level:<9}{printable(finding.text)}")
    sys.exit(not can_work)


def _parse_start(_: click.Context, __: click.Parameter, value: str) -> str:
    if value not in {"start", "now"}:
        try:
            whole_cursor(value)
        except ValueError:
            raise click.BadParameter("neither start nor now nor a cursor like 1795422761000-0") from None
    return value


@main.command()
@click.option(
    "--from",
    "start",
    metavar="start|now|CURSOR",
    default="now",
    show_default=True,
    callback=_parse_start,
    help="Where to begin; after CURSOR.",
)
@click.option("--user", metavar="USER_ID", help="Only this user's sessions.")
@click.option("--stale", is_flag=True, help="Show events, too, that came too late to change anything.")
@click.option("--json", "as_json", is_flag=True, help="One message per line, as published.")
def tail(start: str, user: str | None, stale: bool, as_json: bool) -> None:
    """Follow the feed of session events, until Ctrl-C."""
    settings = load(RedisSettings)
    with SessionFeed(settings) as feed, contextlib.suppress(KeyboardInterrupt):
        after = feed.now() if start == "now" else _cursors(start, settings.partitions)
        while True:
            try:
                for update in feed.follow(after, stale=stale, on_reconnect=_say_reconnecting):
                    after[update.partition] = update.cursor
                    if user in {None, update.session.user_id}:
                        click.echo(update.json) if as_json else _console.print(view.line(update))
            except CursorLostError as lost:
                click.echo(f"Something after {lost.cursor} was trimmed, or Redis lost it.", err=True)
                after[lost.partition] = "0-0"


def _cursors(start: str, partitions: int) -> dict[int, str]:
    """Return the cursor of each partition. For another stream than its own, it is no more than a time."""
    if partitions > 1 and "-" in start:
        start = str(int(start.partition("-")[0]) - 1)
    return dict.fromkeys(range(partitions), "0-0" if start == "start" else start)


@main.command()
@click.option("--once", is_flag=True, help="Only what has run out by now; then end.")
def expire(once: bool) -> None:
    """End the sessions that run out, about which Clerk says nothing; in any number of processes."""
    settings = load(WorkerSettings)
    log.configure(settings)
    with contextlib.closing(ExpiryWorker(settings)) as worker:
        if not once:
            worker.run_until_signal()
            return
        expired, unreadable = worker.run_once()
    click.echo(f"{expired} expired.")
    if unreadable:
        raise click.ClickException(f"{unreadable} can't be read, and stay as they are.")


@main.command()
@click.argument("session_id")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Its history, one message per line; the greatest revision is the state held.",
)
def session(session_id: str, as_json: bool) -> None:
    """Show the state held of a session, and its history: what the stream still has of it."""
    with SessionFeed.from_env() as feed:
        state = feed.get(session_id)
        history = feed.history(session_id, state.session.user_id if state else None)
    if state is None and not history:
        raise click.ClickException(f"Nothing is held of {session_id}.")
    if as_json:
        if state is not None and state.cursor not in {update.cursor for update in history}:
            click.echo(state.json)
        for update in history:
            click.echo(update.json)
        return
    if state is not None:
        _console.print(view.details(state))
    if history:
        _console.print()
        _console.print(view.history(history))


@main.command()
@click.argument("user_id")
@click.option("--json", "as_json", is_flag=True, help="One message per line, as published.")
def sessions(user_id: str, as_json: bool) -> None:
    """Show a user's sessions that are live now."""
    with SessionFeed.from_env() as feed:
        updates = feed.live_sessions(user_id)
    for update in updates:
        if as_json:
            click.echo(update.json)
        else:
            _console.print(view.line(update))
    if not updates and not as_json:
        click.echo(f"{user_id} has no live session.", err=True)


_console = Console(soft_wrap=True, highlight=False)


def _say_reconnecting(error: Exception) -> None:
    click.echo(f"Redis: {printable(explain(error))}; trying again …", err=True)
