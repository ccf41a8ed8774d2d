"""TLS to Redis, with certificates as they are found: what is taken, and what `check` advises where one is not."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clerk_session_feed.connections import connect, connect_async
from support.certificates import make_certificates, with_certificate
from support.clock import eventually
from support.connecting import asked_in_a_loop, outcome_of_a_delivery
from support.events import clerk_event
from support.feeds import EndedError, OpenFeed
from support.network import serving
from support.redis_servers import ScriptedRedis, takes_tls
from support.relay import make_settings
from support.services import run_service
from support.topologies import MASTER, free_node_port, run_sentinel

from service.cli.check import run_checks
from service.dev.embedded import EmbeddedRedis
from service.errors import StartError

StartRedis = Callable[..., EmbeddedRedis]
StartTls = Callable[..., str]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def start_tls(start_redis: StartRedis, certificates: Path, redis_binary: str) -> StartTls:
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


def test_a_self_signed_certificate_is_refused_unless_told_otherwise(start_tls: StartTls) -> None:
    url = start_tls("own")

    assert outcome_of_a_delivery(url) == "store_unavailable"
    assert outcome_of_a_delivery(url, redis_tls_verify=False) == "applied"
    assert asked_in_a_loop(url) == "ConnectionError"
    assert asked_in_a_loop(url, tls_verify=False) == "subscribe"


@pytest.mark.parametrize(("verify", "status"), [("true", 503), ("false", 200)])
def test_the_service_itself_on_a_self_signed_certificate(start_tls: StartTls, verify: str, status: int) -> None:
    with run_service(start_tls("own"), REDIS_TLS_VERIFY=verify) as service:
        assert service.deliver(clerk_event()).status_code == status
        assert service.http.get("/readyz").status_code == status


def test_a_private_ca_is_trusted_if_the_url_names_it(start_tls: StartTls, certificates: Path) -> None:
    url = start_tls("here")

    assert outcome_of_a_delivery(url) == "store_unavailable"
    assert outcome_of_a_delivery(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "applied"
    assert asked_in_a_loop(url) == "ConnectionError"
    assert asked_in_a_loop(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "subscribe"


def test_a_private_ca_is_trusted_if_the_machine_trusts_it(
    start_tls: StartTls, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.crt"))

    assert outcome_of_a_delivery(start_tls("here")) == "applied"


def test_readers_and_subscribers_without_a_password_get_through_tls(start_tls: StartTls) -> None:
    with connect(start_tls("own"), tls_verify=False) as client:
        for _ in range(2):
            assert client.get("a key") is None
            client.connection_pool.disconnect()
        with client.pubsub() as pubsub:
            pubsub.subscribe("a channel")
            assert pubsub.get_message(timeout=10)["type"] == "subscribe"


class TicketsFirst(ScriptedRedis):
    """A Redis with TLS 1.3, whose session tickets reach a new connection before its first command is sent."""

    def __init__(self, certificates: Path, ping: bytes) -> None:
        super().__init__(lambda words: ping if words == [b"PING"] else b"$5\r\nvalue")
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(certificates / "own.crt", certificates / "own.key")
        self._sent = threading.Semaphore(0)

    @property
    def url(self) -> str:
        return super().url.replace("redis://", "rediss://")

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self._context.wrap_socket(request, server_side=True) as encrypted:
            self._sent.release()
            super().finish_request(encrypted, client_address)

    def wait_for_tickets(self, _: object) -> None:
        assert self._sent.acquire(timeout=30)


@pytest.mark.parametrize("ping", [b"+PONG", b"-NOPERM User reader has no permissions to run the 'ping' command"])
def test_session_tickets_are_not_taken_for_a_response(certificates: Path, ping: bytes) -> None:
    with (
        TicketsFirst(certificates, ping) as server,
        serving(server),
        connect(server.url, tls_verify=False, timeout=10, on_connect=server.wait_for_tickets) as client,
    ):
        for _ in range(3):
            assert client.get("a key") == b"value"
            client.connection_pool.disconnect()

    assert server.commands == [[b"PING"], [b"GET", b"a key"]] * 3


def test_session_tickets_are_not_taken_for_a_response_in_a_loop(certificates: Path) -> None:
    async def ask() -> None:
        async def on_connect(connection: object) -> None:
            await asyncio.to_thread(server.wait_for_tickets, connection)

        async with connect_async(server.url, tls_verify=False, timeout=10, on_connect=on_connect) as client:
            for _ in range(3):
                assert await client.get("a key") == b"value"
                await client.connection_pool.disconnect()

    with TicketsFirst(certificates, b"+PONG") as server, serving(server):
        asyncio.run(ask())

    assert server.commands == [[b"GET", b"a key"]] * 3


def test_closing_a_feed_that_waits_over_tls(start_tls: StartTls, open_feed: OpenFeed) -> None:
    url = start_tls("own")
    with connect(url, tls_verify=False) as client:
        for begin in ("follow", "consume", "subscribe"):
            feed = open_feed(url, redis_tls_verify=False)
            assert feed.get("sess_1") is None
            waiting = getattr(feed, begin)().begin()
            eventually(lambda: len(client.client_list()) == 3)
            feed.close()
            with pytest.raises(EndedError):
                waiting.result(30)
            eventually(lambda: len(client.client_list()) == 1)


def test_a_certificate_for_another_host_is_refused(start_tls: StartTls, certificates: Path) -> None:
    url = start_tls("else")

    assert outcome_of_a_delivery(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "store_unavailable"
    assert outcome_of_a_delivery(url, redis_tls_verify=False) == "applied"


def test_tls_to_a_server_without_it_is_refused(own_redis: EmbeddedRedis) -> None:
    url = own_redis.url.replace("redis://", "rediss://")

    assert outcome_of_a_delivery(url, redis_tls_verify=False, redis_timeout=1) == "store_unavailable"


def test_sentinels_and_their_primary_over_tls(redis_binary: str, start_tls: StartTls, certificates: Path) -> None:
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


def start_cluster(start_tls: StartTls, certificate: str) -> str:
    """Start a cluster of one node, which is known to it by its address, and return its URL."""
    options = {"cluster-enabled": "yes", "tls-cluster": "yes", "cluster-announce-ip": "127.0.0.1"}
    url = start_tls(certificate, **options)
    with connect(url, tls_verify=False) as node:
        node.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        eventually(lambda: node.cluster("INFO")["cluster_state"] == "ok", within=30)
    return url.replace("rediss://", "rediss+cluster://").replace("/0", "")


def test_a_cluster_over_tls(start_tls: StartTls, certificates: Path) -> None:
    url = start_cluster(start_tls, "here")

    assert outcome_of_a_delivery(url) == "store_unavailable"
    assert outcome_of_a_delivery(f"{url}?ssl_ca_certs={certificates}/ca.crt") == "applied"
    assert outcome_of_a_delivery(url, redis_tls_verify=False) == "duplicate"
    assert asked_in_a_loop(url) == "ConnectionError"
    assert asked_in_a_loop(url, tls_verify=False) == "subscribe"


def test_check_tells_the_way_out_where_nobody_vouches_for_a_certificate(start_tls: StartTls) -> None:
    url = start_tls("own")
    *_, last = run_checks(make_settings(url))

    assert last.level == "error"
    assert "ssl_ca_certs" in last.text
    assert "REDIS_TLS_VERIFY=false" in last.text
    assert "error" not in {finding.level for finding in run_checks(make_settings(url, redis_tls_verify=False))}


def test_no_tls_to_a_server_that_wants_it_is_refused(start_tls: StartTls) -> None:
    url = start_tls("own").replace("rediss://", "redis://")

    assert outcome_of_a_delivery(url, redis_timeout=1) == "store_unavailable"


def advice(redis_url: str, **settings: Any) -> str:
    """Return what `check` says last, of an error."""
    *_, last = run_checks(make_settings(redis_url, **settings))
    assert last.level == "error"
    assert len(last.text.splitlines()) == 1
    return last.text


def test_nodes_that_go_by_addresses_are_checked_against_the_name_that_the_url_gives(
    start_tls: StartTls, certificates: Path
) -> None:
    """As at Azure: the certificate is for the name by which the cluster is reached at first."""
    seed = start_cluster(start_tls, "name").replace("127.0.0.1", "localhost")
    url = f"{seed}?ssl_ca_certs={certificates}/ca.crt"

    said = advice(url)
    assert "IP address mismatch" in said
    assert "?ssl_server_hostname=<that host>" in said
    assert "REDIS_TLS_VERIFY" not in said
    assert outcome_of_a_delivery(f"{url}&ssl_server_hostname=localhost") == "applied"
    assert asked_in_a_loop(f"{url}&ssl_server_hostname=localhost") == "subscribe"
    for other in ("elsewhere.example", "127.0.0.1"):
        assert outcome_of_a_delivery(f"{url}&ssl_server_hostname={other}") == "store_unavailable"
        assert asked_in_a_loop(f"{url}&ssl_server_hostname={other}") == "ConnectionError"
    # Who signed it is checked all the same.
    assert outcome_of_a_delivery(f"{seed}?ssl_server_hostname=localhost") == "store_unavailable"
    assert asked_in_a_loop(f"{seed}?ssl_server_hostname=localhost") == "ConnectionError"


def test_a_server_behind_another_address_is_checked_against_its_name(start_tls: StartTls, certificates: Path) -> None:
    url = f"{start_tls('else')}?ssl_ca_certs={certificates}/ca.crt"

    assert "?ssl_server_hostname=<that host>" in advice(url)
    with connect(f"{url}&ssl_server_hostname=elsewhere.example") as client:
        for _ in range(2):  # a new connection leads to the address again
            assert client.get("a key") is None
            client.connection_pool.disconnect()
    assert asked_in_a_loop(f"{url}&ssl_server_hostname=elsewhere.example") == "subscribe"


def test_who_signed_a_certificate_is_checked_where_its_host_is_not(start_tls: StartTls, certificates: Path) -> None:
    url = f"{start_tls('else')}?ssl_check_hostname=false"

    assert outcome_of_a_delivery(url) == "store_unavailable"
    assert asked_in_a_loop(url) == "ConnectionError"
    assert outcome_of_a_delivery(f"{url}&ssl_ca_certs={certificates}/ca.crt") == "applied"
    assert asked_in_a_loop(f"{url}&ssl_ca_certs={certificates}/ca.crt") == "subscribe"


def test_a_certificate_that_python_3_13_refuses_is_taken_if_the_url_says_so(
    start_tls: StartTls, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_context = ssl.create_default_context

    def as_python_3_13(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = make_context(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", as_python_3_13)
    url = start_tls("old")
    trusted = f"{url}?ssl_ca_certs={certificates}/ca.crt"

    said = advice(trusted)
    assert "Missing Authority Key Identifier" in said
    assert "add ?ssl_exclude_verify_flags=VERIFY_X509_STRICT" in said
    assert "REDIS_TLS_VERIFY" not in said
    assert asked_in_a_loop(trusted) == "ConnectionError"
    not_strict = "ssl_exclude_verify_flags=VERIFY_X509_STRICT"
    assert outcome_of_a_delivery(f"{trusted}&{not_strict}") == "applied"
    assert asked_in_a_loop(f"{trusted}&{not_strict}") == "subscribe"
    assert outcome_of_a_delivery(f"{url}?{not_strict}") == "store_unavailable"


def test_a_self_signed_certificate_is_trusted_if_the_url_names_it(start_tls: StartTls, certificates: Path) -> None:
    url = f"{start_tls('own')}?ssl_ca_certs={certificates}/own.crt"

    assert outcome_of_a_delivery(url) == "applied"
    assert asked_in_a_loop(url) == "subscribe"


@pytest.mark.parametrize(
    ("certificate", "said", "to_do"),
    [
        ("expired", "certificate has expired", "renew it"),
        ("client", "certificate purpose", "let its authority make one for servers"),
    ],
)
def test_a_certificate_that_no_option_mends_is_said_to_need_another(
    start_tls: StartTls, certificates: Path, certificate: str, said: str, to_do: str
) -> None:
    text = advice(f"{start_tls(certificate)}?ssl_ca_certs={certificates}/ca.crt")

    assert said in text
    assert f": {to_do}" in text
    assert "REDIS_TLS_VERIFY" not in text


@pytest.mark.parametrize(("file", "to_do"), [("own.key", "?ssl_ca_certs="), ("nothing.crt", "correct the path")])
def test_a_file_of_authorities_that_is_none_is_said_to_be_wrong(
    start_tls: StartTls, certificates: Path, file: str, to_do: str
) -> None:
    assert to_do in advice(f"{start_tls('here')}?ssl_ca_certs={certificates}/{file}")


def test_a_client_shows_its_certificate_where_that_is_wanted(start_tls: StartTls, certificates: Path) -> None:
    url = f"{start_tls('here', **{'tls-auth-clients': 'yes'})}?ssl_ca_certs={certificates}/ca.crt"
    own = f"{url}&ssl_certfile={certificates}/client.crt&ssl_keyfile={certificates}/client.key"

    said = advice(url)
    assert "if it wants a client's certificate" in said
    assert "?ssl_certfile=" in said
    assert outcome_of_a_delivery(own) == "applied"
    assert asked_in_a_loop(own) == "subscribe"


def test_check_names_tls_where_the_port_wants_it_and_where_it_has_none(
    start_tls: StartTls, own_redis: EmbeddedRedis
) -> None:
    with_tls = start_tls("own")

    assert "if it wants TLS, with rediss://" in advice(with_tls.replace("rediss://", "redis://"), redis_timeout=1)
    assert "with rediss:// only if it speaks TLS" in advice(
        own_redis.url.replace("redis://", "rediss://"), redis_timeout=1
    )


def test_other_clients_words_for_tls_are_taken(start_tls: StartTls, certificates: Path) -> None:
    url = start_tls("own").replace("rediss://", "redis://")

    assert outcome_of_a_delivery(f"{url}?ssl=true&abortConnect=false") == "store_unavailable"
    assert outcome_of_a_delivery(f"{url}?ssl=true&sslRootCert={certificates}/own.crt&family=0") == "applied"
    assert outcome_of_a_delivery(f"{url}?tls=true&ssl_cert_reqs=CERT_NONE") == "duplicate"
    assert asked_in_a_loop(f"{url}?tls=1&tls.rejectUnauthorized=false") == "subscribe"


def test_check_says_that_there_is_no_tls_where_something_else_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            with contextlib.suppress(OSError):  # the test is over
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(ConnectionError):
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        connection.recv(4096)

        threading.Thread(target=answer, daemon=True).start()
        said = advice(f"rediss://127.0.0.1:{port}/0")
        listener.shutdown(socket.SHUT_RDWR)

    assert "there is no TLS: let REDIS_URL begin with redis://" in said


def test_check_tells_of_options_that_are_passed_over_and_of_hosts_that_are_not_checked(
    start_tls: StartTls, certificates: Path
) -> None:
    url = f"{start_tls('else')}?ssl_ca_certs={certificates}/ca.crt&verifyPeer=CA&pool_size=3&family=0"

    said = {result.text for result in run_checks(make_settings(url)) if result.level == "ok"}

    assert "REDIS_URL has options that mean nothing here, and are passed over: pool_size, family" in said
    assert "TLS: on; who signed the certificate is checked, not for which host, as configured" in said
    assert "Redis takes deliveries" in said
