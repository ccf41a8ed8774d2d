"""The command `reconcile`: mends what webhooks did not tell, from Clerk's Backend API."""

import asyncio
import contextlib
import datetime
import logging
import re
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any, Final

import click
import redis
import structlog
from clerk_session_feed.connections import explain
from clerk_session_feed.models import ID

from service.clerk.backend_api import BackendApi
from service.clerk.budget import Budget
from service.clerk.fields import SECONDS_BELOW
from service.cli import reconcile_view
from service.config import ReconcileSettings, load
from service.errors import ClerkError, CommandError, StoreUnavailableError
from service.store.partitions import refuse_other_partitions
from service.store.sessions import SessionStore
from service.telemetry import log as logs
from service.telemetry import printable
from service.workers.gone import TooManyGoneError
from service.workers.instance import WrongInstanceError
from service.workers.reconcile import Reconciler
from service.workers.report import Report, Scope
from service.workers.runs import Runs, RunUnderWayError
from service.workers.turn import dry_turn, rest, turn

log = structlog.get_logger(__name__)

RETRY_SECONDS: Final = 60
"""Seconds until a worker tries again after a failed run, at most."""


class _Time(click.ParamType[int]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a time in Unix milliseconds."""
        if re.fullmatch(r"[0-9]{1,14}(\.[0-9]{1,9})?", value):
            number = float(value)
            at = number if number < SECONDS_BELOW else number / 1000
        else:
            at = self._read_iso(value, param, ctx)
        if at > time.time():
            self.fail(f"{printable(value)} is in the future", param, ctx)
        return round(at * 1000)

    def _read_iso(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            moment = datetime.datetime.fromisoformat(value)
        except ValueError:
            text = f"{printable(value)} is no time: use ISO 8601 (2026-11-29T08:00:00Z) or Unix time"
            self.fail(text, param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


class _UserId(click.ParamType[str]):
    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not ID.fullmatch(value):
            self.fail(f"{printable(str(value))} is no id of a user", param, ctx)
        if value.startswith("sess_"):
            self.fail(f"{value} is a session's id: session-relay session {value} shows whose session it is", param, ctx)
        return str(value)


@click.command(short_help="Mend what webhooks did not tell, from Clerk's API.")
@click.option("--full", is_flag=True, help="Look at all users that Clerk has: for the first time.")
@click.option("--active-within", metavar="DAYS", type=click.IntRange(1, 36_500), help="With --full: only active users.")
@click.option("--since", metavar="TIME", type=_Time(), help="Also look at users who signed in since: after an outage.")
@click.option("--user", metavar="ID", type=_UserId(), help="Look at this user only.")
@click.option("--dry-run", is_flag=True, help="Tell what differs, and write nothing.")
@click.option("--every", metavar="SECONDS", type=click.IntRange(1), help="Go on for ever, with such a pause.")
@click.option(
    "--allow", metavar="N", type=click.IntRange(0), default=0, help="End so many sessions that Clerk no longer has."
)
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
    _configure_logs(settings, is_worker=every is not None, is_watched=is_watched)
    refuse_other_partitions(settings)
    store = SessionStore(settings, may_mark=not dry_run)
    with contextlib.closing(store), contextlib.closing(Runs(settings)) as runs:
        command = _Command(settings, store, runs, scope, allow=allow, is_watched=is_watched)
        if every is not None:
            logs.log_start(settings)
            asyncio.run(_until_signal(command.run_forever(every)))
            return
        report = asyncio.run(_until_signal(command.run_once(dry_run=dry_run, as_json=as_json)))
    if report is None:
        resumes = not dry_run and user is None
        raise click.ClickException(f"Stopped.{' The next run of this kind goes on from here.' if resumes else ''}")
    sys.exit(report.fault_count > 0)


def _configure_logs(settings: ReconcileSettings, *, is_worker: bool, is_watched: bool) -> None:
    """Of a single run, log the progress only, and that only where nobody watches: the rest is printed at its end."""
    logs.configure(settings if is_worker else settings.model_copy(update={"log_level": "error"}))
    if not is_watched:
        logging.getLogger(reconcile_view.__name__).setLevel(settings.log_level.upper())


class _Command:
    def __init__(
        self,
        settings: ReconcileSettings,
        store: SessionStore,
        runs: Runs,
        scope: Scope,
        *,
        allow: int,
        is_watched: bool,
    ) -> None:
        self._settings, self._store, self._runs, self._scope = settings, store, runs, scope
        self._allow, self._is_watched = allow, is_watched

    async def run_once(self, *, dry_run: bool, as_json: bool) -> Report:
        """Reconcile, and print the result.

        Raises:
            RunUnderWayError: Another run is under way.
            Exception: Those of `Reconciler.run`.
        """
        budget = Budget.of_key(self._settings.clerk_secret_key.get_secret_value())
        started = time.monotonic()
        whose_turn = dry_turn(self._runs, budget) if dry_run else turn(self._runs, budget, wait=True)
        try:
            async with whose_turn:
                report = await self._run(budget, dry_run=dry_run)
            seconds = time.monotonic() - started
            reconcile_view.print_result(report, self._scope, seconds, dry_run=dry_run, as_json=as_json)
        finally:
            if dry_run:  # whatever ended it: nobody else knows what it has spent
                await self._rest(budget)
        return report

    async def _rest(self, budget: Budget) -> None:
        if self._is_watched and budget.spent():
            click.echo("Waiting some seconds, so that what follows stays within Clerk's limit, too …", err=True)
        await rest(budget)

    async def _run(self, budget: Budget, *, dry_run: bool = False) -> Report:
        async with BackendApi(self._settings, budget=budget) as api:
            reconciler = Reconciler(api, self._store, self._runs, self._scope, dry_run=dry_run, allow=self._allow)
            async with reconcile_view.shown(reconciler.report, is_watched=self._is_watched):
                return await reconciler.run()

    async def _run_for_all(self, budget: Budget) -> Report:
        """Run; and if it stops since too many sessions are gone, let the other workers pause, too."""
        try:
            return await self._run(budget)
        except TooManyGoneError:
            await asyncio.to_thread(self._runs.record_end, self._scope.mode)
            raise

    async def run_forever(self, every: int) -> None:
        """Reconcile so many seconds after the end of the last run of this kind, whoever made that."""
        log.info("reconcile_started", every_seconds=every)
        budget = Budget.of_key(self._settings.clerk_secret_key.get_secret_value())  # runs may follow on each other fast
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            pause = await self._run_if_due(every, budget)

    async def _run_if_due(self, every: int, budget: Budget) -> float:
        """Return the seconds until the next look."""
        try:
            ended_at_ms = await asyncio.to_thread(self._runs.ended_at_ms, self._scope.mode)
            left = every - (time.time() - ended_at_ms / 1000)
            if left > 0:
                return min(left, every)
            async with turn(self._runs, budget, wait=False):
                report = await self._run_for_all(budget)
        except RunUnderWayError:
            return min(every, RETRY_SECONDS)
        except (TooManyGoneError, WrongInstanceError) as error:
            log.warning("reconcile_stopped", detail=str(error))  # somebody has to do something about it
            return every
        except (ClerkError, CommandError, StoreUnavailableError, redis.RedisError) as error:
            log.warning("reconcile_failed", detail=explain(error.__cause__ or error))
            return min(every, RETRY_SECONDS)
        reconcile_view.log_report(report, "reconcile_incomplete" if report.fault_count else "reconcile_done")
        return every


async def _until_signal(run: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine returns; None if SIGTERM or SIGINT ended it."""
    task = asyncio.ensure_future(run)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None
