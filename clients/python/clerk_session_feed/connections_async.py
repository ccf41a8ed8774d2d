"""Connections to Redis for asyncio; `connections` has what holds for both."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis import asyncio as aioredis
from redis.asyncio import connection as aio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import SSLConnection, parse_url
from redis.retry import Retry

from clerk_session_feed.connections import locator, unusable, with_defaults
from clerk_session_feed.redis_url import Host, RedisUrl

OnConnect = Callable[[aio.AbstractConnection], Awaitable[None] | None]


def connect_async(
    url: str,
    key: str = "",
    *,
    tls_verify: bool = True,
    timeout: float | None = 2.0,
    max_connections: int | None = None,
    on_connect: OnConnect | None = None,
) -> aioredis.Redis:
    """Return a client for asyncio; for the rest, see `connections.connect`."""
    try:
        target = RedisUrl.parse(url)
        options = with_defaults(aio.parse_url(target.server_url), aio.SSLConnection, tls_verify, timeout)
        options["retry"] = AsyncRetry(NoBackoff(), 0)
        if target.kind != "server":
            asking = with_defaults(parse_url(target.server_url), SSLConnection, tls_verify, timeout)  # type: ignore[no-untyped-call]
            locate = locator(target, key, asking | {"retry": Retry(NoBackoff(), 0)})
            for name in ("sentinel_username", "sentinel_password"):
                options.pop(name, None)
            kind = _AsyncLocatedSSLConnection if "connection_class" in options else _AsyncLocatedConnection
            options |= {"connection_class": kind, "locate": locate}

        async def greet(connection: aio.AbstractConnection) -> None:
            await connection.on_connect()
            if on_connect is not None and (more := on_connect(connection)) is not None:
                await more

        options["redis_connect_func"] = greet
        if max_connections is None:
            pool = aio.ConnectionPool(**options)
        else:
            pool = aio.BlockingConnectionPool(max_connections, timeout, **options)
        pool.connection_class(**pool.connection_kwargs)
        return aioredis.Redis.from_pool(pool)
    except Exception:  # noqa: BLE001  # as above
        raise unusable() from None


class _AsyncLocated:
    """A connection that asks where its server is; in a thread, since one way to ask is enough."""

    def __init__(self, *, locate: Callable[[], Host], **options: Any) -> None:
        super().__init__(**options)
        self._locate = locate

    async def _connect(self) -> None:
        self.host, self.port = await asyncio.to_thread(self._locate)
        connect: Callable[[], Awaitable[None]] = super()._connect  # type: ignore[misc]  # likewise
        await connect()


class _AsyncLocatedConnection(_AsyncLocated, aio.Connection):
    pass


class _AsyncLocatedSSLConnection(_AsyncLocated, aio.SSLConnection):
    pass
