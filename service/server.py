"""`serve`: the application under granian, one event loop per worker process.

Why granian, why its ASGI interface: docs/server.md has the figures.
"""

import os
import resource
import signal
import socket
import tempfile
import time
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from service import log
from service.asgi import Application
from service.config import Settings, load
from service.connections import connect
from service.errors import ConfigurationError

STOP_SECONDS = 10
"""For requests under way when the service is told to stop; platforms kill after 30 s."""

IDLE_SECONDS = 95
"""For a connection without a request. Granian counts the pause between two requests too, and the connections
of Heroku's router live for 90 s (https://devcenter.heroku.com/articles/http-routing): it has to end them."""


RESPAWNS: Final = 20
"""Workers that may die within RESPAWN_SECONDS before the service gives up, and leaves it to the platform."""
RESPAWN_SECONDS: Final = 600


class _Server(Server):  # type: ignore[misc,valid-type]  # one or another, by the build of Python
    _respawns: tuple[float, ...] = ()

    def _respawn_workers(self, *args: Any, **options: Any) -> None:
        # Granian ends the whole service when a worker dies soon after the one that it replaced: one that
        # can't start would be replaced for ever. But two that were killed in a row are no reason for that.
        super()._respawn_workers(*args, **options)
        now = time.monotonic()
        self._respawns = (*(at for at in self._respawns if at > now - RESPAWN_SECONDS), now)
        if len(self._respawns) <= RESPAWNS:
            self.respawned_wrks.clear()

    def signal_handler_interrupt(self, *args: Any, **options: Any) -> None:
        # Once is enough: one that comes again while Python ends would kill it.
        _on_stop_signals(signal.SIG_IGN)
        super().signal_handler_interrupt(*args, **options)


_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def _on_stop_signals(action: signal.Handlers) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, action)


def _hold_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def _release_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _end_by_default() -> None:
    """A worker has the main process's handlers until it has its own, and would not stop.

    Held until then: Python drops a signal that came under a handler which is none any more.
    """
    _on_stop_signals(signal.SIG_DFL)
    _release_stop_signals()


def application() -> Application:
    """Build the application in a worker process."""
    # Here, not above: the Prometheus client looks for its directory on import, and workers are forked.
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
    address = check_address(settings.host, settings.port)
    os.register_at_fork(
        before=_hold_stop_signals, after_in_parent=_release_stop_signals, after_in_child=_end_by_default
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each slow client holds a file, if no thread
    with tempfile.TemporaryDirectory(prefix="session-relay-metrics-") as metrics_dir:
        # Each worker counts in a file there, so that any of them can tell the sum.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
        _Server(
            "service.server:application",
            factory=True,
            interface=Interfaces.ASGI,
            address=address,
            port=settings.port,
            workers=settings.web_concurrency,
            http=HTTPModes.http1,
            websockets=False,
            loop=Loops.uvloop,
            backlog=2048,
            # Connections held open, not requests at work: slow clients must not crowd out the others.
            backpressure=8192,
            workers_kill_timeout=STOP_SECONDS,
            respawn_failed_workers=True,
            respawn_interval=0.5,
            http1_settings=HTTP1Settings(header_read_timeout=IDLE_SECONDS * 1000),
            log_level=LogLevels(settings.log_level),
            log_dictconfig=log.dict_config(settings),
        ).serve()


def check_address(host: str, port: int) -> str:
    """Return the IP address of a host; raise ConfigurationError if nobody could listen there now."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", error)).partition(" (")[0]
        raise ConfigurationError([f"HOST, PORT: can't listen on {host} port {port}: {reason}"]) from None
    return str(address[0])
