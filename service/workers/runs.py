"""What Redis keeps of the runs of `reconcile`: a lock, how far an unfinished run came, what was found in all."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Final

from clerk_session_feed import connections
from clerk_session_feed.keys import Keys
from redis.exceptions import LockError

from service.clerk.budget import WINDOW_SECONDS
from service.config import StoreSettings
from service.errors import StartError
from service.store.sessions import MAX_TTL_MS
from service.workers.report import Gone

LOCK_SECONDS: Final = 30
"""Seconds after which a lock is free whose holder has died. A multiple of the budget's window: what the dead one sent
within the window before is past by then."""
EXTEND_SECONDS: Final = 5
"""Seconds between two extensions of the lock."""
RESUME_SECONDS: Final = 86_400
"""Seconds for which an unfinished run can be resumed."""


class RunUnderWayError(StartError):
    """Another run holds the lock, and lives."""


class LockLostError(StartError):
    """The lock expired, so another run may have begun."""


@dataclasses.dataclass
class Progress:
    """How far a run came."""

    started_at_ms: int
    """When it began, in Unix milliseconds; a resumed run keeps it."""
    after: str = ""
    """The user after whom Clerk's list of users is read on; empty: from its start."""
    users_are_listed: bool = False
    """Whether that list has been read to its end."""
    sessions: int = 0
    """How many sessions were looked at."""
    users: int = 0
    drift: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many states differed, by kind."""


class Runs:
    """Reads and writes it. Each method may raise redis.RedisError."""

    def __init__(self, settings: StoreSettings) -> None:
        self._keys = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._client: Any = connections.connect(
            settings.redis_url.get_secret_value(),
            self._keys.reconcile,
            tls_verify=settings.redis_tls_verify,
            timeout=settings.redis_timeout,
        )
        self._lock: Any = self._client.lock(self._keys.reconcile_lock, timeout=LOCK_SECONDS, thread_local=False)

    def close(self) -> None:
        self._client.close()

    def acquire(self, *, wait: bool) -> int:
        """Take the lock; return how many requests to Clerk the run before has sent within the budget's window.

        Args:
            wait: wait for the lock of a run that has died.

        Raises:
            RunUnderWayError: Another run holds it, and lives.
        """
        shortest = LOCK_SECONDS * 1000 + 1
        while not self._lock.acquire(blocking=False):
            left = self._client.pttl(self._keys.reconcile_lock)
            if not wait or left > shortest:
                raise RunUnderWayError("Another run of reconcile is under way. Wait for its end.")
            shortest = left
            time.sleep(0.5)
        spent, at = self._client.hmget(self._keys.reconcile, "spent", "spent_at")
        is_recent = at is not None and time.time() - float(at) < WINDOW_SECONDS
        return int(spent) if is_recent else 0

    def is_locked(self) -> bool:
        """Tell whether a run is under way."""
        return bool(self._client.exists(self._keys.reconcile_lock))

    def extend(self) -> None:
        """Keep the lock for another while.

        Raises:
            LockLostError: It has expired.
        """
        try:
            self._lock.extend(LOCK_SECONDS, replace_ttl=True)
        except LockError:
            raise LockLostError(
                "This run has lost its lock: it or Redis stood still, or Redis lost data. Start it again."
            ) from None

    def release(self, spent: int) -> None:
        """Give the lock back, with how many requests to Clerk were sent within the budget's window."""
        self._write(self._keys.reconcile, {"spent": spent, "spent_at": time.time()}, MAX_TTL_MS)
        with contextlib.suppress(LockError):  # it has expired
            self._lock.release()

    def status(self) -> dict[str, str]:
        """Return what is known of earlier runs: instance_id, last_success_at, state_as_of (Unix ms), drift_<kind>."""
        stored = self._client.hgetall(self._keys.reconcile)
        return {name.decode(): value.decode() for name, value in stored.items()}

    def record_instance(self, instance_id: str) -> None:
        """Write down which Clerk instance the sessions are of."""
        self._write(self._keys.reconcile, {"instance_id": instance_id}, MAX_TTL_MS)

    def record_drift(self, drift: Mapping[str, int]) -> None:
        """Add to the totals by kind."""
        pipeline = self._client.pipeline(transaction=False)
        for kind, count in drift.items():
            pipeline.hincrby(self._keys.reconcile, f"drift_{kind}", count)
        pipeline.pexpire(self._keys.reconcile, MAX_TTL_MS)
        pipeline.execute()

    def record_success(self, started_at_ms: int) -> None:
        """Record that a run has ended that looked at all sessions stored as open."""
        now_ms = int(time.time() * 1000)
        self._write(self._keys.reconcile, {"last_success_at": now_ms, "state_as_of": started_at_ms}, MAX_TTL_MS)

    def load(self, mode: str) -> tuple[Progress | None, bytes, dict[str, Gone]]:
        """Return how far an unfinished run of this mode came, whom it visited, and which sessions are gone, by id."""
        key = self._keys.reconcile_run(mode)
        stored = {name.decode(): value.decode() for name, value in self._client.hgetall(key).items()}
        if not stored:
            return None, b"", {}
        drift = {name.removeprefix("drift_"): int(n) for name, n in stored.items() if name.startswith("drift_")}
        gone = {}
        for name, value in stored.items():
            if name.startswith("gone:"):
                session_id, (user_id, cursor, at_ms) = name.removeprefix("gone:"), value.split(" ")
                gone[session_id] = Gone(session_id, user_id, cursor, int(at_ms))
        progress = Progress(
            started_at_ms=int(stored["started_at_ms"]),
            after=stored["after"],
            users_are_listed=stored["users_are_listed"] == "1",
            sessions=int(stored["sessions"]),
            users=int(stored["users"]),
            drift=drift,
        )
        return progress, self._client.get(f"{key}:visited") or b"", gone

    def save(self, mode: str, progress: Progress, visited: bytes, gone: Mapping[str, Gone]) -> None:
        """Store how far a run came. `visited` and `gone` are what has been added since the last time."""
        key = self._keys.reconcile_run(mode)
        fields = dataclasses.asdict(progress) | {"users_are_listed": int(progress.users_are_listed)}
        drift = fields.pop("drift")
        fields |= {f"drift_{kind}": count for kind, count in drift.items()}
        fields |= {
            f"gone:{each.session_id}": f"{each.user_id} {each.cursor} {each.answered_at_ms}" for each in gone.values()
        }
        pipeline = self._client.pipeline(transaction=True)
        if visited:
            pipeline.append(f"{key}:visited", visited)
        pipeline.hset(key, mapping=fields)
        pipeline.expire(key, RESUME_SECONDS)
        pipeline.expire(f"{key}:visited", RESUME_SECONDS)
        pipeline.execute()

    def forget(self, mode: str) -> None:
        """Delete what `save` stored: the run has ended."""
        key = self._keys.reconcile_run(mode)
        self._client.delete(key, f"{key}:visited")

    def _write(self, key: str, fields: Mapping[str, Any], ttl_ms: int) -> None:
        pipeline = self._client.pipeline(transaction=True)
        pipeline.hset(key, mapping=fields)
        pipeline.pexpire(key, ttl_ms)
        pipeline.execute()
