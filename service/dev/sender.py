"""Sends signed deliveries over HTTP, as Svix would: for `send` and `dev`."""

import dataclasses
import random
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from service.dev import simulator


@dataclasses.dataclass(frozen=True, slots=True)
class Letter:
    """A delivery to be: its body, and the id that stays the same however often it is sent."""

    body: bytes
    type: str
    message_id: str = dataclasses.field(default_factory=lambda: simulator.new_id("msg"))


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    letter: Letter
    status: int
    """0 if there was no answer."""
    body: dict[str, Any]

    @property
    def said(self) -> str:
        """The outcome, or the code of the problem."""
        return str(self.body.get("outcome") or self.body.get("code") or self.body.get("detail") or "")


def one_life(types: Sequence[str], values: dict[str, Any]) -> list[Letter]:
    """Return samples of these types about one session, a second apart, the last one now.

    values: set in each by dotted path. Raises KeyError for a path that leads nowhere.
    """
    now_ms = time.time_ns() // 1_000_000
    born_ms = now_ms - 1000 * (len(types) - 1)
    session = simulator.sample(now_ms=born_ms)["data"]
    lasting = {
        f"data.{name}": session[name] for name in ("client_id", "created_at", "expire_at", "abandon_at")
    }
    letters = []
    for number, type_ in enumerate(types):
        event = simulator.sample(
            type_, session_id=session["id"], user_id=session["user_id"], now_ms=born_ms + 1000 * number
        )
        event = simulator.with_values(event, (lasting if type_.startswith("session.") else {}) | values)
        letters.append(Letter(simulator.encode(event), str(event["type"])))
    return letters


def deliver(
    letters: Sequence[Letter],
    *,
    url: str,
    secret: str,
    duplicate: bool = False,
    shuffle: bool = False,
    forge: bool = False,
    rate: float | None = None,
) -> Iterator[Answer]:
    """Post the letters one by one and yield the answers.

    rate: deliveries per second at most. forge: sign with a secret that nobody knows.
    """
    queue = [letter for letter in letters for _ in range(2 if duplicate else 1)]
    if shuffle:
        random.shuffle(queue)
    begun = time.monotonic()
    # Svix waits 15 s, and takes a 3xx as failure. No proxy of the environment leads to this machine.
    local = re.match(r"https?://(127\.0\.0\.1|localhost|\[::1\])(:|/|$)", url) is not None
    with httpx.Client(timeout=15, follow_redirects=False, trust_env=not local) as client:
        for number, letter in enumerate(queue):
            if rate:
                time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            key = simulator.new_secret() if forge else secret
            headers = simulator.sign(key, letter.body, message_id=letter.message_id)
            try:
                response = client.post(url, content=letter.body, headers=headers)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                yield Answer(letter, 0, {"detail": f"no answer: {error}"})
                continue
            yield Answer(letter, response.status_code, _json(response))


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    return (
        body if isinstance(body, dict) else {"detail": "the answer is not a JSON object; is this the relay?"}
    )
