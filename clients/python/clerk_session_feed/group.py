"""A consumer group's share of the stream: each update at least once, whichever consumer dies."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import redis

from clerk_session_feed.cursors import NOTHING, START, position
from clerk_session_feed.errors import CursorLostError
from clerk_session_feed.stream import Entries, Partition, Updates, as_dict, is_trimmed_past, newest, sleep, snapshots
from clerk_session_feed.transport import Connection

BATCH: Final = 50
"""Entries that a consumer takes at once: each waits for those before it."""

log = logging.getLogger("clerk_session_feed")


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A consumer group, and the name of one of its consumers."""

    name: str
    consumer: str
    claim_after: float
    """Seconds after which what a consumer has not acknowledged goes to another."""

    def __post_init__(self) -> None:
        if not self.name or not self.consumer:
            raise ValueError("A group and its consumers need names.")
        if not 0 < self.claim_after < math.inf:
            raise ValueError(f"claim_after={self.claim_after} is no number of seconds.")


async def consume(  # noqa: C901  # a turn of a consumer, in its order
    connection: Connection, partitions: Sequence[Partition], group: Group, *, stale: bool, resync: bool
) -> Updates:
    """Yield what falls to this consumer, and acknowledge it when the next is asked for; never end.

    The cursor of a partition says where a group begins that does not exist; None: with the snapshots.

    Raises CursorLostError, unless `resync` is set: then the snapshots come again.
    """
    shares = [_Share(connection, partition, group, resync=resync) for partition in partitions]
    while True:
        is_idle = True
        for share in shares:
            try:
                while (gap := await share.find_gap()) is not None:
                    if gap.has_snapshots:
                        async with contextlib.aclosing(snapshots(connection, share.partition)) as updates:
                            async for update in updates:
                                yield update
                    await share.close_gap(gap)
                entries = await share.take()
                is_idle &= not entries
                if trimmed := [entry_id for entry_id, fields in entries if not fields]:
                    await share.go_back(trimmed)
                    continue
                connections, until = connection.connections, time.monotonic() + group.claim_after / 2
                for entry in map(share.partition.entry, entries):
                    if connection.connections != connections or time.monotonic() > until:
                        # Others may have claimed some by now: read again which are still this consumer's.
                        share.has_pending = True
                        break
                    if stale or entry.outcome == "applied":
                        yield entry.update()
                    await share.acknowledge(entry.cursor)
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                is_idle = False  # it is made again
        if is_idle:
            await sleep(connection, partitions, [share.delivered for share in shares])


class _Gap(NamedTuple):
    """What has to be made up for before a consumer takes entries."""

    begin: str
    """The cursor behind which the group gets entries from now on."""
    has_snapshots: bool
    """The snapshots come first."""
    has_group: bool
    """The group exists."""


