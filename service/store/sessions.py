"""Session state in Redis: each call is one script, so it is applied whole or not at all.

A long module: it is the list of what can be asked of Redis.
"""

import asyncio
import dataclasses
import importlib.resources
import math
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import orjson
from clerk_session_feed import connections
from clerk_session_feed.connections_async import connect_async
from clerk_session_feed.keys import Keys, partition_of
from clerk_session_feed.models import Status

from service.config import StoreSettings
from service.errors import DeadLettersFullError, StoreUnavailableError
from service.models import Delivery, Expiry, OrderKey, Outcome, SessionChange, Unusable, omit
from service.store.pipeline import GroupCommit, Script
from service.waiting import wait

T = TypeVar("T")

MAX_TTL_MS: Final = 400 * 86_400_000
WRITE_SECONDS: Final = 4.5
"""Seconds that a caller waits at most for a write; senders get their response within 5 s."""
PROBE_SECONDS: Final = 0.5
"""Seconds for what a health check asks, which is answered within a second, whatever Redis does."""

_LUA = importlib.resources.files("service.store")
_APPLY_SESSION: Final = Script.from_source((_LUA / "apply_session.lua").read_bytes())
_SETTLE_EXPIRY: Final = Script.from_source((_LUA / "settle_expiry.lua").read_bytes())
_KEEP_DEAD_LETTER: Final = Script.from_source((_LUA / "keep_dead_letter.lua").read_bytes())


def time_to_live_ms(expire_at_ms: int | None, now_ms: int, retention_ms: int) -> int:
    """How long a session's key is kept: past its end, long enough to meet what is still being retried."""
    if expire_at_ms is None:
        return MAX_TTL_MS
    return min(max(expire_at_ms - now_ms, 0) + retention_ms, MAX_TTL_MS)


class SessionStore:
    """Session state, as it is written to Redis.

    A method blocks until Redis has answered: its thread, or its greenlet under `serve` (see `waiting`). It
    raises StoreUnavailableError if Redis did not take it in time. `expire` and `settle_expiry` return futures
    instead, since their caller submits many at once.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._retention_ms = settings.session_retention * 1000
        self._confirm = int(settings.redis_min_replicas > 0)
        # One connection; of a cluster, one for each slot that is written to.
        self._groups: dict[int, GroupCommit] = {}
        keys = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._dead_letters = keys.dead_letters, self._group_at(keys.dead_letters)
        parts = keys.split(settings.partitions)
        self._partitions = [(part, self._group_at(part.events)) for part in parts]
        self._probes = {self._group_at(part.probe): part.probe for part in (keys, *parts)}

    def _group_at(self, key: str) -> GroupCommit:
        settings = self._settings
        url = settings.redis_url.get_secret_value()
        lane = connections.lane(url, key)
        if lane not in self._groups:
            self._groups[lane] = GroupCommit(
                partial(
                    connect_async,
                    url,
                    key,
                    tls_verify=settings.redis_tls_verify,
                    timeout=settings.redis_timeout,
                ),
                (_APPLY_SESSION, _SETTLE_EXPIRY, _KEEP_DEAD_LETTER),
                timeout=settings.redis_timeout,
                min_replicas=settings.redis_min_replicas,
                # The server's own wait has to end before the socket's does.
                replica_timeout_ms=max(1, int(settings.redis_timeout * 750)),
            )
        return self._groups[lane]

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Talk to Redis on this loop, instead of on one in a thread."""
        for group in self._groups.values():
            group.bind_loop(loop)

    def set_metrics_hooks(
        self, on_round_trip: Callable[[int, float], None], on_failure: Callable[[str], None]
    ) -> None:
        """Tell of each round trip (commands, seconds), and of each failure (its name)."""
        for group in self._groups.values():
            group.on_round_trip = on_round_trip
            group.on_failure = on_failure

    def apply(self, change: SessionChange, body: bytes, now_ms: int) -> Outcome:
        """Make the change part of the session's state: `applied`, `duplicate` or `stale`.

        body: what the change was read from. The outcome says so if its message was seen with another one.
        """
        session = change.session
        state = _State(
            change.order,
            session.id,
            session.user_id,
            session.status,
            session.live,
            session.expire_at,
            self._message(change),
        )
        partition = partition_of(session.user_id, len(self._partitions))
        # Two bodies can be made to look alike; that would win nobody anything, since neither is applied.
        digest = f"{zlib.crc32(body):08x}"
        parse = partial(_outcome, session.id)
        return _result(self._apply(partition, state, now_ms, digest=digest, parse=parse))

    def expire(self, partition: int, expiry: Expiry, now_ms: int) -> Future[Outcome | None]:
        """End a session that ran out: `applied` or `duplicate`; None if another state is held by now."""
        state = _State(
            expiry.order,
            expiry.session_id,
            expiry.user_id,
            "expired",
            False,
            expiry.expire_at,
            expiry.message,
        )
        parse = partial(_outcome_if_held, expiry.session_id)
        return self._apply(partition, state, now_ms, held_cursor=expiry.cursor, parse=parse)

    def settle_expiry(self, partition: int, session_id: str) -> Future[bool]:
        """Let the expiry set hold what the session's state says; return whether it waits for an expiry."""
        keys, group = self._partitions[partition]
        arguments = (2, keys.session(session_id), keys.expiry, session_id)
        return group.submit(_SETTLE_EXPIRY, *arguments, parse=bool)

    def _apply(
        self,
        partition: int,
        state: "_State",
        now_ms: int,
        *,
        digest: str = "",
        held_cursor: str = "",
        parse: Callable[[list[bytes]], T],
    ) -> Future[T]:
        keys, group = self._partitions[partition]
        arguments = (
            4,
            keys.session(state.session_id),
            keys.user_sessions(state.user_id),
            keys.events,
            keys.expiry,
            state.order.message_id,
            str(state.order),
            state.session_id,
            state.user_id,
            state.status,
            int(state.live),
            "" if state.expire_at_ms is None else state.expire_at_ms,
            time_to_live_ms(state.expire_at_ms, now_ms, self._retention_ms),
            self._retention_ms,
            self._settings.stream_maxlen,
            keys.channel,
            keys.user_channel(state.user_id),
            b"," + state.message[1:],  # the script puts cursor and revision before it
            self._confirm,
            digest,
            held_cursor,
        )
        return group.submit(_APPLY_SESSION, *arguments, parse=parse)

    def keep_dead_letter(self, delivery: Delivery, why: Unusable, now_ms: int) -> Outcome:
        """Keep what can't be read; raise DeadLettersFullError if there is no room."""
        letter = {
            "id": delivery.id,
            "received_at": now_ms,
            "reason": why.reason,
            "detail": why.detail,
            "body": delivery.body.decode(),
        }
        key, group = self._dead_letters
        arguments = (
            1,
            key,
            delivery.id,
            orjson.dumps(letter),
            self._settings.dead_letter_max,
            self._confirm,
        )
        return _result(group.submit(_KEEP_DEAD_LETTER, *arguments, parse=partial(_kept, why)))

    def probe(self) -> None:
        """Ask whether Redis would take a write now, without writing: memory, replicas, loading and so on."""
        _results(partial(group.submit, "LPUSHX", key, "", parse=bool) for group, key in self._probes.items())

    def backlog(self) -> "Backlog":
        """Ask how many dead letters are stored, and when the first session that is still open runs out."""
        key, group = self._dead_letters
        letters = partial(group.submit, "HLEN", key, parse=int)
        first = ("-inf", "+inf", "WITHSCORES", "LIMIT", 0, 1)
        firsts = [
            partial(group.submit, "ZRANGEBYSCORE", keys.expiry, *first, parse=_score)
            for keys, group in self._partitions
        ]
        size, *expiries = _results([letters, *firsts])
        return Backlog(size, min(expiries))

    def close(self) -> None:
        with ThreadPoolExecutor(len(self._groups)) as threads:  # side by side: each may take its time
            list(threads.map(GroupCommit.close, self._groups.values()))

    def _message(self, change: SessionChange) -> bytes:
        session = change.session
        if self._settings.omit_fields:
            session = omit(session, self._settings.omit_fields)
        return orjson.dumps({"event": change.event, "session": session})


