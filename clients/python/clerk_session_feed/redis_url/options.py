"""The options behind the ? of a REDIS_URL, which other programs may share.

Clients of Redis have options of their own, spelled in their own ways. Here each is taken, passed over or refused: what
is said about TLS, the database or a password is never passed over.

Messages name an option, and never its value.
"""

import re
from collections.abc import Mapping
from ssl import TLSVersion
from typing import Final, NamedTuple, NoReturn
from urllib.parse import parse_qsl, urlencode

_AS_REDIS_PY: Final = frozenset({"client_name", "health_check_interval", "socket_keepalive", "socket_read_size"})
"""What is handed to redis-py as it is, beside what follows. Other clients' spellings of these are passed over."""


def _by_spelling(**spellings: str) -> dict[str, str]:
    return {spelling: name for name, all_ in spellings.items() for spelling in all_.split()}


# Spellings are in small letters and without punctuation.
_SPELLINGS: Final = _by_spelling(
    db="db database dbindex dbnumber defaultdatabase virtualhost",
    username="username user",
    password="password pass passwd auth",  # noqa: S106  # names
    sentinel_username="sentinelusername",
    sentinel_password="sentinelpassword",  # noqa: S106  # a name
    ssl_server_hostname="servername sni",
    ssl_min_version="minversion mintlsversion minsslversion",
)
_TLS_SPELLINGS: Final = _by_spelling(
    ssl_ca_certs="cacerts cacert cafile cacertfile ca rootcert",
    ssl_ca_path="capath",
    ssl_ca_data="cadata",
    ssl_certfile="certfile cert clientcert",
    ssl_keyfile="keyfile key clientkey",
    ssl_password="password passphrase",  # noqa: S106  # names
    ssl_ciphers="ciphers",
    ssl_min_version="minversion minimumversion",
    ssl_include_verify_flags="includeverifyflags",
    ssl_exclude_verify_flags="excludeverifyflags",
    ssl_server_hostname="serverhostname servername host sni",
)
"""What follows `tls` or `ssl` in a name: sslRootCert, tls.servername, ssl[cafile]."""
_TURNS_ON: Final = frozenset({"", "enabled", "mode"})
"""Likewise, of what turns TLS on: ssl=true, tls_enabled=1, sslmode=require."""
_TRUST: Final = _by_spelling(
    verifies="certreqs verify verifymode verifypeer verifycert verifycertificate verification verifyssl verifytls"
    " rejectunauthorized",
    trusts_all="skipverify noverify insecure insecureskipverify allowselfsigned allowinsecure trustall"
    " allowinvalidcertificates acceptinvalidcerts trustservercertificate",
    checks_host="checkhostname verifyhostname verifyhost verifypeername checkserveridentity",
    trusts_any_host="allowinvalidhostnames acceptinvalidhostnames skipverifyhostname",
)
"""With `tls` or `ssl` before it, or without."""

_YES: Final = frozenset({"", "1", "true", "t", "yes", "y", "on"})
_NO: Final = frozenset({"0", "false", "f", "no", "n", "off"})
_TLS_MODES: Final = {"disable": "0", "require": "1", "required": "1", "verify-ca": "1", "verify-full": "1"}
_CERT_REQS: Final = {
    **dict.fromkeys(("1", "2", "true", "yes", "on", "required", "peer", "full"), "required"),
    **dict.fromkeys(("0", "false", "no", "off", "none"), "none"),
    "optional": "optional",
}
_TLS_VERSIONS: Final = {"2": str(int(TLSVersion.TLSv1_2)), "3": str(int(TLSVersion.TLSv1_3))}
_MORE_OPTIONS: Final = re.compile(r"[,;|\s]((use)?(tls|ssl)\b|[\w.\[\]-]+=)", re.IGNORECASE)
"""In a value: what stands behind another separator than &, as in `false,ssl=true`."""
_ANY_TEXT: Final = frozenset({"password", "sentinel_password", "ssl_password", "ssl_ca_data"})
"""Their values may look like anything."""

_PASSED_OVER: Final = re.compile(
    # How others wait, pool, try again and keep connections.
    r"time(out|limit)|pool|retr(y|ies)|reconnect|backoff|attempt|keepalive|idle|lifetime|jitter|lazy|persist"
    r"|max(conn|active|age|redir|concurrent|request|total)|minconn|connections?$|conn(max|age)|abort|^(min|max)?size$"
    r"|wait|limit$|^test(on|while)|evict|refresh|interval|singleconnection|maintnotif|natmap"
    r"|ping|health|heartbeat|queue|pipelin|buffer|batch|block|async|nodelay|family|dns|lookup|resolve"
    # How others speak with Redis, and what they call themselves.
    r"|protocol|^resp\d?$|resp3|legacy|decode|encod|charset|serializ|compress|string|version|integrity|class$"
    r"|(client|connection)name|^(name|client|id)$|^(set)?lib|library|setinfo|clientinfo|identitysuffix|agent"
    r"|check$|checkseconds|monitor|resubscribe|resend|stack|telemetry|trac(e|ing)|metric"
    # Where others read, how they name keys, and what they put there.
    r"|read(only|from|preference|mode)|replica(?!tion)|slave|route|scale|^role$|prefix|namespace|^weight$|^alias$|cach"
    r"|ttl|expir|capacity|admin|tiebreaker|channel|^type$|driver|engine|adapter|autosetup|stream|group|consumer"
    r"|visibility|fanout|priority|poll|deleteafter|claim|redeliver|^sep(arator)?$|unacked|ackemulation"
)
"""What means nothing here, by a part of its name."""
_NEVER_PASSED_OVER: Final = re.compile(
    r"(tls|ssl)(?!.*timeout$)|cert|secur|verif|auth|passw|peer|trust|cipher|alpn|(min|max)(imum)?version"
)
"""What may say how safely to connect, or as whom."""
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.\[\]-]{0,63}")


