"""REDIS_URL, taken apart: one server, or sentinels or cluster nodes that know where the server is.

Messages here never quote the URL: it holds a password, or a part of one where it is malformed.
"""

import dataclasses
import re
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

Host = tuple[str, int]

FORMS: Final = (
    "use redis://[user:password@]host[:port][/db], rediss://… for TLS, unix:///path?db=0, "
    "redis+sentinel://host[:port],…/master-name[/db], redis+cluster://host[:port],…; "
    "in a password, write @ as %40, / as %2F, # as %23, ? as %3F, % as %25"
)
_MALFORMED: Final = f"is malformed; {FORMS}"
Kind = Literal["server", "sentinel", "cluster"]
_SCHEMES: Final[dict[str, tuple[Kind, str]]] = {
    "redis": ("server", "redis"),
    "rediss": ("server", "rediss"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
_DEFAULT_PORTS: Final = {"server": 6379, "sentinel": 26379, "cluster": 6379}


@dataclasses.dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a REDIS_URL says. One server has only `server_url`."""

    kind: Kind
    server_url: str = dataclasses.field(repr=False)
    """How a single server is spoken to, in redis-py's own form: TLS, credentials, database, options."""
    hosts: tuple[Host, ...] = ()
    """Sentinels, or nodes of the cluster."""
    master: str = ""
    """The name under which the sentinels know the primary."""

    @classmethod
    def parse(cls, url: str) -> "RedisUrl":
        """Raises ValueError, which says what is wrong and what to use."""
        if url.startswith(("'", '"')):
            raise ValueError("begins with a quotation mark: leave the quotes out")
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError(_MALFORMED) from None
        if not url.startswith(f"{parts.scheme}:"):
            raise ValueError(f"does not begin with a scheme in small letters, like redis://; {FORMS}")
        if parts.scheme == "unix":
            if parts.path in {"", "/"}:
                raise ValueError(f"names no socket; {FORMS}")
            return cls("server", url)
        if (forms := _SCHEMES.get(parts.scheme)) is None:
            raise ValueError(f"does not begin with a scheme that is known, like redis://; {FORMS}")
        kind, server_scheme = forms
        login, at, netloc = parts.netloc.rpartition("@")
        hosts = tuple(_host(host, _DEFAULT_PORTS[kind]) for host in netloc.split(","))
        path = parts.path.strip("/")
        master, _, database = path.partition("/") if kind == "sentinel" else ("", "", path)
        _check(kind, len(hosts), master, database + "".join(parse_qs(parts.query).get("db", ())))
        if kind == "server":
            return cls(kind, url)
        first = netloc.partition(",")[0]
        server = SplitResult(server_scheme, f"{login}{at}{first}", f"/{database}", parts.query, "")
        return cls(kind, server.geturl(), hosts, unquote(master))


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
    try:
        port = default_port if parts.port is None else parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(f"has a port that is no number from 1 to 65535; {FORMS}")
    return parts.hostname, port
