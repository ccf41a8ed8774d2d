"""The options behind the ? of a REDIS_URL, which other programs may share.

Clients of Redis have options of their own, spelled in their own ways. Here each is taken, passed over or refused: what
is said about TLS, the database or a password is never passed over.

Messages name an option, and never its value.
"""

import re
from typing import Final, NamedTuple
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
)
_TLS_SPELLINGS: Final = _by_spelling(
    ssl_ca_certs="cacerts cacert cafile cacertfile ca rootcert",
    ssl_ca_path="capath",
    ssl_ca_data="cadata",
    ssl_certfile="certfile cert clientcert",
    ssl_keyfile="keyfile key clientkey",
    ssl_password="password passphrase",  # noqa: S106  # names
    ssl_ciphers="ciphers",
    ssl_min_version="minversion",
    ssl_include_verify_flags="includeverifyflags",
    ssl_exclude_verify_flags="excludeverifyflags",
    ssl_server_hostname="serverhostname servername host sni",
)
"""What follows `tls` or `ssl` in a name: sslRootCert, tls.servername, ssl[cafile]."""
_TURNS_ON: Final = frozenset({"", "enabled", "mode"})
"""Likewise, of what turns TLS on: ssl=true, tls_enabled=1, sslmode=require."""
_VERIFIES: Final = frozenset(
    {"certreqs", "verify", "verifymode", "verifypeer", "verifycert", "verifycertificate", "rejectunauthorized"}
)
_TRUSTS_ALL: Final = frozenset({"skipverify", "insecure", "insecureskipverify", "allowselfsigned", "allowinsecure"})
_CHECKS_HOST: Final = frozenset({"checkhostname", "verifyhostname", "verifyhost", "verifypeername"})

_YES: Final = frozenset({"", "1", "true", "t", "yes", "y", "on"})
_NO: Final = frozenset({"0", "false", "f", "no", "n", "off"})
_TLS_MODES: Final = {"disable": "0", "require": "1", "required": "1", "verify-ca": "1", "verify-full": "1"}
_CERT_REQS: Final = {
    **dict.fromkeys(("1", "2", "true", "yes", "on", "required", "peer", "full"), "required"),
    **dict.fromkeys(("0", "false", "no", "off", "none"), "none"),
    "optional": "optional",
}

_PASSED_OVER: Final = re.compile(
    # How others wait, pool, try again and keep connections.
    r"time(out|limit)|pool|retr(y|ies)|reconnect|backoff|attempt|keepalive|idle|lifetime|jitter|lazy|persist"
    r"|max(conn|active|age|redir|concurrent|waiting|request)|minconn|connections?$|conn(max|age)|abort|^(min|max)?size$"
    r"|ping|health|heartbeat|queue|pipelin|buffer|batch|block|async|nodelay|family|dns|lookup|resolve"
    # How others speak with Redis, and what they call themselves.
    r"|protocol|^resp\d?$|resp3|legacy|decode|encod|charset|serializ|compress|string|version|integrity|class$"
    r"|(client|connection)name|^(name|client|id)$|^(set)?lib|setinfo|clientinfo|identity|agent"
    r"|check$|checkseconds|monitor|resubscribe|resend|stack|telemetry|trac(e|ing)|metric"
    # Where others read, how they name keys, and what they put there.
    r"|read(only|from|preference|mode)|replica(?!tion)|slave|route|scale|^role$|prefix|namespace|^weight$|^alias$|cach"
    r"|ttl|expir|capacity|admin|tiebreaker|channel|^type$|driver|engine|adapter|autosetup|stream|group|consumer"
    r"|visibility|fanout|priority|poll|deleteafter|claim|redeliver"
)
"""What means nothing here, by a part of its name."""
_NEVER_PASSED_OVER: Final = re.compile(r"(tls|ssl)(?!.*timeout$)|cert|secur|verif|auth|passw")
"""What may say how safely to connect, or as whom."""
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.\[\]-]{0,63}")


