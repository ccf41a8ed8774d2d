"""Moves sessions, and what is stored of users, from one partition to another; see `repartition`.

Nothing else writes meanwhile. Whatever is moved is written first and deleted then, so that it is never nowhere.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from clerk_session_feed.models import ID, OPEN_STATUSES

from service.store.layout import MARK_TTL_MS
from service.store.merging import Fields, merged_gone, merged_session
from service.store.places import Place, place_of
from service.store.scanning import SCAN_COUNT

_USER_KEY: Final = re.compile(rb"([A-Za-z0-9_-]{1,128}):(sessions|pending|gone)")
_OPEN: Final = frozenset(status.encode() for status in OPEN_STATUSES)

Write = Callable[[Place, Callable[[Any], object]], None]
"""Does in one transaction what its second argument puts into a pipeline."""


class _Stored(NamedTuple):
    value: dict[bytes, Any]
    ttl_ms: int


_Read = dict[bytes, _Stored]


class Moved:
    """How far a run came."""

    def __init__(self) -> None:
        self.sessions = 0
        self.user_keys = 0
        """Sets of sessions, and marks of users who are gone."""
        self.unreadable: set[str] = set()
        """Keys that are named as the relay's, and are not: they stay where they are."""
        self.part = 0.0
        """Which part of all keys has been looked at, about: 0 to 1."""


class Mover:
    """Moves to the right ones of all places of one number."""

    def __init__(self, targets: list[Place], write: Write, moved: Moved) -> None:
        self._targets, self._write, self._moved = targets, write, moved
        self._twice: dict[tuple[Place, Place], list[bytes]] = {}

    def move_user_keys(self, source: Place, names: Sequence[bytes]) -> None:
        """Move these keys, where they are in the wrong place. names: what follows on `{clerk}:user:`."""
        users = {name: match[1].decode() for name in names if (match := _USER_KEY.fullmatch(name))}
        for target, moving in self._by_target(source, users).items():
            here, there = self._read(source, _user_key, moving), self._read(target, _user_key, moving)
            found = [name for name in moving if name in there and name in here and here[name].value]

            def queue(
                pipe: Any,
                target: Place = target,
                found: Sequence[bytes] = found,
                here: _Read = here,
                there: _Read = there,
            ) -> None:
                for name in found:
                    key, value = _user_key(target, name), here[name].value
                    if _is_set(key):
                        pipe.zadd(key, value)
                    else:
                        pipe.hset(key, mapping=merged_gone(value, there[name].value))
                    pipe.pexpire(key, _longer(here[name].ttl_ms, there[name].ttl_ms))

            self._move(source, target, queue, [_user_key(source, name) for name in found])
            self._moved.user_keys += len(found)

    def move_sessions(self, source: Place, names: Sequence[bytes]) -> None:
        """Move these sessions, where they are in the wrong place, and there only. names: their ids."""
        replies = _ask(source, lambda pipe: [pipe.hget(_session_key(source, name), "user_id") for name in names])
        texts = [reply.decode(errors="replace") if isinstance(reply, bytes) else "" for reply in replies]
        users = {name: text for name, text in zip(names, texts, strict=True) if ID.fullmatch(text)}
        odd = [_session_key(source, name) for name in names if name not in users]
        for key, is_there in zip(odd, _ask(source, lambda pipe: [pipe.exists(each) for each in odd]), strict=True):
            if is_there:  # else its TTL has run out since it was found
                self._skip(key)
        for target, moving in self._by_target(source, users).items():
            self._move_to(source, target, moving, merges=False)

    def move_twice(self) -> None:
        """Move the sessions that were found twice, once the sets of users are in their places.

        Each takes itself out of those where it does not belong.
        """
        for (source, target), names in self._twice.items():
            for start in range(0, len(names), SCAN_COUNT):
                self._move_to(source, target, names[start : start + SCAN_COUNT], merges=True)

    def _move_to(self, source: Place, target: Place, names: Sequence[bytes], *, merges: bool) -> None:
        """Move sessions, with what the sorted sets of the partition have of them."""
        here, there = self._read(source, _session_key, names), self._read(target, _session_key, names)
        moving = [name for name in names if name in there and name in here and here[name].value]
        if not merges and (twice := [name for name in moving if there[name].value]):
            self._twice.setdefault((source, target), []).extend(twice)
            moving = [name for name in moving if not there[name].value]
        expiry = _ask(source, lambda pipe: [pipe.zscore(source.keys.expiry, name) for name in moving])
        revokes = _ask(source, lambda pipe: [pipe.zscore(source.keys.revokes, name) for name in moving])
        merging = moving if merges else []
        sets = [key for name in merging for each in (here, there) for key in _sets_of(target, each[name].value)]
        ttls = dict(zip(sets, _ask(target, lambda pipe: [pipe.pttl(key) for key in sets]), strict=True))

        def queue(pipe: Any) -> None:
            for name, ends_at, ordered_at in zip(moving, expiry, revokes, strict=True):
                key, session, other = _session_key(target, name), here[name].value, there[name].value
                merged = merged_session(session, other) if other else session
                ttl_ms = _longer(here[name].ttl_ms, there[name].ttl_ms)
                user_key = target.keys.user_sessions(merged[b"user_id"].decode())
                pipe.delete(key)
                pipe.hset(key, mapping=merged | {b"_user_key": user_key.encode()})
                pipe.pexpire(key, ttl_ms)
                if ordered_at is not None:
                    pipe.zadd(target.keys.revokes, {name: ordered_at}, nx=True)
                    pipe.pexpire(target.keys.revokes, MARK_TTL_MS)
                if other:
                    for set_key in _index(pipe, target, name, merged, (session, other)):
                        # It may be new; and Redis 6.2 can't be told to lengthen a TTL only.
                        ttls[set_key] = _longer(ttls[set_key], ttl_ms)
                        pipe.pexpire(set_key, ttls[set_key])
                elif ends_at is not None:
                    pipe.zadd(target.keys.expiry, {name: ends_at})

        def queue_removal(pipe: Any) -> None:
            pipe.zrem(source.keys.expiry, *moving)
            pipe.zrem(source.keys.revokes, *moving)

        self._move(source, target, queue, [_session_key(source, name) for name in moving], queue_removal)
        self._moved.sessions += len(moving)

    def _move(
        self,
        source: Place,
        target: Place,
        queue: Callable[[Any], object],
        keys: Sequence[bytes],
        queue_removal: Callable[[Any], object] = lambda _: None,
    ) -> None:
        if not keys:
            return

        def remove(pipe: Any) -> None:
            pipe.delete(*keys)
            queue_removal(pipe)

        self._write(target, queue)
        self._write(source, remove)

    def move_revokes(self, source: Place) -> None:
        """Move the pending revokes of sessions that are not stored: their place is the first partition."""
        target = self._targets[0]
        while left := source.client.zrange(source.keys.revokes, 0, SCAN_COUNT, withscores=True):

            def queue(pipe: Any, left: Sequence[tuple[bytes, float]] = left) -> None:
                pipe.zadd(target.keys.revokes, dict(left), nx=True)
                pipe.pexpire(target.keys.revokes, MARK_TTL_MS)

            def remove(pipe: Any, left: Sequence[tuple[bytes, float]] = left) -> None:
                pipe.zrem(source.keys.revokes, *dict(left))

            self._write(target, queue)
            self._write(source, remove)

    def _by_target(self, source: Place, users: Mapping[bytes, str]) -> dict[Place, list[bytes]]:
        """Return what is in the wrong place, by the right one."""
        found: dict[Place, list[bytes]] = {}
        for name, user_id in users.items():
            target = place_of(user_id, self._targets)
            if target != source:
                found.setdefault(target, []).append(name)
        return found

    def _read(self, place: Place, key_of: Callable[[Place, bytes], bytes], names: Sequence[bytes]) -> _Read:
        """Return hashes and sorted sets, also those that are not there; without those of another type."""

        def ask(pipe: Any) -> None:
            for name in names:
                key = key_of(place, name)
                pipe.zrange(key, 0, -1, withscores=True) if _is_set(key) else pipe.hgetall(key)
                pipe.pttl(key)

        replies = _ask(place, ask)
        read = {}
        for name, value, ttl_ms in zip(names, replies[::2], replies[1::2], strict=True):
            if isinstance(value, Exception):
                self._skip(key_of(place, name))
            else:
                read[name] = _Stored(dict(value), ttl_ms)
        return read

    def _skip(self, key: bytes) -> None:
        self._moved.unreadable.add(key.decode(errors="backslashreplace"))


