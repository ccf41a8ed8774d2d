"""The command `repartition`."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import click
import redis
from clerk_session_feed.connections import explain
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from service.cli.in_thread import in_thread
from service.config import LogSettings, StoreSettings, load
from service.store.places import MOST_PARTITIONS
from service.store.rights import MISSING_RIGHT_ADVICE, is_missing_right
from service.telemetry import log, printable
from service.workers import repartition as worker
from service.workers.moving import Moved

LINE_SECONDS: Final = 10
"""Seconds between two lines about the progress where nobody watches."""
UNFINISHED: Final = "Run it again: it goes on from here. Deliveries get 503 from its first write on, until it is done."


@click.command(short_help="Change PARTITIONS for data that is there.")
@click.option(
    "--to", metavar="N", type=click.IntRange(1, MOST_PARTITIONS), required=True, help="How many it is to have."
)
@click.option(
    "--from", "was", metavar="N", type=click.IntRange(1, MOST_PARTITIONS), help="How many it has, if it does not tell."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def repartition(*, to: int, was: int | None, as_json: bool) -> None:
    """Move what is stored to another number of partitions.

    Deliveries get 503 meanwhile, and Svix repeats them. It can be stopped, and run again. Then set PARTITIONS for the
    relay and all consumers, and restart them: consumers begin again from the snapshots.
    """
    log.configure(load(LogSettings, log_level="critical", log_format="console"))
    load(StoreSettings, partitions=to)  # whether the prefix can be divided
    settings, started = load(StoreSettings), time.monotonic()
    stopped = threading.Event()
    try:
        with _shown() as show, in_thread(stopped.set) as call:

            def go_on(moved: Moved) -> None:
                if stopped.is_set():
                    raise _StoppedError
                show(moved)

            moved = call(worker.repartition, settings, to, was=was, on_progress=go_on)
    except redis.RedisError as error:
        said = explain(error).rstrip(".")
        advice = f": {MISSING_RIGHT_ADVICE}" if is_missing_right(error) else ""
        raise click.ClickException(printable(f"Redis: {said}{advice}. {UNFINISHED}")) from None
    except KeyboardInterrupt:
        raise click.ClickException(f"Stopped. {UNFINISHED}") from None
    _print(moved, to, time.monotonic() - started, as_json)
    sys.exit(1 if moved.unreadable else 0)


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[Moved], None]]:
    """Show how far it is: by a bar where a person watches, else by a line every few seconds."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda moved: bar.update(task, description=_progress(moved), completed=moved.part)


class _StoppedError(Exception):
    """Ends the thread that moves the data, when Ctrl-C has ended the command."""


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_SECONDS

    def show(self, moved: Moved) -> None:
        if time.monotonic() >= self._next:
            self._next += LINE_SECONDS
            click.echo(f"{_progress(moved)}, {moved.part:.0%} of the keys looked at", err=True)


def _progress(moved: Moved) -> str:
    return f"moved: {moved.sessions:,} sessions, {moved.user_keys:,} keys of users"


def _print(moved: Moved, to: int, seconds: float, as_json: bool) -> None:
    if as_json:
        counts = {"sessions": moved.sessions, "user_keys": moved.user_keys, "unreadable": sorted(moved.unreadable)}
        click.echo(json.dumps({"partitions": to, **counts, "seconds": round(seconds, 1)}))
        return
    click.echo(f"The data has {to} partition{'' if to == 1 else 's'} now: {_progress(moved)}, in {seconds:.0f} s.")
    click.echo(f"Set PARTITIONS={to} for the relay and all consumers, and restart them.", err=True)
    for key in sorted(moved.unreadable):
        click.echo(printable(f"{key} is not as the relay writes it, and stays."), err=True)
