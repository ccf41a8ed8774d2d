"""The command `reconcile`: mends what webhooks did not tell, from Clerk's Backend API."""

import asyncio
import contextlib
import datetime
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import click
import redis
import structlog
from clerk_session_feed.connections import explain
from clerk_session_feed.models import ID
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.clerk.backend_api import BackendApi
from service.config import ReconcileSettings, load
from service.errors import ClerkError, StartError, StoreUnavailableError
from service.store.sessions import SessionStore
from service.telemetry import log as logs
from service.telemetry import printable
from service.workers.reconcile import Reconciler
from service.workers.report import Report, Scope
from service.workers.runs import Runs, RunUnderWayError

log = structlog.get_logger(__name__)

SECONDS_BELOW: Final = 10**11
"""A smaller number is a time in seconds, a larger one in milliseconds."""
REPORT_SECONDS: Final = 60
"""Seconds between two lines about the progress where nobody watches."""
RETRY_SECONDS: Final = 60
"""Seconds until a worker tries again after a failed run, at most."""
REFRESH_SECONDS: Final = 0.2
"""Seconds between two updates of the progress bar."""


class _Time(click.ParamType[int]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a time in Unix milliseconds."""
        if re.fullmatch(r"[0-9]{1,14}(\.[0-9]{1,9})?", value):
            number = float(value)
            return int(number * 1000) if number < SECONDS_BELOW else int(number)
        try:
            moment = datetime.datetime.fromisoformat(value)
        except ValueError:
            text = f"{printable(value)} is no time: use ISO 8601 (2026-11-29T08:00:00Z) or Unix time"
            self.fail(text, param, ctx)
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        return int(zoned.timestamp() * 1000)


class _UserId(click.ParamType[str]):
    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not ID.fullmatch(value):
            self.fail(f"{printable(str(value))} is no id of a user", param, ctx)
        return str(value)


@click.command(short_help="Mend what webhooks did not tell, from Clerk's API.")
@click.option("--full", is_flag=True, help="Look at all users that Clerk has: for the first time.")
@click.option("--active-within", metavar="DAYS", type=click.IntRange(1, 36_500), help="With --full: only active users.")
@click.option("--since", metavar="TIME", type=_Time(), help="Also look at users who signed in since: after an outage.")
@click.option("--user", metavar="ID", type=_UserId(), help="Look at this user only.")
@click.option("--dry-run", is_flag=True, help="Tell what differs, and write nothing.")
@click.option("--every", metavar="SECONDS", type=click.IntRange(1), help="Go on for ever, with such a pause.")
@click.option("--allow", metavar="N", type=click.IntRange(0), default=0, help="Sessions that may be gone from Clerk.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def reconcile(
    *,
    full: bool,
    active_within: int | None,
    since: int | None,
    user: str | None,
    dry_run: bool,
    every: int | None,
    allow: int,
    as_json: bool,
) -> None:
    """Read Clerk's sessions, and mend the stored states that differ from them.

    By default, it looks at every user of whom a session is stored as open. It needs CLERK_SECRET_KEY, and takes at most
    a fifth of the requests that Clerk allows. A run that was interrupted goes on where it was.

    The exit status is 1 if anything could not be compared.
    """
    if full + (since is not None) + (user is not None) > 1:
        raise click.UsageError("Use one of --full, --since and --user.")
    if active_within is not None and not full:
        raise click.UsageError("--active-within goes with --full.")
    if every is not None and (dry_run or user is not None):
        raise click.UsageError("--every goes with neither --dry-run nor --user.")
    settings = load(ReconcileSettings)
    scope = Scope(full=full, active_within_days=active_within, since_ms=since, user_id=user)
    is_watched = sys.stderr.isatty() and every is None
    logs.configure(settings.model_copy(update={"log_level": "error"}) if is_watched else settings)
    with contextlib.closing(SessionStore(settings)) as store, contextlib.closing(Runs(settings)) as runs:
        command = _Command(settings, store, runs, scope, dry_run=dry_run, allow=allow)
        if every is not None:
            asyncio.run(_until_signal(command.run_forever(every)))
            return
        started = time.monotonic()
        report = asyncio.run(_until_signal(command.run(wait=True)))
    if report is None:
        raise click.ClickException("Stopped. The next run of this kind goes on from here.")
    _print(report, scope, time.monotonic() - started, dry_run=dry_run, as_json=as_json)
    sys.exit(report.fault_count > 0)


class _Command:
    def __init__(
        self, settings: ReconcileSettings, store: SessionStore, runs: Runs, scope: Scope, *, dry_run: bool, allow: int
    ) -> None:
        self._settings, self._store, self._runs, self._scope = settings, store, runs, scope
        self._dry_run, self._allow = dry_run, allow

    async def run(self, *, wait: bool) -> Report:
        """Reconcile once.

        Raises:
            RunUnderWayError: Another run is under way.
            Exception: Those of `Reconciler.run`.
        """
        async with BackendApi(self._settings) as api, self._lock(api, wait=wait):
            reconciler = Reconciler(api, self._store, self._runs, self._scope, dry_run=self._dry_run, allow=self._allow)
            async with _shown(reconciler.report):
                return await reconciler.run()

    @contextlib.asynccontextmanager
    async def _lock(self, api: BackendApi, *, wait: bool) -> AsyncIterator[None]:
        if self._dry_run:
            if await asyncio.to_thread(self._runs.is_locked):
                raise RunUnderWayError("Another run of reconcile is under way. Wait for its end.")
            yield
            return
        api.budget.preload(await asyncio.to_thread(self._runs.acquire, wait=wait))
        try:
            yield
        finally:
            await asyncio.to_thread(self._runs.release, api.budget.spent())

    async def run_forever(self, every: int) -> None:
        """Reconcile so many seconds after the end of the last run, whoever made that."""
        log.info("reconcile_started", every_seconds=every)
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            pause = await self._run_if_due(every)

    async def _run_if_due(self, every: int) -> float:
        """Return the seconds until the next look."""
        try:
            status = await asyncio.to_thread(self._runs.status)
            left = every - (time.time() - int(status.get("last_success_at", 0)) / 1000)
            if left > 0:
                return min(left, every)
            report = await self.run(wait=False)
        except RunUnderWayError:
            return min(every, RETRY_SECONDS)
        except (ClerkError, StartError, StoreUnavailableError, redis.RedisError) as error:
            log.warning("reconcile_failed", detail=explain(error.__cause__ or error))
            return min(every, RETRY_SECONDS)
        _log(report, "reconcile_done" if not report.fault_count else "reconcile_incomplete")
        return every


async def _until_signal(run: Any) -> Any:
    """Return what a coroutine returns; None if SIGTERM or SIGINT ended it."""
    task = asyncio.ensure_future(run)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None


@contextlib.asynccontextmanager
async def _shown(report: Report) -> AsyncIterator[None]:
    """Show how far a run is: a bar where a person watches, else a line each minute."""
    task = asyncio.create_task(_show_bar(report) if sys.stderr.isatty() else _show_lines(report))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _show_bar(report: Report) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)
        started = time.monotonic()
        while True:
            seconds = max(time.monotonic() - started, 1)
            text = (
                f"{report.users:,} users ({report.users / seconds:.1f}/s), {report.sessions:,} sessions{_drift(report)}"
            )
            total = None if report.part is None else 1.0
            progress.update(bar, description=text, total=total, completed=report.part or 0)
            await asyncio.sleep(REFRESH_SECONDS)


async def _show_lines(report: Report) -> None:
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        _log(report, "reconcile_progress")


def _log(report: Report, event: str) -> None:
    known = {} if report.part is None else {"percent": round(100 * report.part)}
    log.info(event, users=report.users, sessions=report.sessions, faults=report.fault_count, **known, **report.drift)


def _drift(report: Report) -> str:
    return "".join(f", {count:,} {kind.replace('_', ' ')}" for kind, count in sorted(report.drift.items()))


def _print(report: Report, scope: Scope, seconds: float, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        result = {
            "mode": "user" if scope.user_id else scope.mode,
            "dry_run": dry_run,
            "resumed": report.resumed,
            "users": report.users,
            "sessions": report.sessions,
            "drift": dict(sorted(report.drift.items())),
            "faults": [{"about": about, "why": why} for about, why in report.faults.items()],
            "fault_count": report.fault_count,
            "seconds": round(seconds, 1),
        }
        click.echo(json.dumps(result))
        return
    found = _drift(report).removeprefix(", ") or "nothing"
    verb = "differs" if dry_run else "mended"
    click.echo(f"{report.sessions:,} sessions of {report.users:,} users in {seconds:.0f} s: {found} {verb}.")
    for about, why in report.faults.items():
        click.echo(f"{printable(about)} stays as it is: {printable(why)}", err=True)
    if report.fault_count > len(report.faults):
        click.echo(f"And {report.fault_count - len(report.faults)} more.", err=True)
