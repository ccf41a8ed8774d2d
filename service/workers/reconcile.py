"""One run of `reconcile`: reads Clerk's sessions, and mends the stored states that differ from them.

docs/contract.md, section 10, and docs/reconcile.md. A run has three parts. First, if asked for, it goes through Clerk's
list of users. Then it goes through the sessions that are stored as open, for users it has not seen. At last it ends the
sessions that Clerk has no more. What it did is stored every few seconds, so that the next run goes on where it died.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import orjson
import structlog

from service.clerk.api_sessions import ApiSession, SessionNotFound, UnreadableSession
from service.clerk.backend_api import BackendApi, UsersPage
from service.errors import ClerkCursorError, ClerkError, ClerkKeyError, StartError
from service.store.sessions import SessionStore, result
from service.store.stored import StoredState
from service.workers import sweep
from service.workers.mend import Found, Mender
from service.workers.runs import EXTEND_SECONDS, Progress, Runs
from service.workers.sweep import OpenSession
from service.workers.visited import Visited

T = TypeVar("T")
log = structlog.get_logger(__name__)

USERS_AT_ONCE: Final = 256
"""Users that are looked at together. Most wait: for the budget, or to ask for a session again."""
ASK_AGAIN_SECONDS: Final = 5.0
"""Seconds between the two questions for a session that Clerk does not list."""
SAVE_SECONDS: Final = 5.0
"""Seconds between two records of the progress."""
MAY_BE_GONE: Final = 10
"""So many sessions, or GONE_PERCENT of all, may end in one run because Clerk has them no more."""
GONE_PERCENT: Final = 5
MAX_GONE: Final = 20_000
"""From this number on, a run does not wait for its end to see that too many are gone."""
FAILURES_IN_A_ROW: Final = 3
"""Users that could not be read, one after the other, before a run stops: Clerk is away."""
SAMPLED: Final = 200
"""Stored events of each partition that are looked at for the instance that they name."""
CHUNK: Final = 64
"""Sessions that are ended at once."""
DAY_MS: Final = 86_400_000


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """What a run looks at."""

    full: bool = False
    """All users that Clerk has, and then all sessions that are stored as open."""
    active_within_days: int | None = None
    """Of Clerk's users only those who were active in these days, if `full`."""
    since_ms: int | None = None
    """Of Clerk's users those who signed in since then, in Unix milliseconds."""
    user_id: str | None = None
    """Nobody but this user."""

    @property
    def mode(self) -> str:
        """The name under which an unfinished run can be resumed."""
        if self.since_ms is not None:
            return f"since-{self.since_ms}"
        if not self.full:
            return "stored"
        return "full" if self.active_within_days is None else f"full-{self.active_within_days}"


@dataclasses.dataclass(slots=True)
class Report:
    """What a run has found so far."""

    resumed: bool = False
    users: int = 0
    sessions: int = 0
    drift: Counter[str] = dataclasses.field(default_factory=Counter)
    """How many states differed, by kind."""
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    """What could not be compared, by session or user, with the reason; the first MAX_FAULTS."""
    fault_count: int = 0
    part: float | None = None
    """Which part of the work is done, from 0 to 1; None if that is unknown."""

    def add_fault(self, about: str, why: str) -> None:
        """Record that something could not be compared."""
        self.fault_count += about not in self.faults
        if len(self.faults) < MAX_FAULTS:
            self.faults[about] = why


MAX_FAULTS: Final = 100
"""Faults that a report names; the others are counted."""


