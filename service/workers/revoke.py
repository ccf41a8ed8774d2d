"""Ends sessions by order: here at once, then at Clerk. docs/contract.md, section 10; docs/revoke.md.

Of each session these steps are durable, in this order: Clerk has still to revoke it; it has ended here; Clerk has
nothing more to do. So whoever is killed between two of them leaves a record, from which `retry_pending` goes on.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from clerk_session_feed.models import ID, OPEN_STATUSES, Status

from service.clerk.api_sessions import ApiSession, SessionNotFound, SessionRefused, UnreadableSession
from service.clerk.backend_api import BackendApi
from service.errors import ClerkError
from service.store import revokes, scanning
from service.store.partitions import Partition
from service.store.revokes import Ended, PendingRevoke
from service.store.sessions import SessionStore
from service.workers.mend import Found, Mender
from service.workers.reasons import why_refused, why_unreadable

CHUNK: Final = 16
"""Sessions about which Clerk is asked at once: as many requests as the client has under way."""

Clock = Callable[[], float]
"""Returns Unix seconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Revoked:
    """What became of one session that Clerk had still to revoke."""

    session_id: str
    user_id: str | None
    """None if the session is not stored."""
    status: Status | None
    """What is stored; None if the session is not stored, or can't be read."""
    since_ms: int
    """When the end was ordered, in Unix milliseconds."""
    clerk: Literal["revoked", "over", "not_found", "pending"]
    """`revoked`: Clerk did it. `over`: it had ended there before. `pending`: Clerk has still to do it."""
    detail: str | None = None
    """What is wrong: why Clerk has still to do it, why it did not end here, or that nobody knows such a session."""


def order(
    store: SessionStore, session_ids: Iterable[str], *, local: bool = False, clock: Clock = time.time
) -> list[Ended]:
    """Order the end of sessions, and end here what is stored of them.

    Args:
        store: where they are stored.
        session_ids: each of the shape of an id.
        local: Clerk has nothing to do about them.
        clock: the time of the order.
    """
    ids = list(dict.fromkeys(session_ids))
    ended: dict[str, Ended] = {}
    for partition in store.partitions:
        stored = [id_ for id_, state in zip(ids, store.read(partition, ids), strict=True) if state is not None]
        ended |= {each.session_id: each for each in _order(store, partition, stored, local=local, clock=clock)}
    others = [id_ for id_ in ids if id_ not in ended]
    for start in range(0, 0 if local else len(others), revokes.CHUNK):
        revokes.add(store.partitions[0], others[start : start + revokes.CHUNK], int(clock() * 1000))
    return [ended.get(id_, Ended(id_)) for id_ in ids]


def order_user(
    store: SessionStore, user_id: str, excepted: Collection[str] = (), *, local: bool = False, clock: Clock = time.time
) -> Iterator[Ended]:
    """Order the end of the open sessions that are indexed for a user, and end them here; see `order`."""
    partition = store.partition_of(user_id)
    for chunk in scanning.indexed_sessions(partition, user_id):
        ids = [each for each in chunk if each not in excepted]
        yield from _order(store, partition, ids, local=local, clock=clock)


def order_impersonated(store: SessionStore, *, local: bool = False, clock: Clock = time.time) -> Iterator[Ended]:
    """Order the end of the sessions in which somebody impersonates the user, and end them here; see `order`."""
    for partition, ids in revokes.impersonated(store):
        yield from _order(store, partition, ids, local=local, clock=clock)


def _order(
    store: SessionStore, partition: Partition, session_ids: Sequence[str], *, local: bool, clock: Clock
) -> Iterator[Ended]:
    for start in range(0, len(session_ids), revokes.CHUNK):
        chunk = session_ids[start : start + revokes.CHUNK]
        now_ms = int(clock() * 1000)
        if not local:
            revokes.add(partition, chunk, now_ms)
        yield from revokes.end(store, partition, chunk, now_ms)


async def open_at_clerk(api: BackendApi, user_id: str, excepted: Collection[str] = ()) -> list[str]:
    """Return the sessions of a user that are open at Clerk, or may be; raise ClerkError if Clerk does not tell."""
    listed = await api.sessions_of(user_id)
    ids = [session.id for session in listed.sessions if session.data.status in OPEN_STATUSES]
    ids += [session.id for session in listed.unreadable if session.id is not None]
    return [each for each in ids if each not in excepted]


