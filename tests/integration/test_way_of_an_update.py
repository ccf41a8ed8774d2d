"""The modules that an update passes on its way from Redis to the consumer's loop."""

import sys
from types import FrameType
from typing import Any

from clerk_session_feed import SessionFeed
from support.events import clerk_event
from support.relay import Relay

from service.dev.embedded import EmbeddedRedis

HELPERS = {"connections", "cursors", "fast_json", "keys", "layout", "lenient_json", "models", "redis_url"}
"""They are called by those on the way, and hand the update on to nobody."""


def test_an_update_passes_at_most_five_modules(relay_redis: EmbeddedRedis, client: Any, relay: Relay) -> None:
    seen: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        package, module, *_ = [*str(frame.f_globals.get("__name__")).split("."), ""]
        if event == "call" and package == "clerk_session_feed" and module not in {*seen, *HELPERS}:
            seen.append(module)

    with SessionFeed.from_url(relay_redis.url) as feed:
        sys.setprofile(profile)
        try:
            updates = feed.follow("0-0")
            relay.take(clerk_event(), "msg_1")
            assert next(updates).session.id == "sess_1"
        finally:
            sys.setprofile(None)

    assert sorted(seen) == ["base", "feed", "stream", "transport", "updates"]
