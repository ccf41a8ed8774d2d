"""One run of `reconcile`: reads Clerk's sessions, and mends the stored states that differ from them.

docs/contract.md, section 10, and docs/reconcile.md. A run has three parts. First, if asked for, it goes through Clerk's
list of users. Then it goes through the sessions that are stored as open, for users it has not seen. At last it ends the
sessions that Clerk has no more. What it did is stored every few seconds, so that the next run goes on where it died.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final

from service.clerk.backend_api import BackendApi, Instance
from service.errors import ClerkError, ClerkKeyError, StartError
from service.store.sessions import SessionStore
from service.workers import sweep
from service.workers.instance import check_instance
from service.workers.mend import Mender
from service.workers.report import Gone, Report, Scope
from service.workers.runs import EXTEND_SECONDS, Progress, Runs
from service.workers.sweep import OpenSession
from service.workers.user_check import ASK_AGAIN_SECONDS, UserCheck, first_error, in_thread
from service.workers.user_pages import Page, UserPages
from service.workers.visited import Visited

USERS_AT_ONCE: Final = 256
"""Users that are looked at together. Most wait: for the budget, or to ask for a session again."""
SAVE_SECONDS: Final = 5.0
"""Seconds between two records of the progress."""
MAY_BE_GONE: Final = 10
"""So many sessions, or GONE_PERCENT of all, may end in one run because Clerk has them no more."""
GONE_PERCENT: Final = 5
MAX_GONE: Final = 20_000
"""From this number on, a run does not wait for its end to see that too many are gone."""
FAILURES_IN_A_ROW: Final = 3
"""Users that could not be read, one after the other, before a run stops: Clerk is away."""
CHUNK: Final = 64
"""Sessions that are ended at once."""


class TooManyGoneError(StartError):
    """More sessions would end because Clerk has them no more than is credible."""


class Reconciler:
    """One run. It holds the lock already, unless it is a dry run.

    Args:
        api: Clerk's.
        store: where states are stored.
        runs: where progress is stored.
        scope: what to look at.
        dry_run: write nothing.
        allow: how many sessions may end because Clerk has them no more, if that is more than the usual bound.
    """

    def __init__(
        self,
        api: BackendApi,
        store: SessionStore,
        runs: Runs,
        scope: Scope,
        *,
        dry_run: bool = False,
        allow: int = 0,
        ask_again_seconds: float = ASK_AGAIN_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.report: Final = Report()
        self._api, self._store, self._runs, self._scope = api, store, runs, scope
        self._dry_run, self._allow = dry_run, allow
        self._ask_again_seconds = ask_again_seconds
        self._clock = clock
        self._mender: Any = None
        self._check: Any = None
        self._progress = Progress(started_at_ms=int(clock() * 1000))
        self._visited = Visited()
        self._gone: dict[str, Gone] = {}
        self._unsaved_visits = bytearray()
        self._unsaved_gone: dict[str, Gone] = {}
        self._saves = scope.user_id is None and not dry_run
        self._room = asyncio.Semaphore(USERS_AT_ONCE)
        self._pages = UserPages(api, scope, self._progress)
        self._failures = 0

    async def run(self) -> Report:
        """Do it.

        Raises:
            WrongInstanceError: Nothing was changed.
            TooManyGoneError: No session was ended for being gone; the others are mended.
            ClerkError: Clerk refuses the key, or does not respond; what was found until then is mended.
            StoreUnavailableError: Redis does not respond.
            LockLostError: Another run may have begun.
        """
        self._begin_with(await check_instance(self._api, self._store, self._runs, record=not self._dry_run))
        if self._saves:
            await self._resume()
        try:
            async with _background(self._keep_running()):
                if self._scope.user_id is not None:
                    await self._look_at(self._scope.user_id, [])
                else:
                    await self._look_at_all()
                await self._end_gone()
        finally:
            if self._saves:
                with contextlib.suppress(Exception):
                    await in_thread(self._save)
        if self._saves:
            await in_thread(self._finish)
        return self.report

    def _begin_with(self, instance: Instance) -> None:
        self._mender = Mender(self._store, instance.id, dry_run=self._dry_run, clock=self._clock)
        self._check = UserCheck(
            self._api,
            self._store,
            self._mender,
            instance.id,
            dry_run=self._dry_run,
            ask_again_seconds=self._ask_again_seconds,
        )

    async def _resume(self) -> None:
        progress, visited, self._gone = await in_thread(self._runs.load, self._scope.mode)
        if progress is None:
            return
        self._progress = progress
        self._pages = UserPages(self._api, self._scope, progress)
        self._visited.load(visited)
        report = self.report
        report.resumed, report.users, report.sessions = True, progress.users, progress.sessions
        report.drift.update(progress.drift)

    async def _look_at_all(self) -> None:
        async with first_error(), asyncio.TaskGroup() as tasks:
            if (self._scope.full or self._scope.since_ms is not None) and not self._progress.users_are_listed:
                await self._list_users(tasks)
        self._progress.users_are_listed = True
        async with first_error(), asyncio.TaskGroup() as tasks:
            await self._sweep(tasks)

    async def _list_users(self, tasks: asyncio.TaskGroup) -> None:
        async for page in self._pages:
            for user_id in page.ids:
                if user_id in self._visited:
                    page.left -= 1
                else:
                    await self._begin(tasks, user_id, [], page)

    async def _sweep(self, tasks: asyncio.TaskGroup) -> None:
        batches = sweep.open_sessions(self._store)
        while (batch := await in_thread(next, batches, None)) is not None:
            by_user: dict[str, list[OpenSession]] = {}
            for session in batch.sessions:
                if not session.is_indexed or session.user_id not in self._visited:
                    by_user.setdefault(session.user_id, []).append(session)
            for user_id, sessions in by_user.items():
                await self._begin(tasks, user_id, [each for each in sessions if not each.is_indexed])
            self.report.part = batch.scanned

    async def _begin(
        self, tasks: asyncio.TaskGroup, user_id: str, unindexed: Sequence[OpenSession], page: Page | None = None
    ) -> None:
        """Look at a user in a task of its own, as soon as there is room for it."""
        await self._room.acquire()
        self._visited.add(user_id)

        async def look() -> None:
            try:
                await self._look_at(user_id, unindexed)
            finally:
                self._room.release()
                if page is not None:
                    page.left -= 1

        tasks.create_task(look())

    async def _look_at(self, user_id: str, unindexed: Sequence[OpenSession]) -> None:
        """Compare all sessions of a user."""
        try:
            found = await self._check(user_id, unindexed)
        except ClerkKeyError:
            raise
        except ClerkError as error:
            self._failures += 1
            if self._failures >= FAILURES_IN_A_ROW or self._scope.user_id is not None:
                raise
            self.report.add_fault(user_id, str(error))
            return
        self._failures = 0
        self.report.users += 1
        self.report.sessions += found.sessions
        self.report.drift.update(found.drift)
        for about, why in found.faults:
            self.report.add_fault(about, why)
        for gone in found.gone:
            self._gone[gone.session_id] = self._unsaved_gone[gone.session_id] = gone
        if not found.faults:  # else the next run looks again
            self._unsaved_visits += self._visited.add(user_id)
        if len(self._gone) > MAX_GONE:
            self._check_gone()

    def _check_gone(self) -> None:
        count = len(self._gone)
        bound = max(MAY_BE_GONE, self.report.sessions * GONE_PERCENT // 100)
        if count > max(bound, self._allow):
            raise TooManyGoneError(
                f"Clerk has no more {count} of {self.report.sessions} sessions, which is more than {bound}: none of "
                "these was ended. See that CLERK_SECRET_KEY and CLERK_API_URL are right, and what these sessions are. "
                f"If they are to end, run it again with --allow {count}."
            )

    async def _end_gone(self) -> None:
        self._check_gone()
        for partition in self._store.partitions:
            gone = [each for each in self._gone.values() if self._store.partition_of(each.user_id) == partition]
            for start in range(0, len(gone), CHUNK):
                found = await in_thread(self._mender.end_gone, partition, gone[start : start + CHUNK])
                self.report.drift.update(each.drift for each in found if each.drift is not None)
                for each in found:
                    if each.fault is not None:
                        self.report.add_fault(each.session_id, each.fault)

    async def _keep_running(self) -> None:
        """Extend the lock and store the progress, again and again."""
        if self._dry_run:
            return
        while True:
            await asyncio.sleep(min(EXTEND_SECONDS, SAVE_SECONDS))
            await in_thread(self._runs.extend)
            if self._saves:
                await in_thread(self._save)

    def _save(self) -> None:
        visits, gone = bytes(self._unsaved_visits), dict(self._unsaved_gone)
        progress, report = self._progress, self.report
        progress.after = self._pages.resume_after()
        progress.users, progress.sessions, progress.drift = report.users, report.sessions, dict(report.drift)
        self._runs.save(self._scope.mode, progress, visits, gone)
        del self._unsaved_visits[: len(visits)]
        for session_id in gone:
            self._unsaved_gone.pop(session_id, None)

    def _finish(self) -> None:
        self._runs.record_drift(self.report.drift)
        if not self.report.fault_count:
            self._runs.record_success(self._progress.started_at_ms)
        self._runs.forget(self._scope.mode)


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run something beside the block, until that ends; an error of it ends the block."""
    async with first_error(), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        yield
        task.cancel()
