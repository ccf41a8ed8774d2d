"""Whose turn it is: one run of `reconcile` at a time, and what one has spent of Clerk's limit, the next one lacks.

Apart from `reconcile`, which knows nothing of other runs.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import redis
import structlog
from clerk_session_feed.connections import explain

from service.clerk.budget import Budget
from service.workers.runs import EXTEND_SECONDS, LOCK_SECONDS, Runs, RunUnderWayError
from service.workers.tasks import background

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 0.5
"""Seconds between two looks at a lock whose holder may have died."""


@contextlib.asynccontextmanager
async def turn(runs: Runs, budget: Budget, *, wait: bool) -> AsyncIterator[None]:
    """Hold the lock for a run that sends its requests within this budget.

    Args:
        runs: where the lock is.
        budget: of the run.
        wait: for the lock of a run that has died, up to LOCK_SECONDS.

    Raises:
        RunUnderWayError: Another run holds the lock, and lives.
        EndlessLockError: The lock is none of a run.
        LockLostError: It was lost meanwhile, so another run may have begun.
        redis.RedisError: Redis failed.
    """
    shortest = LOCK_SECONDS * 1000 + 1
    while not await asyncio.to_thread(runs.acquire):
        left = await asyncio.to_thread(runs.lock_ms)
        if not wait or left > shortest:
            raise _under_way()
        shortest = left
        await asyncio.sleep(POLL_SECONDS)
    try:
        budget.preload(await asyncio.to_thread(runs.spent))
        async with background(_extend(runs)):
            yield
    except BaseException:
        try:
            await asyncio.to_thread(runs.release, budget.spent())
        except redis.RedisError as error:  # what ended the run is the error to tell of
            log.warning("reconcile_lock_left", detail=explain(error))
        raise
    await asyncio.to_thread(runs.release, budget.spent())


@contextlib.asynccontextmanager
async def dry_turn(runs: Runs, budget: Budget) -> AsyncIterator[None]:
    """Let a run use this budget that writes nothing, not even the lock, nor what it has spent.

    So it ends as soon as another run begins. And after it, the budget's window has to pass: see `rest`.

    Raises:
        RunUnderWayError: Another run holds the lock, or begins.
        EndlessLockError: The lock is none of a run.
        redis.RedisError: Redis failed.
    """
    if await asyncio.to_thread(runs.lock_ms):
        raise _under_way()
    budget.preload(await asyncio.to_thread(runs.spent))
    async with background(_until_locked(runs)):
        yield


async def rest(budget: Budget) -> None:
    """Wait until all that was spent of a budget is past its window."""
    while budget.spent():  # noqa: ASYNC110  # time itself does this
        await asyncio.sleep(POLL_SECONDS)


async def _extend(runs: Runs) -> None:
    while True:
        await asyncio.sleep(EXTEND_SECONDS)
        await asyncio.to_thread(runs.extend)


async def _until_locked(runs: Runs) -> None:
    while not await asyncio.to_thread(runs.lock_ms):  # noqa: ASYNC110  # Redis tells nobody of a new key
        await asyncio.sleep(POLL_SECONDS)
    raise _under_way()


def _under_way() -> RunUnderWayError:
    return RunUnderWayError("Another run of reconcile is under way. Wait for its end.")
