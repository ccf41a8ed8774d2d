"""`dev`: the service with nothing set up, sample deliveries, and what a subscriber gets.

Two children at most, ended in the reverse order of their start: a redis-server, and `session-relay serve`,
the same program as in production.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import redis
from clerk_session_feed import connections
from clerk_session_feed.errors import UnreadableMessageError
from clerk_session_feed.updates import SessionUpdate, published
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.config import DevSettings
from service.dev import embedded, sender, simulator, view
from service.dev.sender import Letter
from service.errors import StartError
from service.server.processes import listen

WEBHOOK_PATH: Final = "/webhooks/clerk"
PREFERRED_PORT: Final = 8000
START_SECONDS: Final = 20
STOP_SECONDS: Final = 20
SUBSCRIBER_SECONDS: Final = 1.0
"""How long a published message may take to be shown beside its answer."""


def run(settings: DevSettings, *, simulate: bool, console: Console) -> int:
    """Run until Ctrl-C, SIGTERM or SIGHUP; return the exit status.

    Raises StartError if something that it needs does not start; ConfigurationError if PORT is taken.
    """
    # An event, not an exception: that could hit between a child's start and the note that it has to be ended.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())

    with contextlib.ExitStack() as stack:
        if settings.redis_url:
            redis_name, redis_url = "REDIS_URL", settings.redis_url.get_secret_value()
        else:
            own_redis = stack.enter_context(embedded.run())
            redis_name, redis_url = own_redis.name, own_redis.url
        given = [secret.get_secret_value() for secret in settings.clerk_webhook_signing_secret or ()]
        secrets = given or [simulator.new_secret()]
        port = settings.port or _free_port(settings.host)
        listen(settings.host, port).close()
        origin = f"http://{_reachable(settings.host)}:{port}"
        server = stack.enter_context(
            _serve(
                {
                    "CLERK_WEBHOOK_SIGNING_SECRET": ",".join(secrets),
                    "REDIS_URL": redis_url,
                    "HOST": settings.host,
                    "PORT": str(port),
                    "LOG_LEVEL": settings.log_level,
                    "LOG_FORMAT": settings.log_format,
                }
            )
        )
        _await_start(server, f"{origin}/healthz", stop)
        subscriber = stack.enter_context(_subscribe(settings, redis_url))
        url = f"{origin}{WEBHOOK_PATH}"
        _introduce(console, url, secrets[0], redis_name, redis_url, settings.redis_channel)
        if simulate:
            _simulate(console, url, secrets[0], subscriber, stop)
        console.print(f"\nWhat {settings.redis_channel} gets from now on. Ctrl-C stops.\n", style="dim")
        while not stop.is_set():
            if server.poll() is not None:
                raise StartError(f"The relay ended by itself, with exit status {server.returncode}.")
            if (message := _next_message(subscriber, 0.2)) is not None:
                console.print(_shown(message, view.line), soft_wrap=True)
        console.print("\nStopping …", style="dim")
    return 0


def _reachable(host: str) -> str:
    """Return how a URL names the address, or one of all addresses."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host


def _free_port(host: str) -> int:
    """Return the preferred port or, if it is taken, any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (PREFERRED_PORT, 0):
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            found: int = probe.getsockname()[1]
            return found
    raise StartError(f"HOST={host} is no address of this machine.")


@contextlib.contextmanager
def _serve(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "service", "serve"]
    # In a session of its own: Ctrl-C goes to us, and we end it.
    with subprocess.Popen(command, env=os.environ | environment, start_new_session=True) as server:  # noqa: S603
        try:
            yield server
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def _await_start(server: subprocess.Popen[bytes], url: str, stop: threading.Event) -> None:
    deadline = time.monotonic() + START_SECONDS
    # One client for all attempts: each reads the system's certificates, for longer than a pause takes.
    with httpx.Client(timeout=1, trust_env=False) as client:
        while not stop.wait(0.05):
            try:
                if client.get(url).is_success:
                    return
            except httpx.HTTPError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise StartError("The relay did not start; what it said stands above.") from None


@contextlib.contextmanager
def _subscribe(settings: DevSettings, redis_url: str) -> Iterator[Any]:
    client = connections.connect(
        redis_url, tls_verify=settings.redis_tls_verify, timeout=settings.redis_timeout
    )
    pubsub: Any = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    with client, pubsub as subscriber:
        try:
            subscriber.subscribe(settings.redis_channel)
            subscriber.get_message(timeout=settings.redis_timeout)
        except redis.RedisError as error:
            raise StartError(f"Redis can't be used: {connections.explain(error)}") from None
        yield subscriber


def _next_message(subscriber: Any, seconds: float) -> bytes | None:
    """Return the next published message, if one comes in time."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = subscriber.get_message(timeout=left)
        except redis.RedisError:  # it subscribes again by itself
            time.sleep(min(left, 0.2))
            continue
        if message is not None:
            return bytes(message["data"])
    return None


def _shown(message: bytes, show: Callable[[SessionUpdate], Text]) -> Text:
    try:
        return show(published(message))
    except UnreadableMessageError as error:
        return Text(f"something else was published ({error})", "dim")


def _introduce(
    console: Console, url: str, secret: str, redis_name: str, redis_url: str, channel: str
) -> None:
    for name, value in (
        ("webhooks", url),
        ("secret", secret),
        ("Redis", f"{_without_password(redis_url)}  ({redis_name})"),
    ):
        console.print(f"{name:<10}{value}", soft_wrap=True, markup=False, highlight=False)
    program, shown_url = _program(), shlex.quote(_without_password(redis_url))
    console.print("\nTry, in another terminal:", style="dim")
    for command in (
        f"CLERK_WEBHOOK_SIGNING_SECRET={secret} {program} send session.revoked --url {url}",
        f"REDIS_URL={shown_url} {program} tail --from start",
        f"redis-cli -u {shown_url} subscribe {shlex.quote(channel)}",
    ):
        console.print(f"  {command}", soft_wrap=True, markup=False, highlight=False)
    console.print()


def _program() -> str:
    """Return how this program can be called from here."""
    called = Path(sys.argv[0]).absolute()
    if called.name != "session-relay":
        return f"{shlex.quote(sys.executable)} -m service"
    return called.name if shutil.which(called.name) == str(called) else shlex.quote(os.path.relpath(called))


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if at else url


def _simulate(console: Console, url: str, secret: str, subscriber: Any, stop: threading.Event) -> None:
    """Send a session's life as the network may deliver it, and show each outcome."""
    late, created, ended = sender.one_life(("session.pending", "session.created", "session.ended"), {})
    (forged,) = sender.one_life(("session.revoked",), {})
    (other,) = sender.one_life(("user.updated",), {})
    steps: list[tuple[str, Letter, bool]] = [
        ("session.created", created, False),
        ("the same message again", created, False),
        ("session.pending, late", late, False),
        ("session.revoked, forged", forged, True),
        ("user.updated", other, False),
        ("session.ended", ended, False),
        ("session.created, once more", created, False),
    ]
    table = Table("sent", "answer", "the subscriber got", box=None, pad_edge=False)
    for what, letter, forge in steps:
        if stop.is_set():
            return
        (answer,) = sender.deliver([letter], url=url, secret=secret, forge=forge)
        got = (
            _next_message(subscriber, SUBSCRIBER_SECONDS)
            if answer.said == "applied"
            else _next_message(subscriber, 0.1)
        )
        table.add_row(
            what,
            f"{answer.status} {answer.said}",
            Text("nothing", "dim") if got is None else _shown(got, view.change),
        )
    console.print(table)
