"""Consumers of a group that nobody uses any more: programs whose name changes with each start leave many behind."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError

from clerk_session_feed.refusals import may_pass
from clerk_session_feed.transport import Connection, as_dict

UNUSED_SECONDS: Final = 86_400.0
"""Seconds after which a consumer that has nothing to do, and was not heard of, leaves the group."""
LOOK_EVERY: Final = 3_600.0
"""Seconds between two looks for such consumers."""

log = logging.getLogger("clerk_session_feed")


def delivered_in(groups: Sequence[Any], name: str) -> str | None:
    """Return up to which cursor a group got entries; None if there is no such group. groups: XINFO GROUPS."""
    found = (each for each in map(as_dict, groups) if each[b"name"] == name.encode())
    return next((each[b"last-delivered-id"].decode() for each in found), None)


class UnusedConsumers:
    """Removes consumers that have nothing to do and were silent for long, if the user of Redis may.

    None removes itself when it ends: the next program of that name may have begun already.
    """

    def __init__(self, connection: Connection, events: str, group: str, consumer: str, claim_after: float) -> None:
        self._connection = connection
        self._events = events
        self._group = group
        self._consumer = consumer
        self._claim_after = claim_after
        self._looks_at = 0.0
        """By time.monotonic()."""

    @property
    def is_time(self) -> bool:
        """Whether to look for them again."""
        return time.monotonic() >= self._looks_at

    async def remove(self) -> str | None:
        """Remove them; return the cursor that the group has to go back to, if one of them woke in that moment.

        It may have got new entries, which are dropped with it: Redis says how many. (It can't have taken over those
        of others: none was due soon.)
        """
        soon_ms = math.ceil(self._claim_after * 500)
        removed: list[str] = []
        back: str | None = None
        try:
            soon, groups, consumers = await self._connection.execute(
                ("XPENDING", self._events, self._group, "IDLE", soon_ms, "-", "+", 1),
                ("XINFO", "GROUPS", self._events),  # before the next: what they got by then is not dropped
                ("XINFO", "CONSUMERS", self._events, self._group),
            )
            if soon:
                return None
            self._looks_at = time.monotonic() + LOOK_EVERY
            for name in self._unused(consumers):
                if await self._drop(name):
                    back = delivered_in(groups, self._group)
                removed.append(name)
        except redis.RedisError as error:  # whatever it is, the group can do without this
            self._looks_at = math.inf if isinstance(error, NoPermissionError) else time.monotonic() + LOOK_EVERY
        if removed:
            log.info("Removed from the consumer group %s, since nobody uses them: %s", self._group, ", ".join(removed))
        return back

    def _unused(self, consumers: Sequence[Any]) -> list[str]:
        unused_ms = max(UNUSED_SECONDS, 10 * self._claim_after) * 1000
        silent = [each for each in map(as_dict, consumers) if each[b"pending"] == 0 and each[b"idle"] > unused_ms]
        return [name for name in (each[b"name"].decode() for each in silent) if name != self._consumer]

    async def _drop(self, name: str) -> bool:
        """Remove a consumer; return whether entries that it had may have been dropped."""
        try:
            (dropped,) = await self._connection.execute(("XGROUP", "DELCONSUMER", self._events, self._group, name))
        except redis.RedisError as error:
            if not may_pass(error):
                raise
            return True  # nobody knows
        return bool(dropped)
