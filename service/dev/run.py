"""The command `dev`: the service with nothing set up, sample deliveries, and what a subscriber gets.

It starts up to two processes: a redis-server, and `session-relay serve`, the same program as in production.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import Any, Final

import httpx
import redis
from clerk_session_feed import connections
from clerk_session_feed.errors import ConfigurationError, UnreadableMessageError
from clerk_session_feed.updates import SessionUpdate, published
from dotenv import dotenv_values
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.config import DevSettings
from service.dev import CONSOLE_LINK, TRIAL_PATH, embedded, introduction, sender, simulator, view
from service.dev.sender import WEBHOOK_PATH
from service.errors import StartError
from service.server.system import listen

PREFERRED_PORT: Final = 8000
START_SECONDS: Final = 20
STOP_SECONDS: Final = 20
MESSAGE_SECONDS: Final = 1.0
"""Seconds that the message of an applied delivery may take to arrive, to be shown beside the response."""
NO_MESSAGE_SECONDS: Final = 0.1
"""Seconds to wait for a message where none is expected."""


def run(
    settings: DevSettings, *, simulate: bool, reconcile: bool = False, console: Console, redis_option: str | None = None
) -> None:
    """Run until Ctrl-C, SIGTERM or SIGHUP.

    Args:
        settings: what is missing in them is made up.
        simulate: send sample deliveries.
        reconcile: run a stand-in for Clerk as well, and reconcile with it.
        console: where to show what happens.
        redis_option: the option of the command line that the Redis in the settings is from, if it is from one.

    Raises:
        StartError: Redis or the service does not start, or the service ends by itself.
        ConfigurationError: PORT is taken, or HOST is no address of this machine.
    """
    # An event, not an exception: an exception between the start of a process and the `with` that ends it
    # would leave the process behind.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: stop.set())

    with contextlib.ExitStack() as stack:
        if settings.redis_url:
            redis_name, redis_url = redis_option or "REDIS_URL", settings.redis_url.get_secret_value()
            if redis_option:
                redis_option += f" {shlex.quote(introduction.without_password(redis_url))}"
            for_redis = {"REDIS_URL": redis_url}
        else:
            own_redis = stack.enter_context(embedded.run())
            redis_name, redis_url, redis_option = own_redis.name, own_redis.url, "--own-redis"
            for_redis = {"REDIS_URL": redis_url, "REDIS_MIN_REPLICAS": "0"}  # it has none
        given = [secret.get_secret_value() for secret in settings.clerk_webhook_signing_secret or ()]
        secrets = given or [simulator.new_secret()]
        tokens = [token.get_secret_value() for token in settings.console_token]
        made_token = None if tokens else token_hex(16)
        port = _choose_port(settings)
        environment = {
            "CLERK_WEBHOOK_SIGNING_SECRET": ",".join(secrets),
            **for_redis,
            "HOST": settings.host,
            "PORT": str(port),
            "LOG_LEVEL": settings.log_level,
            "LOG_FORMAT": settings.log_format,
            TRIAL_PATH: f"/{token_hex()}",
            "CONSOLE_TOKEN": made_token or ",".join(tokens),
            CONSOLE_LINK: token_hex(16),
        }
        server = stack.enter_context(_serve(environment))
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
        origin = httpx.URL(scheme="http", host=host, port=port)
        own_url = origin.join(environment[TRIAL_PATH])
        _await_start(server, own_url, stop)
        subscriber = stack.enter_context(_subscribe(settings, redis_url))
        url = str(origin.join(WEBHOOK_PATH))
        introduction.introduce(
            console,
            origin,
            redis_name=redis_name,
            redis_url=redis_url,
            redis_option=redis_option or "",
            channel=settings.redis_channel,
            console_link=str(origin.join(f"/console/open/{environment[CONSOLE_LINK]}")),
            made_token=made_token,
            made_secret=None if given else secrets[0],
            names_secret=not given or not _is_in_file(secrets[0]),
            preferred_port=PREFERRED_PORT,
            preferred_is_taken=settings.port is None and port != PREFERRED_PORT,
        )
        if simulate:
            _simulate(console, url, secrets[0], subscriber, stop)
            console.print()
        with contextlib.suppress(httpx.HTTPError):
            httpx.delete(own_url, trust_env=False)  # no sample is forged from now on
        if reconcile:
            from service.dev import clerk_trial  # noqa: PLC0415  # it loads more than the rest of this command

            clerk = stack.enter_context(clerk_trial.running_clerk(url, secrets[0]))
            sessions = clerk_trial.make_changes(clerk)
            shown_url, program = introduction.without_password(redis_url), introduction.program()
            clerk_trial.introduce(console, clerk, [*sessions.values()][-1], shown_url, program)
            for_clerk = clerk_trial.environment_of(clerk) | for_redis
            clerk_trial.reconcile(console, settings, os.environ | for_clerk, sessions, stop)
            _skip_messages(subscriber)
        listening = f"Messages on {settings.redis_channel}, as they come; the console shows more."
        console.print(f"{listening} Ctrl-C stops.\n", style="dim", markup=False)
        while not stop.is_set():
            if server.poll() is not None:
                raise StartError(f"The relay ended by itself, with exit status {server.returncode}.")
            if (message := _next_message(subscriber, 0.2)) is not None:
                console.print(_shown(message, view.line))
        console.print("\nStopping …", style="dim")


def _is_in_file(secret: str) -> bool:
    """Tell whether commands in another terminal find this secret by themselves."""
    return any(secret in (value or "") for value in dotenv_values(".env", encoding="utf-8-sig").values())


def _choose_port(settings: DevSettings) -> int:
    """Return PORT or, if that is not set, the preferred port if it is free, else any free one."""
    try:
        servers = listen(settings.host, settings.port or PREFERRED_PORT)
    except ConfigurationError:
        if settings.port:
            raise
        servers = listen(settings.host, 0)
    port = int(servers[0].getsockname()[1])
    for server in servers:
        server.close()
    return port


@contextlib.contextmanager
def _serve(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "service", "serve", "--app", "service.dev.trial_app:create_app"]
    # In a session of its own, so that Ctrl-C reaches this process only, which then ends the other.
    with subprocess.Popen(command, env=os.environ | environment, start_new_session=True) as server:  # noqa: S603
        try:
            yield server
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def _await_start(server: subprocess.Popen[bytes], url: httpx.URL, stop: threading.Event) -> None:
    """Wait for this server to respond; another one may have taken the port meanwhile."""
    deadline = time.monotonic() + START_SECONDS
    # One client for all attempts: to make one takes longer than the pause, since it reads certificates.
    with httpx.Client(timeout=1, trust_env=False) as client:
        while not stop.wait(0.05):
            with contextlib.suppress(httpx.HTTPError):
                if client.get(url).status_code == httpx.codes.NO_CONTENT:
                    return
            if server.poll() is not None or time.monotonic() > deadline:
                raise StartError("The relay did not start; see its messages above.")


@contextlib.contextmanager
def _subscribe(settings: DevSettings, redis_url: str) -> Iterator[Any]:
    client = connections.connect(redis_url, tls_verify=settings.redis_tls_verify, timeout=settings.redis_timeout)
    pubsub: Any = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    with client, pubsub as subscriber:
        try:
            subscriber.subscribe(settings.redis_channel)
            subscriber.get_message(timeout=settings.redis_timeout)
        except redis.RedisError as error:
            raise StartError(f"Redis can't be used: {connections.explain(error)}") from None
        yield subscriber


def _next_message(subscriber: Any, seconds: float) -> bytes | None:
    """Return the next message that is published, or None after so many seconds."""
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


def _skip_messages(subscriber: Any) -> None:
    while _next_message(subscriber, NO_MESSAGE_SECONDS) is not None:
        pass


def _shown(message: bytes, show: Callable[[SessionUpdate], Text]) -> Text:
    try:
        return show(published(message))
    except UnreadableMessageError as error:
        return Text(f"something else was published ({error})", "dim")


def _simulate(console: Console, url: str, secret: str, subscriber: Any, stop: threading.Event) -> None:
    """Send the life of a session as the network may deliver it, and show what becomes of each delivery."""
    late, created, ended = sender.one_life(("session.pending", "session.created", "session.ended"), {})
    forged, other = sender.one_life(("session.revoked", "user.updated"), {})
    steps = {
        "session.created": created,
        "the same message again": created,
        "session.pending, late": late,
        "session.revoked, forged": forged,
        "user.updated": other,
        "session.ended": ended,
        "session.created, once more": created,
    }
    table = Table("sent", "response", "the subscriber got", box=None, pad_edge=False)
    for description, delivery in steps.items():
        if stop.is_set():
            return
        (response,) = sender.send([delivery], url=url, secret=None if delivery is forged else secret)
        applied = response.summary == "applied"
        message = _next_message(subscriber, MESSAGE_SECONDS if applied else NO_MESSAGE_SECONDS)
        shown = Text("nothing", "dim") if message is None else _shown(message, view.change)
        table.add_row(description, f"{response.status} {response.summary}", shown)
    console.print(table)
