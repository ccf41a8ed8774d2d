"""Connections to Redis, built in one place."""

from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, SSLConnection, parse_url
from redis.retry import Retry

from service.errors import ConfigurationError


def connect(
    url: str,
    *,
    tls_verify: bool = True,
    timeout: float | None = 2.0,
    on_connect: Callable[[redis.connection.Connection], None] | None = None,
) -> redis.Redis:
    """Return a client for a redis://, rediss:// or unix:// URL; it connects when it is first used.

    timeout: seconds, for connecting and for one command; None waits for ever (for blocking reads).
    on_connect: is called with each new connection, after its handshake.
    Raises ConfigurationError if the URL can't be used.
    """
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        options |= {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout or 5.0,
            # A script sent again by the client would be a second delivery: the sender does the retrying.
            "retry": Retry(NoBackoff(), 0),
            # RESP2 needs no HELLO, and no further word on connecting than what the URL asks for.
            "protocol": 2,
            "driver_info": None,
            # A URL shared with other programs may ask for text.
            "decode_responses": False,
            "encoding": "utf-8",
        }
        if not tls_verify and options.get("connection_class") is SSLConnection:
            options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        if on_connect is not None:

            def greet(connection: redis.connection.Connection) -> None:
                connection.on_connect()  # type: ignore[no-untyped-call]
                on_connect(connection)

            options["redis_connect_func"] = greet
        pool = ConnectionPool(**options)
        # Connects to nothing yet, but refuses options that it does not know.
        pool.connection_class(**pool.connection_kwargs)
    except Exception:  # noqa: BLE001  # options are redis-py's own affair, and so is how it refuses them
        # The error's own text may quote a part of a password.
        raise ConfigurationError(
            ["REDIS_URL: redis-py does not know an option in it, or its value"]
        ) from None
    return redis.Redis.from_pool(pool)  # closing it closes the connections
