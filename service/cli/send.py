"""The command `send`."""

import re
import sys
from pathlib import Path
from typing import Any

import click
from clerk_session_feed import lenient_json

from service.config import ListenSettings, SigningSettings, load
from service.dev import sender, simulator
from service.dev.sender import OutgoingDelivery
from service.telemetry import printable


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
    help="Set a value in the event, like data.status=active. The value is JSON, or else text. Repeatable.",
)
@click.option(
    "--count", type=click.IntRange(1), default=1, help="How many times; samples are of a new session each time."
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Deliveries per second at most.")
@click.option("--duplicate", is_flag=True, help="Send each delivery twice.")
@click.option("--shuffle", is_flag=True, help="Send them in random order.")
@click.option("--forge", is_flag=True, help="Sign with a secret that nobody knows; a 400 is success then.")
@click.option("--url", help="Where to send them.  [default: http://127.0.0.1:$PORT/webhooks/clerk]")
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
    """Sign samples or files as Clerk does, and post them.

    TYPE is an event type, by default session.created; several types make the life of one session.
    FILE holds an event as JSON (- is standard input); without --set, its bytes are sent unchanged.
    """
    secret = None if forge else load(SigningSettings).secrets[0]
    url = url or f"http://127.0.0.1:{load(ListenSettings).port}{sender.WEBHOOK_PATH}"
    files = {name: _read_file(name) for name in what if not _is_type(name)}
    what = what or ("session.created",)
    deliveries = [delivery for _ in range(count) for delivery in _deliveries(what, files, values)]
    failed = False
    for response in sender.send(deliveries, url=url, secret=secret, duplicate=duplicate, shuffle=shuffle, rate=rate):
        failed |= (response.status != 400) if forge else not 200 <= response.status < 300  # noqa: PLR2004
        sent = response.delivery
        status, session_id = response.status or "---", response.body.get("session_id") or ""
        line = f"{status}  {response.summary:<14}  {sent.type}  {sent.message_id}  {session_id}"
        click.echo(printable(line).rstrip())
    sys.exit(failed)


def _deliveries(what: tuple[str, ...], files: dict[str, bytes], values: dict[str, Any]) -> list[OutgoingDelivery]:
    try:
        samples = iter(sender.one_life([name for name in what if name not in files], values))
        return [_from_file(name, files[name], values) if name in files else next(samples) for name in what]
    except KeyError as error:
        raise click.BadParameter(f"--set {error.args[0]}: leads through something that is not an object") from None


def _is_type(name: str) -> bool:
    looks_like_one = re.fullmatch(r"[A-Za-z_]+\.[A-Za-z_.]+", name) is not None
    return looks_like_one and not name.endswith(".json") and not Path(name).is_file()


def _read_file(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        text = f"{name}: neither an event type like session.created nor a file ({error.strerror})"
        raise click.BadParameter(text) from None


def _from_file(name: str, body: bytes, values: dict[str, Any]) -> OutgoingDelivery:
    if not values:
        return OutgoingDelivery(body, name)
    try:
        event = lenient_json.loads(body)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise click.BadParameter(f"{name}: --set needs a JSON object")
    return OutgoingDelivery(simulator.encode(simulator.with_values(event, values)), name)
