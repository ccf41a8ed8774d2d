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
from service.store.scripts import MARK_USER
from service.store.sessions import MAX_TTL_MS, SessionStore
from service.store.stored import StoredState

log = structlog.get_logger(__name__)

CHUNK: Final = 64
"""Sessions that are ended at once. Each is a run of the script, so that Redis serves others in between."""
END_SECONDS: Final = 4.3
"""Seconds for the sessions of one user, since senders get their response within 5 s; what is left then is ended by the
sender's next attempt."""


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
    ended = 0
    while now_ended := _end_found(store, partition, ending, now_ms, deadline):
        ended += now_ended  # and look again: a set that shrinks while it is read may hide some
    _record(partition, ending, deadline, is_done=True)
    return Outcome("applied", sessions=ended)


def _record(partition: Partition, ending: UserEnding, deadline: float, *, is_done: bool) -> bytes:
    command = MARK_USER.command(
        gone_key=partition.keys.user_gone(ending.user_id),
        kind="deleted" if ending.status == "removed" else "banned",
        at_ms=ending.at_ms,
        event=orjson.dumps(ending.event),
        message_id=ending.event.id,
        is_done=int(is_done),
        ttl_ms=MAX_TTL_MS,
    )
    return result(partition.pipeline.submit(command, bytes), _left(deadline))


def _end_found(store: SessionStore, partition: Partition, ending: UserEnding, now_ms: int, deadline: float) -> int:
    """End what is in the user's sets; return how many sessions that were."""
    keys, user_id = partition.keys, ending.user_id
    ended = 0
    for key in (keys.user_sessions(user_id), keys.user_pending(user_id)):
        stay = 0  # ids at the beginning of the set that don't end
        while ids := _ids(partition, key, stay, deadline):
            states = store.read(partition, ids, _left(deadline))
            ends = _ends(states, ending, store.omitted)
            outcomes = results([partial(store.replace, partition, new, now_ms) for new in ends], _left(deadline))
            count = sum(isinstance(each, Outcome) and each.outcome == "applied" for each in outcomes)
            ended += count
            stay += len(ids) - count
    return ended


def _ids(partition: Partition, key: str, start: int, deadline: float) -> list[str]:
    command = ("ZRANGE", key, start, start + CHUNK - 1)
    ids = result(partition.pipeline.submit(command, list), _left(deadline))
    return [each.decode(errors="backslashreplace") for each in ids]


def _left(deadline: float) -> float:
    """Return the seconds until then; raise StoreUnavailableError if it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise StoreUnavailableError("There are more sessions than can be ended in time: the next attempt goes on.")
    return left


def _ends(
    states: Sequence[StoredState | ValueError | None], ending: UserEnding, omitted: frozenset[str]
) -> list[NewState]:
    news = []
    for stored in states:
        if stored is None or isinstance(stored, ValueError):
            continue
        try:
            new = stored.ended(ending.status, ending.event, ending.order, omitted)
        except ValueError as error:
            log.warning("session_unreadable", session_id=stored.session_id, detail=str(error))
            continue
        if stored.is_open and stored.user_id == ending.user_id and ending.ends(new.created_at_ms):
            news.append(new)
    return news
