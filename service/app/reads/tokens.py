"""Tokens for browsers: each shows the events of one user, or of one session, for some minutes.

They are signed, not stored, so that every process with the same READ_TOKEN takes them, and READ_TOKEN itself can't be
worked out from one. A token is made with the first of several READ_TOKENs and taken with any: for a rotation, put
the new one in front, and remove the old one an hour later.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from clerk_session_feed.models import ID
from clerk_session_feed.updates import now_ms
from itsdangerous import BadData, URLSafeSerializer

LONGEST: Final = 1_024
"""Characters of a token that is looked at; ours have less than 400."""
_PURPOSE: Final = b"clerk-session-relay: events token 1"
"""So that what is signed for another purpose is no token."""


class Grant(NamedTuple):
    """What a token shows."""

    user_id: str | None
    session_id: str | None
    expires_at_ms: int
    """Unix milliseconds."""


class EventTokens:
    """Makes tokens, and reads them."""

    def __init__(self, read_tokens: Sequence[str]) -> None:
        """read_tokens: those of READ_TOKEN, one at least."""
        self._serializer = URLSafeSerializer(
            [*reversed(read_tokens)],  # it signs with the last one
            salt=_PURPOSE,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def make(self, grant: Grant) -> str:
        """Return a token; it has letters, digits, hyphens, underscores and dots."""
        token: str | bytes = self._serializer.dumps(list(grant))
        return token if isinstance(token, str) else token.decode()

    def read(self, token: str) -> Grant | None:
        """Return what a token shows; None if it is none of ours, or has expired."""
        if len(token) > LONGEST:
            return None
        try:
            signed: Any = self._serializer.loads(token)
            grant = Grant(*signed)
        except (BadData, TypeError, ValueError):
            return None
        return grant if grant.expires_at_ms > now_ms() else None


def is_id(value: object) -> bool:
    """Tell whether a value of JSON is an id of a session or a user."""
    return isinstance(value, str) and ID.fullmatch(value) is not None
