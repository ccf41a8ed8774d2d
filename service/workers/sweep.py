"""Finds every session that is stored as open, in bounded memory, and the sets of one user.

Apart from `reconcile`, because it knows Redis and no Clerk.
"""

import re
from collections.abc import Container, Iterator, Sequence
from typing import Any, Final, NamedTuple

from clerk_session_feed.models import ID, OPEN_STATUSES

from service.errors import StoreUnavailableError
from service.store.scripts import INDEX_SESSION
from service.store.sessions import Partition, SessionStore, result
from service.store.wrong_types import is_wrong_type, naming

SCAN_COUNT: Final = 500
"""Keys that Redis looks at for one SCAN: far less than a millisecond of its time."""


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

    def users(self, visited: Container[str]) -> dict[str, list[OpenSession]]:
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
    for partition in store.partitions:
        keys, pipeline = partition.keys, partition.pipeline
        prefix = keys.session("")
        pattern = re.sub(r"([\[\]*?\\])", r"\\\1", prefix) + "*"
        total = max(1, result(pipeline.submit(("DBSIZE",), int)))
        cursor, looked = b"0", 0
        while True:
            command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, "TYPE", "hash")
            cursor, found = result(pipeline.submit(command, tuple))
            looked += SCAN_COUNT
            part = min(1.0, looked / total) if cursor != b"0" else 1.0
            ids = [key.decode(errors="replace").removeprefix(prefix) for key in found]
            scanned = (partition.number + part) / len(store.partitions)
            yield Batch(*_open_of(partition, [each for each in ids if ID.fullmatch(each)]), scanned)
            if cursor == b"0":
                break


def _open_of(partition: Partition, session_ids: Sequence[str]) -> tuple[list[OpenSession], list[tuple[str, str]]]:
    keys, pipeline = partition.keys, partition.pipeline
    states = _ask(pipeline, [("HMGET", keys.session(each), "status", "user_id") for each in session_ids])
    found, faults = [], []
    for session_id, state in zip(session_ids, states, strict=True):
        status, user_id = state or (None, None)
        if (status or b"").decode(errors="replace") in OPEN_STATUSES:
            text = (user_id or b"").decode(errors="replace")
            if ID.fullmatch(text):
                found.append((session_id, text))
            else:
                faults.append((session_id, "its stored user_id is not an id"))
    live = _ask(pipeline, [("ZSCORE", keys.user_sessions(user_id), each) for each, user_id in found])
    pending = _ask(pipeline, [("ZSCORE", keys.user_pending(user_id), each) for each, user_id in found])
    sessions = [
        OpenSession(session_id, user_id, is_live is not None or is_pending is not None)
        for (session_id, user_id), is_live, is_pending in zip(found, live, pending, strict=True)
    ]
    return sessions, faults


def _ask(pipeline: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return what Redis replies; None for a key of another type, which is named when its user is looked at."""
    futures = [pipeline.submit(command, lambda reply: reply) for command in commands]
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
    keys = (partition.keys.user_sessions(user_id), partition.keys.user_pending(user_id))
    futures = [partition.pipeline.submit(("ZRANGE", key, 0, -1), list) for key in keys]
    ids: set[str] = set()
    for key, future in zip(keys, futures, strict=True):
        with naming(key):
            ids.update(each.decode(errors="replace") for each in result(future))
    return ids


def index(partition: Partition, session: OpenSession) -> None:
    """Put an open session into the set of its user, unless it is in one by now."""
    keys = partition.keys
    command = INDEX_SESSION.command(
        session_key=keys.session(session.session_id),
        user_key=keys.user_sessions(session.user_id),
        pending_key=keys.user_pending(session.user_id),
        session_id=session.session_id,
        user_id=session.user_id,
    )
    result(partition.pipeline.submit(command, bool))
