"""How Redis is reached, before anything connects."""

import sys
import threading

import pytest
from clerk_session_feed import connections
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


def test_several_may_ask_for_the_primary_at_once() -> None:
    """Each asks the next host first; the list of them is never empty on the way."""
    hosts = [("127.0.0.1", 1)]
    options = {"socket_timeout": 1, "socket_connect_timeout": 1}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    errors: list[BaseException] = []

    def ask() -> None:
        for _ in range(100):
            try:
                connections._locate(hosts, options, lambda *_: ("127.0.0.1", 2))
            except BaseException as error:  # noqa: BLE001  # the test looks at it
                errors.append(error)

    try:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
