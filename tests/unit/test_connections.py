"""How Redis is reached, before anything connects."""

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
