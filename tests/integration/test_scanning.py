"""What is found by looking through keys, and through the sets of a user."""

import asyncio
import contextlib
import gc
from typing import Any

import pytest
from support.constants import NOW_MS, USER_KEY
from support.events import clerk_event
from support.network import unused_port
from support.redis_clients import client_of, monitored
from support.relay import make_settings, run_relay

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError
from service.store.partitions import PartitionedStore
from service.store.scanning import indexed_sessions, stored_sessions
from service.store.sessions import SessionStore
from service.waiting import Greenlets
from service.workers.revoke import order_impersonated
from service.workers.sweep import open_sessions


def take_twelve(relay: Any) -> set[str]:
    for n in range(12):
        relay.take(clerk_event(session_id=f"sess_{n}", user_id=f"user_{n}"), f"msg_{n}")
    return {f"sess_{n}" for n in range(12)}


def swept(store: SessionStore) -> list[str]:
    return [each.session_id for batch in open_sessions(store) for each in batch.sessions]


@pytest.mark.parametrize("look", [swept, order_impersonated], ids=["every open session", "those with an actor"])
def test_keys_are_looked_through_once_for_all_partitions_of_a_server(real_redis: EmbeddedRedis, look: Any) -> None:
    with client_of(real_redis.url) as client, run_relay(real_redis.url, partitions=16) as relay:
        client.flushall()
        take_twelve(relay)
        with monitored(client) as commands:
            list(look(relay.store))

    assert [each.split()[:2] for each in commands if each.startswith("SCAN")] == [["SCAN", "0"]]


@pytest.mark.parametrize("partitions", [1, 3])
def test_every_open_session_is_found_and_none_of_another_prefix(
    relay_redis: EmbeddedRedis, client: Any, partitions: int
) -> None:
    with run_relay(relay_redis.url, redis_key_prefix="{axx}b", partitions=partitions) as relay:
        relay.take(clerk_event(session_id="sess_other"), "msg_1")
    with run_relay(relay_redis.url, redis_key_prefix="{a*}[b]", partitions=partitions) as relay:
        ids = take_twelve(relay)
        client.hset(relay.store.partitions[0].keys.session("no id"), mapping={"status": "active", "user_id": "user_1"})

        assert sorted(swept(relay.store)) == sorted(ids)
        parts = [batch.scanned for batch in stored_sessions(relay.store)]
        client.delete(relay.store.partitions[0].keys.session("no id"))

    assert parts == sorted(parts)
    assert parts[-1] == 1


def test_what_stays_in_the_set_of_a_user_is_found_whatever_leaves_it(real_redis: EmbeddedRedis) -> None:
    with client_of(real_redis.url) as client, run_relay(real_redis.url) as relay:
        client.flushall()
        client.zadd(USER_KEY, {f"sess_{n}": NOW_MS + n for n in range(500)})
        client.expire(USER_KEY, 100)
        found, before = [], ["of nobody"]
        for chunk in indexed_sessions(relay.store.partitions[0], "user_1"):
            found += chunk
            client.zrem(USER_KEY, *before)
            before = chunk

    assert len(found) == 500
    assert set(found) == {f"sess_{n}" for n in range(500)}


def test_an_error_of_redis_is_raised_on_the_event_loop_and_logged_by_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def look(store: PartitionedStore) -> None:
        loop = asyncio.get_running_loop()
        store.bind_loop(loop)
        with contextlib.suppress(StoreUnavailableError):
            await Greenlets(loop).run(loop.time() + 4, lambda: [*indexed_sessions(store.partitions[0], "user_1")])
        await asyncio.to_thread(store.close)

    with unused_port() as port:
        asyncio.run(look(PartitionedStore(make_settings(f"redis://127.0.0.1:{port}/0"))))
    gc.collect()  # asyncio logs the errors of futures that nobody asked

    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
