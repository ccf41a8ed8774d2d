"""How Redis is reached, before anything connects."""

from typing import Any

import pytest
from clerk_session_feed.connections import connect, connect_async
from clerk_session_feed.errors import ConfigurationError


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0?nonsense=1",
        "redis://127.0.0.1:6379/0?socket_timeout=soon",
        "rediss://127.0.0.1:6379/0?ssl_cert_reqs=perhaps",
        "http://127.0.0.1:6379/0",
    ],
)
def test_a_url_that_can_not_be_used_is_refused_before_connecting(url: str) -> None:
    for to_connect in (connect, connect_async):
        with pytest.raises(ConfigurationError) as error:
            to_connect(url)

        assert error.value.faults[0].startswith("REDIS_URL: ")


@pytest.mark.parametrize("make", [connect, connect_async])
def test_a_command_that_waits_has_longer_and_connecting_has_not(make: Any) -> None:
    options = make("redis://127.0.0.1:1/0", timeout=2.0, wait=20.0).connection_pool.connection_kwargs
    assert (options["socket_connect_timeout"], options["socket_timeout"]) == (2.0, 22.0)
