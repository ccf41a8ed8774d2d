"""What `check` finds: what is so and, if it should not be, what to do about it."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final, Literal

from clerk_session_feed import connections

OLDEST_REDIS: Final = (6, 2)
NEARLY_FULL: Final = 0.9

_REACH: Final = "see that it runs where REDIS_URL says, and can be reached from here"
_ADVICE: Final = (
    ("Hostname mismatch", "let REDIS_URL name the host that the certificate is for"),
    ("IP address mismatch", "let REDIS_URL name the host that the certificate is for"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "set REDIS_TLS_VERIFY=false, as Heroku needs it, or add ?ssl_ca_certs=<CA's file> to REDIS_URL",
    ),
    ("No such file", "correct the path in REDIS_URL"),
    ("cluster support disabled", "it is no cluster: let REDIS_URL begin with redis://, or rediss:// for TLS"),
    (
        "unknown command 'SENTINEL'",
        "it is no sentinel: let REDIS_URL name the sentinels, or begin with redis://",
    ),
    ("not known", "correct the name of the host in REDIS_URL"),
    ("name resolution", "correct the name of the host in REDIS_URL"),
    (
        "Nobody names the primary",
        "let REDIS_URL name sentinels, their master, ?sentinel_password= if they want one; or cluster nodes",
    ),
    ("Authentication required", "give a password: let REDIS_URL be like redis://:password@host:port/0"),
    ("without any password", "it has no password: leave it out of REDIS_URL"),
    ("AuthenticationError", "correct user and password in REDIS_URL"),
    ("NoPermissionError", "give the user the rights that docs/redis.md lists"),
    ("The user executing the script can't", "give the user the rights that docs/redis.md lists"),
    ("OutOfMemoryError", "give Redis more memory, or keep less: STREAM_MAXLEN, DEAD_LETTER_MAX"),
    ("ReadOnlyError", "let REDIS_URL name the primary, or the sentinels that know it"),
    ("BusyLoadingError", "wait until it has read its data"),
    ("BUSY ", "wait until its script has ended, or end it: SCRIPT KILL"),
    ("MovedError", "it is a node of a cluster: use redis+cluster://"),
    ("Cluster", "see to the cluster: redis-cli --cluster check"),
    ("NOREPLICAS", "bring its replicas back, or lower its min-replicas-to-write"),
    ("replicas confirmed", "bring its replicas back, or lower REDIS_MIN_REPLICAS"),
    ("DB index", "let REDIS_URL name a database that it has, like /0"),
    ("MISCONF", "see in its log why it can't write to its disk, and mend that"),
    ("max number of clients", "close some connections, lower WEB_CONCURRENCY, or take a larger plan"),
    ("unknown command", "see that this is a Redis, and that the command was not renamed"),
    ("Protocol error", "see that there is a Redis where REDIS_URL says"),
    ("Connection reset", f"{_REACH}; if it wants TLS, with rediss://"),
    ("Connection closed", f"{_REACH}; if it wants TLS, with rediss://"),
    ("Timeout connecting", f"{_REACH}; with rediss:// only if it speaks TLS"),
    ("ConnectionError", _REACH),
    ("TimeoutError", _REACH),
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
    return f"{said.rstrip('.')}: {advice}" if advice else said


@dataclasses.dataclass(frozen=True, slots=True)
class Needed:
    """Connections to one server, of one release: during a deploy, there are two for a while."""

    web: int
    """Of all web workers: WEB_CONCURRENCY."""
    expiry: int
    """Of one expiry worker."""

    def __str__(self) -> str:
        both = self.web + self.expiry
        return f"{both} needed ({self.web} by the web workers, {self.expiry} by an expiry worker)"


def judge(about: dict[str, Any], needed: Needed, min_replicas: int) -> Iterator[Finding]:
    """Read what INFO says (https://redis.io/docs/latest/commands/info/); managed servers leave out parts.

    about: that and, if CONFIG may be asked, its `save`.
    """
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
            "warning",
            f"maxmemory-policy {policy} forgets sessions when memory is short: set it to noeviction",
        )
    yield _judge_memory(about)
    yield from _judge_persistence(about)
    if (replicas := about.get("connected_slaves", min_replicas)) < min_replicas:
        yield Finding(
            "error",
            f"has {replicas} replicas, REDIS_MIN_REPLICAS is {min_replicas}: bring them back, or lower it",
        )
    yield _judge_connections(about, needed)


def _judge_memory(about: dict[str, Any]) -> Finding:
    used, most = about.get("used_memory", 0), about.get("maxmemory", 0)  # most: 0 for no limit
    memory = f"memory: {used / 2**20:.0f} MiB used of {f'{most / 2**20:.0f} MiB' if most else 'no limit'}"
    if most and used > NEARLY_FULL * most:
        return Finding("warning", f"{memory}; when it is full, deliveries get 503: give it more")
    return Finding("ok", memory)


def _judge_persistence(about: dict[str, Any]) -> Iterator[Finding]:
    if about.get("aof_enabled", 1):
        return
    loses = {
        None: "a restart loses what came since the last snapshot, if there is one at all",
        "": "and so are snapshots: a restart loses all that it holds",
    }
    lost = loses.get(about.get("save"), "a restart loses what came since the last snapshot")
    yield Finding("warning", f"appendonly is off, {lost}: set appendonly yes")


def _judge_connections(about: dict[str, Any], needed: Needed) -> Finding:
    text, count = f"connections: {needed}", needed.web + needed.expiry
    if "maxclients" not in about or "connected_clients" not in about:
        return Finding("ok", f"{text}, during a deploy twice that")
    most = about["maxclients"]
    left = most - about["connected_clients"]
    if most < count:
        return Finding(
            "error", f"{text}, and it takes {most} at most: lower WEB_CONCURRENCY, or take a larger plan"
        )
    if most < 2 * count:
        return Finding(
            "warning",
            f"{text}, during a deploy twice that, and it takes {most} at most: lower WEB_CONCURRENCY, "
            "take a larger plan, or stop the old release first",
        )
    if left < count:
        return Finding(
            "warning",
            f"{text}, and {left} of {most} are left; while the service runs, that is for the next deploy: "
            "close some, lower WEB_CONCURRENCY, or take a larger plan",
        )
    return Finding("ok", f"{text}, during a deploy twice that; {left} of {most} left")
