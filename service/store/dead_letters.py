"""The box of session events that could not be read: looking into it, trying them again, throwing them away.

Letters are up to MAX_BODY_BYTES large and may be a thousand: only a few at a time are held in memory.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from clerk_session_feed.connections import connect
from clerk_session_feed.keys import Keys
from clerk_session_feed.models import Id
from pydantic import BaseModel, ConfigDict, ValidationError

from service.config import StoreSettings
from service.errors import RelayError
from service.models import Delivery, Outcome, Unusable
from service.store.sessions import SessionStore


class DeadLetter(BaseModel):
    """What `SessionStore.keep_dead_letter` wrote; whatever else is in the box is no letter."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: Id
    received_at: int
    """Unix milliseconds."""
    reason: str
    detail: str
    body: str

    @classmethod
    def read(cls, message_id: str, stored: bytes) -> Self | None:
        try:
            letter = cls.model_validate_json(stored)
        except ValidationError:
            return None
        return letter if letter.id == message_id else None


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """A letter without its body; only the id is known of what is no letter."""

    id: str
    received_at: int | None = None
    """Unix milliseconds."""
    reason: str | None = None
    detail: str | None = None
    body_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Replayed:
    id: str
    what: str
    """The outcome; or `kept`, or `missing` for one that is not in the box (any more)."""
    about: str
    """The session's id; or why the letter stays."""


class DeadLetters:
    """Every method raises redis.RedisError if Redis does not answer."""

    def __init__(self, settings: StoreSettings) -> None:
        self._key = Keys(settings.redis_key_prefix, settings.redis_channel).dead_letters
        self._client: Any = connect(
            settings.redis_url.get_secret_value(),
            self._key,
            tls_verify=settings.redis_tls_verify,
            timeout=settings.redis_timeout,
        )

    def summaries(self) -> list[Summary]:
        """Return what is in the box, in the order received; what is no letter comes first."""
        # By id, since a scan may come by twice.
        found = {
            field: _summary(_text(field), stored) for field, stored in self._client.hscan_iter(self._key)
        }
        return sorted(found.values(), key=lambda letter: (letter.received_at or 0, letter.id))

    def get(self, message_id: str) -> tuple[bytes, DeadLetter | None] | None:
        """Return what is stored, and the letter that it is."""
        stored: bytes | None = self._client.hget(self._key, _field(message_id))
        return None if stored is None else (stored, DeadLetter.read(message_id, stored))

    def replay(self, message_ids: Iterable[str], ingest: Callable[[Delivery], Outcome]) -> Iterator[Replayed]:
        """Take these letters in again, as if they were delivered now; what works leaves the box.

        A letter leaves once Redis has its state, so nothing is lost in between: at worst, the next replay
        finds a duplicate.
        """
        for message_id in message_ids:
            yield self._replay(message_id, ingest)

    def _replay(self, message_id: str, ingest: Callable[[Delivery], Outcome]) -> Replayed:
        found = self.get(message_id)
        if found is None:
            return Replayed(message_id, "missing", "It is not in the box.")
        _, letter = found
        if letter is None:
            return Replayed(message_id, "kept", "It is no letter of the relay's.")
        try:
            outcome = ingest(Delivery(letter.id, letter.received_at // 1000, letter.body.encode()))
        except RelayError as error:
            return Replayed(message_id, "kept", str(error))
        if outcome.outcome == "dead_lettered":
            return Replayed(message_id, "kept", str(outcome.reason))
        self.drop(message_id)
        return Replayed(message_id, outcome.outcome, outcome.session_id or "")

    def drop(self, message_id: str) -> bool:
        """Throw a letter away; return False if it is not there."""
        return bool(self._client.hdel(self._key, _field(message_id)))

    def drop_all(self) -> int:
        """Throw all letters away, and return about how many they were."""
        size: int = self._client.hlen(self._key)
        self._client.delete(self._key)
        return size

    def close(self) -> None:
        self._client.close()


class ReplayStore(SessionStore):
    """Where replayed letters go. What still can't be read stays in the box as it is: written once, and not again once it was dropped."""

    def keep_dead_letter(self, delivery: Delivery, why: Unusable, now_ms: int) -> Outcome:  # noqa: ARG002
        return Outcome("dead_lettered", reason=why.reason)


def _summary(message_id: str, stored: bytes) -> Summary:
    letter = DeadLetter.read(message_id, stored)
    if letter is None:
        return Summary(message_id)
    return Summary(message_id, letter.received_at, letter.reason, letter.detail, len(letter.body.encode()))


def _text(field: bytes) -> str:
    """Any bytes can be a field of the hash; this is also how Python reads them from a command line."""
    return field.decode(errors="surrogateescape")


def _field(message_id: str) -> bytes:
    return message_id.encode(errors="surrogateescape")
