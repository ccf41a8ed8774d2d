"""Sessions that are to end by order: which stored ones are meant, their end here, and what Clerk has still to do.

Every function blocks until Redis answers, and raises StoreUnavailableError if it does not.
"""

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from clerk_session_feed.models import Event, Status

from service.errors import StoreUnavailableError
from service.models import ORDERED, RANKS, NewState, OrderKey
from service.store.partitions import Partition, result
from service.store.scanning import stored_sessions
from service.store.sessions import MAX_TTL_MS, SessionStore
from service.store.stored import StoredState
from service.store.wrong_types import WrongTypeError, check_user, is_wrong_type, naming

CHUNK: Final = 64
"""Sessions that are ended at once. Each is a run of the script, so that Redis serves others in between."""
_RANK: Final = RANKS.index("revoked")


class Ended(NamedTuple):
    """A session after its end here was tried."""

    session_id: str
    user_id: str | None = None
    """None if nothing is stored, or it can't be read."""
    status: Status | None = None
    """What is stored now; None as above."""
    instance_id: str | None = None
    """The Clerk instance that the session is of, if that is known."""
    fault: str | None = None
    """Why it was not ended here."""
    is_new: bool = False
    """Whether it ended now, and not before."""


class PendingRevoke(NamedTuple):
    """A session that Clerk has still to revoke."""

    session_id: str
    since_ms: int
    """When that was ordered, in Unix milliseconds."""


def add(partition: Partition, session_ids: Sequence[str], now_ms: int) -> None:
    """Record that Clerk has still to revoke these sessions; one that is recorded already keeps its time.

    Raises:
        PartitionsError: The data was moved meanwhile.
    """
    key = partition.keys.revokes
    scored = [word for each in session_ids for word in (now_ms, each)]
    with naming(key):
        partition.ask(("ZADD", key, "NX", *scored), ("PEXPIRE", key, MAX_TTL_MS))


def remove(partition: Partition, session_ids: Sequence[str]) -> None:
    """Record that Clerk has nothing more to do about these sessions; raises as `add` does."""
    ids = [each.encode(errors="surrogateescape") for each in session_ids]
    partition.ask(("ZREM", partition.keys.revokes, *ids))


def pending(partition: Partition, start: int, count: int) -> list[PendingRevoke]:
    """Return so many sessions that Clerk has still to revoke, those ordered last first, without the first `start`.

    What another program wrote there may be no id of a session. Raises as `add` does.
    """
    command = ("ZREVRANGE", partition.keys.revokes, start, start + count - 1, "WITHSCORES")
    with naming(partition.keys.revokes):
        (words,) = partition.ask(command)
    return [
        PendingRevoke(each.decode(errors="surrogateescape"), int(float(score)))
        for each, score in zip(words[::2], words[1::2], strict=True)
    ]


def end(store: SessionStore, partition: Partition, session_ids: Sequence[str], now_ms: int) -> list[Ended]:
    """End sessions here, unless they are over by what Clerk said, or by an earlier order."""
    ended = []
    left = session_ids
    while left:
        waiting = []
        for session_id, stored in zip(left, store.read(partition, left), strict=True):
            if stored is None:
                ended.append(Ended(session_id))
                continue
            try:
                after = _described(stored)
                new = _revoked(stored, now_ms, store.omitted)
            except ValueError as error:
                ended.append(Ended(session_id, fault=str(error)))
                continue
            if new is None:
                ended.append(after)
            else:
                waiting.append((after, store.replace(partition, new, now_ms)))
        left = []
        for before, future in waiting:
            try:
                outcome = _result(future, partition, before.user_id)
            except WrongTypeError as error:
                ended.append(before._replace(fault=str(error)))
                continue
            if outcome is None:
                left.append(before.session_id)  # an event was applied since it was read
            else:
                ended.append(before._replace(status="revoked", is_new=outcome.outcome == "applied"))
    return ended


def _result(future: Future[Any], partition: Partition, user_id: str | None) -> Any:
    """Wait for what became of an end; raise WrongTypeError if a key of the user has another type."""
    try:
        return result(future)
    except StoreUnavailableError as error:
        if user_id is not None and is_wrong_type(error):
            check_user(partition, user_id)
        raise


def _described(stored: StoredState | ValueError) -> Ended:
    """Raises ValueError if the state can't be read."""
    if isinstance(stored, ValueError):
        raise stored
    try:
        instance_id = stored.message()["event"]["instance_id"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"its state is not a message: {type(error).__name__}") from error
    return Ended(stored.session_id, stored.user_id, stored.status, instance_id)


def _revoked(stored: StoredState | ValueError, now_ms: int, omitted: frozenset[str]) -> NewState | None:
    """Return the state that ends a session by order, or None if it is over; raise ValueError if it can't be read."""
    if isinstance(stored, ValueError):
        raise stored
    if stored.is_final:
        return None
    id_ = f"rev_{uuid.uuid4().hex}"
    event = Event(id=id_, type="session.revoked", occurred_at=now_ms, instance_id=None, source="relay")
    return stored.ended("revoked", event, OrderKey(ORDERED, now_ms, now_ms, _RANK, id_), omitted)


def impersonated(store: SessionStore) -> Iterator[tuple[Partition, list[str]]]:
    """Yield the stored sessions that have an actor, and that neither Clerk nor an order has ended, in chunks.

    Among them are those that ended only because they ran out, or because Clerk did not find them: they may go on there.
    """
    for scanned in stored_sessions(store):
        for partition, session_ids in scanned.session_ids.items():
            found = [
                stored.session_id
                for stored in store.read(partition, session_ids)
                if isinstance(stored, StoredState) and not stored.is_final and _has_actor(stored)
            ]
            if found:
                yield partition, found


def _has_actor(stored: StoredState) -> bool:
    try:
        return stored.message()["session"]["actor"] is not None
    except (ValueError, KeyError, TypeError):
        return False
