"""Every kind of REDIS_URL: TCP, TLS, a unix socket, passwords; and nothing sent that nobody asked for."""

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from clerk_session_feed import connections
from clerk_session_feed.connections import connect, connect_async
from support.clock import eventually
from support.connecting import asked_in_a_loop, outcome_of_a_delivery
from support.events import clerk_event
from support.feeds import PATIENCE, OpenFeed
from support.network import unused_port
from support.redis_clients import client_of
from support.redis_servers import scripted_redis
from support.relay import run_relay

from service.dev.embedded import EmbeddedRedis

StartRedis = Callable[..., EmbeddedRedis]


# What goes over the line


def test_connecting_sends_only_what_the_url_asks_for() -> None:
    with scripted_redis(lambda _: b"+OK") as server, connect(server.url) as client:
        client.execute_command("ECHO", "1")
    assert server.commands == [[b"ECHO", b"1"]]

    with (
        scripted_redis(lambda _: b"+OK") as server,
        connect(server.url.replace("//", "//someone:p%40ss@").replace("/0", "/3")) as client,
    ):
        client.execute_command("ECHO", "1")
    assert server.commands == [[b"AUTH", b"someone", b"p@ss"], [b"SELECT", b"3"], [b"ECHO", b"1"]]


def test_connecting_in_a_loop_sends_only_what_the_url_asks_for() -> None:
    greeted: list[int] = []

    async def ask(url: str) -> None:
        async with connect_async(url, on_connect=lambda _: greeted.append(len(server.commands))) as client:
            assert await client.get("1") == b"OK"

    with scripted_redis(lambda _: b"+OK") as server:
        asyncio.run(ask(server.url.replace("//", "//someone:p%40ss@").replace("/0", "/3")))
    assert server.commands == [[b"AUTH", b"someone", b"p@ss"], [b"SELECT", b"3"], [b"GET", b"1"]]
    assert greeted == [2]


def test_each_new_connection_is_handed_over_after_its_handshake() -> None:
    greeted: list[int] = []
    with scripted_redis(lambda _: b"+OK") as server:

        def greet(_: object) -> None:
            greeted.append(len(server.commands))

        with connect(server.url.replace("/0", "/3"), on_connect=greet) as client:
            client.execute_command("ECHO", "1")
            client.connection_pool.disconnect()
            client.execute_command("ECHO", "2")

    assert greeted == [1, 3]  # after the first SELECT; after SELECT, ECHO and another SELECT


@pytest.mark.parametrize("reply", [b"-ERR no", None])
def test_no_command_is_tried_a_second_time(reply: bytes | None) -> None:
    with scripted_redis(lambda _: reply) as server, connect(server.url) as client, contextlib.suppress(Exception):
        client.execute_command("INCR", "x")

    assert server.commands == [[b"INCR", b"x"]]


# Where Redis is


