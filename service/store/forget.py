"""Removes what Redis has of one user: what a deletion request asks for.

What says that the user is deleted stays (an id and a time), so that no late event brings a session back as live.
"""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import redis
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys, partition_of
from clerk_session_feed.layout import FIELD
from clerk_session_feed.models import OPEN_STATUSES

from service.config import StoreSettings
from service.store.dead_letters import DeadLetter
from service.store.layout import MOVED_AT, PartitionsError, check_mark
from service.store.scanning import SCAN_COUNT, scan

CHUNK: Final = 64
"""Sessions, or stream entries, that are removed at once."""
PAGE: Final = 200
"""Stream entries that are read at once: about 250 kB."""
DEAD_LETTERS: Final = 4
"""Dead letters that are read at once: each has up to MAX_BODY_BYTES."""
_OPEN: Final = frozenset(status.encode() for status in OPEN_STATUSES)


@dataclasses.dataclass
class Forgotten:
    """What was removed of a user."""

    is_deleted: bool = False
    """Whether Clerk has said that the user is deleted."""
    sessions: int = 0
    open_sessions: int = 0
    """How many of the sessions were active or pending."""
    entries: int = 0
    """Of the stream."""
    dead_letters: int = 0
    wrong_type: set[str] = dataclasses.field(default_factory=set)
    """Keys that are named like a session's, but are not hashes; they stay."""


def forget_user(settings: StoreSettings, user_id: str) -> Forgotten:
    """Remove the sessions, index entries, stream entries and dead letters of a user.

    It can be interrupted at any time, and run again.

    Args:
        settings: where Redis is.
        user_id: of the shape of an id.

    Raises:
        PartitionsError: The data was moved meanwhile, or is being moved: something may be left.
        redis.RedisError: Redis failed, or a key is of another type; the text names it.
    """
    keys = Keys(settings.redis_key_prefix, settings.redis_channel)
    parts = keys.split(settings.partitions)
    part = parts[partition_of(user_id, len(parts))]
    forgotten = Forgotten()
    with _connected(settings, part.events) as client:
        sets = (part.user_sessions(user_id), part.user_pending(user_id), part.expiry, part.revokes)
        _check_types(client, dict.fromkeys(sets, "zset") | {part.user_gone(user_id): "hash", part.events: "stream"})
        moved_at = _check_layout(client, part, len(parts))
        forgotten.is_deleted = bool(client.hexists(part.user_gone(user_id), "deleted"))
        user = _User(client, part, user_id, forgotten)
        user.remove_indexed()
        user.remove_entries()
        user.remove_scanned()
        if _check_layout(client, part, len(parts)) != moved_at:
            raise PartitionsError("The data was moved meanwhile, so something may be left: run it again.")
    with _connected(settings, keys.dead_letters) as client:
        _check_types(client, {keys.dead_letters: "hash"})
        forgotten.dead_letters = _remove_dead_letters(client, keys.dead_letters, user_id)
    return forgotten


@contextlib.contextmanager
def _connected(settings: StoreSettings, key: str) -> Iterator[Any]:
    url, tls_verify = settings.redis_url.get_secret_value(), settings.redis_tls_verify
    with connections.connect(url, key, tls_verify=tls_verify, timeout=settings.redis_timeout) as client:
        yield client


def _check_layout(client: Any, part: Keys, partitions: int) -> bytes | None:
    """Return when the data was last moved; raise PartitionsError if it is not divided into so many partitions."""
    mark, moved_at = client.hmget(part.layout, FIELD, MOVED_AT)
    check_mark(partitions, mark)
    return moved_at  # type: ignore[no-any-return]


def _check_types(client: Any, types: Mapping[str, str]) -> None:
    for key, expected in types.items():
        found = client.type(key).decode()
        if found not in {expected, "none"}:
            raise redis.ResponseError(f"{key} is a {found}, not a {expected}. Nothing more was removed.")


