"""The signature of a delivery. Does no I/O.

`svix` (https://docs.svix.com/receiving/verifying-payloads/how-manual) raises `ValueError`, `binascii.Error`
and `UnicodeDecodeError` on malformed input, so malformed headers are refused before it is called.
"""

import re
import time
from collections.abc import Iterable
from typing import Final, Protocol

from clerk_session_feed.models import ID
from svix.webhooks import Webhook, WebhookVerificationError

from service import errors
from service.models import Delivery

TOLERANCE_SECONDS: Final = 300
"""Seconds that a timestamp may differ from the time here, as Svix' own libraries have it."""
TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")
_V1_ENTRY: Final = re.compile(r"v1,[A-Za-z0-9+/]{43}=")
"""`v1,` and the base64 of the 32 bytes of an HMAC-SHA256."""


class Headers(Protocol):
    """A request's headers: a dict with names in lower case, or Flask's `request.headers`."""

    def get(self, name: str, /) -> str | None:
        """Return the header with this name, in lower case."""


class Verifier:
    """Accepts deliveries that are signed with one of its secrets; several allow for rotation."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Take secrets as Clerk shows them (`whsec_…`), validated by the settings."""
        self._webhooks = [Webhook(secret) for secret in secrets]

    def verify(self, headers: Headers, body: bytes, now: float | None = None) -> Delivery:
        """Check the signature over the raw bytes of a body.

        Args:
            headers: of the request; only HEADERS are read.
            body: before any decoding.
            now: Unix seconds; the current time if left out.

        Raises:
            SignatureError: The signature is missing, malformed, too old or wrong. Nothing else is raised.
        """
        family, names = _FAMILIES[0] if any(map(headers.get, _FAMILIES[0][1])) else _FAMILIES[1]
        message_id, timestamp, signature = (headers.get(name) or "" for name in names)
        if not (message_id and timestamp and signature):
            missing = [name for name in names if not headers.get(name)]
            either = f" (or {', '.join(names)})" if len(missing) == len(names) else ""  # Clerk sends svix-…
            named = _FAMILIES[0][1] if either else missing
            raise errors.MissingSignatureError(f"Missing: {', '.join(named)}{either}.")

        if not ID.fullmatch(message_id):
            raise errors.MalformedSignatureError(f"{family}-id is not 1 to 128 of A-Z a-z 0-9 _ -.")
        if not TIMESTAMP.fullmatch(timestamp):
            raise errors.MalformedSignatureError(f"{family}-timestamp is not 1 to 12 digits.")
        entries = [entry for entry in signature.split(" ") if _V1_ENTRY.fullmatch(entry)]
        if not entries:
            raise errors.MalformedSignatureError(f"{family}-signature has no `v1,` entry with the base64 of 32 bytes.")

        sent_at = int(timestamp)
        if abs((time.time() if now is None else now) - sent_at) > TOLERANCE_SECONDS:
            raise errors.TimestampOutOfToleranceError(
                f"{family}-timestamp is more than {TOLERANCE_SECONDS} seconds away from the time here."
            )
        well_formed = {"svix-id": message_id, "svix-timestamp": timestamp, "svix-signature": " ".join(entries)}
        for webhook in self._webhooks:
            try:
                webhook.verify(body, well_formed)
            except (WebhookVerificationError, ValueError):
                continue
            return Delivery(message_id, sent_at, body)
        raise errors.InvalidSignatureError("None of its signatures was made with a signing secret that is set here.")


_FAMILIES: Final = tuple(
    (family, tuple(f"{family}-{part}" for part in ("id", "timestamp", "signature"))) for family in ("svix", "webhook")
)
HEADERS: Final = (*_FAMILIES[0][1], *_FAMILIES[1][1])
"""The headers that `verify` reads. If both families are there, the `svix-` one counts."""