class _Share:
    """What this consumer has to do with one stream.

    Attributes:
        delivered: The cursor up to which the group got entries.
        has_pending: Entries may be this consumer's already: from an earlier life, claimed, or in a response
            that got lost.
    """

    def __init__(self, connection: Connection, partition: Partition, group: Group, *, resync: bool) -> None:
        self.partition = partition
        self.delivered = START
        self.has_pending = True
        self._connection = connection
        self._ask = connection.ask
        self._group = group
        self._resync = resync
        self._events = partition.keys.events
        self._has_joined = False
        self._last: str | None = None
        """The entry that this consumer acknowledged last."""
        self._connections = 0
        """How many connections had been made when the pending entries were read."""
        self._claims_at = 0.0
        """When to look for the work of dead consumers, by time.monotonic()."""
        self._claims_from = b"0-0"

    async def find_gap(self) -> _Gap | None:
        """Return what the group lacks: itself, or entries that were trimmed before it got them."""
        try:
            # In this order: the group may get more between the two.
            (stream,) = await self._ask(("XINFO", "STREAM", self._events))
            (groups,) = await self._ask(("XINFO", "GROUPS", self._events))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            stream, groups = [], []
        name = self._group.name.encode()
        found = next((each for each in map(as_dict, groups) if each[b"name"] == name), None)
        if found is None:
            return await self._without_group()
        self._has_joined = True
        self.delivered = found[b"last-delivered-id"].decode()
        if not self._has_missed(stream):
            return None
        if not self._resync:
            raise CursorLostError(self.delivered, self.partition.number)
        # From before the snapshots: more may be trimmed while they are read.
        return _Gap(await newest(self._ask, self._events), has_snapshots=True, has_group=True)

    async def _without_group(self) -> _Gap:
        if self._has_joined:
            log.warning("Redis lost the consumer group %s: it is made again", self._group.name)
            return _Gap(START, has_snapshots=not await self._is_last_there(), has_group=False)
        if self.partition.cursor is not None:
            return _Gap(self.partition.cursor, has_snapshots=False, has_group=False)
        # The group is made after the snapshots: if this consumer dies on the way, the next begins with them.
        return _Gap(await newest(self._ask, self._events), has_snapshots=True, has_group=False)

    async def _is_last_there(self) -> bool:
        if self._last is None:
            return False
        (entries,) = await self._ask(("XRANGE", self._events, self._last, self._last))
        return bool(entries)

    def _has_missed(self, stream: Sequence[Any]) -> bool:
        """Tell whether entries were trimmed that the group had not got. stream: XINFO STREAM."""
        return is_trimmed_past(self.delivered, as_dict(stream), if_unknown=self.delivered != NOTHING)

    async def close_gap(self, gap: _Gap) -> None:
        """Make the group, or move it behind what it can't get any more."""
        if gap.has_group:
            await self._set_delivered(gap.begin)
            return
        try:
            await self._ask(("XGROUP", "CREATE", self._events, self._group.name, gap.begin, "MKSTREAM"))
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another consumer was faster
                raise
        self.has_pending = True

    async def _set_delivered(self, cursor: str) -> None:
        await self._ask(("XGROUP", "SETID", self._events, self._group.name, cursor))

    async def take(self) -> Entries:
        """Return entries for this consumer: first those that are its own already, claimed or not.

        None does not mean that there are none: ask again.
        """
        group, connection = self._group, self._connection
        self.has_pending |= self._connections != connection.connections
        self._connections = connection.connections
        if time.monotonic() >= self._claims_at and await self._claim():
            return []
        read = ("XREADGROUP", "GROUP", group.name, group.consumer, "COUNT", BATCH, "STREAMS", self._events)
        if self.has_pending:
            (response,) = await self._ask((*read, "0"))
            if entries := response[0][1]:
                return list(entries)
            self.has_pending = False
        response, stream = await self._ask((*read, ">"), ("XINFO", "STREAM", self._events))
        if response and self._has_missed(stream):
            # Entries were trimmed just now. The group goes back to where that shows.
            self.has_pending = True
            await self._set_delivered(self.delivered)
            return []
        if connection.connections != self._connections:  # what was in the response that got lost comes first
            return []
        return list(response[0][1]) if response else []

    async def _claim(self) -> bool:
        """Take over the work of dead consumers; return whether some of it was trimmed."""
        group = self._group
        idle_ms = math.ceil(group.claim_after * 1000)
        (stream,) = await self._ask(("XINFO", "STREAM", self._events))
        if first := as_dict(stream)[b"first-entry"]:
            # Asked before, since claiming makes Redis (from 7.0 on) forget them.
            trimmed = ("XPENDING", self._events, group.name, "IDLE", idle_ms, "-", b"(" + first[0], BATCH)
            (lost,) = await self._ask(trimmed)
            if lost:
                await self.go_back([entry_id for entry_id, *_ in lost])
                return True
        claim = ("XAUTOCLAIM", self._events, group.name, group.consumer, idle_ms, self._claims_from)
        ((self._claims_from, claimed, *deleted),) = await self._ask((*claim, "COUNT", BATCH, "JUSTID"))
        self.has_pending |= bool(claimed)
        if self._claims_from == b"0-0":
            self._claims_at = time.monotonic() + group.claim_after / 2
        if deleted and deleted[0]:  # trimmed since XPENDING
            await self.go_back(deleted[0])
            return True
        return False

    async def go_back(self, trimmed: Sequence[bytes]) -> None:
        """Move the group back behind entries that were trimmed before anybody was done with them.

        `find_gap` finds them then. They are acknowledged last: if this consumer dies on the way, the next one
        finds them too.
        """
        self.has_pending = True
        self.delivered = min((each.decode() for each in trimmed), key=position)
        await self._set_delivered(self.delivered)
        await self._ask(("XACK", self._events, self._group.name, *trimmed))

    async def acknowledge(self, cursor: str) -> None:
        self._last = cursor
        await self._ask(("XACK", self._events, self._group.name, cursor))