@dataclasses.dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in Redis for an operator, and for the expiry worker."""

    dead_letters: int
    first_expiry_ms: float
    """Infinite if no open session has an end."""


@dataclasses.dataclass(frozen=True, slots=True)
class _State:
    """What an event makes of a session."""

    order: OrderKey
    session_id: str
    user_id: str
    status: Status
    live: bool
    expire_at_ms: int | None
    message: bytes
    """JSON: an object with `event` and `session`."""


def _result(future: Future[T], seconds: float = WRITE_SECONDS) -> T:
    try:
        return wait(future, seconds)  # type: ignore[no-any-return]
    except TimeoutError:
        raise StoreUnavailableError("Redis did not answer in time.") from None


def _results(submits: Iterable[Callable[[], Future[Any]]]) -> list[Any]:
    """Ask all at once, and wait for all."""
    futures: list[Future[Any]] = []
    deadline = time.monotonic() + PROBE_SECONDS
    try:
        futures.extend(submit() for submit in submits)
        return [_result(future, max(0.0, deadline - time.monotonic())) for future in futures]
    finally:  # of those that nobody waited for, the error is nobody's either
        for future in futures:
            future.add_done_callback(lambda each: each.cancelled() or each.exception())


def _score(reply: list[bytes]) -> float:
    return float(reply[1]) if reply else math.inf


def _outcome_if_held(session_id: str, reply: list[bytes]) -> Outcome | None:
    return None if reply[0] == b"superseded" else _outcome(session_id, reply)


def _outcome(session_id: str, reply: list[bytes]) -> Outcome:
    outcome, cursor, revision, remark = (part.decode() for part in reply)
    return Outcome(outcome, session_id, cursor, int(revision) if revision else None, remark or None)  # type: ignore[arg-type]


def _kept(why: Unusable, reply: bytes) -> Outcome:
    if reply == b"full":
        raise DeadLettersFullError("Work them off (session-relay dead-letters), or raise DEAD_LETTER_MAX.")
    return Outcome("dead_lettered", reason=why.reason)
