"""Who reads the stream in groups: the groups, and their workers."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from service.app.console.data import SECONDS, fields_of
from service.errors import StoreUnavailableError
from service.store.partitions import Partition
from service.telemetry import printable

MAX_GROUPS: Final = 20
"""Groups whose workers are listed."""
MAX_WORKERS: Final = 50
"""Workers that are listed of each group."""


class Group(NamedTuple):
    """A consumer group of the stream."""

    name: str
    consumers: int
    pending: int
    lag: str
    last: str


class Worker(NamedTuple):
    """A consumer of a group, by the name that it gave itself."""

    group: str
    name: str
    pending: int
    idle_ms: int
    """Since it asked for messages the last time."""


def has_stream(part: Partition) -> bool:
    """Tell whether anything was received."""
    # XINFO of a missing key is an error, which would be logged as one.
    (there,) = part.ask(("EXISTS", part.keys.events), seconds=SECONDS)
    return bool(there)


def _group_fields(part: Partition) -> list[dict[bytes, Any]]:
    try:
        (replies,) = part.ask(("XINFO", "GROUPS", part.keys.events), seconds=SECONDS) if has_stream(part) else ((),)
    except StoreUnavailableError:  # a missing right: the part about the stream says so
        return []
    return [fields_of(reply) for reply in replies]


def workers_of(part: Partition) -> Iterator[Worker]:
    """Yield the consumers of the first MAX_GROUPS groups, up to MAX_WORKERS of each."""
    for fields in _group_fields(part)[:MAX_GROUPS]:
        group = fields[b"name"]
        (replies,) = part.ask(("XINFO", "CONSUMERS", part.keys.events, group), seconds=SECONDS)
        for reply in replies[:MAX_WORKERS]:
            worker = fields_of(reply)
            names = [printable(each.decode(errors="replace")) for each in (group, worker[b"name"])]
            yield Worker(names[0], names[1], int(worker[b"pending"]), int(worker[b"idle"]))


def groups_of(part: Partition) -> Iterator[Group]:
    """Yield the groups of a partition's stream; none if the relay's user may not ask."""
    for fields in _group_fields(part):
        name, last = (fields.get(each, b"").decode(errors="replace") for each in (b"name", b"last-delivered-id"))
        lag = fields.get(b"lag")  # Redis 6.2 does not tell
        where = name if part.of == 1 else f"{name} (partition {part.number})"
        numbers = int(fields.get(b"consumers", 0)), int(fields.get(b"pending", 0))
        yield Group(where, *numbers, "unknown" if lag is None else f"{lag:,}", last)
