"""Whether `check` finds another relay in the same Redis that publishes on the same channel."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

import redis
from clerk_session_feed.keys import Keys

from service.cli.check_connect import client_at, connection_of, keys_of, run
from service.cli.diagnosis import CheckResult
from service.config import Settings

DATABASES: Final = 16
"""Databases that are looked into, at most."""


def check_channel(settings: Settings) -> Iterator[CheckResult]:
    """Check that no other relay publishes on the default channel. Pub/sub knows neither databases nor prefixes."""
    channel, default = settings.redis_channel, Keys()
    if channel != default.channel:
        return
    keys = keys_of(settings)
    with client_at(settings, keys.dead_letters) as client:
        database = client.connection_pool.connection_kwargs.get("db") or 0
        connection_of(client)
        listening = ""
        with contextlib.suppress(redis.ResponseError):
            listening = f" ({run(client, 'PUBSUB NUMSUB', channel)[0][1]} listen now)"
        others = [*_others(client, database, keys)]
    if others:
        text = f"there is another relay in this Redis ({', '.join(others)}), and pub/sub knows no databases or prefixes"
    elif database:
        text = f"REDIS_URL names database {database}, and pub/sub knows no databases"
    else:
        return
    advice = "give each relay, and its consumers, a REDIS_CHANNEL of its own"
    name = f"like {channel}:{database}" if database else f"like {channel}:production"
    yield CheckResult(
        "warning", f"{text}: what relays publish on {channel}{listening} reaches the consumers of all: {advice}, {name}"
    )


def _others(client: Any, database: int, keys: Keys) -> Iterator[str]:
    """Yield where else there is data that looks like a relay's: in this database by the default prefix alone."""
    prefixes = {keys.prefix, Keys().prefix}
    databases = {database}
    with contextlib.suppress(redis.ResponseError):
        names = map(str, run(client, "INFO", "keyspace"))  # other servers have more there
        databases |= {int(name.removeprefix("db")) for name in names if re.fullmatch(r"db[0-9]{1,6}", name)}
    for number in sorted(databases)[:DATABASES]:
        for prefix in sorted(prefixes):
            if (number, prefix) != (database, keys.prefix) and _has_data(client, number, Keys(prefix)):
                yield f"database {number}, {prefix}:*"


def _has_data(client: Any, database: int, keys: Keys) -> bool:
    with contextlib.suppress(redis.ResponseError):  # no right, or a cluster
        run(client, "SELECT", database)
        return bool(run(client, "EXISTS", keys.events, keys.expiry, keys.dead_letters, keys.layout))
    return False