def _ask(place: Place, queue: Callable[[Any], object]) -> list[Any]:
    """Return replies; one is an error if the key is of another type."""
    with place.client.pipeline(transaction=False) as pipe:
        queue(pipe)
        replies: list[Any] = pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
            raise reply
    return replies


def _index(pipe: Any, place: Place, name: bytes, session: Fields, states: Iterable[Fields]) -> list[str]:
    """Put a session that was stored twice into the sets where it belongs, and no other; return its user's, if any."""
    end = session.get(b"_expire_at", b"")
    is_open, is_live = session.get(b"status") in _OPEN, session.get(b"live") == b"1"
    sets = {place.keys.expiry: is_open and end != b""}
    for state in states:
        is_users = state.get(b"user_id") == session[b"user_id"]
        live, pending = _sets_of(place, state)
        sets |= {live: is_users and is_live, pending: is_users and is_open and not is_live}
    for key, has_it in sets.items():
        if has_it:
            pipe.zadd(key, {name: end or "+inf"})
        else:
            pipe.zrem(key, name)
    return [key for key, has_it in sets.items() if has_it and key != place.keys.expiry]


def _sets_of(place: Place, state: Fields) -> tuple[str, str]:
    """Return the keys of the sets of a session's user: of the live sessions, and of the pending ones."""
    user_id = state.get(b"user_id", b"").decode(errors="replace")
    return place.keys.user_sessions(user_id), place.keys.user_pending(user_id)


def _longer(one: int, other: int) -> int:
    """Return the longer of two TTLs, in milliseconds; negative: there is none, or no such key."""
    return MARK_TTL_MS if -1 in {one, other} else max(one, other)


def _is_set(key: bytes) -> bool:
    return key.endswith((b":sessions", b":pending"))


def _user_key(place: Place, name: bytes) -> bytes:
    return f"{place.keys.prefix}:user:".encode() + name


def _session_key(place: Place, name: bytes) -> bytes:
    return place.keys.session("").encode() + name
