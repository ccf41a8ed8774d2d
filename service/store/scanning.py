"""Finds sessions without an event that names them: by the keys of all that are stored, and by the sets of a user."""

import os.path
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple, TypeVar

from clerk_session_feed.models import ID

from service.store.partitions import WRITE_SECONDS, Partition, PartitionedStore, result
from service.store.pipeline import Pipeline
from service.store.wrong_types import naming

T = TypeVar("T")

SCAN_COUNT: Final = 500
"""Keys that Redis looks at before it responds: a fraction of a millisecond of its time."""
CHUNK: Final = 64
"""Ids of a user's set that Redis returns at once, about. What is ended at once is so much: each end is a run of a
script, and Redis serves others in between."""


class Stored(NamedTuple):
    """The sessions that one SCAN found."""

    session_ids: dict[Partition, list[str]]
    scanned: float
    """Which part of all keys has been looked at, about: 0 to 1."""


def stored_sessions(store: PartitionedStore) -> Iterator[Stored]:
    """Yield the ids of all sessions that are stored for as long as this takes; some twice, as SCAN does.

    Raises:
        PartitionsError: The data was moved meanwhile, so not all were found.
        StoreUnavailableError: Redis failed.
    """
    # Partitions of one connection lie on one server, whose keys are looked through once.
    shared: dict[Pipeline, dict[str, Partition]] = {}
    for partition in store.partitions:
        shared.setdefault(partition.pipeline, {})[partition.keys.session("")] = partition
    for number, (pipeline, partitions) in enumerate(shared.items()):
        total, looked_at = max(1, result(pipeline.submit(("DBSIZE",), int))), 0
        for found in scan(partial(_scan, pipeline), partitions):
            looked_at += SCAN_COUNT
            ids = {each: [id_.decode() for id_ in id_list if _is_id(id_)] for each, id_list in found.items()}
            yield Stored(ids, (number + min(1.0, looked_at / total)) / len(shared))
    store.connect()
    yield Stored({}, 1.0)


def _scan(pipeline: Pipeline, cursor: bytes, pattern: str) -> tuple[bytes, list[bytes]]:
    command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, "TYPE", "hash")
    return result(pipeline.submit(command, tuple))


def _is_id(text: bytes) -> bool:
    return ID.fullmatch(text.decode(errors="replace")) is not None


def scan(
    command: Callable[[bytes, str], tuple[bytes, list[bytes]]], owners: Mapping[str, T]
) -> Iterator[dict[T, list[bytes]]]:
    """Yield, after each SCAN of one server, what follows on these beginnings of keys, by what they belong to.

    Args:
        command: runs SCAN with this cursor and this pattern, and returns the next cursor and the keys.
        owners: to whom keys with such a beginning, the one of a session's key, belong.
    """
    common, ending = os.path.commonprefix(list(owners)), ":session:"  # noqa: RUF071  # of letters
    pattern = re.sub(r"([][*?\\])", r"\\\1", common) + (f"*{ending}*" if len(owners) > 1 else "*")
    by_prefix = {prefix.encode(): owner for prefix, owner in owners.items()}
    cursor = b"0"
    while True:
        cursor, keys = command(cursor, pattern)
        found: dict[T, list[bytes]] = {}
        for key in keys:
            prefix, colon, session_id = key.rpartition(b":")
            if (owner := by_prefix.get(prefix + colon)) is not None:
                found.setdefault(owner, []).append(session_id)
        yield found
        if cursor == b"0":
            break


def indexed_sessions(
    partition: Partition, user_id: str, seconds: Callable[[], float] = lambda: WRITE_SECONDS
) -> Iterator[list[str]]:
    """Yield the ids in the sets of a user, in chunks: of the open sessions that are indexed.

    Those that stay in a set are all found, whatever leaves it meanwhile, and each is yielded once.

    Args:
        partition: the one of the user.
        user_id: of the user.
        seconds: returns how long to wait for the next chunk.

    Raises:
        WrongTypeError: A key of the user has another type.
        PartitionsError: The data was moved meanwhile.
        StoreUnavailableError: Redis failed.
    """
    seen: set[bytes] = set()
    for key in (partition.keys.user_sessions(user_id), partition.keys.user_pending(user_id)):
        cursor = b"0"
        while True:
            with naming(key):
                left = seconds()  # before anything is sent
                ((cursor, items),) = partition.ask(("ZSCAN", key, cursor, "COUNT", CHUNK), seconds=left)
            new = [each for each in dict.fromkeys(items[::2]) if each not in seen]
            seen.update(new)
            if new:
                yield [each.decode(errors="backslashreplace") for each in new]
            if cursor == b"0":
                break
