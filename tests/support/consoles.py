"""A console over a Redis with a day's sessions in it: for tests in a browser, and for the screenshots of the docs."""

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any, Final

from service.app.console.actions import Changes
from service.app.console.local import Local, serving
from service.config import StoreSettings, load
from service.dev import simulator
from support.constants import DAY_MS
from support.relay import Relay, run_relay

PLACES: Final = (
    ("Chrome", "143.0.7", "desktop", "Oslo", "NO"),
    ("Firefox", "145.0", "Macintosh", "Bergen", "NO"),
    ("Safari", "26.1", "iPhone", "Lisboa", "PT"),
    ("Edge", "143.0", "desktop", "Kraków", "PL"),
    ("Chrome", "142.0", "Android", "São Paulo", "BR"),
)


def fill(redis_url: str, lives: int = 24) -> None:
    """Apply what a few users do in an hour, through the relay itself; the same for each call, times and places aside."""
    chance = random.Random(18)
    now_ms = time.time_ns() // 1_000_000
    with run_relay(redis_url, now_ms=now_ms) as relay:
        for number in range(lives):
            _live(relay, chance, now_ms - (lives - number) * 150_000)
        broken = _event(chance, "session.created", now_ms - 60_000, "user_2abandonedcart", status="dormant")
        relay.take(broken, f"msg_{_id(chance)}")
        nameless = _event(chance, "session.ended", now_ms - 30_000, "user_2abandonedcart")
        nameless["data"]["user_id"] = None
        relay.take(nameless, f"msg_{_id(chance)}")


def _live(relay: Relay, chance: random.Random, began_ms: int) -> None:
    user_id, session_id = f"user_{_id(chance)}", f"sess_{_id(chance)}"
    place = dict(
        zip(("browser_name", "browser_version", "device_type", "city", "country"), chance.choice(PLACES), strict=True)
    )
    types = chance.choice(
        [
            ["session.created"],
            ["session.created"],
            ["session.pending"],
            ["session.pending", "session.created"],
            ["session.created", "session.ended"],
            ["session.created", "session.revoked", "session.created"],
            ["session.created", "session.removed"],
        ]
    )
    lasting = {
        "client_id": f"client_{_id(chance)}",
        "created_at": began_ms,
        "expire_at": began_ms + 7 * DAY_MS,
        "abandon_at": began_ms + 28 * DAY_MS,
    }
    for step, kind in enumerate(types):
        is_late = step == 2  # an older event that comes last
        at_ms = began_ms + (1000 if is_late else 45_000 * step)
        event = _event(chance, kind, at_ms, user_id, session_id, **lasting)
        event["data"]["latest_activity"] |= place
        if kind == "session.created" and chance.random() < 0.1:
            event["data"]["actor"] = {"sub": "user_2supportteam"}
        relay.take(event, f"msg_{_id(chance)}")


def _event(
    chance: random.Random, kind: str, at_ms: int, user_id: str, session_id: str | None = None, **data: Any
) -> dict[str, Any]:
    event = simulator.sample(kind, session_id=session_id or f"sess_{_id(chance)}", user_id=user_id, now_ms=at_ms)
    event["data"] |= data
    return event


def _id(chance: random.Random) -> str:
    return "2" + "".join(chance.choices("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=26))


class Deliveries:
    """Sends events to a relay in this process, and waits until they are applied."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.last_id = ""
        """The message id of the last one."""

    def send(self, kind: str = "session.created", **values: Any) -> dict[str, Any]:
        """Apply a sample; `values` are of its session, like `id` and `user_id`."""
        event = simulator.sample(kind, session_id=values.get("id"), user_id=values.get("user_id"))
        event["data"] |= values
        self._relay.now_ms = time.time_ns() // 1_000_000
        self.last_id = simulator.new_id("msg")
        self._relay.take(event, self.last_id)
        session: dict[str, Any] = event["data"]
        return session


def add_sessions(client: Any, count: int) -> None:
    """Store more sessions, `sess_0000000` and so on, in a second: copies of `sess_0`, by a script on the server."""
    script = """
        local fields = redis.call('HGETALL', KEYS[1])
        for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
            local id = string.format('sess_%07d', number)
            redis.call('HSET', '{clerk}:session:' .. id, unpack(fields))
            redis.call('EXPIRE', '{clerk}:session:' .. id, 100000)
            redis.call('ZADD', KEYS[2], 4e12 + number, id)
        end
    """
    add = client.register_script(script)
    for start in range(0, count, 2_000):
        add(keys=["{clerk}:session:sess_0", "{clerk}:expiry"], args=[start, min(count, start + 2_000) - 1])


@contextlib.contextmanager
def console(redis_url: str, *, changes: Changes | None = None, port: int = 0) -> Iterator[Local]:
    """Serve the console in this process, as `session-relay console` does."""
    settings = load(StoreSettings, _env_file=None, redis_url=redis_url)
    with serving(settings, port, who="tester", changes=changes) as local:
        yield local
