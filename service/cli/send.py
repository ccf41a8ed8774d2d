"""The command `send`."""

import json
import os.path
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
from clerk_session_feed import lenient_json
from click.shell_completion import CompletionItem

from service.config import ListenSettings, SigningSettings, load
from service.dev import event_types, sender, simulator
from service.dev.sender import OutgoingDelivery, Response
from service.errors import CommandError
from service.telemetry import printable

_ANY_TYPE: Final = "(--any-type sends it all the same.)"


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    types = [CompletionItem(each) for each in event_types.EVENT_TYPES if each.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *types]  # in bash, "file" removes what comes before it


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
@click.argument("what", metavar="[TYPE|FILE]...", nargs=-1, shell_complete=_complete)
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
@click.option(
    "--any-type", is_flag=True, help="Take each name that is no file as a type, also if Clerk does not send it."
)
@click.option("--json", "as_json", is_flag=True, help="Print the responses and their sums as one JSON document.")
@click.option("--url", help="Where to send them.  [default: http://127.0.0.1:$PORT/webhooks/clerk]")
def send(
    what: tuple[str, ...],
    values: dict[str, Any],
    count: int,
    rate: float | None,
    duplicate: bool,
    shuffle: bool,
    forge: bool,
    any_type: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Sign samples or files as Clerk does, and post them.

    TYPE is an event type, by default session.created; several types make the life of one session.
    FILE holds an event as JSON (- is standard input); without --set, its bytes are sent unchanged.
    """
    secret = None if forge else load(SigningSettings).secrets[0]
    url = url or f"http://127.0.0.1:{load(ListenSettings).port}{sender.WEBHOOK_PATH}"
    files = {name: _read_file(name) for name in what if not _is_type(name, any_type=any_type)}
    what = what or ("session.created",)
    deliveries = _Deliveries(lambda: _one_life(what, files, values), count, keep=shuffle)
    report = _Report(len(deliveries) * (1 + duplicate), forge=forge, as_json=as_json)
    try:
        for response in sender.send(
            deliveries, url=url, secret=secret, duplicate=duplicate, shuffle=shuffle, rate=rate
        ):
            report.show(response)
    finally:  # Ctrl-C, too
        report.end(with_sums=count > 1)
    sys.exit(report.failed > 0)


class _Report:
    """Shows the responses, and their sums at the end."""

    def __init__(self, planned: int, *, forge: bool, as_json: bool) -> None:
        self._planned, self._forge, self._as_json = planned, forge, as_json
        self._sums: Counter[tuple[int, str | None, str | None]] = Counter()
        self._responses: list[dict[str, Any]] = []
        """For JSON."""
        self.failed = 0

    def show(self, response: Response) -> None:
        sent, status = response.delivery, response.status
        self.failed += (status != 400) if self._forge else not 200 <= status < 300  # noqa: PLR2004
        self._sums[status, response.outcome, response.code] += 1
        if self._as_json:
            head = {"type": sent.type, "message_id": sent.message_id, "status": status or None}
            self._responses.append(head | {"response": response.body})
            return
        line = f"{status or '---'}  {response.summary:<14}  {sent.type:<15}  {sent.message_id}"
        click.echo(printable(f"{line}  {response.body.get('session_id') or ''}").rstrip())

    def end(self, *, with_sums: bool) -> None:
        sums = self._sums.most_common()
        if self._as_json:
            counts = [
                {"status": status or None, "outcome": outcome, "code": code, "count": number}
                for (status, outcome, code), number in sums
            ]
            document = {"sent": self._sums.total(), "failed": self.failed, "sums": counts}
            click.echo(json.dumps(document | {"responses": self._responses}))
        elif with_sums:
            sent = self._sums.total()
            of_all = "" if sent == self._planned else f" of {self._planned:,}"
            responses = [f"{number:,} got {_described(*key)}" for key, number in sums]
            click.echo(printable(f"{sent:,}{of_all} sent: {', '.join(responses) or 'no response'}"))


def _described(status: int, outcome: str | None, code: str | None) -> str:
    return f"{status} {outcome or code or ''}".rstrip() if status else "no response"


class _Deliveries(Sequence[OutgoingDelivery]):
    """The deliveries of many lives, each made when its first one is asked for: before, there may be too many."""

    def __init__(self, make: Callable[[], list[OutgoingDelivery]], lives: int, *, keep: bool) -> None:
        """Make the first life, which shows whether they can be made; `keep` is for an order that leaps."""
        self._make, self._lives, self._keep = make, lives, keep
        self._made = {0: make()}
        self._size = len(self._made[0])

    def __len__(self) -> int:
        return self._lives * self._size

    def __getitem__(self, number: Any) -> Any:
        life, place = divmod(number, self._size)
        if life not in self._made:
            if not self._keep:
                self._made.clear()
            self._made[life] = self._make()
        return self._made[life][place]


def _one_life(what: tuple[str, ...], files: dict[str, bytes], values: dict[str, Any]) -> list[OutgoingDelivery]:
    try:
        samples = iter(sender.one_life([name for name in what if name not in files], values))
        return [_from_file(name, files[name], values) if name in files else next(samples) for name in what]
    except KeyError as error:
        raise click.BadParameter(f"--set {error.args[0]}: leads through something that is not an object") from None


def _is_type(name: str, *, any_type: bool) -> bool:
    """Tell whether a name is that of a type; refuse one that Clerk does not send."""
    if name == "-" or os.path.isfile(name):  # noqa: PTH113  # Path.is_file fails on a name that is too long
        return False
    if any_type or name in event_types.EVENT_TYPES:
        return True
    if "/" in name or name.endswith(".json"):
        return False
    if (meant := event_types.meant_by(name)) is not None:
        raise CommandError(f"Clerk sends no {name}. Did you mean {meant}? {_ANY_TYPE}")
    if others := event_types.alike(name):
        subject = others[0].partition(".")[0]
        raise CommandError(f"Clerk sends no {name}. Its {subject} events: {', '.join(others)}. {_ANY_TYPE}")
    raise CommandError(f"{name}: neither an event type that Clerk sends, like session.created, nor a file. {_ANY_TYPE}")


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
