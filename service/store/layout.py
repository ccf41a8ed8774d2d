"""Into how many partitions the stored data is divided, as the data itself says.

Written with another number of PARTITIONS than it was stored with, a session is looked for in a place where nothing is
known of its end: it would come back to life. So each new connection asks first, and scripts ask once more.

One partition needs no mark: its keys have no number in their names. More than one are marked before the first write.
Data of earlier versions has no mark; its keys, and the users in its streams, tell the number.
`session-relay repartition` marks every partition while it moves what is stored.
"""

import hashlib
from collections.abc import Generator, Sequence
from typing import Any, Final

import redis
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys, has_hash_tag, partition_of
from clerk_session_feed.layout import FIELD, Move

from service.config import StoreSettings
from service.errors import StoreUnavailableError
from service.store.rights import is_missing_right, is_script_unknown
from service.store.scripts import MARK_PARTITIONS

MARK_TTL_MS: Final = 400 * 86_400_000
"""Milliseconds that a mark lasts; each new connection extends it."""
MOVED_AT: Final = "moved_at"
"""Field of a mark: when the last run of `repartition` began that marked it, in Unix milliseconds."""
SAMPLE: Final = 100
"""Entries of the streams that are looked at, in all, where nothing is marked."""
OTHER_NODE_SECONDS: Final = 0.5
"""Seconds for another node of a cluster: a delivery waits for the answer, and gets 503 without."""
_ASK_RIGHT: Final = b"""
if not redis.acl_check_cmd then
  return -1
end
return redis.acl_check_cmd('EXISTS', ARGV[1]) and 1 or 0
"""
"""https://redis.io/docs/latest/develop/programmability/lua-api/#redis.acl_check_cmd"""

Asking = Generator[list[tuple[str, tuple[Any, ...]]], Sequence[Any], Any]
"""Yields commands, each with a key of its slot, and is sent the replies; an error, or None, where there is none."""


class PartitionsError(StoreUnavailableError):
    """The data is not divided into PARTITIONS. The text is one line, and says what to do."""


def check_mark(partitions: int, mark: bytes | None) -> None:
    """Raise PartitionsError if a mark is there and says something else."""
    text = (mark or b"").decode(errors="replace")
    if mark is None or text == str(partitions):
        return
    if move := Move.read(text):
        what = f"the data is being moved from {move.was} partitions to {move.to}"
        todo = f"wait for `session-relay repartition --to {move.to}`, or run it again if it was stopped"
    else:
        what = f"the data has {text}"
        todo = f"set PARTITIONS={text}, or move the data with `session-relay repartition --to {partitions}`"
    raise PartitionsError(f"PARTITIONS={partitions}, but {what}: {todo}.")


def examine(keys: Keys, partitions: int, *, may_mark: bool, is_default_user: bool) -> Asking:
    """Look for data that is divided otherwise. Mark it, if there is more than one partition, and that is allowed.

    Where nothing is marked, keys of other numbers tell, and of more than one partition the users of each stream, which
    have to belong to it. They also do if the data has a multiple of PARTITIONS, but then there are keys of the next
    numbers, too.

    Raises:
        PartitionsError: There is such data.
        redis.RedisError: That can't be told, for another reason than a missing right.
    """
    (fields,) = yield [(keys.layout, ("HMGET", keys.layout, FIELD))]
    marked = fields[0] if (fields := _told(fields)) else None
    check_mark(partitions, marked)
    if marked is None and (partitions > 1 or (yield from _may_look(keys, is_default_user=is_default_user))):
        yield from _examine_keys(keys, partitions)
    if may_mark and partitions > 1:
        names = {"events_key": keys.events, "expiry_key": keys.expiry, "revokes_key": keys.revokes}
        command = MARK_PARTITIONS.command(layout_key=keys.layout, partitions=partitions, ttl_ms=MARK_TTL_MS, **names)
        source = MARK_PARTITIONS.source
        _, reply = yield [(keys.layout, ("SCRIPT", "LOAD", source)), (keys.layout, command)]
        if isinstance(reply, Exception) and is_script_unknown(reply):  # of a proxy that loads it elsewhere
            (reply,) = yield [(keys.layout, ("EVAL", source, *command[2:]))]
        if marked is None or not isinstance(reply, Exception):  # else only the TTL was to be extended
            check_mark(partitions, _told(reply))


