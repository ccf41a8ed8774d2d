"""What the test modules share: events, ways to hand them in, and Redis servers and clients that misbehave."""

import asyncio
import base64
import contextlib
import hmac
import http.client
import json
import math
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest
import redis
from werkzeug.serving import WSGIRequestHandler, make_server

from service.app.factory import create_app
from service.config import Settings, load
from service.dev import simulator
from service.dev.embedded import EmbeddedRedis, run_server
from service.errors import StartError
from service.ingest import Ingest
from service.models import Delivery, Outcome
from service.store.sessions import SessionStore
from service.waiting import Greenlets
from support import schemas

T = TypeVar("T")

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW_MS: Final = 1_795_422_800_000
"""The frozen time of the tests that hand events to the store directly."""
DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
WEEK_S: Final = 604_800
ROOT: Final = Path(__file__).resolve().parents[2]
TESTS: Final = ROOT / "tests"
CLERK_EXAMPLES: Final = ROOT.parent / "shared" / "clerk" / "webhooks-openapi-sessions.json"

NO_REDIS: Final = "unix:///nonexistent/redis.sock"
"""Where nobody listens. Not a TCP port: somebody may listen there."""

SESSION_KEY: Final = "{clerk}:session:sess_1"
USER_KEY: Final = "{clerk}:user:user_1:sessions"
EVENTS_KEY: Final = "{clerk}:events"
EXPIRY_KEY: Final = "{clerk}:expiry"
DEAD_LETTERS_KEY: Final = "{clerk}:dead-letters"


