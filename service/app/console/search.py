"""Search by the beginning of an id. There is no index of ids: what is looked through has a bound, and is told."""

import dataclasses
import time
from collections.abc import Iterator

from clerk_session_feed.models import ID

from service.app.console.data import MAX_FOUND, SCANNED, SEARCH_SECONDS, ConsoleStore


@dataclasses.dataclass(slots=True)
class Hits:
    """What a search found."""

    sessions: list[str]
    users: list[str]
    events: int
    """Entries of the stream that were looked at, the newest ones."""
    open_sessions: int
    """Ids of open sessions that were looked at."""
    open_in_all: int
    is_cut: bool
    """There may be more."""


def search(store: ConsoleStore, prefix: str) -> Hits | None:
    """Look for ids of sessions and users that begin like this; return None for what begins no id.

    First for this very id, which is all that is looked for if it is there. Then in the newest events; and among the ids
    of open sessions, for SEARCH_SECONDS.
    """
    if not ID.fullmatch(prefix):
        return None
    if store.state(prefix):
        return Hits([prefix], [], 0, 0, 0, is_cut=False)
    if any(store.user(prefix)[2:]):
        return Hits([], [prefix], 0, 0, 0, is_cut=False)
    sessions: dict[str, None] = {}
    users: dict[str, None] = {}
    found = store.find(lambda each: each.session_id.startswith(prefix) or each.user_id.startswith(prefix), MAX_FOUND)
    sessions |= {each.session_id: None for each in found.entries if each.session_id.startswith(prefix)}
    users |= {each.user_id: None for each in found.entries if each.user_id.startswith(prefix)}
    in_all, looked_at = store.open_sessions(), 0
    for ids in _open_sessions(store, prefix):
        sessions |= dict.fromkeys(ids)
        looked_at = min(in_all, looked_at + SCANNED)
        if len(sessions) > MAX_FOUND:
            break
    is_cut = not found.is_all or looked_at < in_all or max(len(sessions), len(users)) > MAX_FOUND
    return Hits([*sessions][:MAX_FOUND], [*users][:MAX_FOUND], found.looked_at, looked_at, in_all, is_cut)


def _open_sessions(store: ConsoleStore, prefix: str) -> Iterator[list[str]]:
    """Yield, after each SCANNED ids, those that begin so."""
    deadline = time.monotonic() + SEARCH_SECONDS
    for part in store.partitions:
        for ids in store.scan_set(part, part.keys.expiry, f"{prefix}*"):
            yield ids
            if time.monotonic() > deadline:
                return
