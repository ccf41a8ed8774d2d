"""What a test lets happen: to sessions at Clerk, to Redis, and to the loops over its feed.

A long module, since all of it is what a test finds at its feed.
"""

import collections
import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypedDict, Unpack

import redis

from clerk_session_feed.models import OPEN_STATUSES, Event, OpenStatus, Session, SessionActivity, SessionTask, Status
from clerk_session_feed.settings import RedisSettings
from clerk_session_feed.testing.memory_redis import MemoryRedis
from clerk_session_feed.testing.memory_relay import MemoryRelay
from clerk_session_feed.updates import SessionUpdate, now_ms

WEEK: Final = datetime.timedelta(days=7)
MONTH_MS: Final = 30 * 86_400_000
NEWS: Final = (*("status", "client_id", "expire_at", "abandon_at", "actor", "last_active_organization_id", "tasks"),)
"""Fields whose change makes `reconcile` write a state: docs/contract.md, section 10."""
REFUSED: Final = "Error 111 connecting to memory:6379. Connection refused."
"""What redis-py says while no Redis is there."""


class SessionFields(TypedDict, total=False):
    """Fields of a session, as in a message: docs/contract.md, section 4. Times: Unix milliseconds."""

    client_id: str | None
    actor: dict[str, Any] | None
    last_active_organization_id: str | None
    last_active_at: int | None
    latest_activity: SessionActivity | None
    abandon_at: int | None
    updated_at: int | None
    created_at: int | None
    tasks: tuple[SessionTask, ...]


class ChangedFields(SessionFields, total=False):
    """Fields of a session that can change."""

    status: Status
    expire_at: int | None


