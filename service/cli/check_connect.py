"""How `check`, `tail` and `sessions` reach Redis: by a connection of their own to the server that has a key."""

import time
from collections.abc import Iterator
from typing import Any

import redis
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys

from service.config import RedisSettings


def keys_of(settings: RedisSettings) -> Keys:
    """Return the names of the keys and channels that these settings stand for."""
    return Keys(settings.redis_key_prefix, settings.redis_channel)


def client_at(settings: RedisSettings, key: str) -> Any:
    """Return a client for the server that has a key. Typed Any: redis-py's replies are unions of everything."""
    return connections.connect(
        settings.redis_url.get_secret_value(), key, tls_verify=settings.redis_tls_verify, timeout=settings.redis_timeout
    )


def partitions_by_client(settings: RedisSettings) -> Iterator[tuple[Any, list[Keys]]]:
    """Yield a client for each slot, and the partitions that it can serve: all, unless Redis is a cluster."""
    url = settings.redis_url.get_secret_value()
    slots: dict[int, list[Keys]] = {}
    for part in keys_of(settings).split(settings.partitions):
        slots.setdefault(connections.slot(url, part.events), []).append(part)
    for parts in slots.values():
        with client_at(settings, parts[0].events) as client:
            yield client, parts


def connection_of(client: Any) -> Any:
    """Connect, and return the connection, which stays the client's. What fails then is about no command."""
    connection = client.connection_pool.get_connection()
    client.connection_pool.release(connection)
    return connection


def run(client: Any, *words: str | int) -> Any:
    """Run a command that may be refused. The next one gets another connection then: the stand-in closes this one."""
    try:
        return client.execute_command(*words)
    except redis.ResponseError:
        client.connection_pool.disconnect()
        raise


def clock_ms(client: Any) -> float:
    """Return the time by the clock of Redis, in Unix milliseconds; by this machine's, if TIME is refused."""
    try:
        seconds, microseconds = run(client, "TIME")
    except redis.ResponseError:
        return time.time() * 1000
    return float(seconds * 1000 + microseconds / 1000)
