"""Connections to Redis, built in one place: to a server, to the primary that sentinels name, or to the node
of a cluster that holds a key's slot.

Sentinel and Cluster differ from a single server in one thing only: where it is has to be asked, each time a
connection is made. So whoever uses a client has nothing to know of failovers, but to disconnect when a server
says that it is not the right one any more.
"""

from collections.abc import Callable
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.crc import key_slot
from redis.retry import Retry
from redis.sentinel import Sentinel

from service.errors import ConfigurationError
from service.redis_url import Host, RedisUrl

ASK_SECONDS: Final = 0.5
"""For a sentinel or a node to say where a server is. Several may have to be asked before one answers."""

Locate = Callable[[], Host]


def connect(
    url: str,
    key: str = "",
    *,
    tls_verify: bool = True,
    timeout: float | None = 2.0,
    on_connect: Callable[[Connection], None] | None = None,
) -> redis.Redis:
    """Return a client for the server that holds a key; it connects when it is first used.

    url: in one of the forms of `redis_url`. key: matters for a cluster only.
    timeout: seconds, for connecting and for one command; None waits for ever (for blocking reads).
    on_connect: is called with each new connection, after its handshake.
    Raises ConfigurationError if the URL can't be used.
    """
    try:
        target = RedisUrl.parse(url)
        options: dict[str, Any] = parse_url(target.server_url)  # type: ignore[no-untyped-call]
        options |= {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout or 5.0,
            # A script sent again by the client would be a second delivery: the sender does the retrying.
            "retry": Retry(NoBackoff(), 0),
            # RESP2 needs no HELLO, and no further word on connecting than what the URL asks for.
            "protocol": 2,
            "driver_info": None,
            # A URL shared with other programs may ask for text.
            "decode_responses": False,
            "encoding": "utf-8",
        }
        if not tls_verify and options.get("connection_class") is SSLConnection:
            options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        locate = _locator(target, key, options)
        if locate is not None:
            kind = _LocatedSSLConnection if "connection_class" in options else _LocatedConnection
            options |= {"connection_class": kind, "locate": locate}
        if on_connect is not None:

            def greet(connection: Connection) -> None:
                connection.on_connect()  # type: ignore[no-untyped-call]
                on_connect(connection)

            options["redis_connect_func"] = greet
        pool = ConnectionPool(**options)
        # Connects to nothing yet, but refuses options that it does not know.
        pool.connection_class(**pool.connection_kwargs)
    except Exception:  # noqa: BLE001  # options are redis-py's own affair, and so is how it refuses them
        # The error's own text may quote a part of a password.
        raise ConfigurationError(
            ["REDIS_URL: redis-py does not know an option in it, or its value"]
        ) from None
    return redis.Redis.from_pool(pool)  # closing it closes the connections


def lane(url: str, key: str) -> int:
    """Return a number that is the same for keys that one client can serve, wherever they move."""
    return int(key_slot(key.encode())) if RedisUrl.parse(url).kind == "cluster" else 0


class _Located:
    """A connection that asks where its server is, each time it connects."""

    def __init__(self, *, locate: Locate, **options: Any) -> None:
        super().__init__(**options)
        self._locate = locate

    def _connect(self) -> Any:
        self.host, self.port = self._locate()
        return super()._connect()  # type: ignore[misc]  # of the connection that this is mixed into


class _LocatedConnection(_Located, Connection):
    pass


class _LocatedSSLConnection(_Located, SSLConnection):
    pass


def _locator(target: RedisUrl, key: str, options: dict[str, Any]) -> Locate | None:
    """Return what finds the server; take what is for the sentinels alone out of the options."""
    if target.kind == "server":
        return None
    timeout = min(ASK_SECONDS, options["socket_connect_timeout"])
    asking = {
        name: value for name, value in options.items() if name not in {"host", "port", "connection_class"}
    }
    asking |= {
        "ssl": "connection_class" in options,
        "db": 0,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
    }
    if target.kind == "cluster":
        return _Cluster(target.hosts, asking, key_slot(key.encode())).owner
    for name in ("username", "password"):
        # Sentinels have users of their own, or none; those of the URL are the primary's.
        asking.pop(f"sentinel_{name}", None)
        asking[name] = options.pop(f"sentinel_{name}", None)
    sentinel: Any = Sentinel(target.hosts, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    return lambda: sentinel.discover_master(target.master)


class _Cluster:
    """Asks the nodes of a cluster who holds a slot.

    Not redis-py's RedisCluster: it sends to another node again what may have been done already.
    """

    def __init__(self, nodes: tuple[Host, ...], options: dict[str, Any], slot: int) -> None:
        self._nodes = list(nodes)
        self._options = options
        self._slot = slot

    def owner(self) -> Host:
        """Return the address of the slot's primary.

        Raises redis.ConnectionError if no node knows it.
        """
        why: object = "none of them says who holds the slot"
        for node in tuple(self._nodes):
            try:
                if (owner := self._ask(node)) is not None:
                    return owner
            except redis.RedisError as error:
                why = error
            # The next time, the others come first.
            self._nodes.remove(node)
            self._nodes.append(node)
        raise redis.ConnectionError(f"The nodes of the cluster don't help: {why}")

    def _ask(self, asked: Host) -> Host | None:
        """Return the owner as one node knows it (https://redis.io/docs/latest/commands/cluster-slots/)."""
        owner = None
        with redis.Redis(*asked, **self._options) as client:
            ranges: Any = client.execute_command("CLUSTER", "SLOTS")
        for first, last, *nodes in ranges:
            # One that does not know its own name is where it was asked.
            members = [((host or b"").decode() or asked[0], int(port)) for host, port, *_ in nodes]
            self._nodes += [member for member in members if member not in self._nodes]
            if first <= self._slot <= last:
                owner = members[0]
        return owner