class WrongInstanceError(StartError):
    """The key is for another Clerk instance than the stored sessions are of."""


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
        self._instance_id = ""
        self._progress = Progress(started_at_ms=int(clock() * 1000))
        self._visited = Visited()
        self._gone: dict[str, str] = {}
        self._unsaved_visits = bytearray()
        self._unsaved_gone: dict[str, str] = {}
        self._saves = scope.user_id is None and not dry_run
        self._room = asyncio.Semaphore(USERS_AT_ONCE)
        self._pages: list[_Page] = []
        self._failures = 0
        self._total_users: int | None = None

    async def run(self) -> Report:
        """Do it.

        Raises:
            WrongInstanceError: Nothing was changed.
            TooManyGoneError: No session was ended for being gone; the others are mended.
            ClerkError: Clerk refuses the key, or does not respond; what was found until then is mended.
            StoreUnavailableError: Redis does not respond.
            LockLostError: Another run may have begun.
        """
        await self._check_instance()
        if self._saves:
            await self._resume()
        try:
            async with _background(self._keep_running):
                if self._scope.user_id is not None:
                    await self._look_at(self._scope.user_id, [])
                else:
                    await self._look_at_all()
                await self._end_gone()
        finally:
            if self._saves:
                with contextlib.suppress(Exception):
                    await _in_thread(self._save)
        if self._saves:
            await _in_thread(self._finish)
        return self.report

    async def _check_instance(self) -> None:
        instance = await self._api.instance()
        self._instance_id = instance.id
        status = await _in_thread(self._runs.status)
        named = await _in_thread(self._instances_of_events)
        if "instance_id" in status:
            named.add(status["instance_id"])
        if named - {instance.id}:
            raise WrongInstanceError(
                f"CLERK_SECRET_KEY is for the instance {instance.id} ({instance.environment}), but the stored sessions "
                f"are of {', '.join(sorted(named - {instance.id}))}. Nothing was changed. Set the key of that "
                "instance, or give each instance a REDIS_KEY_PREFIX of its own."
            )
        if not self._dry_run and "instance_id" not in status:
            await _in_thread(self._runs.record_instance, instance.id)
        self._mender = Mender(self._store, instance.id, dry_run=self._dry_run, clock=self._clock)

    def _instances_of_events(self) -> set[str]:
        """Return the instances that a sample of the stored events names."""
        named = set()
        for partition in self._store.partitions:
            command = ("XREVRANGE", partition.keys.events, "+", "-", "COUNT", SAMPLED)
            for _, fields in result(partition.pipeline.submit(command, list)):
                event = orjson.loads(fields[fields.index(b"message") + 1])["event"]
                named.add(event["instance_id"])
        return {each for each in named if each is not None}

    async def _resume(self) -> None:
        progress, visited, self._gone = await _in_thread(self._runs.load, self._scope.mode)
        if progress is None:
            return
        self._progress = progress
        self._visited.load(visited)
        report = self.report
        report.resumed, report.users, report.sessions = True, progress.users, progress.sessions
        report.drift.update(progress.drift)

    async def _look_at_all(self) -> None:
        async with _unwrapped(), asyncio.TaskGroup() as tasks:
            if (self._scope.full or self._scope.since_ms is not None) and not self._progress.users_are_listed:
                await self._list_users(tasks)
        self._progress.users_are_listed = True
        async with _unwrapped(), asyncio.TaskGroup() as tasks:
            await self._sweep(tasks)

    async def _list_users(self, tasks: asyncio.TaskGroup) -> None:
        days, active_after_ms = self._scope.active_within_days, None
        if days is not None:
            # Clerk knows the day of a user's last activity, and not the time.
            active_after_ms = self._progress.started_at_ms - (days + 1) * DAY_MS
        after: list[str] = [self._progress.after] if self._progress.after else []
        while True:
            page = await self._users_page(after, active_after_ms)
            stored = _Page(after[-1] if after else "", left=len(page.ids))
            self._pages.append(stored)
            for user_id in page.ids:
                if user_id in self._visited:
                    stored.left -= 1
                else:
                    await self._begin(tasks, user_id, [], stored)
            if page.is_last:
                return
            after = [*after[-1:], *page.ids]

    async def _users_page(self, after: list[str], active_after_ms: int | None) -> UsersPage:
        """Return the users after the last of these whom Clerk still has; all, if it has none of them."""
        while True:
            try:
                return await self._api.users_page(
                    after=after[-1] if after else None,
                    active_after_ms=active_after_ms,
                    signed_in_after_ms=self._scope.since_ms,
                )
            except ClerkCursorError:
                after.pop()

    async def _sweep(self, tasks: asyncio.TaskGroup) -> None:
        batches = sweep.open_sessions(self._store)
        while (batch := await _in_thread(next, batches, None)) is not None:
            by_user: dict[str, list[OpenSession]] = {}
            for session in batch.sessions:
                if not session.is_indexed or session.user_id not in self._visited:
                    by_user.setdefault(session.user_id, []).append(session)
            for user_id, sessions in by_user.items():
                await self._begin(tasks, user_id, [each for each in sessions if not each.is_indexed])
            self.report.part = batch.scanned

    async def _begin(
        self, tasks: asyncio.TaskGroup, user_id: str, unindexed: Sequence[OpenSession], page: "_Page | None" = None
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
            faults = await self._compare(user_id, unindexed)
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
        for about, why in faults:
            self.report.add_fault(about, why)
        if not faults:  # else the next run looks again
            self._unsaved_visits += self._visited.add(user_id)

    async def _compare(self, user_id: str, unindexed: Sequence[OpenSession]) -> list[tuple[str, str]]:
        listed = await self._api.sessions_of(user_id)
        faults = [(each.id or f"a session of {user_id}", _why(each)) for each in listed.unreadable]
        faults += self._count(await _in_thread(self._mender.apply, listed.sessions))
        known = {each.id for each in listed.sessions} | {each.id for each in listed.unreadable}
        absent = await _in_thread(self._stored_but_not_in, known, user_id, unindexed)
        self.report.sessions += len(known) + len(absent)
        foreign = [each for each in absent if self._is_foreign(each)]
        faults += [(each.session_id, "its event names another Clerk instance") for each in foreign]
        asked = [each for each in absent if each not in foreign]
        missing = await self._ask(asked, faults)
        if missing:
            await asyncio.sleep(self._ask_again_seconds)
            for stored, answered_at_ms in await self._ask([each for each, _ in missing], faults):
                value = f"{stored.user_id} {stored.cursor} {answered_at_ms}"
                self._gone[stored.session_id] = self._unsaved_gone[stored.session_id] = value
            if len(self._gone) > MAX_GONE:
                self._check_gone()
        return faults

    def _stored_but_not_in(
        self, known: set[str | None], user_id: str, unindexed: Sequence[OpenSession]
    ) -> list[StoredState]:
        """Return the open sessions of a user that Clerk did not list."""
        partition = self._store.partition_of(user_id)
        for session in unindexed:
            if not self._dry_run:
                sweep.index(partition, session)
        ids = sweep.ids_of_user(partition, user_id) | {each.session_id for each in unindexed}
        states = self._store.read(partition, sorted(ids - known))
        return [each for each in states if isinstance(each, StoredState) and each.is_open and each.user_id == user_id]

    def _is_foreign(self, stored: StoredState) -> bool:
        try:
            return stored.message()["event"]["instance_id"] not in {None, self._instance_id}
        except (ValueError, KeyError, TypeError):
            return True

    async def _ask(
        self, sessions: Sequence[StoredState], faults: list[tuple[str, str]]
    ) -> list[tuple[StoredState, int]]:
        """Ask Clerk for sessions by their ids; return those that it does not have, with the time of the answer."""
        answers = await _gather([self._api.session(each.session_id) for each in sessions])
        found = [each for each in answers if isinstance(each, ApiSession)]
        faults += self._count(await _in_thread(self._mender.apply, found)) if found else []
        missing = []
        for stored, answer in zip(sessions, answers, strict=True):
            if isinstance(answer, SessionNotFound):
                missing.append((stored, answer.answered_at_ms))
            elif isinstance(answer, UnreadableSession):
                faults.append((stored.session_id, _why(answer)))
            elif not isinstance(answer, ApiSession):
                faults.append((stored.session_id, f"Clerk refuses to show it (status {answer.status})"))
        return missing

    def _count(self, found: Sequence[Found]) -> list[tuple[str, str]]:
        """Count the drift; return the faults."""
        self.report.drift.update(each.drift for each in found if each.drift is not None)
        return [(each.session_id, each.fault) for each in found if each.fault is not None]

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
        by_user = {session_id: value.split(" ") for session_id, value in self._gone.items()}
        for partition in self._store.partitions:
            absent = [
                (session_id, cursor, int(at_ms))
                for session_id, (user_id, cursor, at_ms) in by_user.items()
                if self._store.partition_of(user_id) == partition
            ]
            for start in range(0, len(absent), CHUNK):
                found = await _in_thread(self._mender.end_gone, partition, absent[start : start + CHUNK])
                for about, why in self._count(found):
                    self.report.add_fault(about, why)

    async def _keep_running(self) -> None:
        """Extend the lock and store the progress, again and again."""
        if self._dry_run:
            return
        while True:
            await asyncio.sleep(min(EXTEND_SECONDS, SAVE_SECONDS))
            await _in_thread(self._runs.extend)
            if self._saves:
                await _in_thread(self._save)

    def _save(self) -> None:
        visits, gone = bytes(self._unsaved_visits), dict(self._unsaved_gone)
        while len(self._pages) > 1 and self._pages[0].left == 0:
            self._pages.pop(0)
        progress, report = self._progress, self.report
        if self._pages:
            progress.after = self._pages[0].after
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


@dataclasses.dataclass(slots=True)
class _Page:
    """A page of Clerk's users."""

    after: str
    """The user before it; empty for the first page."""
    left: int
    """Users on it that have still to be looked at."""


def _why(session: UnreadableSession) -> str:
    if session.unknown_status is not None:
        return f"its status {session.unknown_status} is unknown to this version: upgrade"
    return session.detail


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    return await asyncio.to_thread(function, *args)


async def _gather(calls: Sequence[Awaitable[T]]) -> list[T]:
    async with _unwrapped(), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_awaited(each)) for each in calls]
    return [each.result() for each in running]


async def _awaited(call: Awaitable[T]) -> T:
    return await call


@contextlib.asynccontextmanager
async def _unwrapped() -> AsyncIterator[None]:
    """Raise the first error of a TaskGroup instead of the group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


@contextlib.asynccontextmanager
async def _background(function: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run something beside the block, until that ends; an error of it ends the block."""
    async with _unwrapped(), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_awaited(function()))
        yield
        task.cancel()