def eventually(check: Callable[[], T], within: float = 10.0) -> T:
    """Return what `check` returns once that is true; for what has no event to wait for."""
    deadline = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < deadline, f"still {result!r} after {within} s"
        time.sleep(0.01)
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def unused_port() -> Iterator[int]:
    """Return a port at which nobody listens, and nobody can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# Events, and the way into a store


def clerk_event(
    status: str | None = "active",
    *,
    type_: str | None = None,
    session_id: str = "sess_1",
    user_id: str = "user_1",
    updated_at: int = NOW_MS - 1000,
    occurred_at: int | None = None,
    expire_at: int | None = NOW_MS + DAY_MS,
    **data: Any,
) -> dict[str, Any]:
    """Return the body of a delivery about one session. Times: Unix milliseconds."""
    event = simulator.sample(
        type_ or {"active": "session.created"}.get(str(status), f"session.{status}"),
        session_id=session_id,
        user_id=user_id,
        now_ms=updated_at,
    )
    event["timestamp"] = updated_at if occurred_at is None else occurred_at
    event["data"] |= {"status": status, "updated_at": updated_at, "expire_at": expire_at, **data}
    return event


def make_settings(redis_url: str, **overrides: Any) -> Settings:
    return load(
        Settings,
        _env_file=None,
        redis_url=redis_url,
        **{"clerk_webhook_signing_secret": SECRET} | overrides,
    )


class Intake:
    """Takes deliveries into a store of its own, at a frozen time."""

    def __init__(self, redis_url: str, *, now_ms: int = NOW_MS, **overrides: Any) -> None:
        self.now_ms = now_ms
        settings = make_settings(redis_url, **overrides)
        self.store = SessionStore(settings)
        self._ingest = Ingest(
            self.store,
            publish_http_request=settings.publish_http_request,
            clock=lambda: self.now_ms / 1000,
        )

        # As under `serve`: on an event loop, in greenlets.
        self._loop = asyncio.new_event_loop()
        self._greenlets = Greenlets(self._loop)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.store.bind_loop(self._loop)

    def call(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Call something that blocks; it began, in the order of the calls, once the loop comes to it."""
        deadline = self._loop.time() + 60
        return asyncio.run_coroutine_threadsafe(self._greenlets.run(deadline, function, *args), self._loop)

    def begin(self, event: object, message_id: str) -> Future[Outcome]:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        return self.call(self._ingest, Delivery(message_id, self.now_ms // 1000, body))

    def is_sending(self) -> bool:
        """Tell whether something was sent to Redis, and nothing more waits to be sent."""
        groups = self.store._groups.values()
        return any(group._stuck_from < math.inf and not group._waiting for group in groups)

    def take(self, event: object, message_id: str) -> Outcome:
        return self.begin(event, message_id).result(timeout=30)

    def close(self) -> None:
        self.store.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def intake_on(redis_url: str, **options: Any) -> Iterator[Intake]:
    intake = Intake(redis_url, **options)
    try:
        yield intake
    finally:
        intake.close()


# Looking into Redis


@contextlib.contextmanager
def client_of(redis_url: str, **options: Any) -> Iterator[Any]:
    """Return a client that speaks text. Typed Any: redis-py's replies are unions of everything."""
    with redis.Redis.from_url(redis_url, **{"decode_responses": True, "protocol": 2} | options) as client:
        yield client


def contents(client: Any) -> dict[str, Any]:
    """Return all that Redis holds, and which keys have a TTL; an empty stream holds nothing."""
    read = {
        "hash": client.hgetall,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        "stream": client.xrange,
        "string": client.get,
    }
    held = {key: (read[client.type(key)](key), client.pttl(key) >= 0) for key in client.scan_iter("*")}
    return {key: value for key, value in held.items() if value[0]}


def assert_sessions_and_users_expire(client: Any) -> None:
    for pattern in ("*:session:*", "*:user:*:sessions"):
        for key in client.scan_iter(pattern):
            assert client.ttl(key) != -1, f"{key} stays for ever"


def assert_messages_keep_to_the_schema(client: Any) -> None:
    """Those that Redis holds, that is; Subscriber looks at what is published."""
    assert schemas.faults_held(client) == []


class Subscriber:
    """Collects what is published, all of which keeps to the schema."""

    def __init__(self, client: Any, *channels: str) -> None:
        self._pubsub = client.pubsub(ignore_subscribe_messages=False)
        self._pubsub.subscribe(*channels)
        for _ in channels:
            assert self._pubsub.get_message(timeout=10)["type"] == "subscribe"

    def next(self, within: float = 10.0) -> tuple[str, str]:
        """Return the next message, with its channel first."""
        message = self._pubsub.get_message(timeout=within)
        assert message is not None, "nothing was published"
        return self._checked(message)

    def rest(self) -> list[tuple[str, str]]:
        """Return what has arrived until now: everything that Redis published before it answers a ping."""
        self._pubsub.ping("end")
        messages = []
        while (message := self._pubsub.get_message(timeout=10))["type"] != "pong":
            messages.append(self._checked(message))
        return messages

    def _checked(self, message: dict[str, str]) -> tuple[str, str]:
        assert schemas.faults_published(message["data"]) == []
        return message["channel"], message["data"]

    def close(self) -> None:
        self._pubsub.close()


@contextlib.contextmanager
def subscribed(client: Any, *channels: str) -> Iterator[Subscriber]:
    subscriber = Subscriber(client, *channels)
    try:
        yield subscriber
    finally:
        subscriber.close()


@contextlib.contextmanager
def monitored(client: Any) -> Iterator[list[str]]:
    """Collect the commands of all other clients, but for those of scripts; filled in on leaving."""
    commands: list[str] = []
    with client.monitor() as monitor:
        yield commands
        client.echo("end-of-monitoring")
        while "end-of-monitoring" not in (said := monitor.next_command())["command"]:
            if said["client_type"] != "lua":
                commands.append(said["command"])


# Redis servers


@contextlib.contextmanager
def redis_server(binary: str, *options: str, port: int | None = None) -> Iterator[EmbeddedRedis]:
    """Run a redis-server; tried again if someone else took the free port first."""
    with contextlib.ExitStack() as stack:
        for attempt in range(3):
            with contextlib.suppress(StartError):
                server = stack.enter_context(run_server(binary, options, port))
                break
            if attempt == 2:
                server = stack.enter_context(run_server(binary, options, port))
        yield server


@contextlib.contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[None]:
    """Keep the process from doing anything: connections open, but nothing answers."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


class _Script(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, ScriptedRedis)
        with contextlib.suppress(ConnectionError, ValueError):
            while count := self.rfile.readline():
                words = []
                for _ in range(int(count[1:])):
                    size = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(size))
                    self.rfile.read(2)
                server.commands.append(words)
                reply = server.reply(words)
                if reply is None:
                    return
                self.wfile.write(reply + b"\r\n")


class ScriptedRedis(socketserver.ThreadingTCPServer):
    """A Redis that says what a test tells it to, in RESP; it hangs up where it is told to say None."""

    daemon_threads = True

    def __init__(self, reply: Callable[[list[bytes]], bytes | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Script)
        self.reply = reply
        self.commands: list[list[bytes]] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_address[1]}/0"


@contextlib.contextmanager
def scripted_redis(reply: Callable[[list[bytes]], bytes | None]) -> Iterator[ScriptedRedis]:
    with ScriptedRedis(reply) as server, serving(server):
        yield server


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Let a server work in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


# The service, over HTTP

SERVE: Final = [sys.executable, "-m", "service", "serve"]


def signature(message_id: str, timestamp: str, body: bytes, secret: str = SECRET) -> str:
    """Sign any bytes (https://github.com/standard-webhooks/standard-webhooks, "Signature scheme")."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def signed(
    body: bytes,
    message_id: str | None = None,
    *,
    at: float | None = None,
    family: str = "svix",
    secret: str = SECRET,
) -> dict[str, str]:
    """Return the three headers of a delivery. at: Unix seconds."""
    message_id = simulator.new_id("msg") if message_id is None else message_id
    timestamp = str(int(time.time() if at is None else at))
    return {
        f"{family}-id": message_id,
        f"{family}-timestamp": timestamp,
        f"{family}-signature": signature(message_id, timestamp, body, secret),
    }


def _assert_described(response: httpx.Response) -> None:
    """Check an answer against the OpenAPI document."""
    request = response.request
    if request.method != "HEAD":
        body = response.read()
        headers = response.headers
        faults = schemas.answer_faults(request.method, request.url.path, response.status_code, headers, body)
        assert faults == [], response.text


class Endpoint:
    """Where the service listens, with a client that posts to it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=15,
            verify=False,  # certificates are of no use here, and reading them takes 40 ms
            event_hooks={"response": [_assert_described]},
        )

    def deliver(
        self, event: object, message_id: str | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Sign as Svix would and post."""
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        return self.post(body, signed(body, message_id) | (headers or {}))

    def post(self, body: bytes | Iterator[bytes], headers: dict[str, str]) -> httpx.Response:
        headers = {"content-type": "application/json"} | headers
        return self.http.post("/webhooks/clerk", content=body, headers=headers)


class _Silent(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def run_plain_wsgi(settings: Settings) -> Iterator[Endpoint]:
    """Run what `create_app` returns under a plain WSGI server with threads, in this process."""
    app = create_app(settings)
    with (
        contextlib.closing(app.store),
        make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent) as server,
        serving(server),
    ):
        endpoint = Endpoint(server.server_port)
        with endpoint.http:
            yield endpoint


class ServiceProcess(Endpoint):
    """`session-relay serve`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        super().__init__(port)
        self.process = process
        self._log = log
        self.final_log = ""
        """What the log held when the service was stopped."""

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_text().splitlines()]

    def log_text(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """Stop it as a platform does, and return its exit status."""
        self.process.terminate()
        status = self.process.wait(timeout=25)
        self.final_log = self.log_text()
        return status


@contextlib.contextmanager
def run_service(
    redis_url: str, *, command: Sequence[str] | None = None, **environment: str
) -> Iterator[ServiceProcess]:
    """Run the service on a free port until it answers.

    command: instead of `serve`. environment: settings; see CONTRACT, section 2.
    """
    with tempfile.TemporaryDirectory(prefix="session-relay-test-") as directory:
        for _ in range(3):  # someone else may take the free port first
            port = free_port()
            log = Path(directory) / "log"
            with log.open("wb") as stderr:
                process = subprocess.Popen(
                    command or SERVE,
                    cwd=directory,
                    env=os.environ
                    | {
                        "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
                        "REDIS_URL": redis_url,
                        "HOST": "127.0.0.1",
                        "PORT": str(port),
                        "PYTHONPATH": f"{ROOT}:{TESTS}",
                    }
                    | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                )
            service = ServiceProcess(process, port, log)
            workers = int(environment.get("WEB_CONCURRENCY", "1"))
            try:
                if _starts(service, workers):
                    yield service
                    return
            finally:
                service.http.close()
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
                    try:
                        process.wait(timeout=25)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
        raise RuntimeError(f"The service did not start:\n{log.read_text()}")


def _starts(service: ServiceProcess, workers: int) -> bool:
    """Wait until it answers, with all its worker processes; return False if it ends instead."""

    def outcome() -> str:
        if service.process.poll() is not None:
            return "ended"
        try:
            answers = service.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return ""
        return (
            "started"
            if answers and service.log_text().count("Application startup complete.") >= workers
            else ""
        )

    return eventually(outcome, within=60) == "started"


# HTTP below what a client library allows


class RawAnswer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def code(self) -> str | None:
        """The problem's code, or None if the body is no problem: HTTP's parser refuses in plain text."""
        is_problem = self.body and self.headers.get("content-type") == "application/problem+json"
        return json.loads(self.body)["code"] if is_problem else None


class RawConnection:
    """A connection that sends exactly the bytes it is given."""

    def __init__(self, port: int, timeout: float = 15) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, method: str = "POST") -> RawAnswer:
        response = http.client.HTTPResponse(self.socket, method=method)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return RawAnswer(response.status, headers, response.read())
        finally:
            response.close()

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def raw_connection(port: int) -> Iterator[RawConnection]:
    connection = RawConnection(port)
    try:
        yield connection
    finally:
        connection.close()


IGNORED: Final = b'{"type":"user.created"}'
"""The body of a delivery that Redis has no part in."""

Pairs = list[tuple[bytes, bytes]]


def pairs(headers: dict[str, str]) -> Pairs:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def sample_body(session_id: str = "sess_1", **values: Any) -> bytes:
    event = simulator.sample(session_id=session_id, user_id="user_1")
    return simulator.encode(simulator.with_values(event, values))


def with_length(headers: dict[str, str], body: bytes) -> dict[str, str]:
    return headers | {"content-length": str(len(body))}


def genuine(body: bytes = IGNORED, family: str = "svix") -> Pairs:
    return pairs(with_length(signed(body, family=family), body))


def request_head(
    headers: Sequence[tuple[bytes, bytes]] | dict[str, str],
    *,
    method: bytes = b"POST",
    target: bytes = b"/webhooks/clerk",
) -> bytes:
    pairs = (
        [(name.encode(), value.encode()) for name, value in headers.items()]
        if isinstance(headers, dict)
        else list(headers)
    )
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: relay.example"]
    lines += [name + b": " + value for name, value in pairs]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def exchange(port: int, request: bytes, method: str = "POST") -> RawAnswer:
    with raw_connection(port) as connection:
        connection.send(request)
        return connection.answer(method)


def assert_a_good_delivery_passes(port: int) -> None:
    """Within a second, over a connection of its own; one slow answer is put down to a busy machine, two are not."""
    seconds = []
    for session_id in ("sess_good_1", "sess_good_2"):
        body = simulator.encode(simulator.sample(session_id=session_id, user_id="user_good"))
        started = time.monotonic()
        answer = exchange(port, request_head(genuine(body)) + body)
        seconds.append(time.monotonic() - started)
        assert (answer.status, json.loads(answer.body)["outcome"]) == (200, "applied")
        if seconds[-1] < 1:
            return
    raise AssertionError(f"a good delivery took {seconds} seconds")


def conversation(port: int, requests: bytes, *, then_end: bool = False) -> list[RawAnswer]:
    """Send all at once, and return the answers that come until the server closes the connection.

    then_end: tell the server that nothing more will come.
    """
    with raw_connection(port) as connection:
        with contextlib.suppress(OSError):  # it may be closed before all is sent
            connection.send(requests)
            if then_end:
                connection.socket.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.socket.recv(65_536):
                received += data
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", 0))
        answers.append(RawAnswer(int(first.split()[1]), headers, rest[:size]))
        received = rest[size:]
    return answers


def metric(text: str, name: str, **labels: str) -> float:
    """Return one sample out of Prometheus' text format; 0 if it is not there."""
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match and wanted <= set((match[1] or "").split(",")):
            return float(match[2])
    return 0.0


def workers_of(main: int) -> set[int]:
    """Return the process ids of the workers of `serve`, which are started as Python starts them anew."""
    listing = Path(f"/proc/{main}/task/{main}/children")
    if not listing.exists():
        pytest.skip("needs /proc to look for processes")
    children = map(int, listing.read_text().split())
    return {each for each in children if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()}