class UrlOptions(NamedTuple):
    """What the options say."""

    tls: bool
    query: str
    """What redis-py is told, in its own form, and `ssl_server_hostname`."""
    passed_over: tuple[str, ...]
    """Names of what means nothing here."""


def read_options(query: str, *, tls: bool, elsewhere: Mapping[str, str]) -> UrlOptions:
    """Read what follows the ? of a URL.

    Args:
        query: as it is in the URL.
        tls: whether the URL begins with `rediss`.
        elsewhere: `db`, `username` and `password`, as far as the URL says them before the ?; empty is not said.

    Raises:
        ValueError: It names the option that can't be used, and says why.
    """
    taken = {known: value for known, value in elsewhere.items() if value}
    named = {known: "its path" if known == "db" else "before the @" for known in taken}
    passed_over: dict[str, None] = {}
    said: list[tuple[str, str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        shown = name if _NAME.fullmatch(name) else "its name is not shown, it may be secret"
        try:
            meanings = _meanings(name, value)
        except ValueError as error:
            raise ValueError(f"has an option {error} ({shown}): correct it, or leave it out") from None
        said += [(known, meant, shown) for known, meant in meanings]
        if not meanings:
            passed_over[shown] = None
    for known, meant, shown in said:
        named.setdefault(known, shown)
        if taken.setdefault(known, meant) != meant:
            _refuse_both(named[known], shown)
    if taken.get("ssl_cert_reqs") == "none" and taken.get("ssl_check_hostname") == "true":
        _refuse_both(named["ssl_cert_reqs"], named["ssl_check_hostname"])
    on = taken.pop("tls", None)
    if tls and on == "0":
        raise ValueError(f"begins with rediss://, and an option turns TLS off ({named['tls']}): leave out one of them")
    tls = tls or on == "1"
    for known in [known for known in taken if known.startswith("ssl_") and not tls]:
        # Where there is no certificate, there is none to be trusted.
        if taken.pop(known) not in {"none", "false"}:
            raise ValueError(f"has an option for TLS ({named[known]}): begin with rediss://, or leave it out")
        passed_over[named[known]] = None
    told = {known: value for known, value in taken.items() if not elsewhere.get(known)}
    return UrlOptions(tls, urlencode(told, safe="/:,[]"), tuple(passed_over))


def _refuse_both(one: str, other: str) -> NoReturn:
    raise ValueError(f"says two things that contradict each other ({one}, {other}): leave out one of them")


def _meanings(name: str, value: str) -> list[tuple[str, str]]:
    """Return redis-py's names and values of what an option says, none if it means nothing here; `tls` turns TLS on."""
    meanings = _read(name, value)
    if _MORE_OPTIONS.search(value) and not any(known in _ANY_TEXT for known, _ in meanings):
        raise ValueError("whose value holds other options, which & has to separate")
    return meanings


def _read(name: str, value: str) -> list[tuple[str, str]]:
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    of_tls = re.fullmatch(r"(?:socket|use|enable)?(?:tls|ssl)(?:params|options|stream|context)?(.*)", key)
    rest = of_tls[1] if of_tls else key.removeprefix("socket")
    if name in _AS_REDIS_PY:
        return [(name, value)]
    if of_tls and rest in _TURNS_ON:
        return _turns_on(value.lower())
    if trust := _TRUST.get(rest):
        return [_trusts(trust, value)]
    if known := (_TLS_SPELLINGS if of_tls else _SPELLINGS).get(rest):
        return [(known, _tls_version(value) if known == "ssl_min_version" else value)]
    if _PASSED_OVER.search(key) and _NAME.fullmatch(name) and not _NEVER_PASSED_OVER.search(key):
        return []
    raise ValueError("that is not known")


def _turns_on(value: str) -> list[tuple[str, str]]:
    if value in {"allow", "prefer"}:  # neither yes nor no: the scheme decides
        return []
    turned = ("tls", _TLS_MODES.get(value) or ("1" if _is_yes(value) else "0"))
    return [turned, ("ssl_cert_reqs", "required")] if value.startswith("verify") else [turned]


def _trusts(trust: str, value: str) -> tuple[str, str]:
    if trust == "verifies":
        return _verifies(value.lower())
    if trust == "trusts_all":
        return "ssl_cert_reqs", "none" if _is_yes(value) else "required"
    return "ssl_check_hostname", "true" if _is_yes(value) == (trust == "checks_host") else "false"


def _verifies(value: str) -> tuple[str, str]:
    """Read CERT_NONE as Celery writes it, VERIFY_PEER as Ruby does, CA as Lettuce does, and true or false."""
    word = re.sub(r"^(ssl\.)?(verifymode\.)?(cert_|verify_)?", "", value)
    if word == "ca":  # who signed it, and not for whom
        return "ssl_check_hostname", "false"
    if word not in _CERT_REQS:
        raise ValueError("whose value is not known, like none or required")
    return "ssl_cert_reqs", _CERT_REQS[word]


def _tls_version(value: str) -> str:
    """Return the number that the system knows it by: of 771, TLSv1.2, TLS1_2, VersionTLS12 or 1.2."""
    plain = re.fullmatch(r"(?:version)?(?:tlsv?)?1[._]?([23])", value.lower())
    number = _TLS_VERSIONS[plain[1]] if plain else value
    if number not in _TLS_VERSIONS.values():
        raise ValueError("whose value is neither TLSv1.2 nor TLSv1.3")
    return number


def _is_yes(value: str) -> bool:
    if (word := value.lower()) not in _YES | _NO:
        raise ValueError("whose value is neither true nor false")
    return word in _YES
