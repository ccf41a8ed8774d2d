"""Every key and channel in Redis, with its type. The prefix's braces put all keys into one cluster slot."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    prefix: str = "{clerk}"
    channel: str = "clerk:sessions"
    """Pub/sub: gets every applied message."""

    def session(self, session_id: str) -> str:
        """Hash: state, status, live, user_id, revision, cursor; `_…` is bookkeeping. Has a TTL."""
        return f"{self.prefix}:session:{session_id}"

    def user_sessions(self, user_id: str) -> str:
        """Sorted set: ids of the user's live sessions, scored by expire_at (ms; +inf). Has a TTL."""
        return f"{self.prefix}:user:{user_id}:sessions"

    @property
    def events(self) -> str:
        """Stream: every session event applied or stale, once, in the order taken. Trimmed by length."""
        return f"{self.prefix}:events"

    @property
    def expiry(self) -> str:
        """Sorted set: ids of open sessions, scored by expire_at (ms)."""
        return f"{self.prefix}:expiry"

    @property
    def dead_letters(self) -> str:
        """Hash: message id to the delivery that could not be read, as JSON. Bounded by DEAD_LETTER_MAX."""
        return f"{self.prefix}:dead-letters"

    @property
    def probe(self) -> str:
        """Never exists: the readiness check pushes to it only if it does."""
        return f"{self.prefix}:probe"

    def user_channel(self, user_id: str) -> str:
        """Pub/sub: gets the applied messages of one user."""
        return f"{self.channel}:user:{user_id}"
