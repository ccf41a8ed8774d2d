"""One run of `reconcile`: reads Clerk's sessions, and mends the stored states that differ from them.

docs/contract.md, section 10, and docs/reconcile.md. A run has three parts. First, if asked for, it goes through Clerk's
list of users. Then it goes through the sessions that are stored as open, for users it has not seen. At last it ends the
sessions that Clerk no longer has. What it did is stored every few seconds, so that the next run goes on where it died.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from clerk_session_feed.connections import explain

from service.clerk.backend_api import BackendApi
from service.errors import ClerkError, ClerkKeyError, StoreUnavailableError
from service.store.sessions import SessionStore
from service.store.wrong_types import WrongTypeError
from service.workers import revoke, sweep
from service.workers.gone import GoneSessions, TooManyGoneError
from service.workers.instance import check_instance
from service.workers.mend import Mender
from service.workers.report import Faults, Report, Scope
from service.workers.runs import Progress, Runs
from service.workers.sweep import OpenSession
from service.workers.tasks import background, first_error, repeated
from service.workers.user_check import ASK_AGAIN_SECONDS, UserCheck, UserResult
from service.workers.user_pages import Page, UserPages
from service.workers.visited import Visited

SAVE_SECONDS: Final = 5
"""Seconds between two records of how far a run came."""
USERS_AT_ONCE: Final = 256
"""Users that are looked at together, at most. Most wait: for the budget, or to ask for a session again."""
WINDOWS_AHEAD: Final = 3
"""Windows of the budget that these users take together, about: so much is repeated after the process is killed."""
MOST_FAILURES_IN_A_ROW: Final = 100
"""Users that could not be read, one after the other, before a run stops although Clerk still names the instance."""
FAILURES_IN_A_ROW: Final = 3
"""Users that could not be read, one after the other, before it is asked whether Clerk is away: then the run stops."""


class Reconciler:
    """One run. It is its turn: see `turn`.

    Args:
        api: Clerk's.
        store: where states are stored.
        runs: where progress is stored.
        scope: what to look at.
        dry_run: write nothing.
        allow: how many sessions may end because Clerk no longer has them, if that is more than the usual bound.
        ask_again_seconds: see ASK_AGAIN_SECONDS.
        clock: returns Unix seconds.
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
        self.report: Final = Report(int(clock() * 1000), stage="users" if scope.lists_users else "stored")
        self._api, self._store, self._runs, self._scope = api, store, runs, scope
        self._dry_run, self._ask_again_seconds, self._clock = dry_run, ask_again_seconds, clock
        self._check: UserCheck
        self._saves = scope.user_id is None and not dry_run
        self._gone = GoneSessions(allow)
        self._settled = Faults()  # of users who are not looked at again; the others are found again
        self._progress = Progress(self.report.began_at_ms)
        self._pages = UserPages(api, scope, self._progress)
        self._users_total: int | None = None
        self._visited = Visited()
        self._unsaved_visits = bytearray()
        self._room = asyncio.Semaphore(min(USERS_AT_ONCE, WINDOWS_AHEAD * api.budget.requests))
        self._failures = 0

    async def run(self) -> Report:
        """Do it.

        Raises:
            WrongInstanceError: Nothing was changed.
            TooManyGoneError: No session was ended for being gone; the others are mended.
            ClerkError: Clerk refuses the key, or does not respond; what was found until then is mended.
            StoreUnavailableError: Redis does not respond; or redis.RedisError.
        """
        instance = await check_instance(self._api, self._store, self._runs, record=not self._dry_run)
        mender = Mender(self._store, instance.id, dry_run=self._dry_run, clock=self._clock)
        self._check = UserCheck(self._api, self._store, mender, instance.id, self._ask_again_seconds)
        if not self._dry_run:
            await self._retry_revokes(instance.id)
        async with self._saved() if self._saves else contextlib.nullcontext():
            if self._scope.user_id is not None:
                await self._look_at(self._scope.user_id, [])
            else:
                await self._look_at_all()
            await self._end_gone(mender)
        if not self._dry_run:
            await asyncio.to_thread(self._finish)
        return self.report

    @contextlib.asynccontextmanager
    async def _saved(self) -> AsyncIterator[None]:
        """Go on where an interrupted run was, and store how far this one comes."""
        await self._resume()
        async with repeated(self._save, SAVE_SECONDS):
            yield

    async def _retry_revokes(self, instance_id: str) -> None:
        try:
            retried = revoke.retry_pending(self._store, self._api, instance_id, clock=self._clock)
            _, self.report.pending_revokes = await retried
        except (ClerkError, StoreUnavailableError) as error:
            self.report.faults.add("what Clerk has still to revoke", explain(error.__cause__ or error))

    async def _resume(self) -> None:
        progress, visited, gone = await asyncio.to_thread(self._runs.load, self._scope.mode)
        if progress is None:
            return
        self._gone.load(gone)
        if progress.is_stopped:
            try:
                self._gone.check(progress.sessions)
            except TooManyGoneError:  # not allowed either now: see if Clerk still says so
                self._gone.clear()
                await asyncio.to_thread(self._runs.forget, self._scope.mode)
                return
            progress.is_stopped = False
        self._progress = progress
        self._pages = UserPages(self._api, self._scope, progress)
        self._visited.load(visited)
        self._settled.load(progress.faults, progress.fault_count)
        self.report.began_at_ms = progress.started_at_ms
        self.report.resume(progress.users, progress.sessions, progress.drift, progress.faults, progress.fault_count)

    async def _look_at_all(self) -> None:
        if self._scope.lists_users and not self._progress.users_are_listed:
            async with background(self._count_users()), first_error(), asyncio.TaskGroup() as tasks:
                await self._list_users(tasks)
            self._progress.users_are_listed = self._pages.are_done()
        self.report.stage, self.report.part = "stored", None
        async with first_error(), asyncio.TaskGroup() as tasks:
            await self._sweep(tasks)

    async def _count_users(self) -> None:
        with contextlib.suppress(ClerkError):  # then nobody sees how far it is
            self._users_total = await self._pages.total()

    async def _list_users(self, tasks: asyncio.TaskGroup) -> None:
        async for page, user_ids in self._pages:
            for user_id in user_ids:
                if user_id in self._visited:
                    page.left -= 1
                else:
                    await self._begin(tasks, user_id, [], page)

    async def _sweep(self, tasks: asyncio.TaskGroup) -> None:
        batches = sweep.open_sessions(self._store)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            for session_id, why in batch.faults:
                self.report.faults.add(session_id, why)
            for user_id, unindexed in batch.users(self._visited).items():
                await self._begin(tasks, user_id, unindexed)
            self.report.part = batch.scanned

    async def _begin(
        self, tasks: asyncio.TaskGroup, user_id: str, unindexed: Sequence[OpenSession], page: Page | None = None
    ) -> None:
        """Look at a user in a task of its own, as soon as there is room for it."""
        await self._room.acquire()
        self._visited.add(user_id)

        async def look() -> None:
            try:
                if await self._look_at(user_id, unindexed) and page is not None:
                    page.left -= 1
            finally:
                self._room.release()

        tasks.create_task(look())

    async def _look_at(self, user_id: str, unindexed: Sequence[OpenSession]) -> bool:
        """Compare all sessions of a user; return whether Clerk has shown them."""
        try:
            found = await self._check(user_id, unindexed)
        except ClerkKeyError:
            raise
        except (ClerkError, WrongTypeError) as error:
            self._failures += 1
            if self._scope.user_id is not None:
                raise
            if self._failures == MOST_FAILURES_IN_A_ROW:
                raise ClerkError(f"{self._failures} users in a row can't be read, like {user_id}: {error}") from None
            if self._failures % FAILURES_IN_A_ROW == 0:
                await self._api.instance()
            self.report.faults.add(user_id, str(error))
            return False
        self._failures = 0
        report = self.report
        report.users, report.sessions = report.users + 1, report.sessions + found.sessions
        if self._users_total:
            report.part = min(1.0, report.users / self._users_total)
        report.faults.drop(user_id)  # of an earlier attempt
        report.add(found.drift, found.faults)
        for about, why in found.faults:
            self._settled.add(about, why)
        for gone in found.gone:
            self._gone.add(gone)
        self._unsaved_visits += self._visited.add(user_id)
        self._check_gone(self._gone.check_early)
        return True

    def _check_gone(self, check: Callable[[int], None]) -> None:
        try:
            check(self.report.sessions)
        except TooManyGoneError as error:
            self._progress.is_stopped = True
            if not self._dry_run:
                raise
            self.report.brake = str(error)

    async def _end_gone(self, mender: Mender) -> None:
        self._check_gone(self._gone.check)
        result = UserResult()
        result.add(await asyncio.to_thread(self._gone.end, self._store, mender))
        self.report.add(result.drift, result.faults)

    def _save(self) -> None:
        visits, gone = bytes(self._unsaved_visits), self._gone.unsaved()
        progress, report = self._progress, self.report
        progress.after = self._pages.resume_after()
        progress.users, progress.sessions, progress.drift = report.users, report.sessions, dict(report.drift)
        progress.faults, progress.fault_count = dict(self._settled), self._settled.count
        self._runs.save(self._scope.mode, progress, visits, gone)
        del self._unsaved_visits[: len(visits)]
        self._gone.saved(gone)

    def _finish(self) -> None:
        self._runs.record_drift(self.report.drift)
        if self._saves:
            is_success = not self.report.fault_count
            self._runs.record_end(self._scope.mode, state_as_of_ms=self._progress.started_at_ms if is_success else None)
            self._runs.forget(self._scope.mode)
