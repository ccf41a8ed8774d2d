"""Connections to Redis: to a server, to the primary that sentinels name, or to the node of a cluster that holds a key.

Sentinel and Cluster differ from a single server in one thing only: each new connection has to ask where the server
is. So whoever uses a client need not know of failovers. It disconnects when a server says that it is not the right
one any more; the next connection finds the right one.

A long module, since its two halves need each other: a client asks where its server is by way of another client.
"""

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import redis
from redis import asyncio as aioredis
from redis import connection as sync
from redis.asyncio import connection as aio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from clerk_session_feed.errors import ConfigurationError
from clerk_session_feed.redis_url import Host, RedisUrl

ASK_SECONDS: Final = 0.5
"""Seconds that a sentinel or a node has to say where a server is."""
ASK_ALL_SECONDS: Final = 2.0
"""Seconds that several of them have. The next connection begins with those that were not asked yet."""

log = logging.getLogger("clerk_session_feed")
OnConnect = Callable[[Any], Awaitable[None] | None]
Client = TypeVar("Client")
Ask = Callable[[Any, str], Host | None]
"""Asks over a client of the host; returns None if that host does not know."""


def connect(
    url: str,
    key: str = "",
    *,
    tls_verify: bool = True,
    timeout: float = 2.0,
    wait: float = 0.0,
    on_connect: OnConnect | None = None,
) -> redis.Redis:
    """Return a client for the server that holds a key; it connects when it is first used.

    Args:
        url: In one of the forms of REDIS_URL: docs/contract.md, section 2.
        key: Matters for a cluster only.
        tls_verify: Whether the server's certificate is verified.
        timeout: Seconds, for connecting and for one command.
        wait: Seconds more that a command has which waits at the server for news.
        on_connect: Called with each new connection, after its handshake.

    Raises:
        ConfigurationError: If the URL can't be used.
    """

    def make(target: RedisUrl) -> redis.Redis:
        options, locate = _options(target, key, tls_verify, timeout, wait)
        kind = type("AwaitedConnection", (_Awaited, options["connection_class"]), {})
        options["connection_class"] = _located(_Located, kind, locate)
        return _client(options, on_connect)

    return _made(make, _parse(url))


def connect_async(
    url: str,
    key: str = "",
    *,
    tls_verify: bool = True,
    timeout: float = 2.0,
    wait: float = 0.0,
    on_connect: OnConnect | None = None,
) -> aioredis.Redis:
    """Return a client for asyncio; see `connect`. A thread asks where its server is."""

    async def greet(connection: aio.AbstractConnection) -> None:
        await connection.on_connect()
        if on_connect is not None and (more := on_connect(connection)) is not None:
            await more

    def make(target: RedisUrl) -> aioredis.Redis:
        options, locate = _options(target, key, tls_verify, timeout, wait)
        options["connection_class"] = _located(_AsyncLocated, _ASYNC[options["connection_class"]], locate)
        options |= {"retry": AsyncRetry(NoBackoff(), 0), "redis_connect_func": greet}
        pool = aio.ConnectionPool(**options)
        pool.connection_class(**pool.connection_kwargs)  # refuses options that it does not know
        return aioredis.Redis.from_pool(pool)

    return _made(make, _parse(url))


Locate = Callable[[], Host]


def _parse(url: str) -> RedisUrl:
    try:
        target = RedisUrl.parse(url)
    except ValueError as error:
        raise ConfigurationError([f"REDIS_URL: {error}"]) from None
    if target.passed_over:
        _tell_passed_over(target.passed_over)
    return target


@functools.cache  # once, however many clients a process has
def _tell_passed_over(names: tuple[str, ...]) -> None:
    log.warning("REDIS_URL has options that mean nothing here, and are passed over: %s", ", ".join(names))


def _options(
    target: RedisUrl, key: str, tls_verify: bool, timeout: float, wait: float
) -> tuple[dict[str, Any], Locate | None]:
    """Return options of redis-py, and what asks where the server is, unless the URL says so."""
    options: dict[str, Any] = {
        "connection_class": sync.Connection,
        **sync.parse_url(target.server_url),  # type: ignore[no-untyped-call]
        **_NO_CLIENT_SETINFO,
        "socket_timeout": timeout + wait,
        "socket_connect_timeout": timeout,
        "protocol": 2,  # RESP2 needs no HELLO
        # A URL shared with other programs may ask for text.
        "decode_responses": False,
        "encoding": "utf-8",
        # A script sent again by the client would be a second delivery: the sender does the retrying.
        "retry": Retry(NoBackoff(), 0),
    }
    if options["connection_class"] is sync.SSLConnection:
        if "ssl_min_version" in options:
            options["ssl_min_version"] = int(options["ssl_min_version"])  # redis-py 7.1 and older leave it a text
        if not tls_verify:
            options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        # Not the default of redis-py before 6.
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
        if "ssl_server_hostname" in options:
            options["connection_class"] = _NamedTls
    return options, None if target.kind == "server" else _locator(target, key, options)


