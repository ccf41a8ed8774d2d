"""Sends signed deliveries over HTTP, as Svix does: for the commands `send` and `dev`."""

import contextlib
import dataclasses
import random
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import httpx

from service.dev import simulator

WEBHOOK_PATH: Final = "/webhooks/clerk"
"""As `service.app` has it; to import that here would load Flask for each `send`."""
TIMEOUT_SECONDS: Final = 15
"""What Svix waits for a response."""


@dataclasses.dataclass(frozen=True, slots=True)
class OutgoingDelivery:
    """A delivery to be sent. Its message id stays the same however often it is sent."""

    body: bytes
    type: str
    message_id: str = dataclasses.field(default_factory=lambda: simulator.new_id("msg"))


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """What the relay responded to one attempt."""

    delivery: OutgoingDelivery
    status: int
    """0 if there was no response."""
    body: dict[str, Any]

    @property
    def outcome(self) -> str | None:
        """What became of the delivery, if the relay took it."""
        return _text(self.body.get("outcome"))

    @property
    def code(self) -> str | None:
        """The code of the problem, if the relay did not take it."""
        return _text(self.body.get("code"))

    @property
    def summary(self) -> str:
        """The outcome, the code of the problem, or what went wrong."""
        return self.outcome or self.code or _text(self.body.get("detail")) or ""


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def one_life(types: Sequence[str], values: dict[str, Any]) -> list[OutgoingDelivery]:
    """Return samples of these types about one session, a second apart, the last one now.

    Each has these values, by dotted path, as in `simulator.with_values`, which may raise KeyError.
    """
    first_ms = time.time_ns() // 1_000_000 - 1000 * (len(types) - 1)
    session = simulator.sample(now_ms=first_ms)["data"]
    constant = ("client_id", "created_at", "expire_at", "abandon_at")
    same = {f"data.{name}": session[name] for name in constant}
    deliveries = []
    for number, type_ in enumerate(types):
        now_ms = first_ms + 1000 * number
        event = simulator.sample(type_, session_id=session["id"], user_id=session["user_id"], now_ms=now_ms)
        event = simulator.with_values(event, (same if type_.startswith("session.") else {}) | values)
        deliveries.append(OutgoingDelivery(simulator.encode(event), str(event["type"])))
    return deliveries


def send(
    deliveries: Sequence[OutgoingDelivery],
    *,
    url: str,
    secret: str | None,
    duplicate: bool = False,
    shuffle: bool = False,
    rate: float | None = None,
) -> Iterator[Response]:
    """Post deliveries one by one, and yield the responses.

    Args:
        deliveries: What is sent; each is asked for when its turn comes.
        url: Where to.
        secret: `whsec_…`; None signs each with a new one, which the receiver can't know.
        duplicate: Send each of them twice.
        shuffle: Send them in random order.
        rate: Deliveries per second at most.
    """
    copies = 2 if duplicate else 1
    count = len(deliveries) * copies
    order: Sequence[int] = range(count)
    if shuffle:
        random.shuffle(order := [*order])
    started = time.monotonic()
    # A proxy that the environment names does not reach this machine.
    local = re.match(r"https?://(127\.0\.0\.1|localhost|\[::1\])(:|/|$)", url) is not None
    # Like Svix, it takes a redirect as a failure.
    with httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=not local) as client:
        for number, place in enumerate(order):
            delivery = deliveries[place // copies]
            if rate:
                time.sleep(max(0.0, started + number / rate - time.monotonic()))
            headers = simulator.sign(secret or simulator.new_secret(), delivery.body, message_id=delivery.message_id)
            try:
                response = client.post(url, content=delivery.body, headers=headers)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                yield Response(delivery, 0, {"detail": f"no response: {error}"})
            else:
                yield Response(delivery, response.status_code, _json(response))


def _json(response: httpx.Response) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(body := response.json(), dict):
            return body
    return {"detail": "the response is not a JSON object; is this the relay?"}
