"""What `reconcile` shows: how far it is, and at its end what it found."""

import asyncio
import contextlib
import datetime
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import click
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.telemetry import printable
from service.workers.report import Report, Scope

log = structlog.get_logger(__name__)

REPORT_SECONDS: Final = 60
"""Seconds between two lines about the progress where nobody watches."""
REFRESH_SECONDS: Final = 0.2
"""Seconds between two updates of the progress bar."""
STEPS: Final = 1000
"""Of the progress bar."""
_STAGES: Final = {"users": "Clerk's users", "stored": "stored sessions"}


@contextlib.asynccontextmanager
async def shown(report: Report, *, is_watched: bool) -> AsyncIterator[None]:
    """Show how far a run is: a bar where a person watches, else a line each minute."""
    task = asyncio.create_task(_show_bar(report) if is_watched else _show_lines(report))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _show_bar(report: Report) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    # It measures the speed, and so the remaining time, over the last ten minutes.
    remaining = TimeRemainingColumn()
    with Progress(*columns, remaining, console=Console(stderr=True), transient=True, speed_estimate_period=600) as bar:
        task = bar.add_task("", total=None)
        began, measured = time.monotonic(), None
        while True:
            done = round(STEPS * (report.part or 0))
            if measured != (report.stage, report.part is None):
                # What was done before, by another stage or an interrupted run, says nothing of the speed from now on.
                bar.reset(task, total=None if report.part is None else STEPS, completed=done)
                measured = (report.stage, report.part is None)
            rate = (report.users - report.users_before) / max(time.monotonic() - began, 1)
            looked_at = f"{report.users:,} users ({rate:.1f}/s), {report.sessions:,} sessions"
            found = f", {in_words(report.drift)}" if report.drift else ""
            bar.update(task, description=f"{_STAGES[report.stage]}: {looked_at}{found}", completed=done)
            await asyncio.sleep(REFRESH_SECONDS)


async def _show_lines(report: Report) -> None:
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        log_report(report, "reconcile_progress", stage=report.stage)


def log_report(report: Report, event: str, **more: Any) -> None:
    """Log what was found so far."""
    if report.part is not None:
        more["percent"] = round(100 * report.part)
    if report.pending_revokes:
        more["pending_revokes"] = report.pending_revokes
    if report.faults:
        more["first_fault"] = " ".join(next(iter(report.faults.items())))
    log.info(event, users=report.users, sessions=report.sessions, faults=report.fault_count, **more, **report.drift)


def in_words(drift: Mapping[str, int]) -> str:
    """Return what was found, by kind: `2 ended, 1 gone`."""
    named = {"ended" if kind == "late_end" else kind.replace("_", " "): count for kind, count in drift.items()}
    return ", ".join(f"{count:,} {name}" for name, count in sorted(named.items()))


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def print_result(report: Report, scope: Scope, seconds: float, *, dry_run: bool, as_json: bool) -> None:
    """Print what was found in all: for people, or as one line of JSON."""
    if as_json:
        result = {
            "mode": "user" if scope.user_id else scope.mode,
            "dry_run": dry_run,
            "resumed": report.resumed,
            "began_at": report.began_at_ms,
            "users": report.users,
            "sessions": report.sessions,
            "drift": dict(sorted(report.drift.items())),
            "faults": [{"about": about, "why": why} for about, why in report.faults.items()],
            "fault_count": report.fault_count,
            "pending_revokes": report.pending_revokes,
            "brake": report.brake,
            "seconds": round(seconds, 1),
        }
        click.echo(json.dumps(result))
    else:
        verb = "to be mended" if dry_run else "mended"
        found = f"{verb}: {in_words(report.drift)}" if report.drift else f"nothing {verb}"
        looked_at = f"{_count(report.sessions, 'session')} of {_count(report.users, 'user')}"
        click.echo(f"{looked_at} in {seconds:.0f} s; {found}.")
        _print_details(report)
        if scope.user_id is not None and not report.sessions and not report.fault_count:
            click.echo(
                f"Clerk lists no session of {scope.user_id}, and none is stored as open: see that it is the right id.",
                err=True,
            )
    sys.stdout.flush()


def _print_details(report: Report) -> None:
    if report.users_before:
        began_at = datetime.datetime.fromtimestamp(report.began_at_ms // 1000, datetime.UTC).isoformat()
        click.echo(f"It went on with a run that began at {began_at}: users whom that one saw were not looked at again.")
    for about, why in report.faults.items():
        click.echo(f"{printable(about)} stays as it is: {printable(why)}", err=True)
    if report.fault_count > len(report.faults):
        click.echo(f"And {report.fault_count - len(report.faults)} more.", err=True)
    if report.pending_revokes:
        click.echo(
            f"Still to be revoked at Clerk: {_count(report.pending_revokes, 'session')}. "
            "session-relay revoke --pending lists them, and the next run tries again.",
            err=True,
        )
    if report.brake:
        click.echo(f"Without --dry-run, this would stop the run: {report.brake}", err=True)
