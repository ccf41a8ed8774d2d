"""Every kind of REDIS_URL: TCP, TLS, a unix socket, passwords; and nothing sent that nobody asked for."""

import asyncio
import contextlib
import gc
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from clerk_session_feed import connections
from clerk_session_feed.connections import connect, connect_async
from support.certificates import make_certificates, with_certificate
from support.clock import eventually
from support.events import clerk_event
from support.feeds import EndedError, OpenFeed
from support.network import unused_port
from support.redis_clients import client_of
from support.redis_servers import scripted_redis, takes_tls
from support.relay import make_settings, run_relay
from support.services import run_service
from support.topologies import MASTER, free_node_port, run_sentinel

from service.cli.check import run_checks
from service.dev.embedded import EmbeddedRedis
from service.errors import StartError, StoreUnavailableError

StartRedis = Callable[..., EmbeddedRedis]


def outcome_of_a_delivery(redis_url: str, **settings: Any) -> str:
    """Return what a fresh store makes of one delivery, as the sender would see it."""
    with run_relay(redis_url, **settings) as relay:
        try:
            return relay.take(clerk_event(), "msg_1").outcome
        except StoreUnavailableError as error:
            return error.code


def asked_in_a_loop(redis_url: str, **options: Any) -> str:
    """Return what a client for asyncio gets from there, over two connections and as a subscriber; or the error."""

    async def ask() -> str:
        async with connect_async(redis_url, "{clerk}:x", timeout=1, **options) as client:
            for _ in range(2):
                assert await client.get("{clerk}:x") is None
                await client.connection_pool.disconnect()
            async with client.pubsub() as pubsub:
                await pubsub.subscribe("clerk:sessions")
                message: Any = await pubsub.get_message(timeout=10)
                return str(message["type"])

    try:
        return asyncio.run(ask())
    except redis.RedisError as error:
        return type(error).__name__
    finally:
        with warnings.catch_warnings():
            # asyncio closes a TLS connection in the background, and the loop has ended before that.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


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


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def start_tls(start_redis: StartRedis, certificates: Path, redis_binary: str) -> Callable[..., str]:
    """Start a Redis with one of the certificates, and return its rediss:// URL."""
    if not takes_tls(redis_binary):
        pytest.skip("needs a redis-server that was built with TLS")

    def start(name: str, **options: str) -> str:
        port = free_node_port()
        all_ = {"tls-port": str(port)} | with_certificate(certificates, name) | options
        try:
            words = [word for option, value in all_.items() for word in (f"--{option}", value)]
            start_redis(*words, port=free_node_port())
        except StartError as error:
            if "tls" not in str(error).lower():
                raise
            pytest.skip("needs a redis-server that was built with TLS")
        return f"rediss://127.0.0.1:{port}/0"

    return start


def test_a_self_signed_certificate_is_refused_unless_told_otherwise(start_tls: Callable[[str], str]) -> None:
    url = start_tls("own")

    assert outcome_of_a_delivery(url) == "store_unavailable"
    assert outcome_of_a_delivery(url, redis_tls_verify=False) == "applied"
    assert asked_in_a_loop(url) == "ConnectionError"
    assert asked_in_a_loop(url, tls_verify=False) == "subscribe"


@pytest.mark.parametrize(("verify", "status"), [("true", 503), ("false", 200)])
def test_the_service_itself_on_a_self_signed_certificate(
    start_tls: Callable[..., str], verify: str, status: int
) -> None:
    with run_service(start_tls("own"), REDIS_TLS_VERIFY=verify) as service:
        assert service.deliver(clerk_event()).status_code == status
        assert service.http.get("/readyz").status_code == status


