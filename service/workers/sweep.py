"""Finds every session that is stored as open, in bounded memory, and the sets of one user.

Apart from `reconcile`, because it knows Redis and no Clerk.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from clerk_session_feed.models import ID, OPEN_STATUSES

from service.errors import StoreUnavailableError
from service.store.partitions import Partition, result
from service.store.scanning import indexed_sessions, stored_sessions
from service.store.scripts import INDEX_SESSION
from service.store.sessions import SessionStore
from service.store.wrong_types import is_wrong_type
from service.workers.visited import Visited


class OpenSession(NamedTuple):
    """A session that is stored as open."""

    session_id: str
    user_id: str
    is_indexed: bool
    """Whether it is in a set of its user; one that an earlier version stored as pending is not."""


class Batch(NamedTuple):
    """What one SCAN found."""

    sessions: list[OpenSession]
    faults: list[tuple[str, str]]
    """Sessions that can't be looked at, with the reason."""
    scanned: float
    """Which part of all keys has been looked at, about: 0 to 1."""

    def users(self, visited: Visited) -> dict[str, list[OpenSession]]:
        """Return whom to look at, with the sessions that are not indexed: those are news also of visited users."""
        found: dict[str, list[OpenSession]] = {}
        for session in self.sessions:
            if not session.is_indexed:
                found.setdefault(session.user_id, []).append(session)
            elif session.user_id not in visited:
                found.setdefault(session.user_id, [])
        return found


def open_sessions(store: SessionStore) -> Iterator[Batch]:
    """Yield every session that is stored as open for as long as this takes; some twice, as SCAN does.

    Raises:
        StoreUnavailableError: Redis failed.
    """
    for scanned in stored_sessions(store):
        stored = [(partition, each) for partition, ids in scanned.session_ids.items() for each in ids]
        yield Batch(*_open_of(stored), scanned.scanned)


def _open_of(stored: Sequence[tuple[Partition, str]]) -> tuple[list[OpenSession], list[tuple[str, str]]]:
    states = _ask([(each, ("HMGET", each.keys.session(id_), "status", "user_id")) for each, id_ in stored])
    found, faults = [], []
    for (partition, session_id), state in zip(stored, states, strict=True):
        status, user_id = state or (None, None)
        if (status or b"").decode(errors="replace") in OPEN_STATUSES:
            text = (user_id or b"").decode(errors="replace")
            if ID.fullmatch(text):
                found.append((partition, session_id, text))
            else:
                faults.append((session_id, "its stored user_id is not an id"))
    live = _ask([(each, ("ZSCORE", each.keys.user_sessions(user_id), id_)) for each, id_, user_id in found])
    pending = _ask([(each, ("ZSCORE", each.keys.user_pending(user_id), id_)) for each, id_, user_id in found])
    sessions = [
        OpenSession(session_id, user_id, is_live is not None or is_pending is not None)
        for (_, session_id, user_id), is_live, is_pending in zip(found, live, pending, strict=True)
    ]
    return sessions, faults


def _ask(commands: Sequence[tuple[Partition, tuple[Any, ...]]]) -> list[Any]:
    """Return what Redis replies; None for a key of another type, which is named when its user is looked at."""
    futures = [partition.pipeline.submit(command, lambda reply: reply) for partition, command in commands]
    return [_reply_or_none(future) for future in futures]


def _reply_or_none(future: Any) -> Any:
    try:
        return result(future)
    except StoreUnavailableError as error:
        if not is_wrong_type(error):
            raise
    return None


def ids_of_user(partition: Partition, user_id: str) -> set[str]:
    """Return the ids in the sets of a user: of every open session that is indexed."""
    return {each for chunk in indexed_sessions(partition, user_id) for each in chunk}


def index(partition: Partition, session: OpenSession) -> None:
    """Put an open session into the set of its user, unless it is in one by now."""
    keys = partition.keys
    command = INDEX_SESSION.command(
        session_key=keys.session(session.session_id),
        user_key=keys.user_sessions(session.user_id),
        pending_key=keys.user_pending(session.user_id),
        layout_key=keys.layout,
        session_id=session.session_id,
        user_id=session.user_id,
        partitions=partition.of,
    )
    result(partition.run_script(command, list))
