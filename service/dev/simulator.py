"""Builds events as Clerk does and signs them as Svix does: for `send`, `dev` and the tests."""

import base64
import copy
import hmac
import json
import secrets
import string
import time
from typing import Any, Final

from clerk_session_feed.models import STATUSES

_WEEK_MS: Final = 7 * 86_400_000
_IP: Final = "192.0.2.44"
_ALPHABET: Final = string.ascii_letters + string.digits


def new_id(prefix: str) -> str:
    """Return an id as Clerk and Svix make them: the prefix and 27 letters and digits."""
    return f"{prefix}_{''.join(secrets.choice(_ALPHABET) for _ in range(27))}"


def new_secret() -> str:
    """Return a signing secret: `whsec_` and the base64 of 24 bytes."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"


def sample(
    type_: str = "session.created",
    *,
    session_id: str | None = None,
    user_id: str | None = None,
    now_ms: int | None = None,
) -> dict[str, Any]:
    """Return an event as Clerk sends it: about a session, with its user in it; of other types, about a user.

    Ids that are left out are made up. It happened at `now_ms` (Unix milliseconds), or now.
    """
    now_ms = now_ms or time.time_ns() // 1_000_000
    user_id = user_id or new_id("user")
    data: dict[str, Any] = {
        "object": "session",
        "id": session_id or new_id("sess"),
        "user_id": user_id,
        "user": new_user(user_id, now_ms),
        "client_id": new_id("client"),
        "actor": None,
        "status": status if (status := type_.partition(".")[2]) in STATUSES else "active",
        "last_active_organization_id": None,
        "last_active_at": now_ms,
        "latest_activity": {
            "object": "session_activity",
            "id": new_id("sess_activity"),
            "device_type": "Macintosh",
            "is_mobile": False,
            "browser_name": "Firefox",
            "browser_version": "145.0",
            "ip_address": _IP,
            "city": "Bergen",
            "country": "NO",
        },
        "expire_at": now_ms + _WEEK_MS,
        "abandon_at": now_ms + 4 * _WEEK_MS,
        "updated_at": now_ms,
        "created_at": now_ms,
    }
    if type_ == "session.pending":
        data["tasks"] = [{"key": "choose-organization"}]
    if not type_.startswith("session."):
        data = new_user(user_id, now_ms)
    return {
        "object": "event",
        "type": type_,
        "instance_id": "ins_2simulatedSimulatedSimulated",
        "timestamp": now_ms,
        "event_attributes": {"http_request": {"client_ip": _IP, "user_agent": "Mozilla/5.0 (simulated)"}},
        "data": data,
    }


def with_values(event: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an event with values set by dotted path, like `data.latest_activity.city`.

    Raises:
        KeyError: A path leads through something that is no object.
    """
    event = copy.deepcopy(event)
    for path, value in values.items():
        *parents, last = path.split(".")
        target: Any = event
        for name in parents:
            target = target.setdefault(name, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise KeyError(path)
        target[last] = value
    return event


def encode(event: dict[str, Any]) -> bytes:
    """Return an event as JSON, whatever `with_values` put in: lone surrogates, NaN, any integer."""
    return json.dumps(event, separators=(",", ":")).encode()


def sign(secret: str, body: bytes, *, message_id: str | None = None, at: float | None = None) -> dict[str, str]:
    """Return the headers of a delivery that is signed with a `whsec_…` secret, `at` a time in Unix seconds.

    A message id that is left out is made up; a time that is left out is now.
    """
    message_id = message_id or new_id("msg")
    sent_at = int(time.time() if at is None else at)
    # By hand (https://docs.svix.com/receiving/verifying-payloads/how-manual): the svix package signs text
    # only, and tests also send bodies that are not UTF-8, to see that they are refused.
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{sent_at}.".encode() + body, "sha256")
    return {
        "content-type": "application/json",
        "user-agent": "Svix-Webhooks/1.0 (simulated; clerk-session-relay)",
        "svix-id": message_id,
        "svix-timestamp": str(sent_at),
        "svix-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def new_user(user_id: str, now_ms: int) -> dict[str, Any]:
    """Return a user, with personal data that the relay must not keep. `now_ms`: Unix milliseconds."""
    address_id = new_id("idn")
    address = {"object": "email_address", "id": address_id, "email_address": "sunniva@example.com"}
    return {
        "object": "user",
        "id": user_id,
        "first_name": "Sunniva",
        "last_name": "Example",
        "primary_email_address_id": address_id,
        "email_addresses": [address],
        "public_metadata": {},
        "private_metadata": {"plan": "never published"},
        "unsafe_metadata": {},
        "last_sign_in_at": now_ms,
        "updated_at": now_ms,
        "created_at": now_ms - _WEEK_MS,
    }
