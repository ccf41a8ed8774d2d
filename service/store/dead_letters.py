"""Dead letters, session events that can't be turned into state: reading, replaying and dropping them.

Each is up to MAX_BODY_BYTES large, and there may be a thousand: only a few at a time are in memory.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Self

from clerk_session_feed.connections import connect
from clerk_session_feed.keys import Keys
from clerk_session_feed.models import Id
from pydantic import BaseModel, ConfigDict, ValidationError

from service.config import StoreSettings
from service.errors import RelayError
from service.models import Delivery, Outcome, Unusable
from service.store.sessions import SessionStore

_ERRORS: Final = "surrogateescape"
"""How fields of the hash, which may be any bytes, become text: as Python reads arguments of commands."""


class DeadLetter(BaseModel):
    """A dead letter as `SessionStore.keep_dead_letter` writes it."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: Id
    """The Svix message id."""
    received_at: int
    """Unix milliseconds."""
    reason: str
    detail: str
    body: str
    """Of the delivery, as Clerk sent it: it holds personal data."""

    @classmethod
    def read(cls, message_id: str, stored: bytes) -> Self | None:
        """Return the dead letter that a field of the hash is; None if something else was written there."""
        try:
            dead_letter = cls.model_validate_json(stored)
        except ValidationError:
            return None
        return dead_letter if dead_letter.id == message_id else None


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """A dead letter without its body; only the id is known if something else was written there."""

    id: str
    received_at: int | None = None
    """Unix milliseconds."""
    reason: str | None = None
    detail: str | None = None
    body_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay made of one dead letter."""

    id: str
    outcome: str
    """As of a delivery; or `kept`, or `missing` if it is not stored (any more)."""
    detail: str
    """The session's id, or how many sessions it ended; or why the dead letter is kept."""


class DeadLetters:
    """The dead letters that are stored; every method raises redis.RedisError if Redis does not answer."""

    def __init__(self, settings: StoreSettings) -> None:
        self._key = Keys(settings.redis_key_prefix, settings.redis_channel).dead_letters
        url, tls_verify = settings.redis_url.get_secret_value(), settings.redis_tls_verify
        self._client: Any = connect(url, self._key, tls_verify=tls_verify, timeout=settings.redis_timeout)

    def summaries(self) -> list[Summary]:
        """Return all without their bodies, in the order received; first what is not a dead letter."""
        # By id, since a scan may return a field twice.
        found = {
            field: _summary(field.decode(errors=_ERRORS), stored)
            for field, stored in self._client.hscan_iter(self._key)
        }
        return sorted(found.values(), key=lambda each: (each.received_at or 0, each.id))

    def get(self, message_id: str) -> tuple[bytes, DeadLetter | None] | None:
        """Return what is stored under an id, and the dead letter that it is, if it is one."""
        stored: bytes | None = self._client.hget(self._key, message_id.encode(errors=_ERRORS))
        return None if stored is None else (stored, DeadLetter.read(message_id, stored))

    def replay(self, message_id: str, ingest: Callable[[Delivery], Outcome]) -> Replayed:
        """Ingest a dead letter again, as if it were delivered now; drop it if that succeeds.

        It is dropped once Redis has its state; if that fails, the next replay finds a duplicate.
        """
        found = self.get(message_id)
        if found is None:
            return Replayed(message_id, "missing", "It is not stored.")
        _, dead_letter = found
        if dead_letter is None:
            return Replayed(message_id, "kept", "It was not stored by the relay.")
        try:
            outcome = ingest(Delivery(message_id, dead_letter.received_at // 1000, dead_letter.body.encode()))
        except RelayError as error:
            return Replayed(message_id, "kept", str(error))
        if outcome.outcome == "dead_lettered":
            return Replayed(message_id, "kept", str(outcome.reason))
        self.drop(message_id)
        ended = "" if outcome.sessions is None else f"{outcome.sessions} sessions ended"
        return Replayed(message_id, outcome.outcome, outcome.session_id or ended)

    def drop(self, message_id: str) -> bool:
        """Delete a dead letter; return whether it was stored."""
        return bool(self._client.hdel(self._key, message_id.encode(errors=_ERRORS)))

    def drop_all(self) -> int:
        """Delete all dead letters; return about how many they were."""
        size: int = self._client.hlen(self._key)
        self._client.delete(self._key)
        return size

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


class ReplayStore(SessionStore):
    """A store for replays: a dead letter that still can't be read stays as it is."""

    def keep_dead_letter(self, delivery: Delivery, why: Unusable, now_ms: int) -> Outcome:  # noqa: ARG002
        """Leave the dead letter as it is."""
        return Outcome("dead_lettered", reason=why.reason)


def _summary(message_id: str, stored: bytes) -> Summary:
    found = DeadLetter.read(message_id, stored)
    if found is None:
        return Summary(message_id)
    return Summary(message_id, found.received_at, found.reason, found.detail, len(found.body.encode()))
