"""The commands `dead-letters list`, `show`, `replay` and `drop`."""

import contextlib
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import click

from service.cli.in_thread import in_thread
from service.config import LogSettings, StoreSettings, load
from service.dev import view
from service.ingest import Ingest
from service.store.dead_letters import DeadLetters, ReplayStore
from service.store.partitions import refuse_other_partitions
from service.telemetry import log, printable


@click.group()
def dead_letters() -> None:
    """Work off session events that could not be read.

    A dead letter holds all that Clerk sent: personal data, too.
    """


@dead_letters.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on each line.")
def list_(as_json: bool) -> None:
    """List the dead letters, the oldest first, without their bodies."""
    with _open() as (stored, call):
        summaries = call(stored.summaries)
    for summary in summaries:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(summary)))
        elif summary.received_at is None:
            click.echo(printable(f"{'not a dead letter':<23}  {summary.id}"))
        else:
            received, size = view.utc(summary.received_at), f"{summary.body_bytes:,} bytes"
            click.echo(printable(f"{received}  {summary.id}  {summary.reason}  {size}  {summary.detail}"))
    if not summaries and not as_json:
        click.echo("There are no dead letters.", err=True)


@dead_letters.command()
@click.argument("message_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The dead letter as it is stored, byte for byte.")
def show(message_id: str, as_json: bool) -> None:
    """Show a dead letter with its body."""
    with _open() as (stored, call):
        found = call(stored.get, message_id)
    if found is None:
        raise click.ClickException(_not_found(message_id))
    content, dead_letter = found
    if as_json:
        click.echo(content)
    elif dead_letter is None:
        click.echo(view.indented(content.decode(errors="backslashreplace")))
    else:
        fields = dead_letter.model_dump(exclude={"body"})
        fields["received_at"] = f"{view.utc(dead_letter.received_at)}  ({dead_letter.received_at})"
        for name, value in fields.items():
            click.echo(f"{name:<13}{printable(value)}")
        click.echo(f"\n{view.indented(dead_letter.body)}")


@dead_letters.command()
@click.argument("message_ids", metavar="[ID]...", nargs=-1)
def replay(message_ids: tuple[str, ...]) -> None:
    """Process these dead letters once more, or all of them, as if they were delivered now.

    Those that can be read now are removed; the others stay, and the exit status is 1.
    """
    # Each failure is shown here; the log is for the service.
    log.configure(load(LogSettings, log_level="critical", log_format="console"))
    outcomes: Counter[str] = Counter()
    settings = load(StoreSettings)
    with _open(settings) as (stored, call), contextlib.closing(ReplayStore(settings)) as store:
        call(refuse_other_partitions, settings)
        ingest = Ingest(store, publish_http_request=settings.publish_http_request)
        ids = dict.fromkeys(message_ids or [summary.id for summary in call(stored.summaries)])
        try:
            for message_id in ids:
                result = call(stored.replay, message_id, ingest)
                outcomes[result.outcome] += 1
                click.echo(printable(f"{result.outcome:<10}  {result.id}  {result.detail}").rstrip())
        finally:
            replayed = outcomes.total() - outcomes["kept"] - outcomes["missing"]
            click.echo(f"{replayed} replayed and removed, {len(ids) - replayed - outcomes['missing']} kept.")
    # Without ids, one that is missing was removed by somebody else in the meantime.
    sys.exit(1 if outcomes["kept"] or (outcomes["missing"] and message_ids) else 0)


@dead_letters.command()
@click.argument("message_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all of them.")
def drop(message_ids: tuple[str, ...], everything: bool) -> None:
    """Remove dead letters for good: these, or all of them."""
    if everything == bool(message_ids):
        raise click.UsageError("Give the ids of the dead letters to remove, or --all.")
    with _open() as (stored, call):
        if everything:
            click.echo(f"{call(stored.drop_all)} dropped.")
            return
        dropped = {message_id: call(stored.drop, message_id) for message_id in dict.fromkeys(message_ids)}
    click.echo(f"{sum(dropped.values())} dropped.")
    missing = [message_id for message_id, was_there in dropped.items() if not was_there]
    for message_id in missing:
        click.echo(_not_found(message_id), err=True)
    sys.exit(1 if missing else 0)


@contextlib.contextmanager
def _open(settings: StoreSettings | None = None) -> Iterator[tuple[DeadLetters, Callable[..., Any]]]:
    """Yield the dead letters, and what calls their methods."""
    with contextlib.closing(DeadLetters(settings or load(StoreSettings))) as stored, in_thread() as call:
        yield stored, call


def _not_found(message_id: str) -> str:
    return printable(f"There is no dead letter {message_id}.")
