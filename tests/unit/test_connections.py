"""How Redis is reached, before anything connects."""

import ssl
from typing import Any

import pytest
from clerk_session_feed.connections import connect, connect_async
from clerk_session_feed.errors import ConfigurationError


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0?nonsense=1",
        "redis://127.0.0.1:6379/0?health_check_interval=soon",
        "rediss://127.0.0.1:6379/0?ssl_cert_reqs=perhaps",
        "http://127.0.0.1:6379/0",
    ],
)
def test_a_url_that_can_not_be_used_is_refused_before_connecting(url: str) -> None:
    for to_connect in (connect, connect_async):
        with pytest.raises(ConfigurationError) as error:
            to_connect(url)

        assert error.value.faults[0].startswith("REDIS_URL: ")
        assert "soon" not in error.value.faults[0]


@pytest.mark.parametrize("make", [connect, connect_async])
@pytest.mark.parametrize("url", ["rediss://127.0.0.1:6379/0", "redis+cluster://h:1,h:2", "redis+sentinel://h:1/main/2"])
def test_what_redis_py_does_not_take_is_named_and_nothing_else(make: Any, url: str) -> None:
    wrong = "health_check_interval=soon&socket_read_size=large"
    with pytest.raises(ConfigurationError, match=r": health_check_interval, socket_read_size: correct it"):
        make(f"{url}?client_name=a&{wrong}&socket_keepalive=true")


@pytest.mark.parametrize("make", [connect, connect_async])
def test_the_oldest_version_of_tls_is_redis_pys_number(make: Any) -> None:
    options = make("rediss://127.0.0.1:1/0?ssl_min_version=TLSv1.3").connection_pool.connection_kwargs
    assert options["ssl_min_version"] == ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize("make", [connect, connect_async])
def test_options_that_are_passed_over_are_told_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        make(f"redis://127.0.0.1:1/0?pool_size=1&timeout_of_{make.__name__}=5s")

    assert [record.getMessage() for record in caplog.records] == [
        f"REDIS_URL has options that mean nothing here, and are passed over: pool_size, timeout_of_{make.__name__}"
    ]


@pytest.mark.parametrize("make", [connect, connect_async])
def test_no_option_of_others_changes_how_the_relay_waits_and_tries_again(make: Any) -> None:
    others = "socket_timeout=60&retry_on_timeout=true&decode_responses=true&protocol=3&max_connections=1"
    pools = [make(f"redis://127.0.0.1:1/0{query}").connection_pool for query in ("", f"?{others}")]
    plain, shared = [
        {name: value for name, value in pool.connection_kwargs.items() if isinstance(value, str | int | float | None)}
        for pool in pools
    ]
    assert plain == shared
    assert pools[0].max_connections == pools[1].max_connections


@pytest.mark.parametrize("make", [connect, connect_async])
def test_a_command_that_waits_has_longer_and_connecting_has_not(make: Any) -> None:
    options = make("redis://127.0.0.1:1/0", timeout=2.0, wait=20.0).connection_pool.connection_kwargs
    assert (options["socket_connect_timeout"], options["socket_timeout"]) == (2.0, 22.0)
