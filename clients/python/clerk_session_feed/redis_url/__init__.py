"""REDIS_URL, taken apart: one server, or sentinels or cluster nodes that know where the server is.

Messages here never quote the URL: it holds a password, or a part of one where it is malformed.
"""

import dataclasses
import re
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from clerk_session_feed.redis_url.options import read_options

Host = tuple[str, int]

FORMS: Final = (
    "use redis://[user:password@]host[:port][/db], rediss://… for TLS, unix:///path?db=0, "
    "redis+sentinel://host[:port],…/master-name[/db], redis+cluster://host[:port],…; "
    "in a password, write @ as %40, / as %2F, # as %23, ? as %3F, % as %25"
)
_MALFORMED: Final = f"is malformed; {FORMS}"
_HOST: Final = re.compile(r"[^\s!-,/:-@\[\\\]^`{-~]+|[0-9a-f:.]+(%\w+)?", re.IGNORECASE)
"""A name, also of letters beyond ASCII, or an address. What else looks like a host may be a part of a password."""
_ONLY_A_SERVER: Final = re.compile(r"(localhost(:\d+)?|[\d.]+(:\d+)?|[\w.-]+:6379)(/\d*)?", re.ASCII)
"""What certainly is no part of a password, and may be quoted."""
Kind = Literal["server", "sentinel", "cluster"]
_SCHEMES: Final[dict[str, Kind]] = {
    "redis": "server",
    "rediss": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_DEFAULT_PORTS: Final = {"server": 6379, "sentinel": 26379, "cluster": 6379}


@dataclasses.dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a REDIS_URL says. One server has only `server_url`."""

    kind: Kind
    server_url: str = dataclasses.field(repr=False)
    """How a single server is spoken to, in redis-py's own form: TLS, credentials, database, options.

    One option is not redis-py's: `ssl_server_hostname`.
    """
    hosts: tuple[Host, ...] = ()
    """Sentinels, or nodes of the cluster."""
    master: str = ""
    """The name under which the sentinels know the primary."""
    passed_over: tuple[str, ...] = ()
    """Names of options that other clients know, and that mean nothing here."""

    @classmethod
    def parse(cls, url: str) -> "RedisUrl":
        """Raises ValueError, which says what is wrong and what to use."""
        if url.startswith(("'", '"')) or url.endswith(("'", '"')):
            raise ValueError("begins or ends with a quotation mark: leave the quotes out")
        if re.search(r"\s", url) or not url.isprintable():
            raise ValueError(f"has white space or a control character: leave it out; {FORMS}")
        if url.endswith("#insecure"):
            raise ValueError("ends in #insecure, which is not known here: for any certificate, use ?ssl_cert_reqs=none")
        if "#" in url:
            raise ValueError("has a #: in a password, write it as %23")
        parts, netloc = _split(url)
        if "@" in parts.query or ("@" in parts.path and parts.netloc):
            # What precedes it would be taken for the host, and logged.
            raise ValueError(f"has an @ behind / or ?; {FORMS}")
        _check_scheme(url, parts.scheme)
        if parts.scheme == "unix":
            return cls._of_a_socket(url)
        kind = _SCHEMES[parts.scheme]
        login, at, _ = parts.netloc.rpartition("@")
        hosts = tuple(_host(host, _DEFAULT_PORTS[kind]) for host in netloc.split(","))
        path = parts.path.strip("/")
        master, _, database = path.partition("/") if kind == "sentinel" else ("", "", path)
        elsewhere = {"db": database, **_login(parts)}
        options = read_options(parts.query, tls=parts.scheme.startswith("rediss"), elsewhere=elsewhere)
        _check(kind, len(hosts), master, database + "".join(parse_qs(options.query).get("db", ())))
        first = netloc.partition(",")[0]
        scheme = "rediss" if options.tls else "redis"
        server_url = f"{scheme}://{login}{at}{first}/{database}{'?' * bool(options.query)}{options.query}"
        return cls(kind, server_url, () if kind == "server" else hosts, unquote(master), options.passed_over)

    @classmethod
    def _of_a_socket(cls, url: str) -> "RedisUrl":
        address, _, query = url.partition("?")
        if urlsplit(address).path in {"", "/"}:
            raise ValueError(f"names no socket; {FORMS}")
        options = read_options(query, tls=False, elsewhere=_login(urlsplit(address)))
        if options.tls:
            raise ValueError("names a socket, and TLS: leave out the option that turns TLS on")
        _check("server", 1, "", "".join(parse_qs(options.query).get("db", ())))
        return cls("server", f"{address}?{options.query}", passed_over=options.passed_over)


def _split(url: str) -> tuple[SplitResult, str]:
    """Return the parts of the URL with its first host alone, and all its hosts.

    urlsplit refuses an address in brackets behind another host: since Python 3.12.9 and 3.13.2, and in Debian's 3.11.
    """
    before, slashes, after = url.partition("//")
    netloc = re.split("[/?]", after, maxsplit=1)[0]
    login, at, hosts = netloc.rpartition("@")
    first = hosts.partition(",")[0]
    try:
        return urlsplit(f"{before}{slashes}{login}{at}{first}{after[len(netloc) :]}"), hosts
    except ValueError:
        raise ValueError(_MALFORMED) from None


def _check_scheme(url: str, scheme: str) -> None:
    is_known = scheme in {"unix", *_SCHEMES}
    if "://" not in url and not is_known:
        if _ONLY_A_SERVER.fullmatch(url):
            raise ValueError(f"has no scheme; do you mean redis://{url}?")
        raise ValueError("has no scheme: begin it with redis://, or with rediss:// for TLS")
    if not url.startswith(f"{scheme}:"):
        raise ValueError(f"does not begin with a scheme in small letters, like redis://; {FORMS}")
    if not is_known:
        raise ValueError(f"does not begin with a scheme that is known, like redis://; {FORMS}")


def _login(parts: SplitResult) -> dict[str, str]:
    return {"username": unquote(parts.username or ""), "password": unquote(parts.password or "")}


def _check(kind: Kind, hosts: int, master: str, database: str) -> None:
    if kind == "server" and hosts > 1:
        raise ValueError(f"names several hosts; {FORMS}")
    if kind == "sentinel" and not master:
        raise ValueError(f"does not name the master that the sentinels watch; {FORMS}")
    if not re.fullmatch(r"[0-9]*", database):
        raise ValueError(f"names a database that is no number; {FORMS}")
    if kind == "cluster" and database.strip("0"):
        raise ValueError(f"names a database, and a cluster has only number 0; {FORMS}")


def _host(text: str, default_port: int) -> Host:
    try:
        parts = urlsplit(f"//{text}")
        (parts.hostname or "").encode("idna")  # as a look-up would
    except ValueError:
        raise ValueError(_MALFORMED) from None
    if not parts.hostname:
        raise ValueError(f"names no host; {FORMS}")
    if not _HOST.fullmatch(parts.hostname):
        raise ValueError(f"names a host with a character that no host has; {FORMS}")
    try:
        port = default_port if parts.port is None else parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(f"has a port that is no number from 1 to 65535; {FORMS}")
    return parts.hostname, port
