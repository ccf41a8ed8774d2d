"""Moves what is stored to another number of partitions: `session-relay repartition`.

Every partition is marked first. From then on no script writes, and deliveries get 503: Svix repeats them. Then whatever
is in the wrong place is moved to the right one. It can be killed at any time: the next run looks through everything
again, and finds what is left. Each run has a mark of its own, and each write is refused where the mark is another one
by then, so a run that stood still can't spoil what came after it.

Streams are not moved, but begun anew, behind all cursors that were ever given out: a follower's cursor is lost, and it
begins again from the snapshots. The whole is settled before its partitions: none of them takes a write that a next run
would take for one from before.
"""

import itertools
import operator
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis
from clerk_session_feed.cursors import position
from clerk_session_feed.keys import Keys
from clerk_session_feed.layout import FIELD, Move

from service.config import StoreSettings
from service.store.layout import MOVED_AT
from service.store.places import AFTER, TAKEN_OVER, Found, Mark, Place, Places, RepartitionError, queue_mark
from service.workers.moving import Moved, Mover, Write

_WHOLE: Final = -1
"""Stands for the partition that has no number."""


def repartition(
    settings: StoreSettings, to: int, *, was: int | None = None, on_progress: Callable[[Moved], None] = lambda _: None
) -> Moved:
    """Move everything, or what an earlier run has left.

    Args:
        settings: where Redis is.
        to: the number of partitions that the data is to have.
        was: the number that it has, if it does not tell; or if there is data of both.
        on_progress: called now and then.

    Raises:
        RepartitionError: It can't be done so; the text says why.
        redis.RedisError: Redis failed; the next run goes on.
    """
    moved = Moved()
    with Places(settings) as places:
        while move := _begin(places, to, was):
            most = _move(places, move, moved, on_progress)
            if most is None:
                break
            was = most  # there is data of more partitions than was known
        else:
            _settle_left(places, to)
    moved.part = 1.0
    return moved


def _begin(places: Places, to: int, was: int | None) -> Move | None:
    """Mark the whole as on its way, by a mark of this run; return None if it is there already."""
    mark = places.main.mark()
    move = _next_move(mark, to, was) if mark.text else _first_move(places, to, was)
    if move is not None:
        move = move._replace(began_at_ms=max(time.time_ns() // 1_000_000, mark.moved_at_ms + 1))
        places.write(places.main, lambda now: now == mark, partial(queue_mark, places.keys, _moving(move)))
    return move


def _next_move(mark: Mark, to: int, was: int | None) -> Move | None:
    """Return the move to make, by the mark."""
    if (under_way := Move.read(mark.text)) is not None:
        if to == under_way.to:
            return Move(max(under_way.was, was or 1), to, 0)
        if to == under_way.was:  # back
            return Move(max(under_way.to, was or 1), to, 0)
        what = f"The data is on its way from {under_way.was} partitions to {under_way.to}"
        todo = f"finish that with --to {under_way.to}, or take it back with --to {under_way.was}"
        raise RepartitionError(f"{what}: {todo}.")
    number = int(mark.text) if mark.text.isdecimal() else 1
    return None if number == to and was in {None, to} else Move(max(number, was or 1), to, 0)


def _first_move(places: Places, to: int, was: int | None) -> Move | None:
    """Return the move to make where nothing is marked, by the keys that there are."""
    numbers = {found.number for keys, _ in places.scan() for found in keys}
    most = max((max(2, number + 1) for number in numbers if number is not None), default=0)  # one has none
    if was in {None, to} and (not numbers or (to == 1 and not most)):
        return None
    return Move(max(most, was or 1), to, 0)


def _moving(move: Move) -> dict[str, Any]:
    return {FIELD: str(move), MOVED_AT: move.began_at_ms}


def _move(places: Places, move: Move, moved: Moved, on_progress: Callable[[Moved], None]) -> int | None:
    """Move everything; return how many partitions there are at least, if they are more than was known."""
    main, numbered = places.main, places.of(max(move.was, move.to))
    both = list(dict.fromkeys([main, *numbered]))
    for place in both[1:]:
        mark_moving = partial(queue_mark, place.keys, _moving(move))
        places.write(place, lambda mark: mark.moved_at_ms < move.began_at_ms, mark_moving)

    def write(place: Place, queue: Callable[[Any], object]) -> None:
        places.write(place, lambda mark: mark.text == str(move), queue)

    # No script writes any more, so no stream gets a greater id.
    ms, sequence = max(place.last_id() for place in both)
    after = f"{ms}-{sequence + 1}"
    after = max(after, main.mark().after, key=position)
    write(main, partial(queue_mark, main.keys, {AFTER: after}))

    owners = {_WHOLE: main} | (dict(enumerate(numbered)) if len(numbered) > 1 else {})
    mover, most = Mover(places.of(move.to), write, moved), 0
    for keys, part in places.scan():
        for (number, kind), found in itertools.groupby(sorted(keys, key=_owner), key=_owner):
            if number not in owners:
                most = max(most, number + 1, 2)
                continue
            if move_found := {"user": mover.move_user_keys, "session": mover.move_sessions}.get(kind):
                move_found(owners[number], [each.name for each in found])
        moved.part = part
        on_progress(moved)
    if most:
        return most
    mover.move_twice()
    _end(places.of(move.to), both, mover, write, after)
    return None


def _owner(found: Found) -> tuple[int, str]:
    return _WHOLE if found.number is None else found.number, found.kind


def _end(targets: list[Place], both: list[Place], mover: Mover, write: Write, after: str) -> None:
    for place in both:
        if place in targets:
            write(place, partial(_begin_stream, place.keys.events, after))
            _forget_first(place, after)
        else:
            mover.move_revokes(place)
            write(place, partial(_delete, place.keys))
    for place in both:  # the whole is the first
        write(place, partial(queue_mark, place.keys, {FIELD: len(targets)}))


def _begin_stream(key: str, after: str, pipe: Any) -> None:
    pipe.delete(key)
    pipe.xadd(key, {"outcome": "none"}, id=after)
    pipe.xdel(key, after)


def _forget_first(place: Place, after: str) -> None:
    """Let the stream count from nothing, or a follower of the empty one takes its first entry for one of several.

    Not in a transaction, where the stand-in does not bear an unknown command. Redis refuses it once there is an entry.
    """
    try:
        place.client.execute_command("XSETID", place.keys.events, after, "ENTRIESADDED", 0)
    except redis.ResponseError:  # Redis 6.2 does not count; the stand-in does not know the command, and hangs up
        place.client.connection_pool.disconnect()


def _delete(keys: Keys, pipe: Any) -> None:
    pipe.delete(keys.events, keys.expiry, keys.revokes)


def _settle_left(places: Places, to: int) -> None:
    """Settle the partitions that a run has left which was killed after it had settled the whole."""
    whole = places.main.mark()
    for place in places.of(to):
        mark = place.mark()
        if (move := Move.read(mark.text)) is not None:
            if move.to != to or move.began_at_ms > whole.moved_at_ms:
                raise RepartitionError(TAKEN_OVER)
            places.write(place, partial(operator.eq, mark), partial(queue_mark, place.keys, {FIELD: to}))
