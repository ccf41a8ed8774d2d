"""What `check` asks each server that has a part of the data: its INFO, its configuration and its clock."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import redis
from clerk_session_feed import connections

from service.cli.check_connect import client_at, connection_of, keys_of, run
from service.cli.diagnosis import CheckResult, check_info
from service.config import Settings
from service.store.rights import has_no_command, is_missing_right

CLOCK_SECONDS: Final = 60
"""How far the clocks of Redis and of this machine may differ without a warning."""


def check_servers(settings: Settings) -> Iterator[CheckResult]:
    """Check each server that has a part of the data."""
    keys, url = keys_of(settings), settings.redis_url.get_secret_value()
    parts = keys.split(settings.partitions)
    # A web worker has one connection for each slot; an expiry worker two, but none for the dead letters.
    expiring = {connections.slot(url, part.probe) for part in parts}
    web: Counter[str] = Counter()
    expiry: Counter[str] = Counter()
    key_at = {}
    for slot, key in {connections.slot(url, part.probe): part.probe for part in (keys, *parts)}.items():
        with client_at(settings, key) as client:
            address = _address(client)
        web[address] += settings.web_concurrency
        expiry[address] += 2 * (slot in expiring)
        key_at[address] = key
    for address, key in key_at.items():
        with client_at(settings, key) as client:
            for result in _check_server(client, web[address], expiry[address], settings):
                yield result._replace(text=f"{address}: {result.text}")


def _check_server(client: Any, web: int, expiry: int, settings: Settings) -> Iterator[CheckResult]:
    try:
        info = run(client, "INFO")
        with contextlib.suppress(redis.ResponseError):  # few managed servers allow it
            info |= run(client, "CONFIG GET", "save")
        yield from check_info(info, web, expiry, settings.redis_min_replicas)
    except redis.ResponseError as error:
        if not (is_missing_right(error) or has_no_command(error)):  # which `ask_rights` names
            text = f"can't be checked, INFO says {connections.explain(error)}"
            advice = "see to its version, maxmemory-policy, persistence and connections yourself"
            yield CheckResult("warning", f"{text}: {advice}")
            return
    with contextlib.suppress(redis.ResponseError):
        seconds, microseconds = client.time()
        ahead = seconds + microseconds / 1e6 - time.time()
        if abs(ahead) > CLOCK_SECONDS:
            text = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
            why = "A machine whose clock is more than 300 s off refuses every delivery"
            yield CheckResult("warning", f"{text}: set both by NTP. {why}")


def _address(client: Any) -> str:
    connection = connection_of(client)
    return getattr(connection, "path", None) or f"{connection.host}:{connection.port}"
