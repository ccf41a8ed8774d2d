"""`check`: can this configuration work? What is found, and what to do about it."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, Literal

import redis
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError

from service import connections
from service.config import Settings
from service.errors import RelayError
from service.keys import Keys, has_hash_tag, partition_of
from service.redis_url import RedisUrl
from service.store import SessionStore

OLDEST_REDIS: Final = (6, 2)
CLOCK_SECONDS: Final = 60
PROBE_SECONDS: Final = 10
NEARLY_FULL: Final = 0.9
SAMPLE: Final = 100
"""Entries of each stream that are looked at, to tell whether they belong there."""

_ADVICE: Final = (
    (redis.AuthenticationError, "correct user and password in REDIS_URL"),
    (NoPermissionError, "give the user the rights that the README lists"),
    (OutOfMemoryError, "give Redis more memory, or keep less: STREAM_MAXLEN, DEAD_LETTER_MAX"),
    (ReadOnlyError, "let REDIS_URL name the primary, or the sentinels that know it"),
    (redis.BusyLoadingError, "wait until it has read its data"),
    (
        (redis.ConnectionError, redis.TimeoutError),
        "see that it runs, and that REDIS_URL names where it can be reached from here",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    level: Literal["ok", "warning", "error"]
    text: str
    """What is so and, if it should not be, what to do. Never a secret."""


def check(settings: Settings) -> Iterator[Finding]:
    """Look at one thing after the other. With an `error` among the findings, the service can't work."""
    yield Finding("ok", f"signing secrets: {len(settings.secrets)}, well-formed")
    yield _check_tls(settings)
    finding = _check_writing(settings)
    yield finding
    try:
        yield from _check_servers(settings)
        yield _check_partitions(settings)
    except redis.RedisError as error:
        if finding.level == "ok":
            yield Finding("warning", f"can't look any further: {_explain(error)}")


def _keys(settings: Settings) -> Keys:
    return Keys(settings.redis_key_prefix, settings.redis_channel)


def _client_at(settings: Settings, key: str) -> Any:
    return connections.connect(
        settings.redis_url.get_secret_value(),
        key,
        tls_verify=settings.redis_tls_verify,
        timeout=settings.redis_timeout,
    )


def _explain(error: BaseException) -> str:
    said = connections.explain(error)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            "nobody trusted here vouches for its certificate: add ?ssl_ca_certs=<CA's file> to REDIS_URL; "
            "for Heroku Key-Value Store, whose certificates are self-signed, set REDIS_TLS_VERIFY=false"
        )
    advice = next((advice for kind, advice in _ADVICE if isinstance(error, kind)), None)
    return f"{said}: {advice}" if advice else said


def _check_tls(settings: Settings) -> Finding:
    url = RedisUrl.parse(settings.redis_url.get_secret_value()).server_url
    if not url.startswith("rediss:"):
        return Finding("ok", "TLS: off; across a network that is not yours, use rediss://")
    if not settings.redis_tls_verify:
        return Finding("ok", "TLS: on; who is at the other end is not checked (REDIS_TLS_VERIFY=false)")
    return Finding("ok", "TLS: on, with the certificate checked")


def _check_writing(settings: Settings) -> Finding:
    """Try what the service does: connect, load the scripts, ask for a write, wait for replicas."""
    store = SessionStore(settings)
    try:
        store.probe().result(timeout=PROBE_SECONDS)
    except (RelayError, TimeoutError) as error:
        return Finding("error", f"Redis takes no writes: {_explain(error.__cause__ or error)}")
    finally:
        store.close()
    return Finding("ok", "Redis takes writes")


