"""`check`: can this configuration work? What is found, and what to do about it."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import redis
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys, has_hash_tag, partition_of
from clerk_session_feed.redis_url import RedisUrl

from service.cli.checks import Finding, Needed, explain, judge
from service.config import Settings, misspelt
from service.dev import simulator
from service.errors import DeadLettersFullError, RelayError
from service.ingest import Ingest
from service.models import Delivery
from service.store.sessions import SessionStore

CLOCK_SECONDS: Final = 60
SAMPLE: Final = 100
"""Entries of each stream that are looked at, to tell whether they belong there."""


def check(settings: Settings) -> Iterator[Finding]:
    """Look at one thing after the other. With an `error` among the findings, the service can't work."""
    yield Finding("ok", f"signing secrets: {len(settings.secrets)}, well-formed")
    for name, alike in misspelt(Settings.model_fields.keys() - settings.model_fields_set).items():
        yield Finding("warning", f"{alike} is no setting: if it is meant for {name.upper()}, rename it")
    yield _check_tls(settings)
    finding = _check_writing(settings)
    yield finding
    try:
        yield from _check_servers(settings)
        yield from _check_types(settings)
        yield _check_partitions(settings)
    except redis.RedisError as error:
        if finding.level == "ok":
            yield Finding("warning", f"can't look any further: {explain(error)}")


def _keys(settings: Settings) -> Keys:
    return Keys(settings.redis_key_prefix, settings.redis_channel)


def _client_at(settings: Settings, key: str) -> Any:
    return connections.connect(
        settings.redis_url.get_secret_value(),
        key,
        tls_verify=settings.redis_tls_verify,
        timeout=settings.redis_timeout,
    )


def _check_tls(settings: Settings) -> Finding:
    url = RedisUrl.parse(settings.redis_url.get_secret_value()).server_url
    if not url.startswith("rediss:"):
        return Finding("ok", "TLS: off; across a network that is not yours, use rediss://")
    if not settings.redis_tls_verify or "ssl_cert_reqs=none" in url:
        return Finding("ok", "TLS: on; who is at the other end is not checked, as you set it")
    return Finding("ok", "TLS: on, with the certificate checked")


def _check_writing(settings: Settings) -> Finding:
    """Take an event for each partition, and a dead letter, beside the real ones; then take them back."""
    trial = settings.model_copy(
        update={
            "redis_key_prefix": f"{settings.redis_key_prefix}:check",
            "redis_channel": f"{settings.redis_channel}:check",
        }
    )
    users = {
        partition_of(user := f"user_{n}", settings.partitions): user for n in range(20 * settings.partitions)
    }
    store = SessionStore(trial)
    try:
        store.probe()
        ingest = Ingest(store)
        for user in users.values():
            event = simulator.sample("session.pending", session_id="sess_check", user_id=user)
            ingest(_delivery(simulator.encode(event)))
        with contextlib.suppress(DeadLettersFullError):  # as DEAD_LETTER_MAX=0 wants it
            ingest(_delivery(b'{"type":"session.check"}'))
    except RelayError as error:
        return Finding("error", f"Redis takes no deliveries: {explain(error.__cause__ or error)}")
    finally:
        store.close()
        with contextlib.suppress(redis.RedisError):
            _forget(trial, users)
    return Finding("ok", "Redis takes deliveries")


def _delivery(body: bytes) -> Delivery:
    return Delivery(simulator.new_id("msg"), int(time.time()), body)


def _forget(trial: Settings, users: dict[int, str]) -> None:
    keys = _keys(trial)
    for number, part in enumerate(keys.split(trial.partitions)):
        with _client_at(trial, part.events) as client:
            client.delete(
                part.session("sess_check"), part.user_sessions(users[number]), part.events, part.expiry
            )
    with _client_at(trial, keys.dead_letters) as client:
        client.delete(keys.dead_letters)


