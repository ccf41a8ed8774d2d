"""The commands that work off dead letters."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator

import click

from service.config import LogSettings, StoreSettings, load
from service.dev import view
from service.ingest import Ingest
from service.store.dead_letters import DeadLetters, ReplayStore
from service.telemetry import log
from service.telemetry.text import printable


@click.group()
def dead_letters() -> None:
    """Work off session events that could not be read.

    They hold what Clerk sent, whole: personal data too.
    """


@dead_letters.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(as_json: bool) -> None:
    """Show what is in the box, the oldest first, without the bodies."""
    with _box() as box:
        letters = box.summaries()
    for letter in letters:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(letter)))
        elif letter.received_at is None:
            click.echo(printable(f"{'no letter of the relay':<23}  {letter.id}"))
        else:
            received, size = view.when(letter.received_at), f"{letter.body_bytes:,} bytes"
            click.echo(printable(f"{received}  {letter.id}  {letter.reason}  {size}  {letter.detail}"))
    if not letters and not as_json:
        click.echo("There are no dead letters.", err=True)


@dead_letters.command()
@click.argument("message_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The letter as it is stored, byte for byte.")
def show(message_id: str, as_json: bool) -> None:
    """Show a letter with its body."""
    with _box() as box:
        found = box.get(message_id)
    if found is None:
        raise click.ClickException(printable(f"There is no dead letter {message_id}."))
    stored, letter = found
    if as_json:
        click.echo(stored)
    elif letter is None:
        click.echo(view.indented(stored.decode(errors="backslashreplace")))
    else:
        received = f"{view.when(letter.received_at)}  ({letter.received_at})"
        rows = {"id": letter.id, "received_at": received, "reason": letter.reason, "detail": letter.detail}
        for name, value in rows.items():
            click.echo(f"{name:<13}{printable(value)}")
        click.echo(f"\n{view.indented(letter.body)}")


@dead_letters.command()
@click.argument("message_ids", metavar="[ID]...", nargs=-1)
def replay(message_ids: tuple[str, ...]) -> None:
    """Take letters in again, as if they came now: all of them, or these.

    Those that work leave the box; the others stay as they are, and the exit status is 1.
    """
    # What goes wrong is said in the letter's line, and the log is the service's.
    log.configure(load(LogSettings, log_level="critical", log_format="console"))
    moved = kept = missing = 0
    settings = load(StoreSettings)
    store = ReplayStore(settings)
    ingest = Ingest(store, publish_http_request=settings.publish_http_request)
    with contextlib.closing(DeadLetters(settings)) as box, contextlib.closing(store):
        ids = dict.fromkeys(message_ids or [letter.id for letter in box.summaries()])
        try:
            for letter in box.replay(ids, ingest):
                kept += letter.what == "kept"
                missing += letter.what == "missing"
                moved += letter.what not in {"kept", "missing"}
                click.echo(printable(f"{letter.what:<10}  {letter.id}  {letter.about}").rstrip())
        finally:
            click.echo(f"{moved} moved out of the box, {len(ids) - moved - missing} kept.")
    # Of all, one that is missing was taken by somebody else in the meantime.
    sys.exit(1 if kept or (missing and message_ids) else 0)


@dead_letters.command()
@click.argument("message_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Throw all of them away.")
def drop(message_ids: tuple[str, ...], everything: bool) -> None:
    """Throw letters away: these, or all of them."""
    if everything == bool(message_ids):
        raise click.UsageError("Name the letters to throw away, or else say --all.")
    with _box() as box:
        if everything:
            click.echo(f"{box.drop_all()} dropped.")
            return
        dropped = {message_id: box.drop(message_id) for message_id in dict.fromkeys(message_ids)}
    click.echo(f"{sum(dropped.values())} dropped.")
    missing = [message_id for message_id, was_there in dropped.items() if not was_there]
    for message_id in missing:
        click.echo(printable(f"There is no dead letter {message_id}."), err=True)
    sys.exit(1 if missing else 0)


@contextlib.contextmanager
def _box() -> Iterator[DeadLetters]:
    with contextlib.closing(DeadLetters(load(StoreSettings))) as box:
        yield box
