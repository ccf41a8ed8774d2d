"""The commands. Each imports what it alone needs: all of it together takes most of a second.

A long module, for its number of commands; those of more than a few lines have one of their own.
"""
# ruff: noqa: PLC0415

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click
from clerk_session_feed.errors import ConfigurationError, CursorLostError, FeedError

from service.config import DevSettings, RedisSettings, Settings, WorkerSettings, load
from service.errors import StartError, StoreUnavailableError
from service.telemetry.text import printable

if TYPE_CHECKING:
    from rich.console import Console


def _redis_errors() -> tuple[type[Exception], ...]:
    import redis

    return redis.RedisError, StoreUnavailableError


_ELSEWHERE: Final = {
    "dead-letters": "service.cli.dead_letters:dead_letters",
    "schema": "service.cli.schema:schema",
    "send": "service.cli.send:send",
}
"""Commands with a module of their own."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = _ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; settings that stop it end it with status 2, other known failures with 1."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            for fault in error.faults:
                click.echo(fault, err=True)
            ctx.exit(2)
        except (FeedError, StartError) as error:
            click.echo(printable(str(error)) if isinstance(error, FeedError) else str(error), err=True)
            ctx.exit(1)
        except _redis_errors() as error:
            _say_of_redis(error.__cause__ or error)
            ctx.exit(1)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="clerk-session-relay")
def main() -> None:
    """Keeps the state of every Clerk session in Redis, as Clerk's webhooks tell it.

    Settings come from the environment and from .env in the working directory.
    """


@main.command()
@click.option(
    "--app",
    "factory",
    metavar="MODULE:FACTORY",
    help="Serve an application of your own, which FACTORY builds on create_app().",
)
def serve(factory: str | None) -> None:
    """Run the service for production."""
    settings = load(Settings)
    from service.server import processes as server
    from service.telemetry import log

    log.configure(settings)
    server.serve(settings, factory or server.DEFAULT_FACTORY)


@main.command(short_help="Run it with nothing set up, and see what subscribers get.")
@click.option(
    "--simulate/--no-simulate", default=True, help="Send sample deliveries first.  [default: simulate]"
)
def dev(simulate: bool) -> None:
    """Run the service with nothing set up, and show what subscribers get."""
    settings = load(DevSettings)
    from service.dev import run as dev

    sys.exit(dev.run(settings, simulate=simulate, console=_console()))


@main.command(short_help="Tell whether this configuration can work.")
def check() -> None:
    """Tell whether this configuration can work, and what to do if not."""
    settings = load(Settings)
    from service.cli import check
    from service.telemetry import log

    log.configure(settings.model_copy(update={"log_level": "critical"}))
    can_work = True
    for finding in check.check(settings):
        can_work &= finding.level != "error"
        click.echo(f"{finding.level:<9}{printable(finding.text)}")
    sys.exit(not can_work)


def _parse_start(_: click.Context, __: click.Parameter, value: str) -> str:
    if value not in {"start", "now"}:
        from clerk_session_feed.feed_steps import whole_cursor

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
    from clerk_session_feed.feed import SessionFeed

    from service.dev import view

    console = _console()
    with SessionFeed(settings) as feed, contextlib.suppress(KeyboardInterrupt):
        after = feed.now() if start == "now" else _cursors(start, settings.partitions)
        while True:
            try:
                for update in feed.follow(after, stale=stale, on_reconnect=_say_reconnecting):
                    after[update.partition] = update.cursor
                    if user in {None, update.session.user_id}:
                        click.echo(update.json) if as_json else console.print(view.line(update))
            except CursorLostError as lost:
                click.echo(f"Something after {lost.cursor} was trimmed, or Redis lost it.", err=True)
                after[lost.partition] = "0-0"


def _cursors(start: str, partitions: int) -> dict[int, str]:
    """Return the cursor of each partition. For another stream than its own, it is no more than a time."""
    if partitions > 1 and "-" in start:
        start = str(max(0, int(start.partition("-")[0]) - 1))
    return dict.fromkeys(range(partitions), "0-0" if start == "start" else start)


@main.command(short_help="End the sessions that run out.")
@click.option("--once", is_flag=True, help="Only what has run out by now; then end.")
def expire(once: bool) -> None:
    """End the sessions that run out, about which Clerk says nothing; in any number of processes."""
    settings = load(WorkerSettings)
    from service.expiry.worker import ExpiryWorker
    from service.telemetry import log

    log.configure(settings)
    with contextlib.closing(ExpiryWorker(settings)) as worker:
        if not once:
            worker.run_until_signal()
            return
        expired, unreadable = worker.run_once()
    click.echo(f"{expired} expired.")
    if unreadable:
        raise click.ClickException(f"{unreadable} can't be read, and stay as they are.")


@main.command(short_help="Show a session's state and history.")
@click.argument("session_id")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Its history, one message per line, as published.",
)
def session(session_id: str, as_json: bool) -> None:
    """Show the state held of a session, and its history: what the stream still has of it."""
    from clerk_session_feed.feed import SessionFeed

    from service.dev import view

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
    console = _console()
    if state is not None:
        console.print(view.details(state))
    if history:
        console.print()
        console.print(view.history(history))


@main.command()
@click.argument("user_id")
@click.option("--json", "as_json", is_flag=True, help="One message per line, as published.")
def sessions(user_id: str, as_json: bool) -> None:
    """Show a user's sessions that are live now."""
    from clerk_session_feed.feed import SessionFeed

    from service.dev import view

    console = _console()
    with SessionFeed.from_env() as feed:
        updates = feed.live_sessions(user_id)
    for update in updates:
        if as_json:
            click.echo(update.json)
        else:
            console.print(view.line(update))
    if not updates and not as_json:
        click.echo(f"{user_id} has no live session.", err=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


def _say_of_redis(error: BaseException, then: str = "") -> None:
    from clerk_session_feed.connections import explain

    click.echo(f"Redis: {printable(explain(error))}{then}", err=True)


def _say_reconnecting(error: Exception) -> None:
    _say_of_redis(error, "; trying again …")