def _check_servers(settings: Settings) -> Iterator[Finding]:
    keys, url = _keys(settings), settings.redis_url.get_secret_value()
    parts = keys.split(settings.partitions)
    # A web worker has a connection for each lane; an expiry worker two, but none for the dead letters.
    expiring = {connections.lane(url, part.probe) for part in parts}
    web: Counter[str] = Counter()
    expiry: Counter[str] = Counter()
    key_at = {}
    for lane, key in {connections.lane(url, part.probe): part.probe for part in (keys, *parts)}.items():
        with _client_at(settings, key) as client:
            address = _address(client)
        web[address] += settings.web_concurrency
        expiry[address] += 2 * (lane in expiring)
        key_at[address] = key
    for address, key in key_at.items():
        with _client_at(settings, key) as client:
            for finding in _check_server(client, Needed(web[address], expiry[address]), settings):
                yield dataclasses.replace(finding, text=f"{address}: {finding.text}")


def _check_server(client: Any, needed: Needed, settings: Settings) -> Iterator[Finding]:
    try:
        about = client.info()
    except redis.ResponseError as error:
        yield Finding(
            "warning",
            f"can't be looked into, INFO says {connections.explain(error)}: allow +info, or see yourself to "
            "its version, maxmemory-policy, persistence and connections",
        )
        return
    with contextlib.suppress(redis.ResponseError):  # few managed servers allow it
        about |= client.config_get("save")
    yield from judge(about, needed, settings.redis_min_replicas)
    with contextlib.suppress(redis.ResponseError):
        seconds, microseconds = client.time()
        ahead = seconds + microseconds / 1e6 - time.time()
        if abs(ahead) > CLOCK_SECONDS:
            which = "ahead of" if ahead > 0 else "behind"
            yield Finding(
                "warning",
                f"its clock is {abs(ahead):.0f} s {which} this machine's: set both by NTP. "
                "With more than 300 s off, this machine refuses every delivery",
            )


def _address(client: Any) -> str:
    connection = client.connection_pool.get_connection()
    client.connection_pool.release(connection)
    return getattr(connection, "path", None) or f"{connection.host}:{connection.port}"


def _check_types(settings: Settings) -> Iterator[Finding]:
    keys = _keys(settings)
    types = {keys.dead_letters: b"hash"}
    for part in keys.split(settings.partitions):
        types |= {part.events: b"stream", part.expiry: b"zset"}
    for key, type_ in types.items():
        with _client_at(settings, key) as client:
            found: Any = client.type(key)
        if found not in {b"none", type_}:
            yield Finding(
                "error",
                f"{key} is a {found.decode()}, not a {type_.decode()}: see whose it is; rename or delete it",
            )


def _check_partitions(settings: Settings) -> Finding:
    """Compare PARTITIONS with what is there.

    Each stream's users have to belong to it. They also do where the true number is a multiple of PARTITIONS;
    but then there are streams of the next numbers, too.
    """
    count, keys = settings.partitions, _keys(settings)
    others = [keys] if count > 1 else [*keys.split(2)] if has_hash_tag(keys.prefix) else []
    if count > 1:
        others += keys.split(2 * count)[count:]
    wrong = []
    for other in others:
        with _client_at(settings, other.events) as client:
            if client.exists(other.events):
                wrong.append(other.events)
    for number, part in enumerate(keys.split(count)):
        with _client_at(settings, part.events) as client:
            entries: Any = client.xrevrange(part.events, count=SAMPLE)
        users = {fields.get(b"user_id", b"").decode(errors="replace") for _, fields in entries}
        if any(partition_of(user, count) != number for user in users):
            wrong.append(part.events)
    if wrong:
        return Finding(
            "error",
            f"PARTITIONS={count} does not fit the data: {', '.join(wrong[:3])} is of another number. "
            "Set it to what it was, or let the service begin anew under another REDIS_KEY_PREFIX",
        )
    return Finding("ok", f"PARTITIONS={count} fits the data")