def test_a_private_ca_is_trusted_if_the_url_names_it(start_tls: Callable[[str], str], certificates: Path) -> None:
    url = start_tls("here")

    assert outcome_of_a_delivery(url) == "store_unavailable"
    assert outcome_of_a_delivery(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "applied"
    assert asked_in_a_loop(url) == "ConnectionError"
    assert asked_in_a_loop(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "subscribe"


def test_a_private_ca_is_trusted_if_the_machine_trusts_it(
    start_tls: Callable[[str], str], certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.crt"))

    assert outcome_of_a_delivery(start_tls("here")) == "applied"


def test_readers_and_subscribers_without_a_password_get_through_tls(start_tls: Callable[..., str]) -> None:
    with connect(start_tls("own"), tls_verify=False) as client:
        for _ in range(2):
            assert client.get("a key") is None
            client.connection_pool.disconnect()
        with client.pubsub() as pubsub:
            pubsub.subscribe("a channel")
            assert pubsub.get_message(timeout=10)["type"] == "subscribe"


def test_closing_a_feed_that_waits_over_tls(start_tls: Callable[..., str], open_feed: OpenFeed) -> None:
    url = start_tls("own")
    with client_of(url, ssl_cert_reqs="none") as client:
        for begin in ("follow", "consume", "subscribe"):
            feed = open_feed(url, redis_tls_verify=False)
            assert feed.get("sess_1") is None
            waiting = getattr(feed, begin)().begin()
            eventually(lambda: len(client.client_list()) == 3)
            feed.close()
            with pytest.raises(EndedError):
                waiting.result(10)
            eventually(lambda: len(client.client_list()) == 1)


READER: Final = (
    *("on", ">secret", "~{clerk}:*", "resetchannels", "&clerk:sessions*", "-@all"),
    *("+hmget", "+zrangebyscore", "+xrange", "+xrevrange", "+xread", "+xinfo|stream", "+scan"),
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
    assert subscribed.result(10)[0].event.id == "msg_2"
    assert own_client.acl_log() == []


def test_a_certificate_for_another_host_is_refused(start_tls: Callable[[str], str], certificates: Path) -> None:
    url = start_tls("else")

    assert outcome_of_a_delivery(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "store_unavailable"
    assert outcome_of_a_delivery(url, redis_tls_verify=False) == "applied"


def test_tls_to_a_server_without_it_is_refused(own_redis: EmbeddedRedis) -> None:
    url = own_redis.url.replace("redis://", "rediss://")

    assert outcome_of_a_delivery(url, redis_tls_verify=False, redis_timeout=1) == "store_unavailable"


def test_sentinels_and_their_primary_over_tls(
    redis_binary: str, start_tls: Callable[..., str], certificates: Path
) -> None:
    primary_port = int(start_tls("here").rpartition(":")[2].partition("/")[0])
    tls = [f"{option} {value}" for option, value in with_certificate(certificates, "here").items()]
    lines = ("port 0", "tls-port {port}", "tls-replication yes", *tls)
    with run_sentinel(redis_binary, primary_port, *lines, quorum=1) as port:
        url = f"rediss+sentinel://127.0.0.1:{port}/{MASTER}"

        assert outcome_of_a_delivery(url) == "store_unavailable"
        assert outcome_of_a_delivery(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "applied"
        assert outcome_of_a_delivery(url, redis_tls_verify=False) == "duplicate"
        assert asked_in_a_loop(url) == "ConnectionError"
        assert asked_in_a_loop(url, tls_verify=False) == "subscribe"


def test_a_cluster_over_tls(start_tls: Callable[..., str], certificates: Path) -> None:
    url = start_tls("here", **{"cluster-enabled": "yes", "tls-cluster": "yes"})
    with client_of(url, ssl_cert_reqs="none") as node:
        node.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        eventually(lambda: node.cluster("INFO")["cluster_state"] == "ok", within=30)
    url = url.replace("rediss://", "rediss+cluster://")

    assert outcome_of_a_delivery(url) == "store_unavailable"
    assert outcome_of_a_delivery(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "applied"
    assert outcome_of_a_delivery(url, redis_tls_verify=False) == "duplicate"
    assert asked_in_a_loop(url) == "ConnectionError"
    assert asked_in_a_loop(url, tls_verify=False) == "subscribe"


def test_check_tells_the_way_out_where_nobody_vouches_for_a_certificate(start_tls: Callable[..., str]) -> None:
    url = start_tls("own")
    *_, last = run_checks(make_settings(url))

    assert last.level == "error"
    assert "ssl_ca_certs" in last.text
    assert "REDIS_TLS_VERIFY=false" in last.text
    assert "error" not in {finding.level for finding in run_checks(make_settings(url, redis_tls_verify=False))}


def test_no_tls_to_a_server_that_wants_it_is_refused(start_tls: Callable[[str], str]) -> None:
    url = start_tls("own").replace("rediss://", "redis://")

    assert outcome_of_a_delivery(url, redis_timeout=1) == "store_unavailable"


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
