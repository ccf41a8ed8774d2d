"""Fixtures of the tests over HTTP: the service under its own server, and under a plain WSGI server."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.constants import NO_REDIS
from support.load import relay_service
from support.raw_http import assert_a_good_delivery_passes
from support.redis_fixtures import *  # noqa: F403  # pytest looks for fixtures among the names of a conftest
from support.redis_servers import DurableRedis, durable_redis
from support.relay import make_settings
from support.services import Endpoint, ServiceProcess, run_plain_wsgi, run_service

from service.dev.embedded import EmbeddedRedis


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
def service(shared_service: ServiceProcess, any_client: Any) -> Iterator[ServiceProcess]:
    """Whatever a test sends it: afterwards a good delivery goes through."""
    yield shared_service
    assert_a_good_delivery_passes(shared_service.port)


@pytest.fixture(params=["shared_service", "shared_plain_wsgi"], ids=["serve", "plain WSGI"])
def endpoint(request: pytest.FixtureRequest, any_client: Any) -> Iterator[Endpoint]:
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
