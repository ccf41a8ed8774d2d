"""`serve`: the application under uvicorn, with one event loop per worker process. docs/server.md says why."""

import contextlib
import importlib
import inspect
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
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

from service.config import Settings, load, redis_address
from service.server.protocol import Protocol
from service.server.system import METRICS_DIRECTORY, listen, metrics_directory
from service.store.partitions import refuse_other_partitions
from service.store.server_version import server_version
from service.telemetry import log

STOP_SECONDS: Final = 10
"""Seconds for requests under way when the service is told to stop; platforms kill it after 30 s."""

IDLE_SECONDS: Final = 95
"""Seconds from a connection's start, or its last response, to the end of the next request's head. Longer than
the 90 s of Heroku's router, which has to close it (https://devcenter.heroku.com/articles/http-routing)."""

HANG_SECONDS: Final = 10
"""Seconds until a worker that does not respond is replaced. The main process handles no signal meanwhile."""


class OneProcess(Server):
    """Uvicorn's server, if there is one process only."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, and ignore further ones."""
        if not self.should_exit:  # uvicorn would stop at once at the second signal
            super().handle_exit(sig, frame)


class Workers(Multiprocess):
    """Uvicorn's supervisor, which starts worker processes and replaces those that die."""

    def keep_subprocess_alive(self) -> None:
        """Replace workers that died, and drop their gauges."""
        # Those that died come first: to find out that one hangs takes HANG_SECONDS, in which nobody might serve.
        self.processes.sort(key=lambda worker: worker.process.is_alive())
        before = [worker.process for worker in self.processes]
        for worker in self.processes:
            worker.child_conn.close()  # else uvicorn waits for a worker that died as if it hung
        super().keep_subprocess_alive()
        for process in before:
            if process.exitcode is not None and process.pid is not None:
                # Not at the top: the Prometheus client looks for its directory when it is imported.
                from service.telemetry.metrics import forget_worker  # noqa: PLC0415

                forget_worker(process.pid)

    def terminate_all(self) -> None:
        """Tell the workers to stop."""
        for each in self.sockets:  # else the kernel accepts connections that nobody will serve
            each.close()
        super().terminate_all()

    def join_all(self) -> None:
        """Wait until the workers have ended; kill those that take too long."""
        deadline = time.monotonic() + 2 * STOP_SECONDS
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()


class WorkerConfig(Config):
    """Uvicorn's configuration, which sets how a process ends."""

    def configure_logging(self) -> None:
        """Set how the process ends; uvicorn calls this first in each worker."""
        on_stop_signals(_exit)
        logging.getLogger("uvicorn.access").propagate = False  # else it logs what uvicorn itself responds: to HEAD


DEFAULT_FACTORY: Final = "service.app:create_app"
_FACTORY: Final = "SESSION_RELAY_APP"
"""The environment variable that tells worker processes the MODULE:FACTORY."""


def application() -> Any:
    """Build the ASGI application, in a worker process or in the only one."""
    try:
        return _build(os.environ.get(_FACTORY, DEFAULT_FACTORY))  # other servers than ours don't set it
    except Exception as error:
        if isinstance(error, ConfigurationError) and multiprocessing.parent_process() is None:
            raise
        structlog.get_logger(__name__).exception("start_failed")
        sys.exit(STARTUP_FAILURE)  # ends the main process too: another worker would fail the same way


def _build(factory: str) -> Any:
    # Not at the top: the Prometheus client looks for its directory on import, and tracers come before Flask.
    from service.app.factory import RelayFlask  # noqa: PLC0415
    from service.server.bridge import FlaskBridge  # noqa: PLC0415

    log.configure(load(Settings))
    app = _import_factory(factory)()
    if isinstance(app, RelayFlask):
        return FlaskBridge(app)
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):
        return app
    what = "is neither create_app()'s application nor an ASGI one: put WSGI middleware around its wsgi_app"
    raise ConfigurationError([f"--app {factory}: {type(app).__name__} {what}, and return the application"])


def _import_factory(factory: str) -> Any:
    module, _, name = factory.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError([f"--app {factory}: {error}; name it as MODULE:FACTORY"]) from error


def serve(settings: Settings, factory: str = DEFAULT_FACTORY) -> None:
    """Run until SIGTERM or SIGINT; then finish the requests under way.

    Args:
        settings: of the server and of the application.
        factory: MODULE:FACTORY, which returns what `create_app()` returned, or an ASGI application around it.

    Raises:
        ConfigurationError: The settings or the factory can't work.
    """
    # What is wrong with the URL is reported once, not by each worker.
    connect(settings.redis_url.get_secret_value())
    with metrics_directory(settings.web_concurrency) as directory:
        # The Prometheus client looks for the name in small letters, too, and at its import.
        for name in (METRICS_DIRECTORY, METRICS_DIRECTORY.lower()):
            os.environ.pop(name, None)
        if directory is not None:
            os.environ[METRICS_DIRECTORY] = directory
        with contextlib.ExitStack() as listening:
            sockets = [listening.enter_context(each) for each in listen(settings.host, settings.port)]
            _serve(settings, factory, sockets)


def _serve(settings: Settings, factory: str, sockets: list[socket.socket]) -> None:
    # Workers read the environment again, and options of the command win over it.
    os.environ.update(HOST=settings.host, PORT=str(settings.port), WEB_CONCURRENCY=str(settings.web_concurrency))
    on_stop_signals(_exit)  # uvicorn, which handles them later, raises the signal again when it has stopped
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each slow client holds a file descriptor
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # as other servers do, for MODULE
    os.environ[_FACTORY] = factory
    if factory != DEFAULT_FACTORY:
        _import_factory(factory)  # what is wrong with it is reported once, too
    refuse_other_partitions(settings)  # last, since it logs if Redis is away
    log.log_start(settings)
    # Once, and not in each worker: if the user may not ask, Redis keeps a line of it.
    threading.Thread(target=_log_redis, args=(settings,), daemon=True).start()
    config = WorkerConfig(
        "service.server.processes:application",
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
    if settings.web_concurrency == 1:
        OneProcess(config).run(sockets)
        return
    workers = Workers(config, sockets)
    workers.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in workers.processes):
        sys.exit(1)


def _log_redis(settings: Settings) -> None:
    address = redis_address(settings.redis_url.get_secret_value())
    structlog.get_logger(__name__).info("redis", address=address, server=server_version(settings))


def on_stop_signals(action: Callable[..., object] | signal.Handlers) -> None:
    """Do this when the process is told to stop, by SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, action)


def _exit(*_: object) -> None:
    on_stop_signals(signal.SIG_IGN)  # a second signal would kill the interpreter while it ends
    raise SystemExit(0)  # not by the signal, so that tracers send what they have buffered
