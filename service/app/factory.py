"""`create_app()`: an ordinary Flask application. A webhook comes in here; follow it into `webhook`.

Everything that Flask documents works on it: hooks, error handlers, signals, blueprints, extensions and
middleware. It is tuned by what Flask documents as replaceable, and by nothing else.
"""

import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Request, Response
from flask.globals import request_ctx
from flask.sessions import NullSession, SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import Headers
from werkzeug.exceptions import (
    HTTPException,
    InternalServerError,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
)
from werkzeug.routing import MapAdapter

from service import waiting
from service.app import responses as replies
from service.app.environ import KEYS
from service.app.fast_lane import FastLane
from service.app.health import create_health
from service.app.responses import Reply
from service.app.webhook import WEBHOOK_PATH, Webhook
from service.config import Settings, load
from service.errors import (
    BadRequestError,
    BodyTooLargeError,
    LengthRequiredError,
    MethodNotAllowedError,
    NotFoundError,
    RelayError,
)
from service.store.sessions import SessionStore
from service.telemetry import log, metrics
from service.telemetry.access_log import AccessLog

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
"""What a Host header looks like."""


class RelayRequest(Request):
    """A request whose body, if it is a delivery, goes to the view alone.

    `request.get_data()`, `get_json()` and `form` are empty on the webhook's path; `request.stream` has it. So
    what a hook or a tracer reads neither takes the body from the view, nor carries an end user's data off.
    """

    def get_data(self, *args: Any, **kwargs: Any) -> Any:
        """Return the body; nothing on the webhook's path."""
        if self.path == WEBHOOK_PATH:
            return "" if kwargs.get("as_text") else b""
        return super().get_data(*args, **kwargs)

    @property
    def want_form_data_parsed(self) -> bool:
        return self.path != WEBHOOK_PATH and super().want_form_data_parsed


class RelaySessionInterface(SecureCookieSessionInterface):
    """Flask's sessions; without a SECRET_KEY, the one empty session that nobody can write to."""

    _null_session: Final = NullSession()

    def open_session(self, app: Flask, request: Request) -> Any:
        return super().open_session(app, request) if app.secret_key else self._null_session


class RelayFlask(Flask):
    """Flask, and what `serve` needs to know of the relay.

    Attributes:
        settings: what it was made with.
        store: where state is kept.
        access_log: what became of deliveries.
        fast_lane: takes deliveries without Flask's contexts, where nothing could tell the difference.

    """

    request_class = RelayRequest
    session_interface = RelaySessionInterface()

    def __init__(self, settings: Settings, store: SessionStore) -> None:
        super().__init__("service.app", static_folder=None)
        self.settings = settings
        self.store = store
        self.access_log = AccessLog()
        webhook = Webhook(settings, store, self.access_log)

        self.url_map.merge_slashes = False  # a redirect is a failure to the sender, so there is none
        self.register_blueprint(create_health(store, settings.metrics_token.get_secret_value()))
        self.register_error_handler(RelayError, lambda error: respond(replies.of(error)))
        self.register_error_handler(HTTPException, _http_exception)

        @self.post(WEBHOOK_PATH, provide_automatic_options=False)
        def receive_delivery() -> Response:
            current = request_ctx.request  # at the cost of one proxy, not of one for each attribute
            return respond(replies.of(webhook.receive(EnvironHeaders(current.environ), _Body(current))))

        self.fast_lane = FastLane(self, webhook, is_on=settings.serve_fast_lane)

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Bind the routes to a request. No delivery is refused for an odd Host, unless settings say so."""
        picky = self.config["TRUSTED_HOSTS"] or self.config["SERVER_NAME"] or self.url_map.host_matching
        if request is None or picky:
            return super().create_url_adapter(request)
        if request.environ["PATH_INFO"].startswith("//"):
            raise NotFound  # werkzeug would drop leading slashes
        host = request.environ.get("HTTP_HOST", "")
        return MapAdapter(
            self.url_map,
            server_name=host if _HOST.fullmatch(host) else "localhost",
            script_name=request.root_path + "/",
            subdomain="",
            url_scheme=request.scheme,
            path_info=request.path,
            default_method=request.method,
            query_args=request.environ.get("QUERY_STRING"),
        )

    def async_to_sync(self, func: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """Run an `async def` view on the server's own event loop, where there is one."""
        otherwise = super().async_to_sync(func)

        def call(*args: Any, **kwargs: Any) -> Any:
            if waiting.is_on_loop():
                return waiting.run_coroutine(func(*args, **kwargs))
            return otherwise(*args, **kwargs)

        return call

    def log_exception(self, exc_info: Any) -> None:
        """Log a defect; nothing of the request."""
        self.logger.error("request_failed", exc_info=exc_info)


def create_app(settings: Settings | None = None, store: SessionStore | None = None) -> RelayFlask:
    """Return the WSGI application, to which hooks, routes, extensions and middleware can be added.

    Args:
        settings: read from the environment, if left out. Logs are configured as they say; but if they are
            left out, not in a process that configured its logs itself.
        store: where state is kept; built from the settings if left out.

    Raises:
        ConfigurationError: A setting is missing or wrong.

    """
    if settings is None:
        settings = load(Settings)
        log.configure_unless_done(settings)
    else:
        log.configure(settings)
    store = store or SessionStore(settings)
    store.set_metrics_hooks(metrics.observe_round_trip, metrics.count_redis_error)
    return RelayFlask(settings, store)


class RelayResponse(Response):
    """A response with all of its headers, so that werkzeug does not work them out."""

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Headers:  # noqa: ARG002  # werkzeug's signature
        return self.headers


def respond(reply: Reply) -> Response:
    """Return Flask's response for a reply."""
    headers = [
        ("Content-Type", reply.content_type),
        ("Content-Length", str(len(reply.body))),
        *reply.headers.items(),
    ]
    return RelayResponse(reply.body, reply.status, headers)


class EnvironHeaders:
    """The headers of a request, out of its WSGI environ."""

    def __init__(self, environ: "WSGIEnvironment") -> None:
        self._environ = environ

    def get(self, name: str, /) -> str | None:
        """Return a header by its name in lower case."""
        value: str | None = self._environ.get(KEYS[name])
        return value


class _Body:
    """A request's body; what is wrong with it is said in errors of our own."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def read(self, size: int, /) -> bytes:
        environ = self._request.environ
        if "HTTP_TRANSFER_ENCODING" in environ and not environ.get("wsgi.input_terminated"):
            raise LengthRequiredError("This server does not read chunked bodies: send a Content-Length.")
        try:
            return self._request.stream.read(size)
        except RequestEntityTooLarge:
            raise BodyTooLargeError("The body is larger than MAX_CONTENT_LENGTH.") from None
        except RelayError:
            raise
        except Exception:  # noqa: BLE001  # each server has errors of its own for what it can't read
            raise BadRequestError("The body is cut short, or its chunks are malformed.") from None


def _http_exception(error: HTTPException) -> ResponseReturnValue:
    """Answer for what Flask, werkzeug or `abort` raise, with problem details."""
    match error:
        case HTTPException(response=Response() as response):
            return response
        case NotFound():
            known: RelayError = NotFoundError("Webhooks go to /webhooks/clerk.")
        case MethodNotAllowed():
            known = MethodNotAllowedError(error.valid_methods or ())
        case RequestEntityTooLarge():
            known = BodyTooLargeError("The body is larger than MAX_CONTENT_LENGTH.")
        case InternalServerError():
            known = RelayError()
        case _:
            headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
            return respond(replies.of_http_status(error.code or 500, error.description, headers))
    return respond(replies.of(known))
