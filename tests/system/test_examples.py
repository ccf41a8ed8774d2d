"""The programs in examples/, each started for real, beside the service: they do what they say."""

import base64
import contextlib
import hmac
import json
import re
import shutil
import signal
import socket
import socketserver
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from support.certificates import make_certificates, with_certificate
from support.children import Program, started
from support.clock import eventually
from support.constants import EVENTS_KEY, ROOT
from support.documents import README, fenced
from support.load import WORKERS
from support.network import free_port, serving
from support.redis_clients import client_of, monitored
from support.redis_servers import DurableRedis, frozen, scripted_redis, takes_tls
from support.services import ServiceProcess, run_service
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.dev import simulator
from service.dev.embedded import EmbeddedRedis

pytestmark = pytest.mark.real_redis

EXAMPLES = ROOT / "examples"
ORIGIN: Final = "https://app.example.com"
PYTHON: Final[list[str | Path]] = [sys.executable, "-W", "error"]


def deliver(service: ServiceProcess, type_: str, session_id: str, **data: Any) -> None:
    body = simulator.sample(type_, session_id=session_id, user_id="user_1")
    body["data"] |= data
    assert service.deliver(body).json()["outcome"] == "applied"


def sign_in(service: ServiceProcess, session_id: str) -> None:
    deliver(service, "session.created", session_id)


def revoke(service: ServiceProcess, session_id: str) -> None:
    deliver(service, "session.revoked", session_id)


@contextlib.contextmanager
def asleep(program: Program) -> Iterator[None]:
    """Let a program do nothing: what happens meanwhile, it can learn only afterwards."""
    program.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.process.send_signal(signal.SIGCONT)


# What they say at an end that is no fault of theirs