async def retry_pending(
    store: SessionStore,
    api: BackendApi,
    instance_id: str,
    *,
    unavailable: str | None = None,
    report: Callable[[Revoked], object] = lambda _: None,
    clock: Clock = time.time,
) -> tuple[int, int]:
    """Let Clerk revoke what it has still to revoke, those ordered last first, after ending them here.

    When Clerk fails, or refuses the key, for all of a chunk, no more is sent.

    Args:
        store: where the sessions are stored.
        api: Clerk's.
        instance_id: the Clerk instance that answers there.
        unavailable: why nothing is to be sent to Clerk; None to send.
        report: is called with what became of each session.
        clock: the time of ends here.

    Returns:
        How many sessions are done, and how many are left.

    Raises:
        StoreUnavailableError: Redis failed. What Clerk did by then may be asked for once more.
    """
    mender = Mender(store, instance_id, clock=clock)
    done = left = 0
    for partition in store.partitions:
        kept = 0
        while chunk := await asyncio.to_thread(revokes.pending, partition, kept, CHUNK):
            ended = await asyncio.to_thread(_end_found, store, partition, [each.session_id for each in chunk], clock)
            if unavailable is None:
                asked = await asyncio.gather(*(_ask(api, each, ended[each.session_id], instance_id) for each in chunk))
                if all(each.error for each in asked):
                    unavailable = str(asked[0].error)
                results = await asyncio.to_thread(_apply, mender, asked)
            else:
                results = [_not_sent(each, ended[each.session_id], unavailable) for each in chunk]
            if finished := [each.session_id for each in results if each.clerk != "pending"]:
                await asyncio.to_thread(revokes.remove, partition, finished)
            for each in results:
                report(each)
            done += len(finished)
            kept += len(chunk) - len(finished)
        left += kept
    return done, left


def _end_found(store: SessionStore, home: Partition, session_ids: Sequence[str], clock: Clock) -> dict[str, Ended]:
    """End sessions here; also one that was not stored when its end was ordered, and is by now."""
    now_ms = int(clock() * 1000)
    ended = {each: Ended(each, fault="it is not an id of a session") for each in session_ids}
    unknown = [each for each in session_ids if ID.fullmatch(each)]
    for partition in (home, *(each for each in store.partitions if each is not home)):
        ended |= {each.session_id: each for each in revokes.end(store, partition, unknown, now_ms)}
        unknown = [each for each in unknown if ended[each].status is None and ended[each].fault is None]
        if not unknown:
            break
    return ended


def _not_sent(pending: PendingRevoke, ended: Ended, why: str) -> Revoked:
    return Revoked(pending.session_id, ended.user_id, ended.status, pending.since_ms, "pending", why)


class _Asked(NamedTuple):
    result: Revoked
    answer: ApiSession | None = None
    """What Clerk says, if it is to be applied because nothing is stored."""
    error: ClerkError | None = None


async def _ask(api: BackendApi, pending: PendingRevoke, ended: Ended, instance_id: str) -> _Asked:
    """Let Clerk revoke a session."""
    result = Revoked(pending.session_id, ended.user_id, ended.status, pending.since_ms, "pending", ended.fault)
    if not ID.fullmatch(pending.session_id):
        return _Asked(dataclasses.replace(result, clerk="not_found"))
    try:
        answer = await api.revoke(pending.session_id)
        # A single 404 is not enough to give up a session that may be open.
        if was_refused := isinstance(answer, SessionRefused | SessionNotFound):
            answer = await api.session(pending.session_id)
    except ClerkError as error:
        return _Asked(dataclasses.replace(result, detail=str(error)), error=error)
    match answer:
        case SessionNotFound() if ended.instance_id in {None, instance_id}:
            detail = ended.fault or (None if ended.status else "neither Clerk nor the relay knows it")
            return _Asked(dataclasses.replace(result, clerk="not_found", detail=detail))
        case SessionNotFound():
            detail = f"it is of {ended.instance_id}, and CLERK_SECRET_KEY is of {instance_id}"
            return _Asked(dataclasses.replace(result, detail=detail))
        case ApiSession() if answer.data.status not in OPEN_STATUSES:
            result = dataclasses.replace(result, clerk="over" if was_refused else "revoked")
            return _Asked(result, answer if ended.status is None else None)
        case UnreadableSession() if not was_refused:
            detail = ended.fault or f"Clerk's response can't be read, and is not stored: {why_unreadable(answer)}"
            return _Asked(dataclasses.replace(result, clerk="revoked", detail=detail))
    return _Asked(dataclasses.replace(result, detail=_why_pending(answer)))


def _why_pending(answer: ApiSession | UnreadableSession | SessionNotFound | SessionRefused) -> str:
    why = "Clerk does not revoke it, and does not say that it is over"
    match answer:
        case UnreadableSession():
            return f"{why}: {why_unreadable(answer)}"
        case SessionRefused():
            return f"{why}: {why_refused(answer)}"
    return why


def _apply(mender: Mender, asked: Sequence[_Asked]) -> list[Revoked]:
    """Apply what Clerk says about sessions that are not stored; return what became of all."""
    found = {each.session_id: each for each in mender.apply([each.answer for each in asked if each.answer])}
    return [
        each.result if each.answer is None else _applied(each.result, each.answer, found[each.answer.id])
        for each in asked
    ]


def _applied(result: Revoked, answer: ApiSession, found: Found) -> Revoked:
    status = None if found.drift is None else answer.data.status
    return dataclasses.replace(result, user_id=answer.data.user_id, status=status, detail=found.fault)