class UrlOptions(NamedTuple):
    """What the options say."""

    tls: bool
    query: str
    """What redis-py is told, in its own form, and `ssl_server_hostname`."""
    passed_over: tuple[str, ...]
    """Names of what means nothing here."""


def read_options(query: str, *, tls: bool) -> UrlOptions:
    """Read what follows the ? of a URL.

    Args:
        query: as it is in the URL.
        tls: whether the URL begins with `rediss`.

    Raises:
        ValueError: It names the option that can't be used, and says why.
    """
    taken: dict[str, str] = {}
    named: dict[str, str] = {}
    passed_over: dict[str, None] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        shown = name if _NAME.fullmatch(name) else "its name is not shown, it may be secret"
        try:
            known, value = _meaning(name, value) or ("", "")  # noqa: PLW2901  # in redis-py's words
        except ValueError as error:
            raise ValueError(f"has an option {error} ({shown}): correct it, or leave it out") from None
        if not known:
            passed_over[shown] = None
        else:
            taken.setdefault(known, value)
            named.setdefault(known, shown)
    on = taken.pop("tls", None)
    if tls and on == "0":
        raise ValueError(f"begins with rediss://, and an option turns TLS off ({named['tls']}): leave out one of them")
    if not (tls or on == "1"):
        for known in [known for known in taken if known.startswith("ssl_")]:
            # Where there is no certificate, there is none to be trusted.
            if taken.pop(known) not in {"none", "false"}:
                raise ValueError(f"has an option for TLS ({named[known]}): begin with rediss://, or leave it out")
            passed_over[named[known]] = None
    return UrlOptions(tls or on == "1", urlencode(taken, safe="/:,[]"), tuple(passed_over))


def _meaning(name: str, value: str) -> tuple[str, str] | None:
    """Return redis-py's name and value of an option, or None if it means nothing here; of what turns TLS on, `tls`."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    of_tls = re.fullmatch(r"(?:socket|use|enable)?(?:tls|ssl)(?:params|options|stream|context)?(.*)", key)
    rest = of_tls[1] if of_tls else key.removeprefix("socket")
    if name in _AS_REDIS_PY:
        return name, value
    if of_tls and rest in _TURNS_ON:
        return _turns_on(value.lower())
    if rest in _VERIFIES:
        return _verifies(value.lower())
    if rest in _TRUSTS_ALL:
        return "ssl_cert_reqs", "none" if _is_yes(value) else "required"
    if rest in _CHECKS_HOST:
        return "ssl_check_hostname", "true" if _is_yes(value) else "false"
    if known := (_TLS_SPELLINGS if of_tls else _SPELLINGS).get(rest):
        return known, value
    if _PASSED_OVER.search(key) and _NAME.fullmatch(name) and not _NEVER_PASSED_OVER.search(key):
        return None
    raise ValueError("that is not known")


def _turns_on(value: str) -> tuple[str, str] | None:
    if value in {"allow", "prefer"}:  # neither yes nor no: the scheme decides
        return None
    return "tls", _TLS_MODES.get(value) or ("1" if _is_yes(value) else "0")


def _verifies(value: str) -> tuple[str, str]:
    """Read CERT_NONE as Celery writes it, VERIFY_PEER as Ruby does, CA as Lettuce does, and true or false."""
    word = re.sub(r"^(ssl\.)?(verifymode\.)?(cert_|verify_)?", "", value)
    if word == "ca":  # who signed it, and not for whom
        return "ssl_check_hostname", "false"
    if word not in _CERT_REQS:
        raise ValueError("whose value is not known, like none or required")
    return "ssl_cert_reqs", _CERT_REQS[word]


def _is_yes(value: str) -> bool:
    if (word := value.lower()) not in _YES | _NO:
        raise ValueError("whose value is neither true nor false")
    return word in _YES