NOWHERE: Final = "redis://127.0.0.1:1"
GATEWAY: Final = [EXAMPLES / "gateway.py"]
MIRROR: Final = [EXAMPLES / "mirror.py", "sessions.db", "one"]
API: Final[list[str | Path]] = ["-m", "uvicorn", "--app-dir", EXAMPLES, "--port", "0", "api:app"]


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        (GATEWAY, {}, "REDIS_URL: is missing"),
        (GATEWAY, {"REDIS_URL": NOWHERE}, "Error 111 connecting to 127.0.0.1:1"),
        (GATEWAY, {"REDIS_URL": NOWHERE, "PORT": "http"}, "PORT: is not the number of a port"),
        (MIRROR, {}, "REDIS_URL: is missing"),
        (MIRROR[:2], {"REDIS_URL": NOWHERE}, "It needs a file and a name: python mirror.py sessions.db NAME"),
        ([MIRROR[0], "no/folder.db", "one"], {"REDIS_URL": NOWHERE}, "unable to open database file"),
        (API, {}, "CLERK_JWT_KEY: is missing"),
        (API, {"CLERK_JWT_KEY": "key"}, "CLERK_AUTHORIZED_PARTIES: is missing"),
        (API, {"CLERK_JWT_KEY": "key", "CLERK_AUTHORIZED_PARTIES": ORIGIN}, "REDIS_URL: is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_example_that_can_not_start_says_why_in_one_line(
    command: list[str | Path], settings: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("REDIS_URL", "PORT", "CLERK_JWT_KEY", "CLERK_AUTHORIZED_PARTIES"):
        monkeypatch.delenv(name, raising=False)
    with started([*PYTHON, *command], tmp_path, settings) as program:
        assert program.end() == 1
        (line,) = program.stderr.splitlines()
        assert line.startswith(said)


def test_the_mirror_waits_for_a_redis_that_is_away(start_redis: Callable[..., EmbeddedRedis], tmp_path: Path) -> None:
    port = free_port()
    with run_mirror(f"redis://127.0.0.1:{port}", tmp_path / "sessions.db") as mirror:
        mirror.wait_for("trying again", stream="stderr")
        with client_of(start_redis(port=port).url) as client:
            eventually(lambda: client.exists(EVENTS_KEY))  # with the group that it makes
        assert mirror.stop() == 0
        assert all(line.startswith("Redis: ") for line in mirror.stderr.splitlines())


def test_the_mirror_ends_in_one_line_where_trying_again_can_not_help(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    with client_of(own_redis.url) as client:
        client.set(EVENTS_KEY, "somebody else's")
    with run_mirror(own_redis.url, tmp_path / "sessions.db") as mirror:
        assert mirror.end() == 1
        (line,) = mirror.stderr.splitlines()
        assert "WRONGTYPE" in line or "wrong kind" in line


def test_ctrl_c_ends_the_mirror_and_the_program_of_the_readme_without_a_word(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    deliver(service, "session.ended", "sess_1")
    (tmp_path / "consumer.py").write_text(fenced(README, "python")[0])
    environment = {"REDIS_URL": real_redis.url}
    with started([*PYTHON, "consumer.py"], tmp_path, environment) as consumer:
        consumer.wait_for("^drop user_1 sess_1 ended")
        eventually(lambda: any_client.info("clients")["blocked_clients"])  # it waits: hiredis may crash in between
        assert (consumer.interrupt(), consumer.stderr) == (0, "")
    with run_mirror(real_redis.url, tmp_path / "sessions.db") as mirror:
        eventually(lambda: "sess_1" in mirrored(tmp_path / "sessions.db"))
        eventually(lambda: any_client.info("clients")["blocked_clients"])
        assert (mirror.interrupt(), mirror.stderr) == (0, "")


# The gateway


@contextlib.contextmanager
def run_gateway(redis_url: str, directory: Path, **settings: str) -> Iterator[Program]:
    environment = {"REDIS_URL": redis_url, "PORT": "0", **settings}
    with started([*PYTHON, EXAMPLES / "gateway.py"], directory, environment) as program:
        yield program


def connected(gateway: Program, session_id: str) -> contextlib.AbstractContextManager[ClientConnection]:
    url = gateway.wait_for(r"^ws://[^/]*")[0]
    return connect(f"{url}/?session_id={session_id}", open_timeout=30)


def answer(client: ClientConnection) -> str:
    """Say something: what comes back shows that the client is in."""
    client.send("hello")
    return str(client.recv(timeout=30))


def closed_with(client: ClientConnection) -> tuple[int, str]:
    """Wait for the gateway to close the connection, and return the code and the reason that it gives."""
    with pytest.raises(ConnectionClosed) as raised:
        client.recv(timeout=30)
    assert raised.value.rcvd is not None
    return raised.value.rcvd.code, raised.value.rcvd.reason


@pytest.fixture
def gateway(service: ServiceProcess, real_redis: EmbeddedRedis, tmp_path: Path) -> Iterator[Program]:
    with run_gateway(real_redis.url, tmp_path) as program:
        yield program


def test_the_gateway_closes_the_sockets_of_a_session_that_is_revoked(gateway: Program, service: ServiceProcess) -> None:
    sign_in(service, "sess_1")
    sign_in(service, "sess_2")
    with (
        connected(gateway, "sess_1") as one,
        connected(gateway, "sess_1") as another,
        connected(gateway, "sess_2") as other,
    ):
        assert [answer(client) for client in (one, another, other)] == ["hello"] * 3

        revoke(service, "sess_1")

        assert closed_with(one) == closed_with(another) == (4401, "the session has ended")
        assert answer(other) == "hello"
    assert (gateway.stop(), gateway.stderr) == (0, "")


def test_the_gateway_refuses_a_session_that_is_not_live(gateway: Program, service: ServiceProcess) -> None:
    deliver(service, "session.ended", "sess_ended")
    for session_id in ("sess_ended", "sess_unknown", ""):
        with connected(gateway, session_id) as client:
            assert closed_with(client) == (4401, "the session is not live")


class HeldAnswer(socketserver.ThreadingTCPServer):
    """Stands before Redis, and does something once it has said whether sess_1 is live, before that is heard."""

    daemon_threads = True

    def __init__(self, redis_port: int, meanwhile: Callable[[], object]) -> None:
        super().__init__(("127.0.0.1", 0), _Holding)
        self.redis_port = redis_port
        self.meanwhile = meanwhile
        self.url = f"redis://127.0.0.1:{self.server_address[1]}/0"


class _Holding(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, HeldAnswer)
        with socket.create_connection(("127.0.0.1", server.redis_port)) as redis:
            while request := self.request.recv(65_536):
                redis.sendall(request)
                reply = redis.recv(65_536)
                if b"sess_1" in request:
                    server.meanwhile()
                self.request.sendall(reply)


def test_no_socket_outlives_a_session_that_ends_while_it_is_checked(
    service: ServiceProcess, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    for session_id in ("sess_1", "sess_2"):
        sign_in(service, session_id)

    def end_both() -> None:
        """The gateway has heard of the end of the first once it acts on that of the second."""
        for session_id in ("sess_1", "sess_2"):
            revoke(service, session_id)
        assert closed_with(other)[0] == 4401

    with (
        HeldAnswer(real_redis.port, end_both) as redis,
        serving(redis),
        run_gateway(redis.url, tmp_path, REDIS_TIMEOUT="60") as gateway,
        connected(gateway, "sess_2") as other,
    ):
        assert answer(other) == "hello"
        with connected(gateway, "sess_1") as client:
            assert closed_with(client) == (4401, "the session has ended")


def test_the_gateway_misses_no_end_while_redis_restarts(
    durable_server: DurableRedis, durable_service: ServiceProcess, tmp_path: Path
) -> None:
    with run_gateway(durable_server.url, tmp_path) as gateway:
        sign_in(durable_service, "sess_1")
        with connected(gateway, "sess_1") as client:
            assert answer(client) == "hello"
            with asleep(gateway):
                restart(durable_server, durable_service)
                revoke(durable_service, "sess_1")
            assert closed_with(client)[0] == 4401


def test_the_gateway_checks_its_sockets_anew_when_the_stream_was_trimmed(
    gateway: Program, service: ServiceProcess, any_client: Any
) -> None:
    for session_id in ("sess_1", "sess_2"):
        sign_in(service, session_id)
    with connected(gateway, "sess_1") as ended, connected(gateway, "sess_2") as live:
        assert [answer(client) for client in (ended, live)] == ["hello"] * 2
        with any_client.pipeline(transaction=True) as together:  # no reader comes in between
            together.hset("{clerk}:session:sess_1", mapping={"live": "0"})
            together.xtrim(EVENTS_KEY, maxlen=0, approximate=False)
            together.execute()
        sign_in(service, "sess_3")
        assert closed_with(ended)[0] == 4401
        assert answer(live) == "hello"


# The API


class Signer:
    """Signs tokens, as Clerk does for an instance."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public_key = self._key.public_key().public_bytes(serialization.Encoding.PEM, subject).decode()

    def token(self, sid: str | None, lifetime: int = 60, **claims: Any) -> str:
        """Return a session's token. claims: those that differ; None leaves one out."""
        now = int(time.time())
        usual = {"azp": ORIGIN, "iss": "https://clerk.example.com", "sid": sid, "sub": "user_1", "v": 2}
        times = {"exp": now + lifetime, "iat": now, "nbf": now - 10}
        made = {name: value for name, value in {**usual, **times, **claims}.items() if value is not None}
        return jwt.encode(made, self._key, algorithm="RS256")


@pytest.fixture(scope="module")
def clerk() -> Signer:
    return Signer()


@contextlib.contextmanager
def run_api(redis_url: str, directory: Path, public_key: str) -> Iterator[httpx.Client]:
    settings = {"CLERK_JWT_KEY": public_key, "CLERK_AUTHORIZED_PARTIES": f"https://example.com,{ORIGIN}"}
    with started([*PYTHON, *API], directory, {"REDIS_URL": redis_url, **settings}) as program:
        url = program.wait_for(r"http://\S+", stream="stderr")[0]
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client
        assert program.stop() in {0, -15}


@pytest.fixture
def api(service: ServiceProcess, real_redis: EmbeddedRedis, tmp_path: Path, clerk: Signer) -> Iterator[httpx.Client]:
    with run_api(real_redis.url, tmp_path, clerk.public_key) as client:
        yield client


def ask(api: httpx.Client, token: str) -> httpx.Response:
    return api.get("/me", headers={"authorization": f"Bearer {token}"})


def refusal(api: httpx.Client, token: str) -> httpx.Response:
    """Wait until a request is refused, and return the response to the next one."""
    eventually(lambda: ask(api, token).status_code != 200)
    return ask(api, token)


BEGIN_TWICE: Final = """
import asyncio, api

async def begin():
    async with api.app.router.lifespan_context(api.app) as state:
        await state["mirror"].wait_until_ready(30)
        return await api.FEED.status("sess_1"), await state["mirror"].status("sess_1")

print(asyncio.run(begin()), asyncio.run(begin()))
"""


def test_the_api_may_begin_again_as_under_a_test_client(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    settings = {"CLERK_JWT_KEY": "key", "CLERK_AUTHORIZED_PARTIES": ORIGIN, "PYTHONPATH": str(EXAMPLES)}
    with started([*PYTHON, "-c", BEGIN_TWICE], tmp_path, {"REDIS_URL": own_redis.url, **settings}) as program:
        assert (program.end(), program.stderr) == (0, "")
        assert program.stdout == "('unknown', 'unknown') ('unknown', 'unknown')\n"


def test_the_api_answers_until_the_session_is_revoked(
    api: httpx.Client, service: ServiceProcess, clerk: Signer
) -> None:
    sign_in(service, "sess_1")
    token = clerk.token("sess_1")
    response = ask(api, token)
    assert (response.status_code, response.json()) == (200, {"session_id": "sess_1"})

    revoke(service, "sess_1")

    response = refusal(api, token)
    assert (response.status_code, response.json()) == (401, {"detail": "The session is not live"})
    assert response.headers["www-authenticate"].startswith("Bearer")


def test_the_api_trusts_the_token_of_a_session_that_the_relay_does_not_know(api: httpx.Client, clerk: Signer) -> None:
    response = ask(api, clerk.token("sess_new"))
    assert (response.status_code, response.json()) == (200, {"session_id": "sess_new"})


def test_the_api_trusts_no_token_of_an_unknown_session_for_longer_than_a_minute(
    api: httpx.Client, service: ServiceProcess, clerk: Signer
) -> None:
    """One from a JWT template may last for years. That of a session which is known to be live is as good as any."""
    sign_in(service, "sess_1")
    eventually(lambda: ask(api, clerk.token("sess_1", lifetime=61)).status_code == 200)
    assert ask(api, clerk.token("sess_new", lifetime=61)).status_code == 401


def test_the_api_refuses_a_session_whose_user_has_tasks_to_do(
    api: httpx.Client, service: ServiceProcess, clerk: Signer
) -> None:
    deliver(service, "session.pending", "sess_1")
    assert refusal(api, clerk.token("sess_1")).status_code == 401


def forged(clerk: Signer, algorithm: str, secret: str) -> str:
    """Return a token of usual claims; its signature is an HMAC, whatever the algorithm is called."""
    header = base64url(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    signed = f"{header}.{clerk.token('sess_1').split('.')[1]}"
    return f"{signed}.{base64url(hmac.digest(secret.encode(), signed.encode(), 'sha256')) if secret else ''}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_the_api_refuses_what_is_no_valid_token_of_the_instance(
    api: httpx.Client, service: ServiceProcess, clerk: Signer
) -> None:
    sign_in(service, "sess_1")
    now = int(time.time())
    tokens = {
        "another key's": Signer().token("sess_1"),
        "signed with the public key": forged(clerk, "HS256", clerk.public_key),
        "signed by nobody": forged(clerk, "none", ""),
        "expired": clerk.token("sess_1", exp=now - 10),
        "not valid yet": clerk.token("sess_1", nbf=now + 60),
        "from the future": clerk.token("sess_1", iat=now + 60),
        "without an end": clerk.token("sess_1", exp=None),
        "of another site": clerk.token("sess_1", azp="https://example.org"),
        "pending": clerk.token("sess_1", sts="pending"),
        "of no session": clerk.token(None),
        "only the id": "sess_1",
    }
    assert {name: ask(api, token).status_code for name, token in tokens.items()} == dict.fromkeys(tokens, 401)
    assert api.get("/me").status_code == 401
    assert ask(api, clerk.token("sess_1", azp=None)).status_code == 200  # not every browser tells the origin


def test_the_api_lets_nobody_in_while_redis_does_not_answer_and_memory_is_too_old(
    own_redis: EmbeddedRedis, tmp_path: Path, clerk: Signer
) -> None:
    with run_api(own_redis.url, tmp_path, clerk.public_key) as api:
        assert ask(api, clerk.token("sess_1")).status_code == 200
        with frozen(own_redis):
            assert refusal(api, clerk.token("sess_1")).status_code == 503
        assert ask(api, clerk.token("sess_1")).status_code == 200
        kill(own_redis)
        assert refusal(api, clerk.token("sess_1")).status_code == 503


def test_the_api_asks_redis_nothing_while_its_mirror_is_young(
    service: ServiceProcess, real_redis: EmbeddedRedis, any_client: Any, api: httpx.Client, clerk: Signer
) -> None:
    sign_in(service, "sess_1")
    eventually(lambda: "sess_1" not in short_reads_of(any_client, api, clerk))


def short_reads_of(client: Any, api: httpx.Client, clerk: Signer) -> str:
    """Return what Redis is asked about sessions while the API answers a request."""
    with monitored(client) as commands:
        assert ask(api, clerk.token("sess_1")).status_code == 200
    return " ".join(command for command in commands if command.startswith("HMGET"))


def test_the_api_takes_a_key_that_stands_on_one_line(
    service: ServiceProcess, real_redis: EmbeddedRedis, tmp_path: Path, clerk: Signer
) -> None:
    with run_api(real_redis.url, tmp_path, clerk.public_key.replace("\n", "\\n")) as api:
        assert ask(api, clerk.token("sess_1")).status_code == 200


# The subscriber in Node


@contextlib.contextmanager
def run_subscriber(redis_url: str, directory: Path, *arguments: str) -> Iterator[Program]:
    (directory / "subscriber.mjs").write_bytes((EXAMPLES / "subscriber.mjs").read_bytes())
    command = ["node", "subscriber.mjs", *arguments]
    with started(command, directory, {"REDIS_URL": redis_url}) as program:
        program.wait_for("^following after", stream="stderr")
        yield program


def test_the_subscriber_is_short() -> None:
    assert len((EXAMPLES / "subscriber.mjs").read_text().splitlines()) <= 125


@contextlib.contextmanager
def failing_subscriber(directory: Path, *arguments: str, **environment: str) -> Iterator[Program]:
    (directory / "subscriber.mjs").write_bytes((EXAMPLES / "subscriber.mjs").read_bytes())
    with started(["node", "subscriber.mjs", *arguments], directory, {"REDIS_URL": "", **environment}) as program:
        yield program


def what_the_subscriber_ends_with(directory: Path, *arguments: str, **environment: str) -> str:
    """Return its only line."""
    with failing_subscriber(directory, *arguments, **environment) as program:
        status = program.end()
        assert (status, program.stdout) == (1, ""), program.stderr
        (line,) = program.stderr.splitlines()
        return line


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on PATH")
def test_the_subscriber_says_that_ioredis_is_missing(tmp_path: Path) -> None:
    line = what_the_subscriber_ends_with(tmp_path, REDIS_URL="redis://127.0.0.1:1", NODE_PATH="")
    assert line == "There is no ioredis here: npm install ioredis"


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_says_that_it_has_no_url(tmp_path: Path) -> None:
    assert "REDIS_URL is not set" in what_the_subscriber_ends_with(tmp_path)


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "127.0.0.1:6379",
        "redis://",
        "redis:///0",
        "http://127.0.0.1:1",
        "redis://:hunter#two@127.0.0.1:1",
        "redis://127.0.0.1:port",
        "redis://127.0.0.1:1/name",
        '"redis://127.0.0.1:1"',
        "redis+cluster://127.0.0.1:1",
        "redis://:hunter%two@127.0.0.1:1",
        "redis://hunter%zz:two@127.0.0.1:1",
        "redis://:hunter%ff@127.0.0.1:1",
        "redis://user:1234?hunter@127.0.0.1:1",
        "redis://127.0.0.1:1/0?abortConnect=false,ssl=true,password=hunter",
        "redis://127.0.0.1:1/0?timeout=1;password=hunter",
    ],
)
def test_the_subscriber_says_that_a_url_is_none(url: str, tmp_path: Path) -> None:
    line = what_the_subscriber_ends_with(tmp_path, REDIS_URL=url)
    assert line.startswith("REDIS_URL is not like redis://user:password@host:6379/0")
    assert "hunter" not in line


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    "option",
    [
        "ssl=true",
        "tls_enabled=1",
        "ssl_cert_reqs=none",
        "rejectUnauthorized=false",
        "db=77",
        "password=hunter",
        "auth=hunter",
    ],
)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_the_subscriber_names_an_option_that_says_how_to_connect(option: str, scheme: str, tmp_path: Path) -> None:
    line = what_the_subscriber_ends_with(tmp_path, REDIS_URL=f"{scheme}://127.0.0.1:1/0?family=4&{option}")
    assert line.startswith(f"REDIS_URL has the option {option.partition('=')[0]}: leave it out; ")
    assert "hunter" not in line


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_passes_over_options_of_other_clients(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """ioredis would take each of these for its own."""
    url = f"{real_redis.url}?keyPrefix=app:&socketTimeout=1000&stringNumbers=true&keyPrefix=b:"
    with run_subscriber(url, tmp_path) as program:
        passed_over = "REDIS_URL has options that are passed over: keyPrefix, socketTimeout, stringNumbers"
        assert program.stderr.splitlines()[0] == passed_over
        revoke(service, "sess_1")
        program.wait_for("drop user_1 sess_1 revoked")


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    "prefix", ['"{clerk}"', "'{clerk}'", "{clerk}'", " {clerk}", "{clerk}\u00a0", "\u201c{clerk}\u201d", "«{clerk}»"]
)
def test_the_subscriber_refuses_a_prefix_that_no_relay_has(prefix: str, tmp_path: Path) -> None:
    line = what_the_subscriber_ends_with(tmp_path, REDIS_URL="redis://127.0.0.1:1", REDIS_KEY_PREFIX=prefix)
    assert line.startswith("REDIS_KEY_PREFIX has white space, a quotation mark or a control character")


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_takes_an_empty_prefix_as_none(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    with failing_subscriber(tmp_path, REDIS_URL=real_redis.url, REDIS_KEY_PREFIX="", PARTITIONS="1") as program:
        program.wait_for("^following after 0-0; there is nothing in {clerk}:events yet", stream="stderr")
        revoke(service, "sess_1")
        program.wait_for("drop user_1 sess_1 revoked")


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_does_not_follow_one_of_several_partitions(tmp_path: Path) -> None:
    line = what_the_subscriber_ends_with(tmp_path, REDIS_URL="redis://127.0.0.1:1", PARTITIONS="4")
    assert line.startswith("PARTITIONS=4: this program follows one stream: ")


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("4", "The data has 4 partitions: this program follows one stream: "),
        ("1>4@1795422761000", "The data is being moved: start again once `session-relay repartition` is done"),
    ],
)
def test_the_subscriber_ends_where_the_data_has_several_partitions(
    mark: str, said: str, own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path
) -> None:
    own_client.hset("{clerk}:partitions", "partitions", mark)
    assert what_the_subscriber_ends_with(tmp_path, REDIS_URL=own_redis.url).startswith(said)


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_does_without_the_right_to_ask_for_partitions(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path
) -> None:
    rights = ["+xread", "+xrevrange", "+select"]
    own_client.execute_command("ACL", "SETUSER", "few", "on", ">few", "~{clerk}:events", "-@all", *rights)
    own_client.hset("{clerk}:partitions", "partitions", "1")
    with run_subscriber(own_redis.url.replace("//", "//few:few@"), tmp_path):
        pass


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize("ahead_ms", [3_600_000, 10**17])
def test_the_subscriber_refuses_a_cursor_in_the_future(
    ahead_ms: int, own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path
) -> None:
    cursor = f"{int(time.time() * 1000) + ahead_ms}-0"
    line = what_the_subscriber_ends_with(tmp_path, cursor, REDIS_URL=own_redis.url)
    assert line == "CURSOR is in the future: leave it out to follow from now on"


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_takes_what_the_stream_has_for_no_future(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path
) -> None:
    """The clock of Redis may have been put back."""
    cursor = f"{int(time.time() * 1000) + 3_600_000}-0"
    own_client.xadd(EVENTS_KEY, {"outcome": "stale"}, id=cursor)
    with run_subscriber(own_redis.url, tmp_path, cursor) as program:
        assert program.stderr == f"following after {cursor}\n"


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_names_a_command_that_redis_lacks(tmp_path: Path) -> None:
    def reply(command: list[bytes]) -> bytes:
        lacks = command[0].upper() == b"XREVRANGE"
        return b"-ERR unknown command 'XREVRANGE', with args beginning with: 'hunter'" if lacks else b"+OK"

    with scripted_redis(reply) as server:
        line = what_the_subscriber_ends_with(tmp_path, REDIS_URL=server.url)
    assert line.startswith("Redis: ERR unknown command 'XREVRANGE': it has to have XREAD, XREVRANGE and HMGET")


@pytest.mark.usefixtures("node_modules")
def test_the_idle_subscriber_waits_at_redis_for_twenty_seconds_at_a_time(tmp_path: Path) -> None:
    """So it sends two commands in that time: 260,000 in 30 days. One that does not wait is asked once a second."""
    reads: list[tuple[list[bytes], float]] = []

    def reply(command: list[bytes]) -> bytes:
        if command[0].upper() == b"XREAD":
            reads.append((command, time.monotonic()))
            return b"*-1"
        return b"*0" if command[0].upper() == b"XREVRANGE" else b"+OK"

    with scripted_redis(reply) as server, failing_subscriber(tmp_path, REDIS_URL=server.url):
        eventually(lambda: len(reads) >= 3)
    (read, first), _, (_, third) = reads[:3]
    assert read[3:5] == [b"BLOCK", b"20000"]
    assert third - first > 1  # two pauses; the first read may be noticed late


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    "cursor", ["nonsense", "1795422761000", "$", "99999999999999999999999999-0", "1-18446744073709551616"]
)
def test_the_subscriber_says_that_a_cursor_is_none(cursor: str, tmp_path: Path) -> None:
    line = what_the_subscriber_ends_with(tmp_path, cursor, REDIS_URL="redis://127.0.0.1:1")
    assert line == "CURSOR is not like 1795422761000-0"


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    ("login", "path", "said"),
    [
        ("", "", "NOAUTH .*: correct user and password in REDIS_URL"),
        (":hunter-two", "", "WRONGPASS .*: correct user and password in REDIS_URL"),
        ("nobody:hunter-two", "", "WRONGPASS .*: correct user and password in REDIS_URL"),
        ("limited:limited", "", "NOPERM .*: give the user the rights that docs/redis.md lists"),
        (":secret", "/99", "ERR DB index .*: let REDIS_URL name a database that it has, like /0"),
        (":secret", "/1", "WRONGTYPE .*: see whether REDIS_KEY_PREFIX is the relay's"),
    ],
)
def test_the_subscriber_ends_where_trying_again_can_not_help(
    login: str, path: str, said: str, start_redis: Callable[..., EmbeddedRedis], tmp_path: Path
) -> None:
    server = start_redis()
    with client_of(server.url) as client:
        client.acl_setuser("limited", enabled=True, passwords=["+limited"], keys=["*"], commands=["+ping"])
        client.execute_command("SELECT", 1)
        client.set(EVENTS_KEY, "somebody else's")
        client.config_set("requirepass", "secret")
    line = what_the_subscriber_ends_with(tmp_path, REDIS_URL=f"redis://{login}@127.0.0.1:{server.port}{path}")
    assert re.fullmatch(f"Redis: {said}", line)
    assert "hunter" not in line


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    ("certificate", "options", "said"),
    [
        ("own", {}, "self-signed certificate: NODE_EXTRA_CA_CERTS=<file of its authority>"),
        ("here", {}, "(unable to verify|self-signed certificate in).*: NODE_EXTRA_CA_CERTS=<file of its authority>"),
        ("expired", {"NODE_EXTRA_CA_CERTS": "ca.crt"}, "certificate has expired: "),
        (
            "else",
            {"NODE_EXTRA_CA_CERTS": "ca.crt"},
            "IP: 127.0.0.1 is not in the cert's list.*: let REDIS_URL name the host",
        ),
    ],
)
def test_the_subscriber_says_what_is_wrong_with_a_certificate(
    certificate: str,
    options: dict[str, str],
    said: str,
    redis_binary: str,
    start_redis: Callable[..., EmbeddedRedis],
    tmp_path: Path,
) -> None:
    if not takes_tls(redis_binary):
        pytest.skip("this redis-server was built without TLS")
    make_certificates(tmp_path)
    port = free_port()
    flags = {"tls-port": str(port), **with_certificate(tmp_path, certificate)}
    start_redis(*(word for name, value in flags.items() for word in (f"--{name}", value)))
    url = f"rediss://127.0.0.1:{port}"
    assert re.match(f"Redis: {said}", what_the_subscriber_ends_with(tmp_path, REDIS_URL=url, **options))
    with failing_subscriber(tmp_path, REDIS_URL=url, REDIS_TLS_VERIFY="false") as program:
        program.wait_for("^following after", stream="stderr")


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_says_that_redis_wants_tls_or_a_certificate(
    redis_binary: str, start_redis: Callable[..., EmbeddedRedis], tmp_path: Path
) -> None:
    if not takes_tls(redis_binary):
        pytest.skip("this redis-server was built without TLS")
    make_certificates(tmp_path)
    port = free_port()
    flags = {"tls-port": str(port), **with_certificate(tmp_path, "here"), "tls-auth-clients": "yes"}
    start_redis(*(word for name, value in flags.items() for word in (f"--{name}", value)))
    with failing_subscriber(tmp_path, REDIS_URL=f"redis://127.0.0.1:{port}") as program:
        program.wait_for("trying again … .if it wants TLS, use rediss://", stream="stderr")
    secured = {"REDIS_URL": f"rediss://127.0.0.1:{port}", "NODE_EXTRA_CA_CERTS": "ca.crt"}
    with failing_subscriber(tmp_path, **secured) as program:
        # Redis says it and hangs up; so the first attempts may only learn that the connection was reset.
        program.wait_for("certificate required: it wants a certificate of the client", within=120, stream="stderr")
        assert program.end() == 1


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_ends_where_something_else_than_redis_listens(service: ServiceProcess, tmp_path: Path) -> None:
    with failing_subscriber(tmp_path, REDIS_URL=f"redis://127.0.0.1:{service.port}") as program:
        assert program.end() == 1
        assert program.stderr.splitlines()[-1] == "REDIS_URL names the port of a program that is no Redis"


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_waits_for_a_redis_that_is_away_and_says_so_once(
    start_redis: Callable[..., EmbeddedRedis], tmp_path: Path
) -> None:
    port = free_port()
    with failing_subscriber(tmp_path, REDIS_URL=f"redis://127.0.0.1:{port}") as program:
        program.wait_for("ECONNREFUSED", stream="stderr")
        start_redis(port=port)
        program.wait_for("^following after", stream="stderr")
        first, _ = program.stderr.splitlines()
        assert first == f"Redis: connect ECONNREFUSED 127.0.0.1:{port}; trying again …"


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_survives_what_a_provider_refuses_for_a_while(tmp_path: Path) -> None:
    refusals = [b"-ERR max requests limit exceeded. Limit: 500000, Usage: 500000"] * 2

    def reply(command: list[bytes]) -> bytes:
        match command[0].upper():
            case b"XREVRANGE":
                return refusals.pop() if refusals else b"*0"
            case b"HELLO":
                return b"-NOPROTO unsupported protocol version"
            case b"XREAD":
                return b"*-1"
        return b"+OK"

    with scripted_redis(reply) as server, failing_subscriber(tmp_path, REDIS_URL=server.url) as program:
        program.wait_for("^following after 0-0", stream="stderr")
        assert program.stderr.splitlines()[0].startswith("Redis: ERR max requests limit exceeded")