def test_a_unix_socket(start_redis: StartRedis, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    server = start_redis("--unixsocket", str(path))
    server_db = 2

    assert outcome_of_a_delivery(f"unix://{path}?db={server_db}") == "applied"
    with client_of(server.url.replace("/0", f"/{server_db}")) as client:
        assert client.exists("{clerk}:session:sess_1")
    assert asked_in_a_loop(f"unix://{path}") == "subscribe"


def test_a_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    assert outcome_of_a_delivery(f"unix://{tmp_path}/none") == "store_unavailable"
    assert asked_in_a_loop(f"unix://{tmp_path}/none") == "ConnectionError"


def test_a_port_where_nobody_listens() -> None:
    with unused_port() as port:
        assert outcome_of_a_delivery(f"redis://127.0.0.1:{port}/0") == "store_unavailable"


def test_a_host_that_does_not_exist() -> None:
    assert outcome_of_a_delivery("redis://redis.invalid:6379/0") == "store_unavailable"


# Passwords


def test_a_password(own_redis: EmbeddedRedis, own_client: Any) -> None:
    own_client.config_set("requirepass", "p@ss/w:rd")

    def url(credentials: str) -> str:
        return own_redis.url.replace("//", f"//{credentials}")

    assert outcome_of_a_delivery(url(":p%40ss%2Fw%3Ard@")) == "applied"
    assert outcome_of_a_delivery(url("default:p%40ss%2Fw%3Ard@")) == "duplicate"
    assert outcome_of_a_delivery(url("")) == "store_unavailable"
    assert outcome_of_a_delivery(url(":wrong@")) == "store_unavailable"
    assert asked_in_a_loop(url(":p%40ss%2Fw%3Ard@")) == "subscribe"
    assert asked_in_a_loop(url("")) == "AuthenticationError"
    assert asked_in_a_loop(url(":wrong@")) == "AuthenticationError"


def test_a_user_with_no_more_rights_than_the_relay_needs(own_redis: EmbeddedRedis, own_client: Any) -> None:
    """The rights that docs/redis.md may ask for."""
    own_client.execute_command(
        *("ACL", "SETUSER", "relay", "on", ">secret", "~{clerk}:*", "resetchannels", "&clerk:sessions*", "-@all"),
        *("+script|load", "+evalsha", "+lpushx", "+hmget", "+hset", "+hdel", "+hget", "+hexists", "+exists", "+hlen"),
        *("+del", "+pttl", "+pexpire", "+zadd", "+zrem", "+xadd", "+xdel", "+publish"),
    )

    with run_relay(own_redis.url.replace("//", "//relay:secret@")) as relay:
        assert relay.take(clerk_event("active"), "msg_1").outcome == "applied"
        assert relay.take(clerk_event("ended"), "msg_2").outcome == "applied"
        assert relay.take(clerk_event("active"), "msg_3").outcome == "stale"
        assert relay.take(b'{"type":"session.created"}', "msg_4").outcome == "dead_lettered"
        relay.call(relay.store.probe).result(timeout=30)


READER: Final = (
    *("on", ">secret", "~{clerk}:*", "resetchannels", "&clerk:sessions*", "-@all"),
    *("+hmget", "+zrangebyscore", "+xrange", "+xrevrange", "+xread", "+xinfo|stream", "+scan", "+eval"),
    *("+xinfo|groups", "+xgroup|create", "+xgroup|setid", "+xreadgroup", "+xack"),
    *("+xinfo|consumers", "+xgroup|delconsumer", "+xpending", "+xautoclaim", "+subscribe", "+unsubscribe", "+ping"),
)
"""The rights of a program that reads, and shares in a group."""


def test_a_reader_with_no_more_rights_than_it_needs(
    own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed
) -> None:
    own_client.execute_command("ACL", "SETUSER", "reader", *READER)
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event(), "msg_1")
    feed = open_feed(own_redis.url.replace("//", "//reader:secret@"))
    subscribed = feed.subscribe().begin()
    eventually(lambda: own_client.pubsub_numsub("clerk:sessions") == [("clerk:sessions", 1)])

    assert feed.state() == feed.history("sess_1")[0]
    feed.is_live("sess_1")
    feed.live_ids()
    iterators = [feed.follow(), feed.follow(feed.now()), feed.consume()]
    iterators[0].next()
    iterators[2].next()
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event("ended"), "msg_2")
    assert [updates.next().event.id for updates in iterators] == ["msg_2"] * 3
    assert subscribed.result(30)[0].event.id == "msg_2"
    assert own_client.acl_log() == []


def test_several_may_ask_for_the_primary_at_once() -> None:
    """Each asks the next host first; the list of them is never empty on the way."""
    hosts = [("127.0.0.1", 1)]
    options = {"socket_timeout": 1, "socket_connect_timeout": 1}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    errors: list[BaseException] = []

    def ask() -> None:
        for _ in range(100):
            try:
                connections._locate(hosts, options, lambda *_: ("127.0.0.1", 2))
            except BaseException as error:  # noqa: BLE001  # the test looks at it
                errors.append(error)

    try:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []


# What another thread closes


def test_a_socket_that_another_thread_closes_keeps_its_number_until_nobody_waits_for_it_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    over = threading.Event()

    def hang(_: list[bytes]) -> None:
        over.wait()

    def wait() -> None:
        with contextlib.suppress(Exception):  # redis-py may raise anything
            client.execute_command("PING")

    with scripted_redis(hang) as server:
        client: Any = connect(server.url, wait=600.0, on_connect=made.append)
        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: server.commands and made[0]._is_awaited)
        own = made[0]._sock
        number, file = own.fileno(), os.fstat(own.fileno())

        with monkeypatch.context() as asleep:
            asleep.setattr(socket.socket, "shutdown", lambda *_: None)  # the thread is not awake yet
            client.close()
            assert os.path.samestat(os.fstat(number), file)
        over.set()

        own.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert own.fileno() == -1


def test_a_connection_that_nobody_waits_for_is_closed_at_once() -> None:
    made: list[Any] = []
    with scripted_redis(lambda _: b"+OK") as server:
        client: Any = connect(server.url, on_connect=made.append)
        client.execute_command("PING")
        own = made[0]._sock
        client.close()
        assert own.fileno() == -1
