"""What `check --clerk` asks Clerk's Backend API: about the key, its instance, and some of the stored sessions."""

import asyncio
import contextlib
from collections import Counter
from typing import Final

import redis

from service.clerk.api_sessions import ApiSession, SessionNotFound, UnreadableSession
from service.clerk.backend_api import BackendApi
from service.cli.diagnosis import CheckResult, explain
from service.cli.reconcile_view import in_words
from service.config import ReconcileSettings
from service.errors import ClerkError, CommandError, StoreUnavailableError
from service.store.sessions import SessionStore
from service.workers import sweep
from service.workers.instance import check_instance
from service.workers.mend import Mender
from service.workers.reasons import why_refused, why_unreadable
from service.workers.runs import Runs, RunUnderWayError
from service.workers.turn import dry_turn

SAMPLE: Final = 50
"""Sessions that are compared with Clerk's: one request each."""


def run_clerk_checks(settings: ReconcileSettings) -> list[CheckResult]:
    """Ask Clerk, and write nothing. If one result is an `error`, `reconcile` and `revoke` can't work."""
    store = SessionStore(settings, may_mark=False)
    with contextlib.closing(store), contextlib.closing(Runs(settings)) as runs:
        return asyncio.run(_checks(settings, store, runs))


async def _checks(settings: ReconcileSettings, store: SessionStore, runs: Runs) -> list[CheckResult]:
    results = []
    try:
        async with BackendApi(settings) as api:
            instance = await check_instance(api, store, runs, record=False)
            text = f"Clerk accepts the key, which is for the {instance.environment} instance {instance.id}"
            results.append(CheckResult("ok", f"{text}; the stored sessions name no other"))
            async with dry_turn(runs, api.budget):
                results += await _compare_sample(api, store, Mender(store, instance.id, dry_run=True))
    except RunUnderWayError:
        results.append(CheckResult("ok", "reconcile is comparing all sessions now, so no sample is compared"))
    except (ClerkError, CommandError) as error:
        results.append(CheckResult("error", str(error)))
    except (StoreUnavailableError, redis.RedisError) as error:
        results.append(CheckResult("error", f"Redis: {explain(error.__cause__ or error)}"))
    return results


async def _compare_sample(api: BackendApi, store: SessionStore, mender: Mender) -> list[CheckResult]:
    """Compare some of the sessions that are stored as open with Clerk's."""
    ids = await asyncio.to_thread(_sample, store)
    if not ids:
        return [CheckResult("ok", "no session is stored as open, so there is none to compare with Clerk's")]
    drift: Counter[str] = Counter()
    faults: list[tuple[str, str]] = []
    results = []
    answers = await asyncio.gather(*(api.session(each) for each in ids))
    for session_id, answer in zip(ids, answers, strict=True):
        match answer:
            case SessionNotFound():
                drift["gone"] += 1
            case UnreadableSession():
                faults.append((session_id, why_unreadable(answer)))
            case ApiSession():
                (found,) = await asyncio.to_thread(mender.apply, [answer])
                drift.update([found.drift] if found.drift else [])
                faults += [(session_id, found.fault)] if found.fault else []
            case _:
                faults.append((session_id, why_refused(answer)))
    if faults:
        (about, why), count = faults[0], len(faults)
        results.append(CheckResult("warning", f"{count} of {len(ids)} sessions can't be compared, like {about}: {why}"))
    if drift:
        text = f"{drift.total()} of {len(ids)} sessions stored as open differ from Clerk's ({in_words(drift)})"
        results.append(CheckResult("warning", f"{text}: run session-relay reconcile"))
    elif not faults:
        results.append(CheckResult("ok", f"{len(ids)} sessions stored as open agree with Clerk's"))
    return results


def _sample(store: SessionStore) -> list[str]:
    """Return the ids of some sessions that are stored as open: the first in the order of Redis' hash table."""
    ids: dict[str, None] = {}
    for batch in sweep.open_sessions(store):
        ids |= dict.fromkeys(each.session_id for each in batch.sessions)
        if len(ids) >= SAMPLE:
            break
    return list(ids)[:SAMPLE]