@pytest.mark.usefixtures("node_modules", "any_client")
def test_the_subscriber_drops_who_is_not_live(
    service: ServiceProcess, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    deliver(service, "session.ended", "sess_before")
    with run_subscriber(real_redis.url, tmp_path) as program:
        sign_in(service, "sess_1")
        late = simulator.sample("session.pending", session_id="sess_1", user_id="user_1", now_ms=10**12)
        assert service.deliver(late).json()["outcome"] == "stale"
        deliver(service, "session.pending", "sess_2")
        revoke(service, "sess_1")
        program.wait_for("revoked")
        assert program.lines() == ["drop user_1 sess_2 pending", "drop user_1 sess_1 revoked"]


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_misses_nothing_while_redis_restarts(
    durable_server: DurableRedis, durable_service: ServiceProcess, tmp_path: Path
) -> None:
    with run_subscriber(durable_server.url, tmp_path) as program:
        revoke(durable_service, "sess_a")
        program.wait_for("sess_a")
        with asleep(program):
            restart(durable_server, durable_service)
            revoke(durable_service, "sess_b")
        program.wait_for("sess_b")
        revoke(durable_service, "sess_c")
        program.wait_for("sess_c")
        assert program.lines() == [f"drop user_1 sess_{letter} revoked" for letter in "abc"]


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_says_when_it_missed_something(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    with run_subscriber(real_redis.url, tmp_path) as program:
        revoke(service, "sess_1")
        program.wait_for("sess_1")
        any_client.xtrim(EVENTS_KEY, maxlen=0, approximate=False)
        revoke(service, "sess_2")
        program.wait_for("trimmed past .*, or Redis lost it", stream="stderr")
        revoke(service, "sess_3")
        program.wait_for("sess_3")


@pytest.mark.usefixtures("node_modules")
def test_the_subscriber_begins_after_a_cursor(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        revoke(service, f"sess_{number}")
    (first, _), *_ = any_client.xrange(EVENTS_KEY)
    with run_subscriber(real_redis.url, tmp_path, first) as program:
        program.wait_for("sess_3")
        assert program.lines() == [f"drop user_1 sess_{number} revoked" for number in (2, 3)]


# The mirror


@contextlib.contextmanager
def run_mirror(redis_url: str, database: Path, name: str = "one") -> Iterator[Program]:
    command = [*PYTHON, EXAMPLES / "mirror.py", database, name]
    with started(command, database.parent, {"REDIS_URL": redis_url}) as program:
        yield program


def mirrored(database: Path) -> dict[str, tuple[str, int]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            rows = connection.execute("SELECT id, status, live FROM sessions").fetchall()
        except sqlite3.OperationalError:  # it is not there yet
            return {}
    return {id_: (status, live) for id_, status, live in rows}


def live_in(database: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return {id_ for (id_,) in connection.execute("SELECT id FROM live_sessions")}


def held(client: Any) -> dict[str, tuple[str, int]]:
    """Return what the relay holds, in the mirror's terms."""
    keys = list(client.scan_iter("{clerk}:session:*"))
    states = {key.rpartition(":")[2]: client.hmget(key, "status", "live") for key in keys}
    return {session_id: (status, int(live)) for session_id, (status, live) in states.items()}


def assert_equal_soon(database: Path, client: Any) -> None:
    eventually(lambda: mirrored(database) == held(client), within=30)


def test_the_mirror_equals_the_state(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    database = tmp_path / "sessions.db"
    sign_in(service, "sess_1")
    revoke(service, "sess_2")
    with run_mirror(real_redis.url, database) as mirror:
        assert_equal_soon(database, any_client)  # what was there before it
        revoke(service, "sess_1")
        sign_in(service, "sess_3")
        assert_equal_soon(database, any_client)
        assert live_in(database) == {"sess_3"}
        assert mirror.stop() == 0
        assert mirror.stderr == ""


def test_the_mirror_is_none_the_worse_for_being_killed(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """In the middle of an update: taken from Redis, and neither in the table nor acknowledged."""
    database = tmp_path / "sessions.db"
    sign_in(service, "sess_1")
    with run_mirror(real_redis.url, database) as mirror:
        assert_equal_soon(database, any_client)
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            revoke(service, "sess_1")
            sign_in(service, "sess_2")
            eventually(lambda: any_client.xpending(EVENTS_KEY, "mirror")["pending"])
            mirror.process.kill()
            mirror.end()
    before = mirrored(database)
    assert before != held(any_client)
    sign_in(service, "sess_3")
    with run_mirror(real_redis.url, database):
        assert_equal_soon(database, any_client)
    assert live_in(database) == {"sess_2", "sess_3"}


def test_the_mirror_begins_again_when_the_stream_was_trimmed_past_it(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    database = tmp_path / "sessions.db"
    sign_in(service, "sess_1")
    with run_mirror(real_redis.url, database) as mirror:
        assert_equal_soon(database, any_client)
        assert mirror.stop() == 0
    revoke(service, "sess_1")
    sign_in(service, "sess_2")
    any_client.xtrim(EVENTS_KEY, maxlen=0, approximate=False)
    sign_in(service, "sess_3")
    with run_mirror(real_redis.url, database):
        assert_equal_soon(database, any_client)


def test_the_mirror_is_not_led_back_by_an_update_that_comes_late(
    service: ServiceProcess, any_client: Any, real_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """Another consumer took it and died; when it is claimed, a later one is in the table already."""
    database = tmp_path / "sessions.db"
    any_client.xgroup_create(EVENTS_KEY, "mirror", mkstream=True)
    sign_in(service, "sess_1")
    ((_, ((late, _),)),) = any_client.xreadgroup("mirror", "dead", {EVENTS_KEY: ">"})
    revoke(service, "sess_1")
    with run_mirror(real_redis.url, database) as mirror:
        assert_equal_soon(database, any_client)
        assert mirror.stop() == 0
    any_client.xclaim(EVENTS_KEY, "mirror", "one", 0, [late])
    sign_in(service, "sess_2")
    with run_mirror(real_redis.url, database):
        eventually(lambda: "sess_2" in mirrored(database))
        assert any_client.xpending_range(EVENTS_KEY, "mirror", late, late, 1) == []
        assert mirrored(database)["sess_1"] == ("revoked", 0)


# What is done to Redis


def kill(redis: EmbeddedRedis) -> None:
    assert redis.process is not None
    redis.process.kill()
    redis.process.wait(10)


def restart(redis: DurableRedis, service: ServiceProcess) -> None:
    """Return when the service takes deliveries again."""
    redis.kill()
    redis.start()
    eventually(lambda: all(service.http.get("/readyz").is_success for _ in range(2 * WORKERS)))


# The page that signs a tab out

BROWSER: Final = """
import { readFileSync } from "node:fs";
const [page, url] = process.argv.slice(1);
const script = /<script>([\\s\\S]*)<\\/script>/.exec(readFileSync(page, "utf8"))[1];
const state = { set textContent(text) { console.log(text); } };
class EventSource {
  static CLOSED = 2;
  listeners = {};
  constructor(url) { this.run(url); }
  addEventListener(type, listener) { this.listeners[type] = listener; }
  close() { this.readyState = 2; }
  async run(url) {
    const response = await fetch(url);
    if (response.status !== 200) { this.readyState = 2; this.listeners.error(); return; }
    console.log("open");
    let text = "";
    for await (const chunk of response.body) {
      text += Buffer.from(chunk).toString();
      const blocks = text.split("\\n\\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\\n").map((line) => line.split(/: (.*)/s)));
        if (fields.data) this.listeners[fields.event]?.({ data: fields.data });
      }
    }
  }
}
new Function("EventSource", "location", "document", script)(
  EventSource, { hash: `#${url}`, reload: () => console.log("reload") }, { getElementById: () => state });
"""
"""A browser, as far as the page needs one."""


def test_the_page_signs_out_when_the_session_ends_and_asks_for_another_token_in_time(
    any_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    if shutil.which("node") is None:
        pytest.skip("there is no node on PATH")
    read_token = "a-token-to-read-with"
    with run_service(any_redis.url, READ_TOKEN=read_token) as service:
        sign_in(service, "sess_of_tab")

        def page(seconds: int) -> list[str | Path]:
            asked = {"session_id": "sess_of_tab", "seconds": seconds}
            headers = {"authorization": f"Bearer {read_token}"}
            token = service.http.post("/events/token", json=asked, headers=headers).json()["token"]
            url = f"http://127.0.0.1:{service.port}/events?token={token}"
            return ["node", "--input-type=module", "--eval", BROWSER, "--", EXAMPLES / "sign_out.html", url]

        with started(page(1), tmp_path, {}) as tab:
            tab.wait_for("^reload")
        with started(page(300), tmp_path, {}) as tab:
            tab.wait_for("^open")
            revoke(service, "sess_of_tab")
            tab.wait_for("^Signed out: revoked")


def test_the_page_has_thirty_lines() -> None:
    assert len((EXAMPLES / "sign_out.html").read_text().splitlines()) <= 30