def _told(reply: Any) -> Any:
    """Return a reply, or None if a right is missing; raise any other error: it does not tell that nothing is there."""
    if not isinstance(reply, Exception):
        return reply
    if is_missing_right(reply):
        return None
    raise reply


def _may_look(keys: Keys, *, is_default_user: bool) -> Asking:
    """Return whether the user may look at partitions with a number: those of one partition need no right to them.

    Each refusal would be in Redis' log. Redis 6.2 can't be asked: there, the default user looks.
    """
    if not has_hash_tag(keys.prefix):
        return False
    ask = ("EVALSHA", hashlib.sha1(_ASK_RIGHT, usedforsecurity=False).hexdigest(), 0, keys.split(2)[0].events)
    _, is_allowed = yield [(keys.layout, ("SCRIPT", "LOAD", _ASK_RIGHT)), (keys.layout, ask)]
    return is_allowed == 1 or (is_allowed != 0 and is_default_user)


def _examine_keys(keys: Keys, partitions: int) -> Asking:
    others = keys.split(2) if partitions == 1 else (keys, *keys.split(2 * partitions)[partitions:])
    found = yield [(each.events, ("EXISTS", each.events, each.expiry, each.revokes)) for each in others]
    for other, exists in zip(others, found, strict=True):
        if _told(exists):
            raise _misfit(partitions, other, keys)
    if partitions == 1:
        return
    parts, count = keys.split(partitions), max(3, SAMPLE // partitions)
    samples = yield [(each.events, ("XREVRANGE", each.events, "+", "-", "COUNT", count)) for each in parts]
    for number, sample in enumerate(samples):
        for _, fields in _told(sample) or ():
            user_id = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"user_id", b"").decode(errors="replace")
            if partition_of(user_id, partitions) != number:
                raise _misfit(partitions, parts[number], keys)


def _misfit(partitions: int, other: Keys, keys: Keys) -> PartitionsError:
    if other == keys:
        was = "PARTITIONS=1"
        todo = f"`session-relay repartition --to {partitions}`"
    else:
        was = "it to what it was"
        todo = f"`session-relay repartition --from <what it was> --to {partitions}`"
    what = f"PARTITIONS={partitions} does not fit the data in {other.events}"
    return PartitionsError(f"{what}: set {was}, or move the data with {todo}.")


class LayoutCheck:
    """Asks each new connection of the store."""

    def __init__(self, settings: StoreSettings, keys: Keys, *, may_mark: bool) -> None:
        self._settings, self._keys, self._may_mark = settings, keys, may_mark
        self._url = settings.redis_url.get_secret_value()

    async def ask(self, connection: Any, key: str) -> None:
        """Ask over a connection for this key; what lies in other slots, over others.

        Raises:
            PartitionsError: The data is not divided into PARTITIONS.
            redis.RedisError: It can't be told now.
        """
        is_default = connection.username in {None, "", "default"}
        asking = examine(self._keys, self._settings.partitions, may_mark=self._may_mark, is_default_user=is_default)
        slot = connections.slot(self._url, key)
        replies: list[Any] | None = None
        while True:
            try:
                commands = asking.send(replies)  # type: ignore[arg-type]  # None at first
            except StopIteration:
                return
            here = [each for each in commands if connections.slot(self._url, each[0]) == slot]
            there = [each for each in commands if each not in here]
            said = dict(zip(here, await _say(connection, [words for _, words in here]), strict=True))
            for each in there:
                said[each] = await self._ask_another(*each)
            replies = [said[each] for each in commands]

    async def _ask_another(self, key: str, words: tuple[Any, ...]) -> Any:
        seconds = min(OTHER_NODE_SECONDS, self._settings.redis_timeout)
        client = connections.connect_async(self._url, key, tls_verify=self._settings.redis_tls_verify, timeout=seconds)
        connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()
            (reply,) = await _say(connection, [words])
        except redis.RedisError as error:
            if not is_missing_right(error):
                raise
            return error
        finally:
            await connection.disconnect()
        return reply


async def _say(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return the replies; raise redis.RedisError if the connection, or all of Redis, fails."""
    for words in commands:
        await connection.send_command(*words)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except redis.ResponseError as error:
            replies.append(error)
    return replies
