"""`serve`: the application under uvicorn, one event loop per worker process.

Why uvicorn, and what it costs: docs/server.md has the figures.
"""

import importlib
import inspect
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import structlog
from clerk_session_feed.connections import connect
from clerk_session_feed.errors import ConfigurationError
from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from service.config import Settings, load
from service.server.protocol import Protocol
from service.telemetry import log

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
        before = [worker.process for worker in self.processes]
        for worker in self.processes:
            worker.child_conn.close()  # else a worker that dies would be waited for as if it hung
        super().keep_subprocess_alive()
        for process in before:
            if process.exitcode is not None and process.pid is not None:
                # Here, not above: the Prometheus client looks for its directory on import.
                from service.telemetry.metrics import forget_worker  # noqa: PLC0415

                forget_worker(process.pid)

    def terminate_all(self) -> None:
        for each in self.sockets:  # else the kernel goes on taking connections that nobody will serve
            each.close()
        super().terminate_all()

    def join_all(self) -> None:
        deadline = time.monotonic() + 2 * STOP_SECONDS
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()


class WorkerConfig(Config):
    """Uvicorn's configuration, which each worker process is started with."""

    def configure_logging(self) -> None:
        """Do what uvicorn does first in each of its processes: end them as tracers need it."""
        on_stop_signals(_exit)


_FACTORY: Final = "SESSION_RELAY_APP"
"""An environment variable of the main process, for its workers: MODULE:FACTORY."""


def application() -> Any:
    """Build the ASGI application, in a worker process or in the only one."""
    try:
        return _application(os.environ.get(_FACTORY, DEFAULT_FACTORY))  # another server sets none
    except Exception as error:
        if isinstance(error, ConfigurationError) and multiprocessing.parent_process() is None:
            raise
        structlog.get_logger(__name__).exception("start_failed")
        sys.exit(STARTUP_FAILURE)  # the main process ends, too: another worker would fail the same way


def _application(factory: str) -> Any:
    # Here, not above: the Prometheus client looks for its directory on import, and tracers come before Flask.
    from service.app.factory import RelayFlask  # noqa: PLC0415
    from service.server.bridge import FlaskBridge  # noqa: PLC0415

    log.configure(load(Settings))
    made = _found(factory)()
    if isinstance(made, RelayFlask):
        return FlaskBridge(made)
    if inspect.iscoroutinefunction(made) or inspect.iscoroutinefunction(type(made).__call__):
        return made
    what = "is neither create_app()'s application nor an ASGI one: put WSGI middleware around its wsgi_app"
    raise ConfigurationError([f"--app {factory}: {type(made).__name__} {what}, and return the application"])


def _found(factory: str) -> Any:
    """Return a factory by its name; raise ConfigurationError if there is none."""
    module, _, name = factory.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError([f"--app {factory}: {error}; name it as MODULE:FACTORY"]) from error


DEFAULT_FACTORY: Final = "service.app:create_app"


def serve(settings: Settings, factory: str = DEFAULT_FACTORY) -> None:
    """Run until SIGTERM or SIGINT; requests under way are answered first.

    Args:
        settings: of the server, and of the application.
        factory: MODULE:FACTORY. It returns what `create_app()` returned, or an ASGI application around that.

    Raises:
        ConfigurationError: It can't start with these settings.

    """
    # Finds what is wrong with the URL here, not in each worker.
    connect(settings.redis_url.get_secret_value())
    sockets = [listen(settings.host, settings.port)]
    on_stop_signals(
        _exit
    )  # before uvicorn listens to them; it raises the one that stopped it at its end, too
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each slow client holds a file, if no thread
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # as other servers do, for MODULE
    os.environ[_FACTORY] = factory
    if factory != DEFAULT_FACTORY:
        _found(factory)  # what is wrong with it is said once, not by each worker
    config = _config(settings)
    if settings.web_concurrency == 1:
        OneProcess(config).run(sockets)
        return
    with tempfile.TemporaryDirectory(prefix="session-relay-metrics-") as metrics_dir:
        # Each worker counts in files there, so that any of them can tell the sum.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
        workers = Workers(config, sockets)
        workers.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in workers.processes):
        sys.exit(1)


def _config(settings: Settings) -> Config:
    kind = Config if settings.web_concurrency == 1 else WorkerConfig
    return kind(
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


_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def on_stop_signals(action: Callable[..., object] | signal.Handlers) -> None:
    """Do this when the process is told to stop."""
    for number in _STOP_SIGNALS:
        signal.signal(number, action)


def _exit(*_: object) -> None:
    on_stop_signals(signal.SIG_IGN)  # one that comes again while Python ends would kill it
    raise SystemExit(0)  # not by the signal: tracers send what they hold as the interpreter ends


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
