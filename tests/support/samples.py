"""What the tests of the pure modules share: sample deliveries, their signatures, and ways to read them."""

import base64
import datetime
import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import orjson
from hypothesis import settings
from hypothesis import strategies as st

from service.clerk.events import SessionEvent, parse
from service.clerk.normalize import normalize
from service.models import Ignored, SessionChange, Unusable

PAYLOADS: Final = Path(__file__).parents[1] / "payloads"
CLERK: Final = Path(__file__).parents[3] / "shared" / "clerk"
"""Clerk's own schema and examples; not a part of the project, so it may be missing."""

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET: Final = "whsec_" + base64.b64encode(bytes(range(64))).decode()
MESSAGE_ID: Final = "msg_2relaySample"
NOW_S: Final = 1_795_422_761
NOW_MS: Final = NOW_S * 1000
DAY_MS: Final = 86_400_000

ABSENT: Final = mock.sentinel.ABSENT
"""A value that stands for a field left out."""

patient: Final = settings(deadline=None)
"""For hypothesis: a slow machine is no failure."""


def payload(name: str) -> Any:
    return json.loads((PAYLOADS / f"{name}.json").read_bytes())


# Whatever comes in.

json_values: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
EVENT_PATHS: Final = (
    *("object", "type", "instance_id", "timestamp", "event_attributes", "event_attributes.http_request"),
    *(f"data.{name}" for name in payload("session.created")["data"]),
    *(f"data.latest_activity.{name}" for name in payload("session.created")["data"]["latest_activity"]),
    *("data.tasks", "data"),
)


def event(values: dict[str, Any] | None = None, sample: str = "session.created") -> Any:
    """Return a sample with values set by dotted path; ABSENT removes one."""
    body = payload(sample)
    for path, value in (values or {}).items():
        *parents, last = path.split(".")
        target = body
        for name in parents:
            target = target[name]
        if value is ABSENT:
            target.pop(last, None)
        else:
            target[last] = value
    return body


def read(body: object, *, with_request: bool = True) -> tuple[SessionEvent | Ignored | Unusable, list[str]]:
    """Parse the body (bytes, or what is to be written as JSON); also return what was read as null."""
    nulled: list[str] = []
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse(raw, nulled.append, with_request=with_request), nulled


def read_event(body: object) -> SessionEvent:
    parsed, _ = read(body)
    assert isinstance(parsed, SessionEvent), parsed
    return parsed


def change(
    body: object, *, message_id: str = MESSAGE_ID, now_ms: int = NOW_MS, publish_http_request: bool = False
) -> SessionChange:
    made = try_change(body, message_id=message_id, now_ms=now_ms, publish_http_request=publish_http_request)
    assert isinstance(made, SessionChange), made
    return made


def try_change(
    body: object, *, message_id: str = MESSAGE_ID, now_ms: int = NOW_MS, publish_http_request: bool = False
) -> SessionChange | Unusable:
    parsed, _ = read(body, with_request=publish_http_request)
    assert not isinstance(parsed, Ignored)
    if isinstance(parsed, Unusable):
        return parsed
    return normalize(parsed, message_id=message_id, now_ms=now_ms)


def reason(body: object) -> str | None:
    """Return why the body becomes a dead letter; None if it does not."""
    made = try_change(body)
    return made.reason if isinstance(made, Unusable) else None


def published(made: SessionChange) -> dict[str, Any]:
    """Return the part of the message that Python writes, read again by a strict parser."""
    return dict(orjson.loads(orjson.dumps({"event": made.event, "session": made.session})))


def sign(
    body: bytes,
    *,
    secret: str = SECRET,
    message_id: str = MESSAGE_ID,
    at: int = NOW_S,
    family: str = "svix",
) -> dict[str, str]:
    """Return the headers of a delivery, signed by the book: no line of this is svix's or the service's."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{at}.".encode() + body, hashlib.sha256)
    return {
        f"{family}-id": message_id,
        f"{family}-timestamp": str(at),
        f"{family}-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


@contextmanager
def clock_of_svix(now: float) -> Iterator[None]:
    """The svix package also checks the time, with a clock of its own; let it show `now` (Unix seconds)."""

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Frozen":
            return cls.fromtimestamp(now, tz)

    with mock.patch("standardwebhooks.webhooks.datetime", Frozen):
        yield
