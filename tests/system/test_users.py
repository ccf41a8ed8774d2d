"""Users who go, over HTTP: the responses, the log, and many sessions of one user within the time of a response.

docs/contract.md, section 10.
"""

import collections
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import pytest
from support.clock import eventually, in_time
from support.constants import DAY_MS, EVENTS_KEY, GONE_KEY, HOUR_MS, PENDING_KEY, PROC, SESSION_KEY, USER_KEY
from support.events import clerk_event, user_event
from support.redis_clients import client_of
from support.redis_servers import frozen
from support.relay import run_relay
from support.services import Endpoint, ServiceProcess, run_service
from support.signing import signed

from service.dev.embedded import EmbeddedRedis

BLOCKED_MICROSECONDS: Final = 10_000
"""How long Redis may be kept from serving others."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def session(number: int, status: str = "active", **values: Any) -> dict[str, Any]:
    """Return the body of a delivery about a session that began an hour ago."""
    began = {"created_at": now_ms() - HOUR_MS, "updated_at": now_ms() - HOUR_MS, "expire_at": now_ms() + DAY_MS}
    return clerk_event(status, **{"session_id": f"sess_{number}"} | began | values)


def of_another_user() -> dict[str, Any]:
    return session(0, session_id="sess_other", user_id="user_2", updated_at=now_ms())


def gone(type_: str = "user.deleted") -> dict[str, Any]:
    event = user_event(type_, occurred_at=now_ms())
    event["data"]["updated_at"] = now_ms()
    return event


# The responses


@pytest.mark.parametrize(("type_", "status"), [("user.deleted", "removed"), ("user.updated", "revoked")])
def test_the_response_tells_how_many_sessions_ended(
    endpoint: Endpoint, any_client: Any, type_: str, status: str
) -> None:
    event = gone(type_)
    for number in range(3):
        endpoint.deliver(session(number))

    first = endpoint.deliver(event, "msg_end")
    second = endpoint.deliver(event, "msg_end")
    late = endpoint.deliver(session(4, "pending"))

    assert (first.status_code, first.json()) == (200, {"outcome": "applied", "sessions": 3})
    assert (second.status_code, second.json()) == (200, {"outcome": "duplicate"})
    assert (late.status_code, late.json()["outcome"]) == (200, "applied")
    assert {any_client.hget(key, "status") for key in any_client.scan_iter("{clerk}:session:*")} == {status}


def test_a_user_without_an_id_is_a_dead_letter(endpoint: Endpoint) -> None:
    response = endpoint.deliver(user_event(id=None))

    expected = {"outcome": "dead_lettered", "reason": "invalid_user_id"}
    assert (response.status_code, response.json()) == (202, expected)


def test_without_redis_only_what_bans_nobody_is_taken(endpoint_without_redis: Endpoint) -> None:
    answers = [
        endpoint_without_redis.deliver(event)
        for event in (user_event("user.updated", banned=False), gone("user.updated"), gone("user.deleted"))
    ]

    assert [answer.status_code for answer in answers] == [200, 503, 503]
    assert answers[0].json() == {"outcome": "ignored"}
    assert [answer.json()["code"] for answer in answers[1:]] == ["store_unavailable"] * 2
    assert answers[1].headers["retry-after"] == "5"


def test_the_log_has_the_user_the_type_the_outcome_and_how_many_sessions(service: ServiceProcess) -> None:
    service.deliver(session(1))
    event = gone()
    service.deliver(event, "msg_end_logged")
    service.deliver(event, "msg_end_logged")

    lines = [line for line in service.log_lines() if line.get("message_id") == "msg_end_logged"]
    said = [{name: line.get(name) for name in ("outcome", "type", "user_id", "session_id")} for line in lines]
    common = {"type": "user.deleted", "user_id": "user_1", "session_id": None}
    assert said == [{"outcome": "applied"} | common, {"outcome": "duplicate"} | common]
    assert lines[0]["sessions"] == 1
    assert "sessions" not in lines[1]


# Many sessions of one user

MANY: Final = 10_000
ENOUGH: Final = 3_000
"""So many that something can happen while they end."""


def fill(redis_url: str, count: int) -> None:
    with run_relay(redis_url, now_ms=now_ms(), stream_maxlen=3 * count) as relay:
        assert relay.take_all((session(number), f"msg_{number}") for number in range(count)) == {"applied"}


def statuses(client: Any) -> collections.Counter[str]:
    pipeline = client.pipeline(transaction=False)
    for key in client.scan_iter("{clerk}:session:sess_*", count=1000):
        pipeline.hget(key, "status")
    return collections.Counter(pipeline.execute())


def ends_told(client: Any) -> collections.Counter[str]:
    """Return how often the stream tells of the end of each session."""
    entries = (json.loads(fields["message"]) for _, fields in client.xrange(EVENTS_KEY))
    return collections.Counter(each["session"]["id"] for each in entries if each["event"]["type"] == "user.deleted")


def await_some(client: Any) -> None:
    """Return when some sessions have ended, but not nearly all."""
    eventually(lambda: client.zcard(USER_KEY) < ENOUGH - 100)


def deliver_as_the_sender_does(service: ServiceProcess, client: Any) -> None:
    """Deliver the end until it is taken, which takes more than one attempt if the machine is busy enough."""

    def is_taken() -> bool:
        left = client.zcard(USER_KEY)
        with in_time(5):
            answer = service.deliver(gone(), "msg_end")
        if answer.status_code == 503:
            return False
        said = answer.json()
        assert said["outcome"] == "applied"
        assert 0 < said["sessions"] <= left  # what the last attempt had sent already is done, too, but not counted
        return True

    eventually(is_taken, within=60)


@contextlib.contextmanager
def crowded(redis_url: str, count: int) -> Iterator[ServiceProcess]:
    """Run a service that knows so many sessions of one user."""
    fill(redis_url, count)
    with run_service(redis_url, STREAM_MAXLEN=str(3 * count)) as service:
        assert service.deliver(of_another_user()).is_success
        yield service


def processor_seconds(service: ServiceProcess) -> float:
    times = (PROC / str(service.process.pid) / "stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not PROC.exists(), reason="needs /proc for the time that a process took")
def test_ten_thousand_sessions_end_within_the_time_of_a_response_and_block_nobody(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    answers: list[httpx.Response] = []

    with crowded(own_redis.url, MANY) as service:
        own_client.config_set("slowlog-log-slower-than", 5 * BLOCKED_MICROSECONDS)
        own_client.slowlog_reset()
        own_client.config_resetstat()
        before = processor_seconds(service)
        with ThreadPoolExecutor(1) as pool, Endpoint(service.port).http as others:
            ending = pool.submit(deliver_as_the_sender_does, service, own_client)
            while not ending.done():
                body = json.dumps(of_another_user()).encode()
                with in_time(5):
                    answers.append(others.post("/webhooks/clerk", content=body, headers=signed(body)))
        ending.result()
        of_service = processor_seconds(service) - before

    assert statuses(own_client) == {"removed": MANY, "active": 1}
    assert not own_client.exists(USER_KEY, PENDING_KEY)
    assert {each.status_code for each in answers} == {200}
    # The limits are of a machine that does nothing else, so what counts is the processor's time: of Redis and of the
    # service, which wait for each other.
    commands = own_client.info("commandstats")
    of_redis = sum(commands[f"cmdstat_{name}"]["usec"] for name in ("evalsha", "hmget", "zscan")) / 1_000_000
    assert of_redis + of_service < 4
    # Redis counts what a busy machine takes from it: so not the worst of its times counts, but the mean.
    assert commands["cmdstat_evalsha"]["usec_per_call"] < BLOCKED_MICROSECONDS / 10
    assert len(own_client.slowlog_get(100)) < 10


def test_what_a_service_that_is_killed_left_open_ends_with_the_next_attempt(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    fill(own_redis.url, ENOUGH)
    with run_service(own_redis.url, STREAM_MAXLEN=str(3 * ENOUGH)) as service, ThreadPoolExecutor(1) as pool:
        ending = pool.submit(service.deliver, gone(), "msg_end")
        await_some(own_client)
        service.process.kill()
        assert isinstance(ending.exception(timeout=30), httpx.TransportError)
    left = own_client.zcard(USER_KEY)
    assert 0 < left < ENOUGH
    assert own_client.exists(GONE_KEY)

    with run_service(own_redis.url, STREAM_MAXLEN=str(3 * ENOUGH)) as service:
        assert service.deliver(session(ENOUGH)).json()["outcome"] == "applied"  # and ended
        deliver_as_the_sender_does(service, own_client)
        assert service.deliver(gone(), "msg_end").json() == {"outcome": "duplicate"}

    assert statuses(own_client) == {"removed": ENOUGH + 1}
    assert set(ends_told(own_client).values()) == {1}


def test_a_redis_that_hangs_meanwhile_is_a_503_and_the_next_attempt_goes_on(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    with crowded(own_redis.url, ENOUGH) as service, ThreadPoolExecutor(1) as pool:
        ending = pool.submit(service.deliver, gone(), "msg_end")
        await_some(own_client)
        with frozen(own_redis), in_time(10):
            answer = ending.result(timeout=30)

        # What Redis had received when it hung, it does now.
        eventually(lambda: service.http.get("/readyz").status_code == 200)
        left = own_client.zcard(USER_KEY)
        assert 0 < left < ENOUGH
        deliver_as_the_sender_does(service, own_client)

    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert statuses(own_client) == {"removed": ENOUGH, "active": 1}
    assert set(ends_told(own_client).values()) == {1}


# Replicas


def test_an_end_counts_only_when_the_replicas_have_it(
    own_redis: EmbeddedRedis, own_client: Any, start_redis: Callable[..., EmbeddedRedis]
) -> None:
    own_client.config_set("repl-diskless-sync-delay", 0)
    replica = start_redis("--replicaof", "127.0.0.1", str(own_redis.port))
    eventually(lambda: own_client.info("replication").get("slave0", {}).get("state") == "online", within=30)
    with run_service(own_redis.url, REDIS_MIN_REPLICAS="1", REDIS_TIMEOUT="2") as service:
        assert service.deliver(session(1)).json()["outcome"] == "applied"
        with frozen(replica):
            assert service.deliver(gone(), "msg_end").status_code == 503
        eventually(lambda: service.deliver(gone(), "msg_end").status_code == 200, within=30)
        with client_of(replica.url) as client:
            assert client.hget(SESSION_KEY, "status") == "removed"
            assert "msg_end" in client.hget(GONE_KEY, "done")
        with frozen(replica):
            assert service.deliver(gone(), "msg_end").status_code == 503
        eventually(lambda: service.deliver(gone(), "msg_end").status_code == 200, within=30)
        assert service.deliver(gone(), "msg_end").json() == {"outcome": "duplicate"}
