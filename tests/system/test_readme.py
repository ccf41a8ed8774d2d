"""The documents keep their promises: snippets run, messages, keys and rights are the real ones.

What can be checked without a Redis is in tests/unit/test_docs.py.
"""

import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from clerk_session_feed import SessionFeed
from support.children import started
from support.clock import eventually
from support.documents import CONTRACT, README, REDIS, fenced, section, table
from support.events import user_event
from support.redis_clients import client_of, subscribed
from support.relay import make_settings
from support.services import ServiceProcess, run_plain_wsgi

from service.dev import simulator
from service.dev.embedded import EmbeddedRedis

# The subscribers


CONSUMER, FASTAPI = fenced(README, "python")


def test_the_python_consumer_drops_who_is_signed_out(
    service: ServiceProcess, any_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """And leaves a session alone that is live. It need not be there in time: it misses nothing."""
    created = simulator.sample()
    ids = created["data"]["id"], created["data"]["user_id"]
    with started([sys.executable, "-c", CONSUMER], tmp_path, {"REDIS_URL": any_redis.url}) as program:
        for body in (created, simulator.sample("session.revoked", session_id=ids[0], user_id=ids[1])):
            assert service.deliver(body).json()["outcome"] == "applied"
        program.wait_for(r"drop.*\n")
        assert program.lines() == [f"drop {ids[1]} {ids[0]} revoked"]


def test_the_fastapi_snippet_refuses_a_session_that_has_ended(
    service: ServiceProcess, any_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    created = simulator.sample()
    ids = created["data"]["id"], created["data"]["user_id"]
    (tmp_path / "snippet.py").write_text(FASTAPI)
    command = [sys.executable, "-m", "uvicorn", "--port", "0", "snippet:app"]
    with started(command, tmp_path, {"REDIS_URL": any_redis.url}) as program:
        url = program.wait_for(r"http://\S+", stream="stderr")[0]

        def status() -> int:
            return httpx.get(f"{url}/me", params={"session_id": ids[0]}).status_code

        assert service.deliver(created).json()["outcome"] == "applied"
        assert status() == 200
        revoked = simulator.sample("session.revoked", session_id=ids[0], user_id=ids[1])
        assert service.deliver(revoked).json()["outcome"] == "applied"
        eventually(lambda: status() == 401)


# The message


@pytest.fixture
def example() -> Any:
    (text,) = fenced(CONTRACT, "json")
    return json.loads(text)


@pytest.fixture
def published(service: ServiceProcess, any_client: Any) -> Any:
    """What is published of a session that ended, as in the example."""
    created = simulator.sample()
    ended = simulator.sample("session.ended", session_id=created["data"]["id"])
    with subscribed(any_client, "clerk:sessions") as subscriber:
        for body in (created, ended):
            assert service.deliver(body).json()["outcome"] == "applied"
        return json.loads(subscriber.rest()[-1][1])


def test_the_message_has_the_keys_that_are_published_in_their_order(example: Any, published: Any) -> None:
    assert list(example) == list(published)
    assert list(example["event"]) == list(published["event"])
    assert list(example["session"]) == list(published["session"])


def types(value: Any) -> Any:
    return {key: types(member) for key, member in value.items()} if isinstance(value, dict) else type(value)


def test_the_message_has_values_of_the_types_that_are_published(example: Any, published: Any) -> None:
    assert types(example) == types(published)


# Keys and rights in Redis


def test_each_key_in_the_table_is_there_with_its_type(service: ServiceProcess, any_client: Any) -> None:
    live, unusable = simulator.sample(), simulator.sample()
    unusable["data"]["status"] = "asleep"
    for body in (live, unusable):
        assert service.deliver(body).is_success
    ids = {"<session id>": live["data"]["id"], "<user id>": live["data"]["user_id"]}
    redis_types = {"hash": "hash", "sorted set": "zset", "stream": "stream"}
    promised = {}
    for key, type_, _ in table(CONTRACT, "5. Keys and channels"):
        name = re.sub("<.*?>", lambda match: ids[match[0]], key.strip("`"))
        promised[name] = redis_types[type_]
    assert {key: any_client.type(key) for key in any_client.scan_iter("*")} == promised


def test_the_fields_named_of_a_session_are_those_it_has(service: ServiceProcess, any_client: Any) -> None:
    answer = service.deliver(simulator.sample()).json()
    (holds,) = [holds for key, _, holds in table(CONTRACT, "5. Keys and channels") if ":session:" in key]
    named = set(re.findall("`([a-z_]+)`", holds))
    held = set(any_client.hgetall(f"{{clerk}}:session:{answer['session_id']}"))
    assert named == {field for field in held if not field.startswith("_")}


def acl_line() -> str:
    (line,) = re.findall(r"^ACL SETUSER relay .*$", section(REDIS, "Rights"), re.MULTILINE)
    return str(line)


@pytest.fixture
def restricted(own_redis: EmbeddedRedis, own_client: Any) -> str:
    """Return the URL of a Redis for the relay's user."""
    own_client.execute_command(*acl_line().split())
    return own_redis.url.replace("//", "//relay:password@")


@pytest.mark.parametrize("replicas", ["0", "1"])
def test_the_user_that_it_makes_suffices_for_serve(
    replicas: str, restricted: str, own_redis: EmbeddedRedis, own_client: Any, start_redis: Callable[..., Any]
) -> None:
    if replicas == "1":
        own_client.config_set("repl-diskless-sync-delay", 0)
        start_redis("--replicaof", "127.0.0.1", str(own_redis.port))
        eventually(lambda: own_client.info("replication").get("slave0", {}).get("state") == "online")
    created = simulator.sample()
    session_id = created["data"]["id"]
    now_ms = created["data"]["updated_at"]
    moved = simulator.sample(session_id=session_id, now_ms=now_ms + 1000)  # of another user
    ended = simulator.sample("session.ended", session_id=session_id, now_ms=now_ms + 2000)
    unusable = simulator.sample("session.ended")
    unusable["data"]["id"] = None
    other, late = simulator.sample(user_id="user_gone"), simulator.sample(user_id="user_gone")
    deleted = user_event(user_id="user_gone", occurred_at=now_ms)
    deliveries: list[tuple[str, dict[str, Any], str]] = [
        ("msg_1", created, "applied"),
        ("msg_1", created, "duplicate"),
        ("msg_2", moved, "applied"),
        ("msg_3", ended, "applied"),
        ("msg_4", created, "stale"),
        ("msg_4", created, "duplicate"),
        ("msg_5", unusable, "dead_lettered"),
        ("msg_5", unusable, "dead_lettered"),
        ("msg_6", simulator.sample("user.updated"), "ignored"),
        ("msg_7", other, "applied"),
        ("msg_8", deleted, "applied"),
        ("msg_8", deleted, "duplicate"),
        ("msg_9", late, "applied"),
    ]
    settings = make_settings(restricted, redis_min_replicas=int(replicas), redis_timeout=10)
    with run_plain_wsgi(settings) as service:
        answers = [service.deliver(body, message_id).json() for message_id, body, _ in deliveries]
        ready = service.http.get("/readyz")
    assert [answer.get("outcome") for answer in answers] == [outcome for _, _, outcome in deliveries]
    assert ready.status_code == 200
    refused = [entry for entry in own_client.acl_log() if entry["username"] == "relay"]
    assert refused == []


def test_the_user_that_it_makes_suffices_to_undo_what_failed(restricted: str, own_client: Any) -> None:
    created = simulator.sample()
    own_client.set(f"{{clerk}}:user:{created['data']['user_id']}:sessions", "not a sorted set")
    before = set(own_client.scan_iter("*"))
    with run_plain_wsgi(make_settings(restricted)) as service:
        assert service.deliver(created).status_code == 503
    assert own_client.xlen("{clerk}:events") == 0
    assert set(own_client.scan_iter("*")) - before <= {"{clerk}:events"}
    assert [entry for entry in own_client.acl_log() if entry["username"] == "relay"] == []


def test_the_user_that_it_makes_may_not_read_other_keys(restricted: str, own_client: Any) -> None:
    own_client.set("other", "secret")
    with client_of(restricted) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.hgetall("other")


def test_the_reader_that_it_makes_suffices_for_every_method_of_a_feed(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    (line,) = re.findall(r"^ACL SETUSER reader .*$", section(REDIS, "Rights"), re.MULTILINE)
    own_client.execute_command(*line.split())
    session = simulator.sample()["data"]
    with run_plain_wsgi(make_settings(own_redis.url)) as service:
        service.deliver(simulator.sample(session_id=session["id"], user_id=session["user_id"]))
        with SessionFeed.from_url(own_redis.url.replace("//", "//reader:password@")) as feed:
            assert feed.is_live(session["id"])
            for updates in (
                [feed.get(session["id"])],
                feed.live_sessions(session["user_id"]),
                feed.history(session["id"]),
                feed.follow(),
                feed.follow("0"),
                feed.follow("0-0"),
                feed.consume("mirror", "worker-1"),
                feed.consume("other", "worker-1", after="0-0"),
            ):
                update = next(iter(updates))
                assert update is not None
                assert update.session.id == session["id"]
            published = iter(feed.subscribe(session["user_id"]))
            with ThreadPoolExecutor() as threads:
                first = threads.submit(next, published)
                channel = f"clerk:sessions:user:{session['user_id']}"
                eventually(lambda: dict(own_client.pubsub_numsub(channel))[channel])
                service.deliver(simulator.sample("session.ended", session_id=session["id"], user_id=session["user_id"]))
                assert first.result(30).session.status == "ended"
            # The next one acknowledges the one before.
            taken = feed.consume("other", "worker-1")
            assert [next(taken).session.status for _ in range(2)] == ["active", "ended"]
    assert [entry for entry in own_client.acl_log() if entry["username"] == "reader"] == []


def test_the_reader_that_it_makes_may_not_write(own_redis: EmbeddedRedis, own_client: Any) -> None:
    (line,) = re.findall(r"^ACL SETUSER reader .*$", section(REDIS, "Rights"), re.MULTILINE)
    own_client.execute_command(*line.split())
    with client_of(own_redis.url.replace("//", "//reader:password@")) as client:
        for write in (("HSET", "{clerk}:session:sess_1", "live", "1"), ("XADD", "{clerk}:events", "*", "a", "b")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*write)
