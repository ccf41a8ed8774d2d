"""What kind of server Redis is, for the log. A module of its own: it needs a connection, and nothing of the store."""

from typing import Any, Final

import redis
from clerk_session_feed.connections import connect_async
from clerk_session_feed.keys import Keys

from service.config import RedisSettings

_OTHERS: Final = ("Valkey", "Dragonfly", "Garnet", "Redict")
"""Servers that also name a `redis_version`, which is the version that they are compatible with."""


async def server_version(settings: RedisSettings) -> str | None:
    """Return name and version, like `Redis 7.4.1`; None if Redis does not tell."""
    url, timeout = settings.redis_url.get_secret_value(), settings.redis_timeout
    key = Keys(settings.redis_key_prefix, settings.redis_channel).events
    client = connect_async(url, key, tls_verify=settings.redis_tls_verify, timeout=timeout)
    try:
        info: dict[str, Any] = await client.info("server")
    except (redis.RedisError, OSError):
        return None  # it is away, or this user may not ask
    finally:
        await client.aclose()
    others = [f"{name} {info[key]}" for name in _OTHERS if (key := f"{name.lower()}_version") in info]
    return others[0] if others else f"Redis {info.get('redis_version')}"
