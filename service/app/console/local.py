"""Serves the console on this machine alone, in this process, for one person: the command `session-relay console`.

With threads, as Flask's own server does it: a handful of tabs, each of which holds one while its live feed is open.
"""

import contextlib
import secrets
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

from clerk_session_feed.errors import ConfigurationError
from flask import Flask, Response, redirect
from werkzeug.serving import WSGIRequestHandler, make_server

from service.app.console.actions import Changes
from service.app.console.security import COOKIE, HEADERS, PATH, Gate
from service.app.console.views import ConsoleBlueprint
from service.config import StoreSettings
from service.store.queries import Queries

_ADDRESS: Final = "127.0.0.1"
_MAX_BODY_BYTES: Final = 64 * 1024
"""Bytes of the largest form."""


class Local:
    """The console that is served.

    Attributes:
        origin: its address, without a path.
    """

    def __init__(self, gate: Gate, origin: str) -> None:
        self._gate, self.origin = gate, origin

    def new_link(self) -> str:
        """Return an address that signs in whoever opens it first, within ten minutes."""
        token = secrets.token_urlsafe(32)
        self._gate.links.add(token)
        return f"{self.origin}{PATH}/open/{token}"


@contextlib.contextmanager
def serving(settings: StoreSettings, port: int, *, who: str, changes: Changes | None = None) -> Iterator[Local]:
    """Serve the pages on loopback, in threads, until the end of the block.

    Args:
        settings: where Redis is.
        port: where to listen; 0 for any that is free.
        who: whom the log names.
        changes: what may be changed; nothing if None.

    Raises:
        ConfigurationError: The port is taken.
    """
    with _listen(port) as listener:
        chosen = listener.getsockname()[1]
        hosts = frozenset(f"{name}:{chosen}" for name in (_ADDRESS, "localhost"))
        # Without a token: nobody but whoever has a link gets in. Cookies are the same for all ports of a host.
        gate = Gate((), hosts=hosts, cookie=f"{COOKIE}-{chosen}", who=who)
        queries = Queries(settings)
        console = ConsoleBlueprint(settings, gate, queries, changes=changes)
        server = make_server(
            _ADDRESS, chosen, _application(console), threaded=True, request_handler=_Handler, fd=listener.fileno()
        )
        server.daemon_threads = True  # type: ignore[attr-defined]  # live feeds end with the process
        thread = threading.Thread(target=server.serve_forever, name="console", daemon=True)
        thread.start()
        try:
            yield Local(gate, f"http://{_ADDRESS}:{chosen}")
        finally:
            server.shutdown()
            thread.join()
            queries.close()


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((_ADDRESS, port))
    except OSError as error:
        raise ConfigurationError(
            [f"--port: {port} on {_ADDRESS} can't be used ({error.strerror}): choose another"]
        ) from None


def _application(console: ConsoleBlueprint) -> Flask:
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MAX_BODY_BYTES
    app.register_blueprint(console)

    @app.get("/")
    def root() -> Any:
        return redirect(PATH, 303)

    @app.errorhandler(Exception)
    def fail(error: Exception) -> Response:
        status = getattr(error, "code", None)
        if not isinstance(status, int):
            app.logger.error("request_failed", exc_info=error)
            status = 500
        return Response("Not found" if status == 404 else "Error", status, HEADERS, content_type="text/plain")  # noqa: PLR2004

    return app


class _Handler(WSGIRequestHandler):
    """Keeps connections, and writes no line for each request: a link in it would sign in."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    """Seconds that a connection may be idle."""

    def log(self, *_: Any) -> None:
        """Say nothing."""
