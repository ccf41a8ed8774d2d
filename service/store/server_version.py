"""What kind of server Redis is, for the log and for `check`. A module of its own: it knows nothing of the store."""

from collections.abc import Mapping
from typing import Any, Final

import redis
from clerk_session_feed.connections import connect
from clerk_session_feed.keys import Keys

from service.config import RedisSettings

_OTHERS: Final = ("Valkey", "Dragonfly", "Garnet", "Redict")
"""Servers that also name a `redis_version`, which is the version that they are compatible with."""


def server_version(settings: RedisSettings) -> str | None:
    """Return name and version, like `Redis 7.4.1`; None if Redis does not tell, or not in time."""
    url, timeout = settings.redis_url.get_secret_value(), settings.redis_timeout
    key = Keys(settings.redis_key_prefix, settings.redis_channel).events
    try:
        with connect(url, key, tls_verify=settings.redis_tls_verify, timeout=timeout) as client:
            info: Any = client.info("server")
    except redis.RedisError:  # it is away, or this user may not ask
        return None
    return name_and_version(info)


def name_and_version(info: Mapping[str, Any]) -> str | None:
    """Return what INFO says a server is, like `Valkey 9.1.2`; None if it does not tell."""
    others = [f"{name} {info[key]}" for name in _OTHERS if (key := f"{name.lower()}_version") in info]
    if others or "redis_version" not in info:
        return others[0] if others else None
    name = "KeyDB" if "keydb" in str(info.get("executable")) else "Redis"
    return f"{name} {info['redis_version']}"