class _User:
    """The keys of one user, in one partition."""

    def __init__(self, client: Any, keys: Keys, user_id: str, forgotten: Forgotten) -> None:
        self._client = client
        self._keys = keys
        self._user_id = user_id.encode()
        self._indexes = (keys.user_sessions(user_id), keys.user_pending(user_id))
        self._forgotten = forgotten

    def remove_indexed(self) -> None:
        """Remove the open sessions: the user's sets have their ids."""
        for key in self._indexes:
            while found := self._client.zrange(key, 0, CHUNK - 1):
                self._remove(found)
                self._client.zrem(key, *found)  # also what is another user's by now

    def remove_entries(self) -> None:
        """Remove the stream's entries about the user, and the sessions that they are about."""
        after = b"-"
        while page := self._client.xrange(self._keys.events, min=after, count=PAGE):
            after = b"(" + page[-1][0]
            entries = {id_: fields for id_, fields in page if fields.get(b"user_id") == self._user_id}
            self._remove({fields[b"session_id"] for fields in entries.values() if b"session_id" in fields})
            for chunk in _chunks(entries):
                self._forgotten.entries += self._client.xdel(self._keys.events, *chunk)

    def remove_scanned(self) -> None:
        """Remove the sessions that are found by looking at all that are stored."""
        for found in scan(self._scan, {self._keys.session(""): self._keys}):
            self._remove(found.get(self._keys, ()))

    def _scan(self, cursor: bytes, pattern: str) -> tuple[bytes, list[bytes]]:
        following, found = self._client.scan(cursor, match=pattern, count=SCAN_COUNT, _type="hash")
        return b"%d" % following, found

    def _remove(self, session_ids: Iterable[bytes]) -> None:
        """Remove these sessions, with what refers to them, unless they are another user's."""
        for chunk in _chunks(session_ids):
            pipeline = self._client.pipeline(transaction=False)
            for session_id in chunk:
                pipeline.hmget(self._key(session_id), "user_id", "status")
            removed = []
            for session_id, reply in zip(chunk, pipeline.execute(raise_on_error=False), strict=True):
                if isinstance(reply, redis.ResponseError) and str(reply).startswith("WRONGTYPE"):
                    self._forgotten.wrong_type.add(self._key(session_id).decode(errors="backslashreplace"))
                elif isinstance(reply, Exception):
                    raise reply
                elif reply[0] in {self._user_id, None}:
                    removed.append(session_id)
                    self._forgotten.open_sessions += reply[1] in _OPEN
            if removed:
                # The session last: if this is interrupted, the next run still finds the session by its key.
                # Without a transaction: a full Redis refuses one even if it only frees memory.
                pipeline = self._client.pipeline(transaction=False)
                for key in (*self._indexes, self._keys.expiry, self._keys.revokes):
                    pipeline.zrem(key, *removed)
                pipeline.delete(*map(self._key, removed))
                self._forgotten.sessions += pipeline.execute()[-1]

    def _key(self, session_id: bytes) -> bytes:
        return self._keys.session("").encode() + session_id


def _remove_dead_letters(client: Any, key: str, user_id: str) -> int:
    """Remove the dead letters that name the user as `user_id`, `userId` or `id`; return how many."""
    # Where the outer JSON can't be read, the body is a text in it: quotes and white space are escaped.
    gap = r"(?:\s|\\[nrt])*"
    names_user = re.compile(rf'"(user_id|userId|id)\\*"{gap}:{gap}\\*"{user_id}\\*"')
    removed = 0
    for message_id, stored in client.hscan_iter(key, count=DEAD_LETTERS):
        dead_letter = DeadLetter.read(message_id.decode(errors="surrogateescape"), stored)
        text = stored.decode(errors="replace") if dead_letter is None else dead_letter.body
        if names_user.search(text):
            removed += client.hdel(key, message_id)
    return removed


def _chunks(items: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    iterator = iter(items)
    while chunk := tuple(itertools.islice(iterator, CHUNK)):
        yield chunk
