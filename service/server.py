"""`serve`: the application under uvicorn, one event loop per worker process.

Why uvicorn, and what it costs: docs/server.md has the figures.
"""

import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

import structlog
from uvicorn import Config, Server
from uvicorn.supervisors import Multiprocess

from service import log
from service.asgi import Application
from service.config import Settings, load
from service.connections import connect
from service.errors import ConfigurationError
from service.http_protocol import Protocol

STOP_SECONDS: Final = 10
"""For requests under way when the service is told to stop; platforms kill after 30 s."""

IDLE_SECONDS: Final = 95
"""From a connection's start, or its last answer, to the end of the next head. The connections of Heroku's
router live for 90 s (https://devcenter.heroku.com/articles/http-routing): it has to end them."""

HANG_SECONDS: Final = 10
"""For a worker to say that it lives; then it is replaced. Meanwhile the main process hears no signal."""


class OneProcess(Server):
    """Uvicorn's: the only process."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:  # to be told again to stop changes nothing
            super().handle_exit(sig, frame)


class Workers(Multiprocess):
    """Uvicorn's: starts workers, and replaces those that die."""

    def keep_subprocess_alive(self) -> None:
        for worker in self.processes:
            worker.child_conn.close()  # else a worker that dies would be waited for as if it hung
        super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        for each in self.sockets:  # else the kernel goes on taking connections that nobody will serve
            each.close()
        super().terminate_all()

    def join_all(self) -> None:
        deadline = time.monotonic() + 2 * STOP_SECONDS
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()


def application() -> Application:
    """Build the application, in a worker process or in the only one."""
    # Here, not above: the Prometheus client looks for its directory on import.
    from service.app import create_app  # noqa: PLC0415

    settings = load(Settings)
    log.configure(settings)
    return Application(create_app(settings), settings.max_body_bytes)


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; requests under way are answered first.

    Raises ConfigurationError if it can't start with these settings.
    """
    # Finds what is wrong with the URL here, not in each worker.
    connect(settings.redis_url.get_secret_value())
    sockets = [listen(settings.host, settings.port)]
    structlog.get_logger(__name__).info("listening", host=settings.host, port=settings.port)
    _on_stop_signals(
        _exit
    )  # before uvicorn listens to them; it raises the one that stopped it at its end, too
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each slow client holds a file, if no thread
    config = Config(
        "service.server:application",
        factory=True,
        workers=settings.web_concurrency,
        http=Protocol,
        ws="none",
        lifespan="on",
        loop="uvloop",
        backlog=2048,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_worker_healthcheck=HANG_SECONDS,
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    with tempfile.TemporaryDirectory(prefix="session-relay-metrics-") as metrics_dir:
        # Each worker counts in a file there, so that any of them can tell the sum.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
        if settings.web_concurrency == 1:
            OneProcess(config).run(sockets)
        else:
            Workers(config, sockets).run()


_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def _on_stop_signals(action: Callable[..., object] | signal.Handlers) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, action)


def _exit(*_: object) -> None:
    _on_stop_signals(signal.SIG_IGN)  # one that comes again while Python ends would kill it
    raise SystemExit(0)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise ConfigurationError if nobody can listen there now."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", error)).partition(" (")[0]
        fault = f"HOST, PORT: can't listen on {host} port {port}: {reason}"
        advice = "set PORT to a free one, and HOST to an address of this machine"
        raise ConfigurationError([f"{fault}; {advice}"]) from None
