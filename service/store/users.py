"""What ends all sessions of a user: docs/contract.md, section 10."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import orjson
import structlog

from service.errors import StoreUnavailableError
from service.models import NewState, Outcome, UserEnding
from service.store.partitions import Partition, result, results
from service.store.scanning import indexed_sessions
from service.store.scripts import MARK_USER
from service.store.sessions import MAX_TTL_MS, SessionStore
from service.store.stored import StoredState

log = structlog.get_logger(__name__)

END_SECONDS: Final = 3.8
"""Seconds for the sessions of one user, since senders get their response within 5 s; what is left then is ended by the
sender's next attempt."""
CHUNK_SECONDS: Final = 0.3
"""Seconds that have to be left for another chunk to begin."""


def end_sessions(store: SessionStore, ending: UserEnding, now_ms: int) -> Outcome:
    """End the open sessions of a user.

    First it records that the user is gone: so a session that another delivery opens meanwhile ends, too.

    Returns:
        `applied`, with the number of sessions that this call ended, or `duplicate`.

    Raises:
        StoreUnavailableError: Redis failed, or there are more sessions than can be ended in time. What was ended
            stays so, and the next attempt goes on from there.
    """
    deadline = time.monotonic() + END_SECONDS
    partition = store.partition_of(ending.user_id)
    if _record(partition, ending, deadline, is_done=False) == b"duplicate":
        return Outcome("duplicate")
    ended, is_done = 0, False
    while not is_done:
        now_ended, changed = _end_found(store, partition, ending, now_ms, deadline)
        ended += now_ended
        # If some ended, look again: the stand-in for Redis may skip some of a set that shrinks.
        is_done = not now_ended and not changed
    _record(partition, ending, deadline, is_done=True)
    return Outcome("applied", sessions=ended)


def _record(partition: Partition, ending: UserEnding, deadline: float, *, is_done: bool) -> bytes:
    command = MARK_USER.command(
        gone_key=partition.keys.user_gone(ending.user_id),
        layout_key=partition.keys.layout,
        kind="deleted" if ending.status == "removed" else "banned",
        at_ms=ending.at_ms,
        event=orjson.dumps(ending.event),
        message_id=ending.event.id,
        is_done=int(is_done),
        ttl_ms=MAX_TTL_MS,
        partitions=partition.of,
    )
    (recorded,) = result(partition.run_script(command, list), _left(deadline))
    return recorded


def _end_found(
    store: SessionStore, partition: Partition, ending: UserEnding, now_ms: int, deadline: float
) -> tuple[int, int]:
    """End what is in the user's sets; return how many sessions ended, and how many changed since they were read."""
    ended = changed = 0
    for ids in indexed_sessions(partition, ending.user_id, partial(_left_for_chunk, deadline)):
        states = store.read(partition, ids, _left(deadline))
        ends = _ends(ids, states, ending, store.omitted)
        outcomes = results([partial(store.replace, partition, new, now_ms) for new in ends], _left(deadline))
        ended += sum(isinstance(each, Outcome) and each.outcome == "applied" for each in outcomes)
        changed += outcomes.count(None)
    return ended, changed


def _left_for_chunk(deadline: float) -> float:
    left = _left(deadline)
    if left < CHUNK_SECONDS:
        raise StoreUnavailableError("There are more sessions than end in time: the next attempt goes on.")
    return left


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _ends(
    session_ids: Sequence[str],
    states: Sequence[StoredState | ValueError | None],
    ending: UserEnding,
    omitted: frozenset[str],
) -> list[NewState]:
    """Return the ends of those that are open, of this user, and meant by the event."""
    ends = []
    for session_id, stored in zip(session_ids, states, strict=True):
        try:
            if isinstance(stored, ValueError):
                raise stored
            if stored is None or not stored.is_open or stored.user_id != ending.user_id:
                continue
            end = stored.ended(ending.status, ending.event, ending.order, omitted)
        except ValueError as error:
            log.warning("session_unreadable", session_id=session_id, detail=str(error))
        else:
            if ending.ends(end.created_at_ms):
                ends.append(end)
    return ends
