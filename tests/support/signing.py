"""The signer of the tests. No line of it is of the svix package or of the service."""

import base64
import hmac
import secrets
import time

from support.constants import SECRET


def signature(message_id: str, timestamp: str, body: bytes, secret: str = SECRET) -> str:
    """Sign any bytes (https://github.com/standard-webhooks/standard-webhooks, "Signature scheme")."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def signed(
    body: bytes, message_id: str | None = None, *, at: float | None = None, family: str = "svix", secret: str = SECRET
) -> dict[str, str]:
    """Return the three headers of a delivery. message_id: None is a new one. at: Unix seconds; None is now."""
    message_id = f"msg_{secrets.token_hex(12)}" if message_id is None else message_id
    timestamp = str(int(time.time() if at is None else at))
    return {
        f"{family}-id": message_id,
        f"{family}-timestamp": timestamp,
        f"{family}-signature": signature(message_id, timestamp, body, secret),
    }
