"""What stands for the relay in tests: it writes into a MemoryRedis what the relay would write."""

import dataclasses
import json
import math

from clerk_session_feed.errors import UnreadableMessageError
from clerk_session_feed.keys import Keys, partition_of
from clerk_session_feed.models import Event, Session, StreamMessage
from clerk_session_feed.settings import RedisSettings
from clerk_session_feed.testing.memory_redis import MemoryRedis
from clerk_session_feed.updates import SessionUpdate, now_ms, streamed


class MemoryRelay:
    """Stores states of sessions. It does not compare them: whoever calls it knows what becomes of an event."""

    def __init__(self, settings: RedisSettings, memory: MemoryRedis) -> None:
        """Write into `memory`, under the names that the settings give."""
        self._memory = memory
        self._channels = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._partitions = self._channels.split(settings.partitions)

    def is_stored(self, session: Session) -> bool:
        """Tell whether anything is stored of the session."""
        return self._keys_of(session).session(session.id) in self._memory.hashes

    def take(self, session: Session, event: Event, *, is_stale: bool = False) -> SessionUpdate:
        """Apply an event, unless it is stale; return what an iterator yields.

        Args:
            session: Its state by the event; `live` follows from the rest.
            event: What happened.
            is_stale: Whether the event came too late to change anything.

        Raises:
            ValueError: If the relay never stores such a session or event.
        """
        keys, memory = self._keys_of(session), self._memory
        is_live = session.status == "active" and (session.expire_at is None or session.expire_at > now_ms())
        with memory.lock:
            before = memory.hashes.get(keys.session(session.id), {})
            message = StreamMessage(
                cursor=None,
                revision=None if is_stale else int(before.get("revision", b"0")) + 1,
                previous_status=None if is_stale or not before else before["status"].decode(),
                event=event,
                session=dataclasses.replace(session, live=is_live),
            )
            line = json.dumps(dataclasses.asdict(message), separators=(",", ":"), ensure_ascii=False).encode()
            cursor, outcome = memory.next_id(), "stale" if is_stale else "applied"
            update = _checked(line, cursor, outcome, self._partitions.index(keys))
            named = {"outcome": outcome, "session_id": session.id, "user_id": session.user_id}
            fields = {name: value.encode() for name, value in named.items()}
            memory.add(keys.events, cursor, fields | {"message": line})
            if not is_stale:
                self._apply(keys, update)
            memory.wake()
            return update

    def _apply(self, keys: Keys, update: SessionUpdate) -> None:
        session, memory = update.session, self._memory
        memory.hashes[keys.session(session.id)] = {
            "state": update.json,
            "status": session.status.encode(),
            "live": b"1" if session.live else b"0",
            "user_id": session.user_id.encode(),
            "revision": b"%d" % (update.revision or 0),
            "cursor": update.cursor.encode(),
            "_expire_at": b"" if session.expire_at is None else b"%d" % session.expire_at,
        }
        live_ones = memory.sorted_sets.setdefault(keys.user_sessions(session.user_id), {})
        live_ones.pop(session.id, None)
        if session.live:
            live_ones[session.id] = math.inf if session.expire_at is None else session.expire_at
        for channel in (self._channels.channel, self._channels.user_channel(session.user_id)):
            memory.publish(channel, update.json)

    def _keys_of(self, session: Session) -> Keys:
        return self._partitions[partition_of(session.user_id, len(self._partitions))]


def _checked(line: bytes, cursor: str, outcome: str, partition: int) -> SessionUpdate:
    try:
        update = streamed(line, "It is no session", cursor=cursor, outcome=outcome, partition=partition)
    except UnreadableMessageError as error:
        raise ValueError(str(error)) from None
    actor = update.session.actor
    if actor is not None and not isinstance(actor.get("sub"), str):
        raise ValueError("It is no session: session.actor: there is no `sub`, a string, in it")
    return update
