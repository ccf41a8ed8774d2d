"""Redis for the tests: a redis-server of their own where there is one, and fakeredis' stand-in.

Nothing here ever talks to a Redis that it did not start.
"""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.constants import NO_REDIS
from support.feeds import KINDS, OpenFeed, feeds
from support.load import relay_service
from support.raw_http import assert_a_good_delivery_passes
from support.redis_clients import (
    assert_messages_keep_to_the_schema,
    assert_sessions_and_users_expire,
    client_of,
)
from support.redis_servers import DurableRedis, durable_redis, redis_server
from support.relay import Relay, make_settings, run_relay
from support.services import Endpoint, ServiceProcess, run_plain_wsgi, run_service

from service.config import Settings
from service.dev.embedded import EmbeddedRedis, run_stand_in

INSTALL_REDIS = "install it, for example with `apt-get install redis-server` or `brew install redis`"


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true" and shutil.which("redis-server") is None:
        raise pytest.UsageError(f"CI=true, but there is no redis-server on PATH: {INSTALL_REDIS}.")
    # Where this is set, each of the many processes that tests start would compile the whole service anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Settings of whoever runs the tests are none of theirs.
    for name in [*Settings.model_fields, "clerk_webhook_secret"]:
        os.environ.pop(name.upper(), None)
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "redis_binary" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_redis)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # One place for all of them, so that pytest's summary has one line about it.
    if item.get_closest_marker("real_redis") and shutil.which("redis-server") is None:
        pytest.skip(f"needs a redis-server on PATH: {INSTALL_REDIS}")


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


@pytest.fixture
def client(relay_redis: EmbeddedRedis, lasting_client: Callable[[EmbeddedRedis], Any]) -> Iterator[Any]:
    """A client of the Redis under test, which is empty at first. Afterwards, what it holds is looked at."""
    client = lasting_client(relay_redis)
    client.flushall()
    yield client
    assert_sessions_and_users_expire(client)
    assert_messages_keep_to_the_schema(client)


@pytest.fixture
def relay(relay_redis: EmbeddedRedis, client: Any) -> Iterator[Relay]:
    with run_relay(relay_redis.url) as relay:
        yield relay


@pytest.fixture
def start_redis(redis_binary: str) -> Iterator[Callable[..., EmbeddedRedis]]:
    """Start redis-servers for this test alone, which may do with them what it likes."""
    with contextlib.ExitStack() as stack:
        yield lambda *options, **named: stack.enter_context(redis_server(redis_binary, *options, **named))


@pytest.fixture
def own_redis(start_redis: Callable[..., EmbeddedRedis]) -> EmbeddedRedis:
    return start_redis()


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
def http_client(any_redis: EmbeddedRedis, lasting_client: Callable[[EmbeddedRedis], Any]) -> Iterator[Any]:
    """A client of the Redis that `service` and `endpoint` write to; empty at first."""
    client = lasting_client(any_redis)
    client.flushall()
    yield client
    assert_sessions_and_users_expire(client)
    assert_messages_keep_to_the_schema(client)


@pytest.fixture(scope="session")
def shared_service(any_redis: EmbeddedRedis) -> Iterator[ServiceProcess]:
    """The service under its production server, for all tests of this process that leave it as it is."""
    with run_service(any_redis.url) as service:
        yield service


@pytest.fixture(scope="session")
def shared_plain_wsgi(any_redis: EmbeddedRedis) -> Iterator[Endpoint]:
    with run_plain_wsgi(make_settings(any_redis.url)) as endpoint:
        yield endpoint


@pytest.fixture
def service(shared_service: ServiceProcess, http_client: Any) -> Iterator[ServiceProcess]:
    """Whatever a test sends it: afterwards a good delivery goes through."""
    yield shared_service
    assert_a_good_delivery_passes(shared_service.port)


@pytest.fixture(params=["shared_service", "shared_plain_wsgi"], ids=["serve", "plain WSGI"])
def endpoint(request: pytest.FixtureRequest, http_client: Any) -> Iterator[Endpoint]:
    """The service under its production server, and its application under any WSGI server."""
    endpoint: Endpoint = request.getfixturevalue(request.param)
    yield endpoint
    assert_a_good_delivery_passes(endpoint.port)


@pytest.fixture(scope="session")
def durable_server(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DurableRedis]:
    """A Redis for the tests that do it harm, and mend it."""
    with durable_redis(redis_binary, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def durable_service(durable_server: DurableRedis) -> Iterator[ServiceProcess]:
    """The service as in production, with two workers, on that Redis."""
    with relay_service(durable_server.url) as service:
        yield service


@pytest.fixture(scope="session")
def service_without_redis() -> Iterator[ServiceProcess]:
    with run_service(NO_REDIS) as service:
        yield service


@pytest.fixture(scope="session")
def plain_wsgi_without_redis() -> Iterator[Endpoint]:
    with run_plain_wsgi(make_settings(NO_REDIS)) as endpoint:
        yield endpoint


@pytest.fixture(params=["service_without_redis", "plain_wsgi_without_redis"], ids=["serve", "plain WSGI"])
def endpoint_without_redis(request: pytest.FixtureRequest) -> Endpoint:
    endpoint: Endpoint = request.getfixturevalue(request.param)
    return endpoint


@pytest.fixture
def node_modules(tmp_path: Path) -> None:
    """Put ioredis where Node looks for what an ES module in tmp_path imports."""
    if shutil.which("node") is None:
        pytest.skip("there is no node on PATH")
    folders = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    for folder in [Path(sys.prefix) / "node" / "node_modules", *folders]:
        if (folder / "ioredis").is_dir():
            (tmp_path / "node_modules").symlink_to(folder.resolve())
            return
    reason = "there is no ioredis: `make test` installs it, where there is npm"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
