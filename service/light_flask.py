"""Flask, less what a webhook has no use for."""

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Request
from flask.sessions import NullSession, SessionInterface
from werkzeug.datastructures import EnvironHeaders
from werkzeug.exceptions import NotFound
from werkzeug.routing import MapAdapter

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class _Request(Request):
    """Nothing is read of the environ before somebody asks for it."""

    def __init__(self, environ: "WSGIEnvironment") -> None:
        self.environ = environ
        self.shallow = False
        self.method = environ["REQUEST_METHOD"]
        self.path = environ["PATH_INFO"]

    @cached_property
    def headers(self) -> EnvironHeaders:  # type: ignore[override]
        return EnvironHeaders(self.environ)

    def close(self) -> None:
        """There are no uploaded files to close."""


class _NoSessions(SessionInterface):
    _none = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:  # noqa: ARG002
        return self._none


class LightFlask(Flask):
    """Routes, contexts and error handlers are Flask's; there are no sessions, signals, nor hooks.

    A view is a plain function that returns a WSGI application.
    """

    request_class = _Request
    session_interface = _NoSessions()

    def __init__(self, name: str) -> None:
        super().__init__(name, static_folder=None)
        self.url_map.merge_slashes = False  # a redirect is a failure to the sender, so there is none

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Match path and method as they are; hosts are nobody's business here.

        werkzeug drops leading slashes, and takes `post` for POST.
        """
        if request is None:
            return super().create_url_adapter(request)
        if request.path.startswith("//"):
            raise NotFound
        return MapAdapter(
            self.url_map,
            server_name="relay",
            script_name="/",
            subdomain="",
            url_scheme="http",
            path_info=request.path,
            default_method=request.method if request.method.isupper() else _NO_METHOD,
        )

    def full_dispatch_request(self) -> Any:
        try:
            return self.dispatch_request()
        except Exception as error:  # noqa: BLE001  # whatever it is, the error handlers are for it
            return self.handle_user_exception(error)

    def ensure_sync(self, func: Any) -> Any:
        return func

    def do_teardown_request(self, *_: Any) -> None:
        pass

    def do_teardown_appcontext(self, *_: Any) -> None:
        pass


_NO_METHOD: Final = "NONE"
