"""Fixtures with Redis, which conftest.py of `integration` and of `system` import.

A redis-server of the tests' own where there is one, and fakeredis' stand-in. Nothing here ever talks to a Redis
that it did not start.
"""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.dev.embedded import EmbeddedRedis, run_stand_in
from support.feeds import KINDS, Feed, OpenFeed, feeds
from support.redis_clients import (
    assert_messages_keep_to_the_schema,
    assert_sessions_and_users_expire,
    client_of,
    emptied,
)
from support.redis_servers import redis_server
from support.relay import Relay, run_relay
from support.spare_redis import SpareRedis

__all__ = [
    "any_client",
    "any_redis",
    "client",
    "feed",
    "lasting_client",
    "now_ms",
    "open_feed",
    "own_client",
    "own_redis",
    "partitioned_relay",
    "partitions",
    "real_client",
    "real_redis",
    "redis_binary",
    "relay",
    "relay_redis",
    "spare_redis",
    "stand_in",
    "start_redis",
]


@pytest.fixture(scope="session")
def redis_binary() -> str:
    binary = shutil.which("redis-server")
    assert binary is not None
    return binary


@pytest.fixture(scope="session")
def real_redis(redis_binary: str) -> Iterator[EmbeddedRedis]:
    """One redis-server for all tests of this process that leave it as it is."""
    with redis_server(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def stand_in() -> Iterator[EmbeddedRedis]:
    with run_stand_in() as server:
        yield server


@pytest.fixture(scope="session")
def any_redis(request: pytest.FixtureRequest) -> EmbeddedRedis:
    """The real one if there is one: for tests of what lies before Redis."""
    name = "stand_in" if shutil.which("redis-server") is None else "real_redis"
    server: EmbeddedRedis = request.getfixturevalue(name)
    return server


@pytest.fixture(params=[pytest.param("real_redis", marks=pytest.mark.real_redis), "stand_in"])
def relay_redis(request: pytest.FixtureRequest) -> EmbeddedRedis:
    """Each of the two, for tests of what the Lua scripts do."""
    server: EmbeddedRedis = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="session")
def lasting_client() -> Iterator[Callable[[EmbeddedRedis], Any]]:
    """One client for each Redis that lasts: to connect takes longer than most tests."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda server: stack.enter_context(client_of(server.url)))


def _emptied(client: Any) -> Iterator[Any]:
    """Yield an empty Redis' client; look at what is in there afterwards."""
    client.flushall()
    yield client
    assert_sessions_and_users_expire(client)
    assert_messages_keep_to_the_schema(client)


@pytest.fixture
def client(relay_redis: EmbeddedRedis, lasting_client: Callable[[EmbeddedRedis], Any]) -> Iterator[Any]:
    """A client of the Redis under test, which is empty at first. Afterwards, what it has is looked at."""
    yield from _emptied(lasting_client(relay_redis))


@pytest.fixture
def any_client(any_redis: EmbeddedRedis, lasting_client: Callable[[EmbeddedRedis], Any]) -> Iterator[Any]:
    """A client of `any_redis`, which is empty at first; `service` and `endpoint` write to it."""
    yield from _emptied(lasting_client(any_redis))


@pytest.fixture
def real_client(real_redis: EmbeddedRedis) -> Iterator[Any]:
    """A client of `real_redis`, which is empty at first and again afterwards: what it has is not looked at."""
    with emptied(real_redis.url) as client:
        yield client


@pytest.fixture
def relay(relay_redis: EmbeddedRedis, client: Any) -> Iterator[Relay]:
    with run_relay(relay_redis.url) as relay:
        yield relay


@pytest.fixture
def now_ms() -> int:
    """When this test began, in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@pytest.fixture(params=[1, 3], ids=["whole", "3 partitions"])
def partitions(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def partitioned_relay(real_redis: EmbeddedRedis, real_client: Any, partitions: int, now_ms: int) -> Iterator[Relay]:
    """One with its data whole, and one with its data divided, whose clock stands still."""
    with run_relay(real_redis.url, now_ms=now_ms, partitions=partitions) as relay:
        yield relay


@pytest.fixture
def start_redis(redis_binary: str) -> Iterator[Callable[..., EmbeddedRedis]]:
    """Start redis-servers for this test alone, which may do with them what it likes."""
    with contextlib.ExitStack() as stack:
        yield lambda *options, **named: stack.enter_context(redis_server(redis_binary, *options, **named))


@pytest.fixture(scope="session")
def spare_redis(redis_binary: str) -> Iterator[SpareRedis]:
    with contextlib.closing(SpareRedis(redis_binary)) as spare:
        yield spare


@pytest.fixture
def own_redis(spare_redis: SpareRedis) -> EmbeddedRedis:
    """A redis-server for this test alone, which may do with it what it likes."""
    return spare_redis.as_new()


@pytest.fixture
def own_client(own_redis: EmbeddedRedis) -> Iterator[Any]:
    with client_of(own_redis.url) as client:
        yield client


@pytest.fixture(params=KINDS)
def open_feed(request: pytest.FixtureRequest) -> Iterator[OpenFeed]:
    """Open a SessionFeed, and in another run of the test an AsyncSessionFeed; they are closed afterwards."""
    with feeds(KINDS[request.param]) as open_feed:
        yield open_feed


@pytest.fixture
def feed(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> Feed:
    """One of each kind, on the Redis of `relay`, which is empty."""
    return open_feed(relay_redis.url)
