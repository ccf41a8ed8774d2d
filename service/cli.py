"""The commands."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import redis
from rich.console import Console

from service import check as check_mode
from service import dev as dev_mode
from service import lenient_json, log, sender, simulator, view
from service import server as server_mode
from service.cli_dead_letters import dead_letters
from service.config import DevSettings, ListenSettings, RedisSettings, Settings, SigningSettings, load
from service.errors import ConfigurationError, StartError, redis_says
from service.feed import SessionFeed
from service.sender import Answer, Letter


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; settings that stop it end it with status 2, other known failures with 1."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            for fault in error.faults:
                click.echo(fault, err=True)
            ctx.exit(2)
        except redis.RedisError as error:
            click.echo(f"Redis: {view.printable(redis_says(error))}", err=True)
            ctx.exit(1)
        except StartError as error:
            click.echo(str(error), err=True)
            ctx.exit(1)


@click.group(cls=_Group, commands=[dead_letters], context_settings={"help_option_names": ["-h", "--help"]})
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
        click.echo(f"{finding.level:<9}{view.printable(finding.text)}")
    sys.exit(not can_work)


def _parse_assignment(_: click.Context, __: click.Parameter, assignments: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise click.BadParameter(f"{assignment!r} is not path=value")
        try:
            values[path] = lenient_json.loads(value.encode())
        except ValueError:
            values[path] = value
    return values


@main.command()
@click.argument("what", metavar="[TYPE|FILE]...", nargs=-1)
@click.option(
    "--set",
    "values",
    metavar="PATH=VALUE",
    multiple=True,
    callback=_parse_assignment,
    help="Set a value in the event: data.status=active. JSON, or else text. Repeatable.",
)
@click.option(
    "--count",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many times; a sample is a new session each time.",
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Deliveries per second at most.")
@click.option("--duplicate", is_flag=True, help="Send each delivery twice.")
@click.option("--shuffle", is_flag=True, help="Send them in any order.")
@click.option("--forge", is_flag=True, help="Sign with a secret that nobody knows; a 400 is success then.")
@click.option("--url", help="Where to.  [default: http://127.0.0.1:$PORT/webhooks/clerk]")
def send(
    what: tuple[str, ...],
    values: dict[str, Any],
    count: int,
    rate: float | None,
    duplicate: bool,
    shuffle: bool,
    forge: bool,
    url: str | None,
) -> None:
    """Sign samples or files as Clerk would, and post them.

    TYPE is an event type, session.created if none is given; several make the life of one session.
    FILE holds an event as JSON (- for standard input); without --set its bytes are sent as they are.
    """
    secret = "" if forge else load(SigningSettings).secrets[0]
    url = url or f"http://127.0.0.1:{load(ListenSettings).port}{dev_mode.WEBHOOK_PATH}"
    files = {name: _read_file(name) for name in what if not _is_type(name)}
    letters = [
        letter for _ in range(count) for letter in _letters(what or ("session.created",), files, values)
    ]
    answers = sender.deliver(
        letters, url=url, secret=secret, duplicate=duplicate, shuffle=shuffle, forge=forge, rate=rate
    )
    failed = 0
    for answer in answers:
        failed += (answer.status != 400) if forge else not 200 <= answer.status < 300  # noqa: PLR2004
        _print_answer(answer)
    sys.exit(1 if failed else 0)


def _letters(what: tuple[str, ...], files: dict[str, bytes], values: dict[str, Any]) -> list[Letter]:
    types = [name for name in what if _is_type(name)]
    try:
        life = iter(sender.one_life(types, values))
        return [
            next(life) if _is_type(name) else _letter_from_file(name, files[name], values) for name in what
        ]
    except KeyError as error:
        raise click.BadParameter(f"--set {error.args[0]}: leads through no object") from None


def _is_type(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z_]+\.[A-Za-z_.]+", name) is not None and not (
        name.endswith(".json") or Path(name).is_file()
    )


def _read_file(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise click.BadParameter(
            f"{name}: neither an event type like session.created nor a file ({error.strerror})"
        ) from None


def _letter_from_file(name: str, body: bytes, values: dict[str, Any]) -> Letter:
    if not values:
        return Letter(body, name)
    try:
        event = lenient_json.loads(body)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise click.BadParameter(f"{name}: --set needs a JSON object")
    return Letter(simulator.encode(simulator.with_values(event, values)), name)


def _print_answer(answer: Answer) -> None:
    about = [answer.letter.type, answer.letter.message_id, str(answer.body.get("session_id") or "")]
    said = view.printable(answer.said)
    click.echo("  ".join([str(answer.status or "---"), f"{said:<14}", *about]).rstrip())


def _parse_start(_: click.Context, __: click.Parameter, value: str) -> str:
    if value not in {"start", "now"} and not re.fullmatch(r"[0-9]+(-[0-9]+)?", value):
        raise click.BadParameter("neither start nor now nor a cursor like 1795422761000-0")
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
    with _feed() as feed, contextlib.suppress(KeyboardInterrupt):
        after = {"start": "0-0", "now": None}.get(start, start)
        for update in feed.follow(after, on_reconnect=_say_reconnecting):
            is_stale = update.outcome == "stale"
            if (stale or not is_stale) and user in {None, update.user_id}:
                if as_json:
                    click.echo(update.message)
                else:
                    _console.print(view.line(update.message, stale=is_stale))


@main.command()
@click.argument("session_id")
@click.option("--json", "as_json", is_flag=True, help="The last message, as published.")
def session(session_id: str, as_json: bool) -> None:
    """Show the state held of a session."""
    with _feed() as feed:
        message = feed.get(session_id)
    if message is None:
        raise click.ClickException(f"No state is held of {session_id}.")
    if as_json:
        click.echo(message)
    else:
        _console.print(view.details(message))


@main.command()
@click.argument("user_id")
@click.option("--json", "as_json", is_flag=True, help="One message per line, as published.")
def sessions(user_id: str, as_json: bool) -> None:
    """Show a user's sessions that are live now."""
    with _feed() as feed:
        messages = feed.live_sessions(user_id)
    for message in messages:
        if as_json:
            click.echo(message)
        else:
            _console.print(view.line(message))
    if not messages and not as_json:
        click.echo(f"{user_id} has no live session.", err=True)


_console = Console(soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _feed() -> Iterator[SessionFeed]:
    with contextlib.closing(SessionFeed(load(RedisSettings))) as feed:
        yield feed


def _say_reconnecting(error: Exception) -> None:
    click.echo(f"Redis: {view.printable(redis_says(error))}; trying again …", err=True)
