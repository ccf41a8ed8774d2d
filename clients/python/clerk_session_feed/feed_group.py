"""A consumer group's share of the stream: at least once, whoever dies. Steps, like those of `feed_steps`."""

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final

import redis

from clerk_session_feed.errors import CursorLostError
from clerk_session_feed.feed_steps import (
    NOTHING,
    START,
    Entry,
    Link,
    Partition,
    Steps,
    as_dict,
    ask,
    newest,
    position,
)
from clerk_session_feed.feed_stream import is_trimmed_past, sleep, snapshots

BATCH: Final = 50
"""Entries that a consumer takes at once: each waits for those before it."""

log = logging.getLogger("service.feed")


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    name: str
    consumer: str
    claim_after: float
    """Seconds after which what a consumer has not acknowledged goes to another."""

    def __post_init__(self) -> None:
        if not self.name or not self.consumer:
            raise ValueError("A group and its consumers need names.")
        if not 0 < self.claim_after < math.inf:
            raise ValueError(f"claim_after={self.claim_after} is no number of seconds.")


@dataclasses.dataclass(slots=True)
class _Share:
    """What this consumer has to do with one stream."""

    partition: Partition
    has_joined: bool = False
    delivered: str = START
    """How far the group is."""
    last: str | None = None
    """The entry that this consumer was done with last."""
    has_pending: bool = True
    """Something may be ours already: from an earlier life, claimed, or in a reply that got lost."""
    connections: int = 0
    """How many the link had made when that was looked at."""
    claims_at: float = 0.0
    """When to look for the work of dead consumers, by time.monotonic()."""
    claims_from: bytes = b"0-0"


def consume(
    link: Link, partitions: Sequence[Partition], group: Group, *, stale: bool, resync: bool
) -> Steps[None]:
    """Yield what falls to this consumer, and acknowledge it when the next is asked for; never end.

    A partition's cursor says where a group begins that does not exist; None: with the snapshots.
    Raises CursorLostError, unless `resync`: then the snapshots come again.
    """
    shares = [_Share(partition) for partition in partitions]
    while True:
        is_idle = True
        for share in shares:
            try:
                yield from _join(link, share, group, resync=resync)
                entries = yield from _take(link, share, group)
                is_idle &= not entries
                yield from _work(link, share, group, entries, stale=stale)
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                is_idle = False  # it is made again
        if is_idle:
            yield from sleep(partitions, [share.delivered for share in shares])


def _join(link: Link, share: _Share, group: Group, *, resync: bool) -> Steps[None]:
    """Make the group if there is none; else look whether something was trimmed that it had not got yet."""
    events = share.partition.keys.events
    while True:
        try:
            # In this order: the group may go on between the two.
            (stream,) = yield from ask(("XINFO", "STREAM", events))
            (groups,) = yield from ask(("XINFO", "GROUPS", events))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            stream, groups = [], []
        mine = next((each for each in map(as_dict, groups) if each[b"name"] == group.name.encode()), None)
        if mine is None:
            yield from _make(link, share, group)
            continue
        share.has_joined = True
        share.delivered = mine[b"last-delivered-id"].decode()
        if not _has_missed(share, stream):
            return
        if not resync:
            raise CursorLostError(share.delivered, share.partition.number)
        begin = yield from newest(share.partition, asking=ask)
        yield from snapshots(link, share.partition)
        # From before the snapshots: more may have been trimmed while they were read.
        yield from ask(("XGROUP", "SETID", events, group.name, begin))


def _has_missed(share: _Share, stream: Sequence[Any]) -> bool:
    """Tell whether something was trimmed that the group had not got. stream: XINFO STREAM."""
    return is_trimmed_past(share.delivered, as_dict(stream), if_unknown=share.delivered != NOTHING)


def _make(link: Link, share: _Share, group: Group) -> Steps[None]:
    partition = share.partition
    if share.has_joined:
        log.warning("Redis lost the consumer group %s: it is made again", group.name)
        begin = START
        if not (yield from _is_there(partition, share.last)):
            yield from snapshots(link, partition)
    elif partition.cursor is None:
        begin = yield from newest(partition, asking=ask)
        # Before the group is made: if this consumer dies on the way, the next one begins with them again.
        yield from snapshots(link, partition)
    else:
        begin = partition.cursor
    try:
        yield from ask(("XGROUP", "CREATE", partition.keys.events, group.name, begin, "MKSTREAM"))
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):  # another consumer was faster
            raise
    share.has_pending = True