class Simulation:
    """What a test does with the sessions of its feed. Thread-safe; none of it waits.

    Each event returns the update that an iterator yields.
    """

    def __init__(self, settings: RedisSettings, memory: MemoryRedis) -> None:
        """Begin without sessions."""
        self._memory = memory
        self._relay = MemoryRelay(settings, memory)
        self._known: dict[str, Session] = {}
        """The sessions, as Clerk has them."""
        self._counts: collections.Counter[str] = collections.Counter()
        self._last_ms = 0

    # Sessions

    def sign_in(
        self,
        user_id: str,
        *,
        session_id: str | None = None,
        status: OpenStatus = "active",
        expires_in: datetime.timedelta | None = WEEK,
        **fields: Unpack[SessionFields],
    ) -> SessionUpdate:
        """Let a session begin.

        Args:
            user_id: Whose session it is.
            session_id: Its id; None: a new one.
            status: `pending`, if the user has to do something first.
            expires_in: How long it lasts; negative if it is over already; None: it has no end.
            fields: Other fields of the session, as in a message.

        Raises:
            ValueError: If there can be no such session, or there is one with this id.
        """
        with self._memory.lock:
            session_id = session_id or self._new_id("sess")
            if session_id in self._known:
                raise ValueError(f"There is a session {session_id} already.")
            now = self._now_ms()
            begun: dict[str, Any] = {
                "client_id": self._new_id("client"),
                "actor": None,
                "last_active_organization_id": None,
                "last_active_at": now,
                "latest_activity": self._new_activity(),
                "abandon_at": now + MONTH_MS,
                "updated_at": now,
                "created_at": now,
                "tasks": (SessionTask(key="choose-organization"),) if status == "pending" else (),
                **fields,
            }
            expire_at = None if expires_in is None else now + expires_in // datetime.timedelta(milliseconds=1)
            session = Session(id=session_id, user_id=user_id, status=status, live=False, expire_at=expire_at, **begun)
            return self._take(session, f"session.{'created' if status == 'active' else status}", now)

    def end(self, session_id: str) -> SessionUpdate:
        """Let the user sign out.

        Raises:
            LookupError: If there is no such session.
            ValueError: If it is over.
        """
        return self._change(session_id, {"status": "ended"})

    def remove(self, session_id: str) -> SessionUpdate:
        """Remove the session, as when its user is deleted. Raises like `end`."""
        return self._change(session_id, {"status": "removed"})

    def revoke(self, session_id: str) -> SessionUpdate:
        """Revoke the session, as in Clerk's dashboard. Raises like `end`."""
        return self._change(session_id, {"status": "revoked"})

    def expire(self, session_id: str) -> SessionUpdate:
        """Let the session expire: its `expire_at` is now, unless it has passed.

        Raises:
            LookupError: If nothing is stored of the session.
            ValueError: If it is over.
        """
        with self._memory.lock:
            self._refuse_unknown(session_id)
            session = self._open(session_id)
            end = int(min(now_ms(), math.inf if session.expire_at is None else session.expire_at))
            session = dataclasses.replace(session, status="expired", expire_at=end)
            return self._take(session, "session.expired", end, event_id=f"exp_{session_id}_{end}", source="synthetic")

    def update(self, session_id: str, **fields: Unpack[ChangedFields]) -> SessionUpdate:
        """Let something else change, as the relay learns from Clerk's Backend API: `session-relay reconcile`.

        `update(session_id, status="active", tasks=())` activates a pending session.

        Raises:
            LookupError: If there is no such session.
            ValueError: If it is over; if nothing changes that is news to the relay; if there can be no such session.
        """
        with self._memory.lock:
            session = self._changing(session_id, fields)
            is_first = not self._relay.is_stored(session)
            if not is_first and all(fields.get(name, old) == old for name, old in _news(session)):
                raise ValueError(f"Nothing changes that is news to the relay: that is one of {', '.join(NEWS)}.")
            becomes_open = fields.get("status", session.status) in OPEN_STATUSES
            type_ = "session.created" if is_first and becomes_open else None
            event_id = f"api_{self._count('api'):032x}"
            return self._change(session_id, fields, type_=type_, event_id=event_id, source="clerk-api")

    def late(self, session_id: str) -> SessionUpdate:
        """Let an event come too late to change anything: it is `stale`, and iterators yield it with `stale=True` only.

        Raises:
            LookupError: If nothing is stored of the session.
        """
        with self._memory.lock:
            self._refuse_unknown(session_id)
            session = self._find(session_id)
            at = (session.created_at or now_ms()) - 1
            session = dataclasses.replace(session, status="active", updated_at=at)
            return self._take(session, "session.created", at, is_stale=True)

    # Redis

    def trim(self, keep: int = 0) -> None:
        """Remove all but the last entries of each stream, as STREAM_MAXLEN does.

        An iterator whose last entry is gone raises CursorLostError, or reads the snapshots, if it has resync=True.
        """
        with self._memory.lock:
            self._memory.trim(keep)
            self._memory.wake()

    def flush(self) -> None:
        """Let Redis lose everything. Sessions go on at Clerk: what happens to them is stored again."""
        with self._memory.lock:
            self._memory.flush()
            self._memory.wake()

    def fail(self, error: redis.RedisError | None = None) -> None:
        """Let Redis be away until `restore`: for the feed. The relay goes on writing.

        Short reads raise the error. Iterators call `on_reconnect`, and wait; but they raise what another attempt can't
        help, such as `redis.exceptions.NoPermissionError()`. What is published is lost to `subscribe`.

        Args:
            error: What redis-py raises; None: a refused connection.
        """
        with self._memory.lock:
            self._memory.failure = error or redis.ConnectionError(REFUSED)
            self._memory.wake()

    def restore(self) -> None:
        """Let Redis be there again."""
        with self._memory.lock:
            self._memory.failure = None
            self._memory.wake()

    # Loops

    def pending(self, group: str) -> int:
        """Return how many updates the consumers of a group have got and not acknowledged yet."""
        with self._memory.lock:
            streams = self._memory.streams.values()
            return sum(len(stream.groups[group].pending) for stream in streams if group in stream.groups)

    def finish(self) -> None:
        """Let loops over the feed end where they would wait for more, also those that begin later; mirrors go on.

        So a test needs no thread: it lets things happen, calls this, and then the code that has the loop.
        """
        with self._memory.lock:
            self._memory.is_finishing = True
            self._memory.wake()

    def _idle(self, loops: int) -> Future[None]:
        return self._memory.idle(loops)

    def _not_idle(self, timeout: float) -> TimeoutError:
        return TimeoutError(f"After {timeout:g} s, {self._memory.explain_work()}.")

    # Sessions, as Clerk has them

    def _refuse_unknown(self, session_id: str) -> None:
        if not self._relay.is_stored(self._find(session_id)):
            raise LookupError(f"Nothing is stored of the session {session_id}: Redis lost it.")

    def _find(self, session_id: str) -> Session:
        if session_id not in self._known:
            raise LookupError(f"There is no session {session_id}.")
        return self._known[session_id]

    def _open(self, session_id: str) -> Session:
        session = self._find(session_id)
        if session.status not in OPEN_STATUSES:
            raise ValueError(f"{session_id} is over: {session.status}.")
        return session

    def _changing(self, session_id: str, fields: Mapping[str, Any]) -> Session:
        session = self._find(session_id)
        # Clerk's evidence, of an end or of a later one, outweighs that the relay found the session expired.
        is_outweighed = session.status == "expired" and fields.get("status", "expired") != "expired"
        return session if is_outweighed else self._open(session_id)

    def _change(
        self, session_id: str, fields: Mapping[str, Any], *, type_: str | None = None, **event: Any
    ) -> SessionUpdate:
        with self._memory.lock:
            now = self._now_ms()
            session = dataclasses.replace(self._changing(session_id, fields), **{"updated_at": now, **fields})
            return self._take(session, type_ or f"session.{session.status}", now, **event)

    def _take(
        self,
        session: Session,
        type_: str,
        occurred_at: int,
        *,
        event_id: str | None = None,
        source: str = "clerk",
        is_stale: bool = False,
    ) -> SessionUpdate:
        event_id, instance_id = event_id or self._new_id("msg"), f"ins_{0:027}"
        event = Event(id=event_id, type=type_, occurred_at=occurred_at, instance_id=instance_id, source=source)
        update = self._relay.take(session, event, is_stale=is_stale)
        if not is_stale:
            self._known[session.id] = update.session
        return update

    def _now_ms(self) -> int:
        """Return the time, in Unix milliseconds; each time a later one, as if it took a while until the next event."""
        self._last_ms = max(now_ms(), self._last_ms + 1)
        return self._last_ms

    def _new_id(self, kind: str) -> str:
        """Return an id as long as Clerk's."""
        return f"{kind}_{self._count(kind):027}"

    def _count(self, kind: str) -> int:
        with self._memory.lock:
            self._counts[kind] += 1
            return self._counts[kind]

    def _new_activity(self) -> SessionActivity:
        return SessionActivity(
            object="session_activity",
            id=self._new_id("sess_activity"),
            device_type="Macintosh",
            is_mobile=False,
            browser_name="Firefox",
            browser_version="145.0",
            ip_address="192.0.2.44",
            city="Bergen",
            country="NO",
        )


def _news(session: Session) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(session, name)) for name in NEWS)
