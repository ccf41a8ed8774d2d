"""Into how many partitions the stored data is divided, as the data itself says.

Written with another number of PARTITIONS than it was stored with, a session is looked for in a place where nothing is
known of its end: it would come back to life. So each new connection asks first, and scripts ask once more.

One partition needs no mark: its stream has no number in its name. More than one are marked before the first write.
Data of earlier versions has no mark; its streams, and the users in them, tell the number.
`session-relay repartition` marks every partition while it moves what is stored.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, Final

import redis
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys, has_hash_tag, partition_of
from clerk_session_feed.layout import FIELD, Move

from service.config import StoreSettings
from service.errors import StoreUnavailableError
from service.store.scripts import MARK_PARTITIONS

MARK_TTL_MS: Final = 400 * 86_400_000
"""Milliseconds that a mark lasts; each new connection extends it."""
SAMPLE: Final = 100
"""Entries of the streams that are looked at, in all, where nothing is marked."""
OTHER_NODE_SECONDS: Final = 0.5
"""Seconds for another node of a cluster: what can't be asked there is left out, as deliveries don't need it."""

Asking = Generator[list[tuple[str, tuple[Any, ...]]], Sequence[Any], None]
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


def examine(keys: Keys, partitions: int, *, may_mark: bool) -> Asking:
    """Look for data that is divided otherwise. Mark it, if there is more than one partition, and that is allowed.

    Where nothing is marked, the users of each stream have to belong to its partition. They also do if the data has a
    multiple of PARTITIONS, but then there are streams of the next numbers, too.

    With one partition, only the mark is read: the rights of the relay's user may end there. See `check_streams_of_one`.

    Raises:
        PartitionsError: There is such data.
    """
    mark = [(keys.layout, ("HMGET", keys.layout, FIELD))]
    (fields,) = yield mark
    marked = fields[0] if isinstance(fields, list) else None
    check_mark(partitions, marked)
    if partitions == 1:
        return
    if marked is None:
        yield from _examine_streams(keys, partitions)
    if may_mark:
        command = MARK_PARTITIONS.command(
            layout_key=keys.layout, events_key=keys.events, partitions=partitions, ttl_ms=MARK_TTL_MS
        )
        source = ("SCRIPT", "LOAD", MARK_PARTITIONS.source)  # this may be a connection without scripts
        _, marked = yield [(keys.layout, source), (keys.layout, command)]
        if isinstance(marked, bytes):  # an error, as of a full Redis, is the delivery's to meet
            check_mark(partitions, marked)


def _examine_streams(keys: Keys, partitions: int) -> Asking:
    others = (keys, *keys.split(2 * partitions)[partitions:])
    found = yield [(each.events, ("EXISTS", each.events)) for each in others]
    for other, exists in zip(others, found, strict=True):
        if exists == 1:
            raise _misfit(partitions, other, keys)
    parts, count = keys.split(partitions), max(3, SAMPLE // partitions)
    samples = yield [(each.events, ("XREVRANGE", each.events, "+", "-", "COUNT", count)) for each in parts]
    for number, sample in enumerate(samples):
        for _, fields in sample if isinstance(sample, list) else ():
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


def check_streams_of_one(settings: StoreSettings) -> None:
    """Look, if PARTITIONS is 1, for the streams of a greater number, as far as the rights surely allow it.

    Raises:
        PartitionsError: There is one.
    """
    keys, url = Keys(settings.redis_key_prefix), settings.redis_url.get_secret_value()
    for other in keys.split(2) if settings.partitions == 1 and has_hash_tag(keys.prefix) else ():
        with (
            contextlib.suppress(redis.RedisError),
            connections.connect(
                url, other.events, tls_verify=settings.redis_tls_verify, timeout=settings.redis_timeout
            ) as client,
        ):
            # A user of an ACL may have no right to them, and each refusal is in Redis' log.
            user = client.connection_pool.connection_kwargs.get("username")
            if user in {None, "", "default"} and client.exists(other.events):
                raise _misfit(1, other, keys)


class LayoutCheck:
    """Asks each new connection of the store."""

    def __init__(self, settings: StoreSettings, keys: Keys, *, may_mark: bool) -> None:
        self._settings, self._keys, self._may_mark = settings, keys, may_mark
        self._url = settings.redis_url.get_secret_value()

    async def ask(self, connection: Any, key: str) -> None:
        """Ask over a connection for this key; what lies in other slots, over others.

        Raises:
            PartitionsError: The data is not divided into PARTITIONS.
            redis.RedisError: The connection failed.
        """
        asking = examine(self._keys, self._settings.partitions, may_mark=self._may_mark)
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
        except redis.RedisError:
            return None
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
        except redis.ResponseError as error:  # as of a server that is not the right one: the delivery's to meet
            replies.append(error)
    return replies