class _Tcp(sync.Connection):
    ssl_server_hostname: str

    def _connect(self) -> Any:
        connected = super()._connect()  # type: ignore[no-untyped-call]
        self.host = self.ssl_server_hostname
        return connected


class _NamedTls(sync.SSLConnection, _Tcp):
    """A connection whose certificate has to be for one name, whatever the address that it leads to.

    It overrides private methods, as `_Located` does. redis-py connects to `host`, then checks the certificate
    against it; in between, `_Tcp` puts the name there.
    """

    def __init__(self, *, ssl_server_hostname: str, **options: Any) -> None:
        self.ssl_server_hostname = ssl_server_hostname
        super().__init__(**options)

    def _connect(self) -> Any:
        address = self.host
        try:
            return super()._connect()  # type: ignore[no-untyped-call]
        finally:
            self.host = address


class _AsyncNamedTls(aio.SSLConnection):
    def __init__(self, *, ssl_server_hostname: str, **options: Any) -> None:
        self.ssl_server_hostname = ssl_server_hostname
        super().__init__(**options)

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self.ssl_server_hostname}


_ASYNC: Final = {
    sync.Connection: aio.Connection,
    sync.SSLConnection: aio.SSLConnection,
    _NamedTls: _AsyncNamedTls,
    sync.UnixDomainSocketConnection: aio.UnixDomainSocketConnection,
}
_NO_CLIENT_SETINFO: Final[dict[str, None]] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(sync.AbstractConnection).parameters
    else {"lib_name": None, "lib_version": None}  # redis-py before 7.1
)
"""Options by which a new connection sends no more than the URL asks for."""


def _made(make: Callable[[RedisUrl], Client], target: RedisUrl) -> Client:
    """Return the client, or raise a ConfigurationError that names the options which redis-py does not take."""
    try:
        return make(target)
    except Exception:  # noqa: BLE001  # options are redis-py's own affair, and so is how it refuses them
        # The error's own text may quote a part of a password.
        address, _, query = target.server_url.partition("?")
        alone = {option: dataclasses.replace(target, server_url=f"{address}?{option}") for option in query.split("&")}
        wrong = [option for option, one in alone.items() if not _is_usable(make, one)] or alone
        names = ", ".join(option.partition("=")[0] for option in wrong)
        unknown = f"redis-py {redis.__version__} does not know an option, or its value: {names}"
        raise ConfigurationError([f"REDIS_URL: {unknown}: correct it, or leave it out"]) from None


def _is_usable(make: Callable[[RedisUrl], object], target: RedisUrl) -> bool:
    try:
        make(target)
    except Exception:  # noqa: BLE001  # as above
        return False
    return True


def slot(url: str, key: str) -> int:
    """Return a number that is the same for keys that one client can serve, wherever they move."""
    return int(key_slot(key.encode())) if RedisUrl.parse(url).kind == "cluster" else 0


def explain(error: BaseException) -> str:
    """Return what Redis, or redis-py, says; without the arguments of a command that Redis does not know.

    It quotes them: of AUTH, that is the password.
    """
    said = str(error).partition(", with args")[0] or type(error).__name__
    # asyncio has words of its own for what the system says.
    failed = re.fullmatch(r"(Error (\d+) connecting to \S+\.) Connect call failed .*", said)
    return f"{failed[1]} {os.strerror(int(failed[2]))}." if failed else said


def _client(options: dict[str, Any], on_connect: OnConnect | None = None) -> redis.Redis:
    def greet(connection: sync.Connection) -> None:
        connection.on_connect()  # type: ignore[no-untyped-call]
        if isinstance(connection, sync.SSLConnection):
            # A server that speaks TLS 1.3 sends session tickets after the handshake. redis-py 8 with hiredis takes
            # them for a response that nobody asked for, and gives the connection up. They come before any response,
            # so one of those is read first, even a refusal. asyncio's streams show no tickets.
            # (findings/redis-py-and-session-tickets-of-tls-1-3.sh)
            connection.send_command("PING")  # type: ignore[no-untyped-call]
            with contextlib.suppress(redis.ResponseError):
                connection.read_response()
        if on_connect is not None:
            on_connect(connection)

    pool = sync.ConnectionPool(**options, redis_connect_func=greet)
    # Connects to nothing yet, but refuses options that it does not know.
    pool.connection_class(**pool.connection_kwargs)
    return redis.Redis.from_pool(pool)  # closing it closes the connections


