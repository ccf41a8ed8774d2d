"""The command that makes deliveries."""

import re
import sys
from pathlib import Path
from typing import Any

import click
from clerk_session_feed import lenient_json

from service.config import ListenSettings, SigningSettings, load
from service.dev import run as dev_mode
from service.dev import sender, simulator
from service.dev.sender import Answer, Letter
from service.telemetry.text import printable


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


@click.command()
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
    said = printable(answer.said)
    click.echo("  ".join([str(answer.status or "---"), f"{said:<14}", *about]).rstrip())
