"""What the relay publishes and stores keeps to the schemas."""

import json
from typing import Any

import pytest
from support.constants import EVENTS_KEY, NOW_MS, SESSION_KEY
from support.events import clerk_event
from support.redis_clients import subscribed
from support.relay import Relay, run_relay
from support.schemas import PUBLISHED, faults, faults_stored

from service.dev.embedded import EmbeddedRedis


@pytest.mark.parametrize("publish_http_request", [False, True])
def test_it_accepts_what_the_relay_publishes_holds_and_streams(
    relay_redis: EmbeddedRedis, client: Any, publish_http_request: bool
) -> None:
    """Besides, `client`, `any_client` and `Subscriber` do this to whatever any test makes the relay say."""
    settings = {"omit_fields": "updated_at,tasks,latest_activity.city", "publish_http_request": publish_http_request}
    statuses = ("pending", "active", "pending", "ended", "revoked", "expired")
    with run_relay(relay_redis.url, **settings) as relay, subscribed(client, "clerk:sessions") as subscriber:
        for number, status in enumerate(statuses):
            message_id = f"msg_{number}"
            relay.take(clerk_event(status, updated_at=NOW_MS - 1000 * abs(number - 1)), message_id)
        messages = [json.loads(text) for _, text in subscriber.rest()]

    assert [one["revision"] for one in messages] == list(range(1, len(messages) + 1))
    assert [faults(PUBLISHED, one) for one in messages] == [[]] * len(messages)
    assert faults_stored(client) == []
    assert {fields["outcome"] for _, fields in client.xrange(EVENTS_KEY)} == {"applied", "stale"}


def test_the_check_of_what_redis_holds_notices(client: Any, relay: Relay) -> None:
    relay.take(clerk_event(), "msg_1")
    [fields] = [fields for _, fields in client.xrange(EVENTS_KEY)]
    state = client.hget(SESSION_KEY, "state")
    client.hset(SESSION_KEY, "state", fields["message"])
    of_another_outcome = client.xadd(EVENTS_KEY, fields | {"outcome": "new"})
    with_a_cursor = client.xadd(EVENTS_KEY, fields | {"message": state})

    places = {fault.split(": ")[0] for fault in faults_stored(client)}

    client.flushall()
    assert places == {SESSION_KEY, f"{EVENTS_KEY} {of_another_outcome}", f"{EVENTS_KEY} {with_a_cursor}"}
