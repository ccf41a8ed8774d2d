"""What `check` makes of Redis' errors and of its INFO, and what to do about them.

Apart from `check`, which does the I/O: so what each kind of server says can be tried without one.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from clerk_session_feed import connections

from service.store.rights import NO_SCRIPTS_ADVICE, is_missing_right
from service.store.server_version import name_and_version

OLDEST_REDIS: Final = (6, 2)
NEARLY_FULL: Final = 0.9
"""From this part of maxmemory on, memory is short."""

_REACH: Final = "see that it runs where REDIS_URL says, and can be reached from here"
_CLIENT_CERTIFICATE: Final = "if it wants a client's certificate"
_STRICT: Final = (
    "(Authority|Subject) Key Identifier|CA cert does not include key usage|Basic Constraints of CA|Path length"
    "|keyCertSign|(Issuer|Subject) name empty|Subject Alt Name extension|at least X509v3|explicit ECC parameters"
)
"""What OpenSSL says where a certificate does not keep to RFC 5280: only if it is asked to look."""
_ADVICE: Final = (
    (
        "Hostname mismatch|IP address mismatch",
        (
            "let REDIS_URL name the host that the certificate is for; where servers go by another address (nodes of a "
            "cluster, a tunnel), add ?ssl_server_hostname=<that host>; if the certificate names no host, "
            "?ssl_check_hostname=false still checks who signed it"
        ),
    ),
    (
        _STRICT,
        (
            "Python 3.13 and later refuse a certificate that does not keep to RFC 5280: let its authority make a new "
            "one, or add ?ssl_exclude_verify_flags=VERIFY_X509_STRICT to REDIS_URL; all else is still checked"
        ),
    ),
    ("certificate has expired", "renew it, or set this machine's clock"),
    ("certificate is not yet valid", "set this machine's clock, or wait"),
    ("certificate purpose", "let its authority make one for servers (extendedKeyUsage serverAuth)"),
    ("too small|too weak", "let its authority make one with a longer key, and SHA-256"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        (
            "add ?ssl_ca_certs=<file of its authority, or of itself if it is self-signed> to REDIS_URL; if nobody has "
            "that file (Heroku), set REDIS_TLS_VERIFY=false"
        ),
    ),
    (
        "no certificate or crl found|PEM lib|key values mismatch",
        (
            "let ?ssl_ca_certs=, ?ssl_certfile= and ?ssl_keyfile= in REDIS_URL name files in PEM, the key that of the "
            "certificate"
        ),
    ),
    ("alert (unknown ca|bad certificate)", "let it trust the authority of ?ssl_certfile=, or name another certificate"),
    (
        "certificate required|handshake failure|EOF occurred",
        f"{_CLIENT_CERTIFICATE}, add ?ssl_certfile=<file>&ssl_keyfile=<file> to REDIS_URL",
    ),
    ("protocol version|unsupported protocol", "let it speak TLS 1.2 or newer"),
    (
        "wrong version number|record layer failure|http request",
        "there is no TLS: let REDIS_URL begin with redis://, or name the port that has it",
    ),
    ("No such file", "correct the path in REDIS_URL"),
    ("cluster support disabled", "it is no cluster: let REDIS_URL begin with redis://, or rediss:// for TLS"),
    ("command 'SENTINEL'", "it is no sentinel: let REDIS_URL name the sentinels, or begin with redis://"),
    ("not known|name resolution", "correct the name of the host in REDIS_URL"),
    ("Nobody names the primary", "correct the hosts in REDIS_URL and, of sentinels, the master or ?sentinel_password="),
    ("Authentication required", "give a password: let REDIS_URL be like redis://:password@host:port/0"),
    ("without any password", "it has no password: leave it out of REDIS_URL"),
    ("AuthenticationError", "correct user and password in REDIS_URL"),
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
    ("NoScriptError", NO_SCRIPTS_ADVICE),
    ("unknown command", "see that this is a Redis, and that the command was not renamed"),
    ("Protocol error", "see that there is a Redis where REDIS_URL says"),
    (
        "Connection reset|Connection closed|Broken pipe",
        f"{_REACH}; if it wants TLS, with rediss://; {_CLIENT_CERTIFICATE}, with ?ssl_certfile= and ?ssl_keyfile=",
    ),
    ("Timeout connecting|did not answer in time", f"{_REACH}; with rediss:// only if it speaks TLS"),
    ("ConnectionError|TimeoutError", _REACH),
)
"""What to do, by a pattern in the name or text of an error; the first one that is found."""


class CheckResult(NamedTuple):
    """What one check found."""

    level: Literal["ok", "warning", "error"]
    text: str
    """What is so and, if it should not be, what to do. Never a secret."""


def explain(error: BaseException) -> str:
    """Return what an error of Redis or the network says and, where that is known, what to do."""
    text = connections.explain(error)
    said = f"{type(error).__name__} {text}"
    if is_missing_right(error):
        refused = re.search(r"run the '([^']+)' command", text)
        right = f"+{refused[1]}, and what else " if refused else "the rights that "
        return f"{text.rstrip('.')}: give the user {right}docs/redis.md lists"
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, said)), None)
    return f"{text.rstrip('.')}: {advice}" if advice else text


def check_info(info: dict[str, Any], web: int, expiry: int, min_replicas: int) -> Iterator[CheckResult]:
    """Check what a server says of itself.

    Args:
        info: What INFO returns (https://redis.io/docs/latest/commands/info/), of which managed servers leave out
            parts; and `save` of CONFIG, if that may be asked.
        web: Connections that all web workers of a release make to this server.
        expiry: Connections that one expiry worker makes to it.
        min_replicas: REDIS_MIN_REPLICAS.
    """
    yield _check_version(info)
    if info.get("role") == "slave":
        yield CheckResult("error", "is a replica: let REDIS_URL name the primary, or the sentinels that know it")
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        advice = "set it to noeviction"
        yield CheckResult("warning", f"maxmemory-policy {policy} deletes sessions when memory is short: {advice}")
    yield _check_memory(info.get("used_memory", 0), info.get("maxmemory", 0))
    if not info.get("aof_enabled", 1):
        lost = {
            None: "what came since the last snapshot, if there is one at all: appendonly is off",
            "": "everything: appendonly and snapshots are off",
        }.get(info.get("save"), "what came since the last snapshot: appendonly is off")
        yield CheckResult("warning", f"a restart loses {lost}. Set appendonly yes")
    if (replicas := info.get("connected_slaves", min_replicas)) < min_replicas:
        has = f"has {replicas} replicas, REDIS_MIN_REPLICAS is {min_replicas}"
        yield CheckResult("error", f"{has}: bring them back, or lower it")
    yield _check_connections(info, web, expiry)


def _check_version(info: dict[str, Any]) -> CheckResult:
    """Check the version of Redis, or the one that another server says it is like."""
    version = info.get("redis_version")
    if version is None:
        return CheckResult("ok", "Redis does not tell its version; 6.2 is the oldest that serves")
    server = name_and_version(info) or ""
    if not server.startswith("Redis "):
        server += f", which is like Redis {version}"
    if tuple(map(int, re.findall(r"\d+", str(version))[:2])) < OLDEST_REDIS:
        return CheckResult("error", f"{server} is too old: use 6.2 or newer")
    return CheckResult("ok", server)


def _check_memory(used: int, limit: int) -> CheckResult:
    text = f"memory: {used / 2**20:.0f} MiB used of {f'{limit / 2**20:.0f} MiB' if limit else 'no limit'}"
    if limit and used > NEARLY_FULL * limit:
        return CheckResult("warning", f"{text}; when it is full, deliveries get 503: give it more")
    return CheckResult("ok", text)


def _check_connections(info: dict[str, Any], web: int, expiry: int) -> CheckResult:
    count = web + expiry
    text = f"connections: {count} needed ({web} by the web workers, {expiry} by an expiry worker)"
    if "maxclients" not in info or "connected_clients" not in info:
        return CheckResult("ok", f"{text}, during a deploy twice that")
    limit = info["maxclients"]
    left = limit - info["connected_clients"]
    advice = "lower WEB_CONCURRENCY, or take a larger plan"
    if limit < count:
        return CheckResult("error", f"{text}, and it takes {limit} at most: {advice}")
    if limit < 2 * count:
        text += f", during a deploy twice that, and it takes {limit} at most"
        return CheckResult("warning", f"{text}: stop the old release first, {advice}")
    if left < count:
        text += f", and {left} of {limit} are left; while the service runs, that is for the next deploy"
        return CheckResult("warning", f"{text}: close some, {advice}")
    return CheckResult("ok", f"{text}, during a deploy twice that; {left} of {limit} left")