def _check_servers(settings: Settings) -> Iterator[Finding]:
    keys, url = _keys(settings), settings.redis_url.get_secret_value()
    parts = (keys, *keys.split(settings.partitions))
    lanes: Counter[str] = Counter()
    key_at = {}
    for key in {connections.lane(url, part.probe): part.probe for part in parts}.values():
        with _client_at(settings, key) as client:
            address = _address(client)
        lanes[address] += 1
        key_at[address] = key
    for address, key in key_at.items():
        with _client_at(settings, key) as client:
            for finding in _check_server(client, lanes[address] * settings.web_concurrency, settings):
                yield dataclasses.replace(finding, text=f"{address}: {finding.text}")


def _check_server(client: Any, connections_needed: int, settings: Settings) -> Iterator[Finding]:
    try:
        about = client.info()
    except redis.ResponseError as error:
        yield Finding("warning", f"can't be looked into, INFO says {connections.explain(error)}")
        return
    yield from _judge(about, connections_needed, settings.redis_min_replicas)
    with contextlib.suppress(redis.ResponseError):
        seconds, microseconds = client.time()
        off = abs(time.time() - seconds - microseconds / 1e6)
        if off > CLOCK_SECONDS:
            yield Finding("warning", f"its clock and ours are {off:.0f} s apart: set them right")


def _address(client: Any) -> str:
    connection = client.connection_pool.get_connection()
    client.connection_pool.release(connection)
    return getattr(connection, "path", None) or f"{connection.host}:{connection.port}"


def _judge(about: dict[str, Any], connections_needed: int, min_replicas: int) -> Iterator[Finding]:
    """Read what INFO says (https://redis.io/docs/latest/commands/info/); managed servers leave out parts."""
    version = about.get("redis_version")
    if version is None:
        yield Finding("ok", "Redis of a version that it does not tell; 6.2 is the oldest that serves")
    elif tuple(int(part) for part in str(version).split(".")[:2]) < OLDEST_REDIS:
        yield Finding("error", f"Redis {version} is too old: use 6.2 or newer")
    else:
        yield Finding("ok", f"Redis {version}")
    if about.get("role") == "slave":
        yield Finding("error", "is a replica: let REDIS_URL name the primary, or the sentinels that know it")
    if (policy := about.get("maxmemory_policy", "noeviction")) != "noeviction":
        yield Finding(
            "warning", f"maxmemory-policy {policy} forgets sessions when memory is short: set noeviction"
        )
    used, most = about.get("used_memory", 0), about.get("maxmemory", 0)  # most: 0 for no limit
    memory = f"memory: {used / 2**20:.0f} MiB used of {f'{most / 2**20:.0f} MiB' if most else 'no limit'}"
    if most and used > NEARLY_FULL * most:
        yield Finding("warning", f"{memory}; when it is full, deliveries get 503: give it more")
    else:
        yield Finding("ok", memory)
    if not about.get("aof_enabled", 1):
        yield Finding(
            "warning",
            "appendonly is off, so a restart loses what came since the last snapshot: set appendonly yes",
        )
    if (replicas := about.get("connected_slaves", min_replicas)) < min_replicas:
        yield Finding("error", f"has {replicas} replicas, and REDIS_MIN_REPLICAS is {min_replicas}")
    needed = f"connections: {connections_needed} needed"
    if "maxclients" not in about or "connected_clients" not in about:
        yield Finding("ok", needed)
        return
    left = about["maxclients"] - about["connected_clients"]
    if left < connections_needed:
        yield Finding(
            "warning",
            f"{needed}, {left} left (one that runs has its own): lower WEB_CONCURRENCY, or close some",
        )
    else:
        yield Finding("ok", f"{needed}, {left} left")


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
        if any(partition_of(fields[b"user_id"].decode(), count) != number for _, fields in entries):
            wrong.append(part.events)
    if wrong:
        return Finding(
            "error",
            f"PARTITIONS={count} does not fit the data: {', '.join(wrong[:3])} is of another number. "
            "Set it to what it was, or let the service begin anew under another REDIS_KEY_PREFIX",
        )
    return Finding("ok", f"PARTITIONS={count} fits the data")
