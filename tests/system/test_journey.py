"""From Clerk to a subscriber: a signed POST goes in, and whoever listens learns who is signed in.

The whole service in a process of its own, with nothing but HTTP and Redis around it.
"""

import json
import time
from typing import Any

import pytest
from support.clerks_own import examples, needs_clerks_own
from support.redis_clients import subscribed
from support.services import ServiceProcess

from service.dev import simulator

SESSION_KEY = "{clerk}:session:sess_1"
USER_KEY = "{clerk}:user:user_1:sessions"


def event(type_: str, seconds_ago: int) -> dict[str, Any]:
    now_ms = time.time_ns() // 1_000_000 - seconds_ago * 1000
    return simulator.sample(type_, session_id="sess_1", user_id="user_1", now_ms=now_ms)


def test_a_user_signs_in_and_out(service: ServiceProcess, any_client: Any) -> None:
    signed_in, signed_out = event("session.created", 2), event("session.ended", 1)
    with subscribed(any_client, "clerk:sessions", "clerk:sessions:user:user_1") as subscriber:
        # Given a subscriber, a sign-in is heard on both channels, and can be looked up
        assert service.deliver(signed_in, "msg_1").json()["outcome"] == "applied"
        heard = dict([subscriber.next(), subscriber.next()])
        assert set(heard) == {"clerk:sessions", "clerk:sessions:user:user_1"}
        [message] = {*heard.values()}
        assert json.loads(message)["session"]["live"] is True
        assert any_client.hget(SESSION_KEY, "state") == message
        assert any_client.zrange(USER_KEY, 0, -1) == ["sess_1"]

        # The same delivery again is heard by nobody; the end is heard
        assert service.deliver(signed_in, "msg_1").json()["outcome"] == "duplicate"
        assert service.deliver(signed_out, "msg_2").json()["outcome"] == "applied"
        message = subscriber.next()[1]
        assert json.loads(message)["previous_status"] == "active"
        assert json.loads(message)["session"]["status"] == "ended"
        assert any_client.zrange(USER_KEY, 0, -1) == []

        # What comes too late, or from someone else, is heard by nobody
        subscriber.rest()
        assert service.deliver(event("session.pending", 3), "msg_0").json()["outcome"] == "stale"
        body = simulator.encode(event("session.created", 0))
        forged = simulator.sign(simulator.new_secret(), body)
        assert service.post(body, forged).json()["code"] == "invalid_signature"
        assert subscriber.rest() == []

    # And the stream has all that was genuine, in the order in which it came
    entries = [entry for _, entry in any_client.xrange("{clerk}:events")]
    assert [entry["outcome"] for entry in entries] == ["applied", "applied", "stale"]


@pytest.mark.parametrize("order", [["created", "ended"], ["ended", "created"]])
def test_a_sign_in_and_out_at_the_same_time_is_ended_in_both_orders(
    service: ServiceProcess, any_client: Any, order: list[str]
) -> None:
    at_once = {kind: event(f"session.{kind}", 1) for kind in order}
    at_once["ended"]["timestamp"] = at_once["created"]["timestamp"]
    for name in ("updated_at", "created_at"):
        at_once["ended"]["data"][name] = at_once["created"]["data"][name]

    for kind in order:
        assert service.deliver(at_once[kind]).status_code == 200

    assert any_client.hget(SESSION_KEY, "status") == "ended"
    assert not any_client.exists(USER_KEY)


# Clerk's own examples, where they are at hand


@needs_clerks_own
@pytest.mark.parametrize("kind", ["created", "pending", "ended", "removed", "revoked"])
def test_each_of_clerks_examples_is_published(service: ServiceProcess, any_client: Any, kind: str) -> None:
    example = examples()[f"session.{kind}"]
    data = example["data"]
    with subscribed(any_client, "clerk:sessions") as subscriber:
        response = service.deliver(example, "msg_1")
        assert response.json()["outcome"] == "applied"
        message = json.loads(subscriber.next()[1])

    assert message == {
        "schema_version": 1,
        "cursor": response.json()["cursor"],
        "revision": 1,
        "previous_status": None,
        "event": {
            "id": "msg_1",
            "type": f"session.{kind}",
            "occurred_at": 1_716_883_200_000,  # seconds, in the example
            "instance_id": example["instance_id"],
            "source": "clerk",
        },
        "session": {
            **{name: value for name, value in data.items() if name != "user"},
            "status": {"created": "active"}.get(kind, kind),
            "live": False,  # all of them have been over since 2024
            "tasks": [],
        },
    }


@needs_clerks_own
def test_clerks_pending_example_is_not_live_though_its_time_is_not_up(service: ServiceProcess, any_client: Any) -> None:
    example = examples()["session.pending"]
    example["data"]["expire_at"] = int(time.time() * 1000) + 86_400_000

    assert service.deliver(example).json()["outcome"] == "applied"

    session_id, user_id = example["data"]["id"], example["data"]["user_id"]
    assert any_client.hget(f"{{clerk}}:session:{session_id}", "live") == "0"
    assert not any_client.exists(f"{{clerk}}:user:{user_id}:sessions")


@needs_clerks_own
@pytest.mark.parametrize("order", [["created", "ended"], ["ended", "created"]])
def test_clerks_examples_of_a_sign_in_and_out_end_in_both_orders(
    service: ServiceProcess, any_client: Any, order: list[str]
) -> None:
    bodies = {kind: examples()[f"session.{kind}"] for kind in order}
    assert bodies["created"]["data"]["updated_at"] == bodies["ended"]["data"]["updated_at"]

    outcomes = [service.deliver(bodies[kind], f"msg_{kind}").json()["outcome"] for kind in order]

    assert outcomes == ["applied", "applied" if order[-1] == "ended" else "stale"]
    session_id = bodies["ended"]["data"]["id"]
    assert any_client.hget(f"{{clerk}}:session:{session_id}", "status") == "ended"
