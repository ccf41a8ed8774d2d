"""A consumer group's share of the stream: each update at least once, whichever consumer dies.

An update is acknowledged after the loop's body, together with others: one by one, each would cost Redis a write to
its disk (`appendfsync always`), and a round trip.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import redis

from clerk_session_feed import transport
from clerk_session_feed.errors import FeedClosedError
from clerk_session_feed.shares import Group, Share, is_group_lost
from clerk_session_feed.stream import Entry, Partition, Updates, sleep, snapshots
from clerk_session_feed.transport import Command, Connection

__all__ = ["Group", "consume"]

SMALLEST_BATCH: Final = 10
"""Entries that a consumer takes at once at first, and that a slow one takes."""
BATCH: Final = 500
"""Entries that a consumer takes at once at most."""
BATCH_SECONDS: Final = 0.5
"""Seconds that the loop may be busy with what is taken at once: each entry waits for those before it."""
ACKNOWLEDGE_SECONDS: Final = 1.0
"""Seconds after which what is done is acknowledged, if the rest takes longer: that much comes again after a crash."""

log = logging.getLogger("clerk_session_feed")


async def consume(  # noqa: C901  # a turn of a consumer, in its order
    connection: Connection, partitions: Sequence[Partition], group: Group, *, stale: bool, resync: bool
) -> Updates:
    """Yield what falls to this consumer, and acknowledge it some time after its next is asked for; never end.

    The cursor of a partition says where a group begins that does not exist; None: with the snapshots.

    Raises CursorLostError, unless `resync` is set: then the snapshots come again.
    """
    shares = [Share(connection, partition, group, resync=resync) for partition in partitions]
    consumer = _Consumer(connection, shares, group)
    try:
        while True:
            try:
                for share in shares:
                    while (gap := await share.find_gap()) is not None:
                        await consumer.acknowledge()
                        if gap.has_snapshots:
                            async with contextlib.aclosing(snapshots(connection, share.partition)) as batches:
                                async for batch in batches:
                                    yield batch
                        await share.close_gap(gap)
                    await consumer.look_after(share)
                for share, entry in await consumer.take():
                    if not consumer.may_go_on():
                        break
                    with consumer.handling(share, entry):
                        if stale or entry.outcome == "applied":
                            yield [entry.update()]
                    await consumer.acknowledge(if_late=True)
            except redis.ResponseError as error:
                if not is_group_lost(error):
                    raise
                for share in shares:
                    share.recheck()  # it is made again
    finally:
        await consumer.leave()


class _Consumer:
    """Takes entries of the streams of one slot, in batches, and acknowledges them."""

    def __init__(self, connection: Connection, shares: Sequence[Share], group: Group) -> None:
        self._connection = connection
        self._shares = shares
        self._group = group
        self._count = SMALLEST_BATCH
        self._done = 0
        """Entries of the last batch that are handled."""
        self._taken_at = self._acknowledged_at = 0.0
        """By time.monotonic()."""

    async def take(self) -> list[tuple[Share, Entry]]:
        """Return entries for this consumer: first those that are its own already. Wait if there are none.

        None does not mean that there are none: look for gaps, and ask again.
        """
        self._fit_batch()
        block_ms = int(min(transport.BLOCK_MS, max(1.0, self._group.claim_after * 500)))
        begun_at = time.monotonic()
        response, cursors = await self._connection.persist(self._read, block_ms)
        self._taken_at = time.monotonic()
        got = {name.decode(): list(entries) for name, entries in response or []}
        if not got and self._taken_at - begun_at < block_ms / 2000:
            await self._sleep()
        taken: list[tuple[Share, Entry]] = []
        for share, cursor in zip(self._shares, cursors, strict=True):
            entries = await share.accept(got.get(share.events, []), is_new=cursor == ">")
            taken += [(share, share.partition.entry(entry)) for entry in entries]
        return taken

    async def _read(self, block_ms: int) -> tuple[Any, list[str]]:
        """Acknowledge what is done, and read; return the response, and the cursors that were read from."""
        cursors = [share.cursor() for share in self._shares]
        read = ("XREADGROUP", "GROUP", self._group.name, self._group.consumer, "COUNT", self._count, "BLOCK", block_ms)
        command = (*read, "STREAMS", *(share.events for share in self._shares), *cursors)
        try:
            return await self._acknowledge(command), cursors
        except redis.RedisError:
            for share in self._shares:  # there may have been a response that got lost
                share.has_pending = True
            raise

    def _fit_batch(self) -> None:
        """Take as many next as the loop deals with in BATCH_SECONDS."""
        if self._done:
            speed = self._done / max(time.monotonic() - self._taken_at, 0.001)
            self._count = int(min(BATCH, max(SMALLEST_BATCH, speed * BATCH_SECONDS)))
            self._done = 0

    async def _sleep(self) -> None:
        """Wait where XREADGROUP does not: fakeredis' does not."""
        for share in self._shares:
            share.recheck()
            await share.find_gap()  # how far the group got; a gap is found again
        partitions = [share.partition for share in self._shares]
        await sleep(self._connection, partitions, [share.delivered for share in self._shares])

    async def look_after(self, share: Share) -> None:
        """Do what a group needs from time to time. What this consumer is done with is no longer pending then."""
        if share.must_look:
            await self.acknowledge()
            await share.look_after_group()

    @contextlib.contextmanager
    def handling(self, share: Share, entry: Entry) -> Iterator[None]:
        """Note that an entry is done with, unless its loop is left in the body."""
        error: FeedClosedError | None = None
        try:
            yield
        except FeedClosedError as closed:  # raised by `until_closed`, after the body
            error = closed
        share.finish(entry.cursor)
        self._done += 1
        if error is not None:
            raise error

    def may_go_on(self) -> bool:
        """Tell whether what was taken is still this consumer's: others take it over after claim_after.

        If not, what is still its own comes next.
        """
        is_in_time = time.monotonic() <= self._taken_at + self._group.claim_after / 2
        if is_in_time and all(share.is_checked for share in self._shares):
            return True
        for share in self._shares:
            share.has_pending = True
        return False

    def _acknowledgements(self) -> list[Command]:
        """Return commands that acknowledge what is done."""
        return [("XACK", share.events, self._group.name, *share.done) for share in self._shares if share.done]

    async def acknowledge(self, *, if_late: bool = False) -> None:
        """Acknowledge what is done. if_late: only if that was not done for a while."""
        if if_late and time.monotonic() < self._acknowledged_at + ACKNOWLEDGE_SECONDS:
            return
        if self._acknowledgements():
            await self._connection.persist(self._acknowledge)

    async def _acknowledge(self, *further: Command) -> Any:
        """Acknowledge what is done, in one round trip with a further command; return the last response.

        What this consumer had less of than it acknowledges was taken by others, or the group was made anew: look again.
        """
        shares = [share for share in self._shares if share.done]
        self._acknowledged_at = time.monotonic()
        responses = await self._connection.execute(*self._acknowledgements(), *further)
        for share, count in zip(shares, responses, strict=False):
            if count < len(share.done):
                share.recheck()
            share.done = []  # not before: until then it may have got lost
        return responses[-1]

    async def leave(self) -> None:
        """Acknowledge what is done, if Redis is there; otherwise it comes again."""
        if acknowledgements := self._acknowledgements():
            await self._connection.finish(self._acknowledge_last, *acknowledgements)

    async def _acknowledge_last(self, *acknowledgements: Command) -> None:
        try:
            await self._connection.execute_apart(*acknowledgements)
        except (redis.RedisError, OSError) as error:
            log.warning("What was done last is not acknowledged, and comes again: %s", error)
