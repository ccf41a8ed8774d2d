"""What Redis keeps of the runs of `reconcile`: a lock, how far an unfinished run came, what was found in all."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys
from redis.exceptions import LockError

from service.clerk.budget import WINDOW_SECONDS
from service.config import StoreSettings
from service.errors import CommandError
from service.store.sessions import MAX_TTL_MS
from service.store.wrong_types import naming
from service.workers.report import Gone

LOCK_SECONDS: Final = 30
"""Seconds after which a lock is free whose holder has died. A multiple of the budget's window: what the dead one sent
within the window before is past by then."""
EXTEND_SECONDS: Final = 5
"""Seconds between two extensions of the lock."""
RESUME_SECONDS: Final = 86_400
"""Seconds for which an unfinished run can be resumed."""


class RunUnderWayError(CommandError):
    """Another run holds the lock, and lives."""


class EndlessLockError(CommandError):
    """The lock's key does not expire, so none of these runs has made it."""


class LockLostError(CommandError):
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
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    """What could not be compared and is not looked at again, as in a report."""
    fault_count: int = 0
    """How many of these there are in all."""
    is_stopped: bool = False
    """Whether it was stopped because too many sessions were gone."""


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
        self._spent_key = f"{self._keys.reconcile}:spent"
        self._lock: Any = self._client.lock(self._keys.reconcile_lock, timeout=LOCK_SECONDS, thread_local=False)

    def close(self) -> None:
        self._client.close()

    def acquire(self) -> bool:
        """Take the lock; return whether it was free."""
        return bool(self._lock.acquire(blocking=False))

    def lock_ms(self) -> int:
        """Return for how many milliseconds the lock lasts from now, if its holder does not extend it; 0 if it is free.

        That is how a run that has died can be told from one that lives.

        Raises:
            EndlessLockError: It would last for ever.
        """
        left = int(self._client.pttl(self._keys.reconcile_lock))
        if left == -1:
            raise EndlessLockError(
                f"{self._keys.reconcile_lock} does not expire, so it is not the lock of a run: delete it."
            )
        return max(0, left)

    def spent(self) -> int:
        """Return how many requests to Clerk the run before has sent within the budget's window."""
        with naming(self._spent_key), contextlib.suppress(ValueError):
            return int(self._client.get(self._spent_key) or 0)
        return 0

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
        self._client.set(self._spent_key, spent, ex=math.ceil(WINDOW_SECONDS) + 1)
        with contextlib.suppress(LockError):  # it has expired
            self._lock.release()

    def status(self) -> dict[str, str]:
        """Return what is known of earlier runs.

        That is `instance_id`, `last_success_at`, `state_as_of`, `drift_<kind>` and what `ended_at_ms` reads; times are
        in Unix milliseconds.
        """
        with naming(self._keys.reconcile):
            stored = self._client.hgetall(self._keys.reconcile)
        return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in stored.items()}

    def ended_at_ms(self, mode: str) -> int:
        """Return when the last run of this mode has ended, in Unix milliseconds; 0 if that is not known.

        Of the runs since some time, only the last one is known, whatever time that was.
        """
        field, mark = _ended(mode)
        with contextlib.suppress(ValueError):
            return int(self.status().get(field, "").removesuffix(mark))
        return 0

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

    def record_end(self, mode: str, *, state_as_of_ms: int | None = None) -> None:
        """Record that a run has ended that looked at all sessions stored as open.

        If it compared them all, it is a success: `state_as_of_ms` is when it started.
        """
        now_ms = int(time.time() * 1000)
        success = {} if state_as_of_ms is None else {"last_success_at": now_ms, "state_as_of": state_as_of_ms}
        field, mark = _ended(mode)
        self._write(self._keys.reconcile, success | {field: f"{now_ms}{mark}"}, MAX_TTL_MS)

    def load(self, mode: str) -> tuple[Progress | None, bytes, dict[str, Gone]]:
        """Return how far an unfinished run of this mode came, whom it visited, and which sessions are gone, by id.

        What is not whole, or can't be read because another version has stored it, is deleted.
        """
        key = self._keys.reconcile_run(mode)
        with naming(key):
            stored = self._client.hgetall(key)
        with naming(f"{key}:visited"):
            visited = self._client.get(f"{key}:visited") or b""
        try:
            progress, gone = _read_progress({name.decode(): value.decode() for name, value in stored.items()})
        except (AttributeError, KeyError, ValueError):
            self.forget(mode)
            return None, b"", {}
        return progress, visited, gone

    def save(self, mode: str, progress: Progress, visited: bytes, gone: Mapping[str, Gone]) -> None:
        """Store how far a run came. `visited` and `gone` are what has been added since the last time."""
        key = self._keys.reconcile_run(mode)
        flags = {"users_are_listed": int(progress.users_are_listed), "is_stopped": int(progress.is_stopped)}
        fields = dataclasses.asdict(progress) | flags
        fields |= {f"drift_{kind}": count for kind, count in fields.pop("drift").items()}
        fields["faults"] = orjson.dumps(fields["faults"])
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


def _ended(mode: str) -> tuple[str, str]:
    """Return the field that tells when a run has ended, and what follows the time in its value.

    Runs since different times share one field: it would be one more with each outage.
    """
    return ("ended_at_since", f" {mode}") if mode.startswith("since-") else (f"ended_at_{mode}", "")


def _read_progress(stored: Mapping[str, str]) -> tuple[Progress, dict[str, Gone]]:
    """Read what `save` stored; raise AttributeError, KeyError or ValueError if it did not."""
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
        drift={name.removeprefix("drift_"): int(n) for name, n in stored.items() if name.startswith("drift_")},
        faults={str(about): str(why) for about, why in orjson.loads(stored["faults"]).items()},
        fault_count=int(stored["fault_count"]),
        is_stopped=stored["is_stopped"] == "1",
    )
    return progress, gone