def _is_there(partition: Partition, cursor: str | None) -> Steps[bool]:
    if cursor is None:
        return False
    (entries,) = yield from ask(("XRANGE", partition.keys.events, cursor, cursor))
    return bool(entries)


def _take(link: Link, share: _Share, group: Group) -> Steps[list[tuple[bytes, Any]]]:
    """Return entries for this consumer: first what is its own already, claimed from the dead or not."""
    events = share.partition.keys.events
    share.has_pending |= share.connections != link.connections
    share.connections = link.connections
    if time.monotonic() >= share.claims_at and (yield from _claim(share, group)):
        return []
    read = ("XREADGROUP", "GROUP", group.name, group.consumer, "COUNT", BATCH, "STREAMS", events)
    if share.has_pending:
        (reply,) = yield from ask((*read, "0"))
        if reply[0][1]:
            return [tuple(entry) for entry in reply[0][1]]
        share.has_pending = False
    reply, stream = yield from ask((*read, ">"), ("XINFO", "STREAM", events))
    if reply and _has_missed(share, stream):
        # It was trimmed just now. The group goes back to where that shows.
        share.has_pending = True
        yield from ask(("XGROUP", "SETID", events, group.name, share.delivered))
        return []
    if link.connections != share.connections:  # what was in the reply that got lost comes first
        return []
    return [tuple(entry) for entry in reply[0][1]] if reply else []


def _claim(share: _Share, group: Group) -> Steps[bool]:
    """Take over the work of the dead; return whether some of it was trimmed."""
    events = share.partition.keys.events
    idle_ms = math.ceil(group.claim_after * 1000)
    (stream,) = yield from ask(("XINFO", "STREAM", events))
    if first := as_dict(stream)[b"first-entry"]:
        # Asked before, since claiming makes Redis (from 7.0 on) forget them.
        trimmed = ("XPENDING", events, group.name, "IDLE", idle_ms, "-", b"(" + first[0], BATCH)
        (lost,) = yield from ask(trimmed)
        if lost:
            yield from _go_back(share, group, [entry_id for entry_id, *_ in lost])
            return True
    claim = ("XAUTOCLAIM", events, group.name, group.consumer, idle_ms, share.claims_from)
    ((share.claims_from, claimed, *deleted),) = yield from ask((*claim, "COUNT", BATCH, "JUSTID"))
    share.has_pending |= bool(claimed)
    if share.claims_from == b"0-0":
        share.claims_at = time.monotonic() + group.claim_after / 2
    if deleted and deleted[0]:  # trimmed since it was asked
        yield from _go_back(share, group, deleted[0])
        return True
    return False


def _go_back(share: _Share, group: Group, trimmed: Sequence[bytes]) -> Steps[None]:
    """Let the group show that these were trimmed before anybody was done with them; `_join` does the rest.

    First that, then they are forgotten: whoever comes next is told, too, if this consumer dies on the way.
    """
    events = share.partition.keys.events
    share.delivered = min((each.decode() for each in trimmed), key=position)
    yield from ask(("XGROUP", "SETID", events, group.name, share.delivered))
    yield from ask(("XACK", events, group.name, *trimmed))


def _work(
    link: Link, share: _Share, group: Group, entries: Sequence[tuple[bytes, Any]], *, stale: bool
) -> Steps[None]:
    partition = share.partition
    connections, until = link.connections, time.monotonic() + group.claim_after / 2
    if trimmed := [entry_id for entry_id, fields in entries if not fields]:
        share.has_pending = True
        yield from _go_back(share, group, trimmed)
        return
    for entry_id, fields in entries:
        if link.connections != connections or time.monotonic() > until:
            # Some may be another's by now. Reading them again says which, and that this consumer lives.
            share.has_pending = True
            return
        entry = Entry.of(entry_id, fields)
        if stale or entry.outcome == "applied":
            yield entry.update(partition)
        share.last = entry.cursor
        yield from ask(("XACK", partition.keys.events, group.name, entry_id))
