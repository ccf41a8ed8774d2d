"""A session whose status only a later version knows, as Redis has it after a rollback: whatever ends it, ends it."""

import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from clerk_session_feed import SessionFeed
from support.constants import EXPIRY_KEY, HOUR_MS, NOW_MS, SESSION_KEY, USER_KEY
from support.events import clerk_event, user_event
from support.relay import Relay, make_settings

from service.dev.embedded import EmbeddedRedis
from service.workers.expiry import ExpiryWorker
from service.workers.revoke import order_user

LATER: Final = "on a later version's list"
END_MS: Final = NOW_MS + HOUR_MS


@pytest.fixture
def rolled_back(relay: Relay, client: Any) -> Relay:
    """The relay, over such a state of a live session."""
    relay.take(clerk_event(created_at=NOW_MS - HOUR_MS, expire_at=END_MS), "msg_1")
    written = client.hget(SESSION_KEY, "state").replace('"status":"active"', f'"status":"{LATER}"')
    client.hset(SESSION_KEY, mapping={"status": LATER, "state": written})
    return relay


def let_it_end(relay: Relay, redis_url: str) -> None:
    relay.take(clerk_event("ended", updated_at=NOW_MS), "msg_end")


def delete_user(relay: Relay, redis_url: str) -> None:
    relay.take(user_event("user.deleted"), "msg_end")


def ban_user(relay: Relay, redis_url: str) -> None:
    relay.take(user_event("user.updated"), "msg_end")


def revoke(relay: Relay, redis_url: str) -> None:
    assert [each.fault for each in order_user(relay.store, "user_1", local=True)] == [None]


def expire(relay: Relay, redis_url: str) -> None:
    settings = make_settings(redis_url)
    with contextlib.closing(ExpiryWorker(settings, clock=lambda: (END_MS + 1) / 1000)) as worker:
        worker.run_once()


@pytest.mark.parametrize(
    ("end", "status"),
    [(let_it_end, "ended"), (delete_user, "removed"), (ban_user, "revoked"), (revoke, "revoked"), (expire, "expired")],
)
def test_whatever_ends_a_session_ends_it(
    rolled_back: Relay, relay_redis: EmbeddedRedis, client: Any, end: Callable[[Relay, str], None], status: str
) -> None:
    end(rolled_back, relay_redis.url)

    state = json.loads(client.hget(SESSION_KEY, "state"))
    assert (state["session"]["status"], state["previous_status"], state["session"]["live"]) == (status, LATER, False)
    assert (client.zcard(USER_KEY), client.zcard(EXPIRY_KEY)) == (0, 0)
    client.flushall()  # the schema knows the statuses of this version only


def test_it_stays_until_something_newer_comes_and_consumers_read_it(
    rolled_back: Relay, relay_redis: EmbeddedRedis, client: Any
) -> None:
    late = rolled_back.take(clerk_event("pending", updated_at=NOW_MS - HOUR_MS), "msg_0")

    assert late.outcome == "stale"
    with SessionFeed.from_url(relay_redis.url) as feed:
        update = feed.get("sess_1")
    assert update is not None
    assert update.session.status == LATER
    client.flushall()
