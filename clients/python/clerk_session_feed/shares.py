"""What a consumer of a group has to do with one stream: gaps, and the work of consumers that died.

A long module, since all of it moves the group, and shares what is known of where it is.

Some providers bill each command. So gaps are looked for where one can have come about: at the beginning, on each new
connection, and in front of new entries.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import redis

from clerk_session_feed.cursors import NOTHING, START, position
from clerk_session_feed.errors import CursorLostError
from clerk_session_feed.stream import Entries, Partition, is_trimmed_past, newest
from clerk_session_feed.transport import Connection, as_dict
from clerk_session_feed.unused import UnusedConsumers, delivered_in

CLAIM: Final = 50
"""Entries of consumers that died that another takes over at once."""

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


class Gap(NamedTuple):
    """What has to be made up for before a consumer takes entries."""

    begin: str
    """The cursor behind which the group gets entries from now on."""
    has_snapshots: bool
    """The snapshots come first."""
    has_group: bool
    """The group exists."""


def is_group_lost(error: redis.ResponseError) -> bool:
    """Tell whether Redis says that there is no such group, or no stream."""
    said = str(error)
    return said.startswith("NOGROUP") or "no such key" in said or "requires the key to exist" in said


class Share:
    """What this consumer has to do with one stream.

    Attributes:
        delivered: A cursor up to which the group got entries; others may have got more.
        has_pending: Entries may be this consumer's already: from an earlier life, claimed, or in a response
            that got lost.
        done: Cursors of the entries that are handled and not acknowledged yet.
    """

    def __init__(self, connection: Connection, partition: Partition, group: Group, *, resync: bool) -> None:
        self.partition = partition
        self.events = partition.keys.events
        self.delivered = START
        self.has_pending = True
        self.done: list[str] = []
        self._connection = connection
        self._ask = connection.ask
        self._group = group
        self._resync = resync
        self._checked_on: int | None = None
        """The connection, by its number, on which the group was found to lack nothing."""
        self._begun_on: int | None = None
        """The connection on which the group was made, where the stream had just ended."""
        self._missed_behind: str | None = None
        """The cursor behind which entries were missed, as this consumer knows, wherever others move the group."""
        self._read_behind: str | None = None
        """Where the group was when new entries were asked for, until it is known whether some in front were missed."""
        self._has_joined = False
        self._last: str | None = None
        """The entry that this consumer handled last."""
        self._snapshots_at = position(START)
        """Up to where the snapshots of the last gap know everything."""
        self._looks_at = 0.0
        """When to look for the work of dead consumers, by time.monotonic()."""
        self._unused = UnusedConsumers(connection, self.events, group.name, group.consumer, group.claim_after)

    @property
    def is_checked(self) -> bool:
        """Whether the group was found to lack nothing, on the connection that there is now."""
        return self._checked_on == self._connection.connections

    def recheck(self) -> None:
        """Look for a gap again."""
        self._checked_on = None

    def finish(self, cursor: str) -> None:
        """Note that an entry is handled."""
        self.done.append(cursor)
        self._last = cursor

    def cursor(self) -> str:
        """Return the cursor to read from: 0 for what is this consumer's already."""
        if not self.is_checked or self.has_pending:
            return "0"
        self._read_behind = self._read_behind or self.delivered
        return ">"

    async def find_gap(self) -> Gap | None:
        """Return what the group lacks: itself, or entries that were trimmed before it got them."""
        if self.is_checked:
            return None
        self.has_pending = True
        try:
            # In this order: the group may get more between the two.
            (stream,) = await self._ask(("XINFO", "STREAM", self.events))
            (groups,) = await self._ask(("XINFO", "GROUPS", self.events))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            stream, groups = [], []
        delivered = delivered_in(groups, self._group.name)
        if delivered is None:
            return await self._without_group()
        self._has_joined = True
        self.delivered = delivered
        # Redis 6.2 can't tell what a stream that was empty got, and lost again, while nobody was there.
        is_unknown = delivered != NOTHING or self._begun_on != self._connection.connections
        if self._missed_behind is None and not is_trimmed_past(delivered, as_dict(stream), if_unknown=is_unknown):
            self._checked_on = self._connection.connections
            return None
        if not self._resync:
            raise CursorLostError(self._missed_behind or delivered, self.partition.number)
        self._connection.compare_partitions_again()
        # From before the snapshots: more may be trimmed while they are read.
        return Gap(await newest(self._ask, self.events), has_snapshots=True, has_group=True)

    async def _without_group(self) -> Gap:
        if self._has_joined:
            log.warning("Redis lost the consumer group %s: it is made again", self._group.name)
            self._connection.compare_partitions_again()
            return Gap(START, has_snapshots=not await self._is_last_there(), has_group=False)
        if self.partition.cursor is not None:
            return Gap(self.partition.cursor, has_snapshots=False, has_group=False)
        # The group is made after the snapshots: if this consumer dies on the way, the next begins with them.
        return Gap(await newest(self._ask, self.events), has_snapshots=True, has_group=False)

    async def _is_last_there(self) -> bool:
        if self._last is None:
            return False
        (entries,) = await self._ask(("XRANGE", self.events, self._last, self._last))
        return bool(entries)

    async def close_gap(self, gap: Gap) -> None:
        """Make the group, or move it behind what it can't get any more. The snapshots are handled by now."""
        self._missed_behind = self._read_behind = None
        if gap.has_snapshots:
            self._snapshots_at = position(gap.begin)
        if gap.has_group:
            await self._set_delivered(gap.begin)
            return
        try:
            await self._ask(("XGROUP", "CREATE", self.events, self._group.name, gap.begin, "MKSTREAM"))
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another consumer was faster
                raise
        if gap.has_snapshots:
            self._begun_on = self._connection.connections

    async def _go_back(self, cursor: str) -> None:
        """Move the group back, unless somebody has moved it back further."""
        (groups,) = await self._ask(("XINFO", "GROUPS", self.events))
        delivered = delivered_in(groups, self._group.name)
        if delivered is not None and position(delivered) > position(cursor):
            await self._set_delivered(cursor)

    async def _set_delivered(self, cursor: str) -> None:
        await self._ask(("XGROUP", "SETID", self.events, self._group.name, cursor))

    async def accept(self, entries: Entries, *, is_new: bool) -> Entries:
        """Return the entries of a response if this consumer may handle them; otherwise none, and it asks again.

        is_new: the group had not got them before.
        """
        # Of what is this consumer's already, some may come from a response that got lost: that is new, too.
        known = self.delivered if is_new else self._read_behind
        ids = [entry_id.decode() for entry_id, _ in entries]
        first = next((each for each in ids if is_new or (known and position(each) > position(known))), None)
        if not entries:
            self.has_pending &= is_new
        elif not is_new and (trimmed := [entry_id for entry_id, fields in entries if not fields]):
            await self._give_up(trimmed)
            return []
        if first and known:
            (stream,) = await self._ask(("XINFO", "STREAM", self.events))
            if self.is_checked and await self._was_missed_before(first, known, as_dict(stream)):
                return []
        # On another connection they may have become others': those that are still this consumer's come first there.
        if not self.is_checked:
            return []
        if first or not entries:  # else there may be more of its own
            self._read_behind = None
        if is_new and entries:
            self.delivered = ids[-1]
        return entries

    async def _was_missed_before(self, first: str, known: str, stream: dict[bytes, Any]) -> bool:
        """Tell whether entries in front of the first new one were trimmed before the group got them.

        If the stream still has an entry in front of it, the group had got that one. If not, the group goes back to
        where the next consumer finds what was trimmed, if this one dies.

        known: a cursor up to which the group had got entries.
        """
        kept = stream.get(b"first-entry")
        if not kept or position(kept[0].decode()) < position(first):
            return False
        if position(known) >= position(first):  # someone moved the group back, nobody knows how far
            known = f"{max(position(first)[0] - 1, 0)}-2"
        if not is_trimmed_past(known, stream, if_unknown=known != NOTHING):
            return False
        self.recheck()
        self._missed_behind = known
        await self._set_delivered(known)
        return True

    @property
    def must_look(self) -> bool:
        """Whether it is time for `look_after_group`. This consumer's own entries come first."""
        return not self.has_pending and time.monotonic() >= self._looks_at

    async def look_after_group(self) -> None:
        """Take over the work of dead consumers; now and then, remove those that nobody uses."""
        idle_ms = math.ceil(self._group.claim_after * 1000)
        (idle,) = await self._ask(("XPENDING", self.events, self._group.name, "IDLE", idle_ms, "-", "+", CLAIM))
        if idle:
            await self._claim([entry_id for entry_id, *_ in idle], idle_ms)
            return
        self._looks_at = time.monotonic() + self._group.claim_after / 2
        if self._unused.is_time:
            # Read what it has: until Redis 7.2, a consumer that waits in vain gives no sign of life.
            self.has_pending = True
            if delivered := await self._unused.remove():
                self.recheck()
                await self._go_back(delivered)

    async def _claim(self, idle: Sequence[bytes], idle_ms: int) -> None:
        (stream,) = await self._ask(("XINFO", "STREAM", self.events))
        first = as_dict(stream)[b"first-entry"]
        # Before they are claimed, since that makes Redis (from 7.0 on) forget what was trimmed.
        trimmed = [each for each in idle if not first or position(each.decode()) < position(first[0].decode())]
        if trimmed:
            await self._give_up(trimmed)
            return
        claim = ("XAUTOCLAIM", self.events, self._group.name, self._group.consumer, idle_ms, idle[0])
        ((_, claimed, *deleted),) = await self._ask((*claim, "COUNT", CLAIM, "JUSTID"))
        self.has_pending |= bool(claimed)
        if deleted and deleted[0]:  # trimmed since XPENDING
            await self._give_up(deleted[0])

    async def _give_up(self, trimmed: Sequence[bytes]) -> None:
        """Acknowledge entries that were trimmed before anybody was done with them.

        Unless this consumer had snapshots since, the group goes back behind them, where `find_gap` finds them. They
        are acknowledged last: if this consumer dies on the way, the next one finds them too.
        """
        self.has_pending = True
        lost = [each for each in (entry_id.decode() for entry_id in trimmed) if position(each) > self._snapshots_at]
        if lost:
            self.recheck()
            await self._go_back(min(lost, key=position))
        await self._ask(("XACK", self.events, self._group.name, *trimmed))
