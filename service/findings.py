"""What `check` finds: what is so and, if it should not be, what to do about it."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final, Literal

from service import connections

OLDEST_REDIS: Final = (6, 2)
NEARLY_FULL: Final = 0.9

_ADVICE: Final = (
    ("Hostname mismatch", "let REDIS_URL name the host that the certificate is for"),
    ("IP address mismatch", "let REDIS_URL name the host that the certificate is for"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "add ?ssl_ca_certs=<CA's file> to REDIS_URL or, for Heroku Key-Value Store, REDIS_TLS_VERIFY=false",
    ),
    ("No such file", "correct the path in REDIS_URL"),
    (
        "Nobody names the primary",
        "let REDIS_URL name sentinels, their master, ?sentinel_password= if they want one; or cluster nodes",
    ),
    ("AuthenticationError", "correct user and password in REDIS_URL"),
    ("NoPermissionError", "give the user the rights that the README lists"),
    ("The user executing the script can't", "give the user the rights that the README lists"),
    ("OutOfMemoryError", "give Redis more memory, or keep less: STREAM_MAXLEN, DEAD_LETTER_MAX"),
    ("ReadOnlyError", "let REDIS_URL name the primary, or the sentinels that know it"),
    ("BusyLoadingError", "wait until it has read its data"),
    ("BUSY ", "wait until its script has ended, or end it: SCRIPT KILL"),
    ("MovedError", "it is a node of a cluster: use redis+cluster://"),
    ("Cluster", "see to the cluster: redis-cli --cluster check"),
    ("NOREPLICAS", "bring its replicas back, or lower its min-replicas-to-write"),
    ("replicas confirmed", "bring its replicas back, or lower REDIS_MIN_REPLICAS"),
    ("DB index", "name a database that it has"),
    ("unknown command", "see that this is a Redis, and that the command was not renamed"),
    (
        "ConnectionError",
        "see that it runs where REDIS_URL says, and can be reached from here; rediss:// if it wants TLS",
    ),
    ("TimeoutError", "see that it runs where REDIS_URL says, and can be reached from here"),
)
"""What to do, by a part of the error's name or text; the first that is there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    level: Literal["ok", "warning", "error"]
    text: str
    """What is so and, if it should not be, what to do. Never a secret."""


def explain(error: BaseException) -> str:
    said = connections.explain(error)
    advice = next((do for part, do in _ADVICE if part in f"{type(error).__name__} {said}"), None)
    return f"{said}: {advice}" if advice else said


def judge(about: dict[str, Any], connections_needed: int, min_replicas: int) -> Iterator[Finding]:
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