class _Awaited:
    """A connection that another thread may close while one waits for a response.

    redis-py shuts its socket down, which wakes the thread that waits, and closes it at once. What the program opens
    next gets the same number. If it does so before that thread looks at its socket again, the thread goes on to wait
    for the other one, for as long as it may wait. A file over the socket keeps the number until the thread is back.
    https://docs.python.org/3/library/socket.html#socket.socket.close

    It overrides a private method, as `_Located` does.
    """

    _sock: Any
    _kept: Any = None
    """The file, without which the socket would be closed."""
    _is_awaited = False

    def _connect(self) -> Any:
        connected = super()._connect()  # type: ignore[misc]  # of the connection that this is mixed into
        self._kept = connected.makefile("rb", buffering=0)
        return connected

    def can_read(self, *arguments: Any, **options: Any) -> Any:
        return self._await(super().can_read, *arguments, **options)  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        return self._await(super().read_response, *arguments, **options)  # type: ignore[misc]

    def disconnect(self, *arguments: Any, **options: Any) -> None:
        super().disconnect(*arguments, **options)  # type: ignore[misc]
        if not self._is_awaited:
            self._let_go()

    def _await(self, read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._is_awaited = True
        try:
            return read(*arguments, **options)
        finally:
            self._is_awaited = False
            if self._sock is None:  # it was closed meanwhile
                self._let_go()

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()


class _Located:
    """A connection that asks where its server is, each time it connects.

    It overrides a private method, since redis-py connects again by itself in several places; the tests run
    with the oldest redis-py that is allowed, and with the newest.
    """

    locate: "staticmethod[[], Host]"

    def _connect(self) -> Any:
        self.host, self.port = self.locate()
        return super()._connect()  # type: ignore[misc]  # of the connection that this is mixed into


class _AsyncLocated(_Located):
    async def _connect(self) -> None:
        self.host, self.port = await asyncio.to_thread(self.locate)
        await super(_Located, self)._connect()  # type: ignore[misc]  # likewise


def _located(mixin: type[_Located], kind: type, locate: Locate | None) -> type:
    """Return the kind of connection that asks where its server is, unless `locate` is None."""
    return kind if locate is None else type("LocatedConnection", (mixin, kind), {"locate": staticmethod(locate)})


def _locator(target: RedisUrl, key: str, options: dict[str, Any]) -> Locate:
    """Return what asks where the server is; remove from the options what is for the sentinels alone."""
    hosts = list(target.hosts)
    timeout = min(ASK_SECONDS, options["socket_connect_timeout"])
    asking = options | {"db": 0, "socket_timeout": timeout, "socket_connect_timeout": timeout}
    ask: Ask = functools.partial(_ask_node, hosts, target.hosts, key_slot(key.encode()))
    if target.kind == "sentinel":
        ask = functools.partial(_ask_sentinel, target.master)
        for name in ("username", "password"):
            # Sentinels have users of their own, or none; those of the URL are the primary's.
            asking.pop(f"sentinel_{name}", None)
            asking[name] = options.pop(f"sentinel_{name}", None)
    _client(asking)  # refuses options that it does not know
    return functools.partial(_locate, hosts, asking, ask)


def _locate(hosts: list[Host], asking: dict[str, Any], ask: Ask) -> Host:
    """Ask one after the other.

    Not with redis-py's Sentinel, whose errors don't say what went wrong, nor with its RedisCluster, which sends a
    command again, to another node, when it may have been executed already.
    """
    failed: redis.RedisError = redis.ConnectionError("it knows of none")
    deadline = time.monotonic() + ASK_ALL_SECONDS
    for _ in range(len(hosts)):
        first, *others = hosts
        host, port = first
        # The next time, another comes first: this one may hang, or not know of a failover. The list changes before
        # this one is asked, since several may connect at the same time.
        hosts[:] = [*others, first]
        try:
            with _client(asking | {"host": host, "port": port}) as client:
                if (found := ask(client, host)) is not None:
                    return found
        except redis.RedisError as error:
            failed = error
        if time.monotonic() > deadline:
            break
    kind = redis.TimeoutError if isinstance(failed, redis.TimeoutError) else redis.ConnectionError
    raise kind(f"Nobody names the primary; {host}:{port}, asked last, says: {explain(failed)}")


def _ask_sentinel(master: str, client: Any, _: str) -> Host | None:
    """Return the primary as one sentinel sees it.

    https://redis.io/docs/latest/develop/reference/sentinel-clients/
    """
    state = client.sentinel_master(master)
    if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
        return None
    return state["ip"], state["port"]


def _ask_node(hosts: list[Host], seeds: tuple[Host, ...], slot: int, client: Any, asked: str) -> Host | None:
    """Return the slot's owner as one node sees it.

    https://redis.io/docs/latest/commands/cluster-slots/
    hosts: becomes those that can be asked from now on: the nodes that this one knows, and the seeds.
    """
    owner = None
    known: list[Host] = []
    for first, last, *nodes in client.execute_command("CLUSTER", "SLOTS"):
        # A node that does not know its own name is where it was asked.
        members = [((host or b"").decode() or asked, int(port)) for host, port, *_ in nodes]
        known += members
        if first <= slot <= last:
            owner = members[0]
    stay = [host for host in hosts if host in known or host in seeds]
    hosts[:] = dict.fromkeys([*stay, *known])
    return owner
