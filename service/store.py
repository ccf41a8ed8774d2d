"""Session state in Redis: each call is one script, so it is applied whole or not at all."""

import hashlib
import importlib.resources
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

import orjson

from service import connections
from service.clerk import Unusable
from service.config import StoreSettings
from service.contract import Outcome, Session, omit
from service.errors import DeadLettersFullError
from service.group_commit import GroupCommit, Script
from service.keys import Keys, partition_of
from service.normalize import SessionChange
from service.signature import Delivery

MAX_TTL_MS: Final = 400 * 86_400_000

_LUA = importlib.resources.files("service") / "lua"
_APPLY_SESSION: Final = Script.from_source((_LUA / "apply_session.lua").read_bytes())
_KEEP_DEAD_LETTER: Final = Script.from_source((_LUA / "keep_dead_letter.lua").read_bytes())


def time_to_live_ms(expire_at_ms: int | None, now_ms: int, retention_ms: int) -> int:
    """How long a session's key is kept: past its end, long enough to meet what is still being retried."""
    if expire_at_ms is None:
        return MAX_TTL_MS
    return min(max(expire_at_ms - now_ms, 0) + retention_ms, MAX_TTL_MS)


class SessionStore:
    """Every method returns at once; its future raises StoreUnavailableError if Redis did not take it."""

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
                    connections.connect,
                    url,
                    key,
                    tls_verify=settings.redis_tls_verify,
                    timeout=settings.redis_timeout,
                ),
                (_APPLY_SESSION, _KEEP_DEAD_LETTER),
                min_replicas=settings.redis_min_replicas,
                # The server's own wait has to end before the socket's does.
                replica_timeout_ms=max(1, int(settings.redis_timeout * 750)),
            )
        return self._groups[lane]

    def apply(self, change: SessionChange, body: bytes, now_ms: int) -> Future[Outcome]:
        """Make the change part of the session's state: `applied`, `duplicate` or `stale`.

        body: what the change was read from. The outcome says so if its message was seen with another one.
        """
        session, order = change.session, change.order
        keys, group = self._partitions[partition_of(session.user_id, len(self._partitions))]
        arguments = (
            4,
            keys.session(session.id),
            keys.user_sessions(session.user_id),
            keys.events,
            keys.expiry,
            change.event.id,
            " ".join(map(str, (int(order.terminal), *order[1:]))),
            session.id,
            session.user_id,
            session.status,
            int(session.live),
            "" if session.expire_at is None else session.expire_at,
            time_to_live_ms(session.expire_at, now_ms, self._retention_ms),
            self._retention_ms,
            self._settings.stream_maxlen,
            keys.channel,
            keys.user_channel(session.user_id),
            self._message_after_head(change),
            self._confirm,
            hashlib.blake2b(body, digest_size=8).hexdigest(),
        )
        return group.submit(_APPLY_SESSION, *arguments, parse=partial(_outcome, session))

    def keep_dead_letter(self, delivery: Delivery, why: Unusable, now_ms: int) -> Future[Outcome]:
        """Keep what can't be read; the future raises DeadLettersFullError if there is no room."""
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
        return group.submit(_KEEP_DEAD_LETTER, *arguments, parse=partial(_kept, why))

    def probe(self) -> Future[bool]:
        """Ask whether Redis would take a write now, without writing: memory, replicas, loading and so on."""
        return _all([group.submit("LPUSHX", key, "", parse=bool) for group, key in self._probes.items()])

    def close(self) -> None:
        with ThreadPoolExecutor(len(self._groups)) as threads:  # side by side: each may take its time
            list(threads.map(GroupCommit.close, self._groups.values()))

    def _message_after_head(self, change: SessionChange) -> bytes:
        """The published JSON from the event on; the script puts cursor and revision before it."""
        session = change.session
        if self._settings.omit_fields:
            session = omit(session, self._settings.omit_fields)
        return b"," + orjson.dumps({"event": change.event, "session": session})[1:]


def _all(futures: Sequence[Future[bool]]) -> Future[bool]:
    """Return a future that is done once all are, or one has failed."""
    if len(futures) == 1:
        return futures[0]
    whole: Future[bool] = Future()
    whole.set_running_or_notify_cancel()
    missing = set(futures)
    lock = threading.Lock()

    def note(future: Future[bool]) -> None:
        with lock:
            missing.remove(future)
            if whole.done():
                return
            if error := future.exception():
                whole.set_exception(error)
            elif not missing:
                whole.set_result(True)

    for future in futures:
        future.add_done_callback(note)
    return whole


def _outcome(session: Session, reply: list[bytes]) -> Outcome:
    outcome, cursor, revision, remark = (part.decode() for part in reply)
    return Outcome(outcome, session.id, cursor, int(revision) if revision else None, remark or None)  # type: ignore[arg-type]


def _kept(why: Unusable, reply: bytes) -> Outcome:
    if reply == b"full":
        raise DeadLettersFullError("Work them off (session-relay dead-letters), or raise DEAD_LETTER_MAX.")
    return Outcome("dead_lettered", reason=why.reason)
