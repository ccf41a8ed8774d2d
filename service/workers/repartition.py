"""Moves what is stored to another number of partitions: `session-relay repartition`.

Every partition is marked first. From then on no script writes, and deliveries get 503: Svix repeats them. Then whatever
is in the wrong place is moved to the right one. It can be killed at any time: the next run looks through everything
again, and finds what is left. Each write is refused if the mark is another one by then, so a run that stood still can't
spoil what came after it.

Streams are not moved, but begun anew, behind all cursors that were ever given out: a follower's cursor is lost, and it
begins again from the snapshots.
"""

import contextlib
import os.path
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import redis
from clerk_session_feed.keys import Keys
from clerk_session_feed.layout import Move
from redis.exceptions import WatchError

from service.config import StoreSettings
from service.store.places import Place, Places, RepartitionError, queue_mark
from service.store.scanning import SCAN_COUNT
from service.workers.moving import Moved, Mover

_AFTER: Final = "after"
"""Field of the mark of the whole: the id behind which the new streams begin."""


def repartition(
    settings: StoreSettings, to: int, *, was: int | None = None, on_progress: Callable[[Moved], None] = lambda _: None
) -> Moved:
    """Move everything, or what an earlier run has left.

    Args:
        settings: where Redis is. On a cluster, their PARTITIONS are where to look if the data does not tell its number.
        to: the number of partitions that the data is to have.
        was: the number that it has, if it does not tell; or if there is data of both.
        on_progress: called now and then.

    Raises:
        RepartitionError: It can't be done so; the text says why.
        redis.RedisError: Redis failed; the next run goes on.
    """
    with Places(settings) as places:
        move = _begin(places, to, was, max(settings.partitions, to, was or 1))
        if move is None:
            done = Moved()
            done.part = 1.0
            return done
        mark = str(move)
        main, both = _mark_all(places, move)
        write = partial(_write, places, mark)
        mover = Mover(places.of(to), write)
        # Sets first: a session that is found twice takes itself out of those where it does not belong.
        kinds = ((":user:", mover.move_user_keys), (":session:", mover.move_sessions))
        for number, (kind, move_found) in enumerate(kinds):
            for found, scanned in _scan(both, kind):
                for source, names in found:
                    move_found(source, names)
                mover.moved.part = (number + scanned) / len(kinds)
                on_progress(mover.moved)
        _end(places.of(to), main, both, mover, write)
        mover.moved.part = 1.0
        return mover.moved


def _write(places: Places, mark: str, place: Place, queue: Callable[[Any], object]) -> None:
    places.write(place, mark, queue)


def _begin(places: Places, to: int, was: int | None, known: int) -> Move | None:
    """Mark the data as on its way; return None if it is there already."""
    main = places.at(places.keys)
    while True:
        with main.client.pipeline() as pipe, contextlib.suppress(WatchError):
            pipe.watch(main.keys.layout)
            mark = main.mark()
            move = _next_move(mark, to, was, *((False, 0) if mark else places.count_streams(known)))
            if move is None:
                return None
            pipe.multi()
            queue_mark(pipe, main.keys, str(move))
            pipe.execute()
            return move


def _next_move(mark: str, to: int, was: int | None, is_one: bool, most: int) -> Move | None:
    """Return the move to make, by the mark; without one, by the streams that there are."""
    now_ms = time.time_ns() // 1_000_000
    if (under_way := Move.read(mark)) is not None:
        if to == under_way.to:
            return under_way
        if to == under_way.was:  # back
            return Move(under_way.to, to, under_way.began_at_ms)
        was, to, _ = under_way
        what = f"The data is on its way from {was} partitions to {to}"
        raise RepartitionError(f"{what}: finish that with --to {to}, or take it back with --to {was}.")
    if mark.isdecimal():
        return None if int(mark) == to and was in {None, to} else Move(max(int(mark), was or 1), to, now_ms)
    is_there = most == 0 if to == 1 else most in {0, to} and not is_one
    return None if is_there and was in {None, to} else Move(max(most, was or 1), to, now_ms)


def _mark_all(places: Places, move: Move) -> tuple[Place, list[Place]]:
    """Mark every partition of both numbers; return the place of what is not divided, and all, that one among them."""
    main = places.at(places.keys)
    both = list(dict.fromkeys([main, *places.of(max(move.was, move.to))]))
    for place in both:
        place.set_mark(str(move))
    # No script writes any more, so no stream gets a greater id.
    ms, sequence = max(place.last_id() for place in both)
    main.client.hsetnx(main.keys.layout, _AFTER, f"{ms}-{sequence + 1}")
    return main, both


def _scan(places: list[Place], kind: str) -> Iterator[tuple[list[tuple[Place, list[bytes]]], float]]:
    """Yield what follows on `{clerk}:user:`, or another kind of key, by place; and which part has been looked at."""
    by_client: dict[Any, dict[bytes, Place]] = {}
    for place in places:
        by_client.setdefault(place.client, {})[place.keys.prefix.encode()] = place
    for number, (client, owners) in enumerate(by_client.items()):
        common = os.path.commonprefix([prefix.decode() for prefix in owners])  # noqa: RUF071  # of letters
        pattern = re.sub(r"([][*?\\^])", r"\\\1", common) + f"*{kind}*"
        total, looked_at, cursor = max(1, client.dbsize()), 0, None
        while cursor != 0:
            cursor, keys = client.scan(cursor or 0, match=pattern, count=SCAN_COUNT)
            looked_at += SCAN_COUNT
            found: dict[bytes, list[bytes]] = {}
            for key in keys:
                prefix, _, name = key.rpartition(kind.encode())
                if prefix in owners:
                    found.setdefault(prefix, []).append(name)
            part = (number + min(1.0, looked_at / total)) / len(by_client)
            yield [(owners[prefix], names) for prefix, names in found.items()], part


def _end(
    targets: list[Place],
    main: Place,
    both: list[Place],
    mover: Mover,
    write: Callable[[Place, Callable[[Any], object]], None],
) -> None:
    after = main.mark(_AFTER)
    for place in both:
        if place in targets:
            write(place, partial(_begin_stream, place.keys.events, after))
            _forget_first(place, after)
        else:
            mover.move_revokes(place)
            write(place, partial(_delete, place.keys.events, place.keys.expiry, place.keys.revokes))
    # The mark that new connections ask for comes last.
    for place in sorted(both, key=lambda place: place == main):
        write(place, partial(_finish, place.keys, len(targets)))


def _begin_stream(key: str, after: str, pipe: Any) -> None:
    pipe.delete(key)
    pipe.xadd(key, {"outcome": "none"}, id=after)
    pipe.xdel(key, after)


def _forget_first(place: Place, after: str) -> None:
    """Let the stream count from nothing, or a follower of the empty one takes its first entry for one of several."""
    try:
        place.client.execute_command("XSETID", place.keys.events, after, "ENTRIESADDED", 0)
    except redis.ResponseError:  # Redis 6.2 does not count; the stand-in does not know the command, and hangs up
        place.client.connection_pool.disconnect()


def _delete(*arguments: Any) -> None:
    *keys, pipe = arguments
    pipe.delete(*keys)


def _finish(keys: Keys, partitions: int, pipe: Any) -> None:
    queue_mark(pipe, keys, str(partitions))
    pipe.hdel(keys.layout, _AFTER)
