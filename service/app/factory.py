"""`create_app()`: an ordinary Flask application. Its view hands each delivery to `webhook`.

Everything that Flask documents works on it: hooks, error handlers, signals, blueprints, extensions and
middleware. Only what Flask documents as replaceable is replaced here.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Request, Response, request
from flask.globals import request_ctx
from flask.typing import ResponseReturnValue
from werkzeug import exceptions
from werkzeug.datastructures import Headers
from werkzeug.routing import MapAdapter

from service import errors, waiting
from service.app import responses
from service.app.environ import environ_key
from service.app.fast_lane import FastLane
from service.app.health import create_health
from service.app.responses import HttpResponse
from service.app.webhook import WEBHOOK_PATH, Webhook
from service.config import Settings, load
from service.store.sessions import SessionStore
from service.telemetry import log, metrics
from service.telemetry.access_log import AccessLog

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from service.store.reader import Reader

_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
"""The shape of a Host header."""


class RelayRequest(Request):
    """A request whose body only the view reads, if it is a delivery.

    On the webhook's path `get_data()`, `get_json()` and `form` are empty; `stream` has the body. So a hook or
    a tracer can't take the body away from the view, nor send an end user's data to a third party.
    """

    def get_data(self, *args: Any, **kwargs: Any) -> Any:
        """Return the body; on the webhook's path, return nothing."""
        if self.path == WEBHOOK_PATH:
            return "" if kwargs.get("as_text") else b""
        return super().get_data(*args, **kwargs)

    @property
    def want_form_data_parsed(self) -> bool:
        """Whether Flask may read a form from the body: not on the webhook's path."""
        return self.path != WEBHOOK_PATH and super().want_form_data_parsed


class RelayFlask(Flask):
    """Flask with the webhook's route, and with what `serve` needs of the relay.

    Attributes:
        settings: from which it was created.
        store: where state is kept.
        access_log: records what became of each delivery.
        reader: reads for those who have READ_TOKEN or CONSOLE_TOKEN; None if nobody may.
        fast_lane: processes deliveries without Flask's contexts where nothing observes those.
    """

    request_class = RelayRequest

    def __init__(self, settings: Settings, store: SessionStore) -> None:
        super().__init__("service.app", static_folder=None)
        self.settings = settings
        self.store = store
        self.access_log = AccessLog()
        webhook = Webhook(settings, store, self.access_log)

        self.url_map.merge_slashes = False  # the sender takes a redirect for a failure
        self.register_blueprint(create_health(store, settings.metrics_token.get_secret_value()))
        self.reader = self._add_reads(settings)
        self.register_error_handler(errors.RelayError, lambda error: respond(responses.for_error(error)))

        @self.errorhandler(exceptions.HTTPException)
        def respond_to_http_exception(error: exceptions.HTTPException) -> ResponseReturnValue:
            if isinstance(error, exceptions.NotFound | exceptions.MethodNotAllowed) and _is_lost_delivery(request):
                self.access_log.advise("not_found")
            return _http_exception(error)

        @self.post(WEBHOOK_PATH, provide_automatic_options=False)
        def receive_delivery() -> Response:
            request = request_ctx.request  # one look-up; the proxy would make one for each attribute
            outcome = webhook.receive(_EnvironHeaders(request.environ), _Body(request))
            return respond(responses.for_outcome(outcome))

        self.fast_lane = FastLane(self, webhook, original_class=RelayFlask, is_on=settings.serve_fast_lane)

    def _add_reads(self, settings: Settings) -> "Reader | None":
        """Add what is read over HTTP, where that is switched on."""
        if not settings.read_tokens and not settings.console_tokens:
            return None
        # Not at the top: it takes memory that a relay without readers need not have.
        from service.app.reads.blueprint import create_reads  # noqa: PLC0415
        from service.store.reader import Reader  # noqa: PLC0415

        reader = Reader(settings)
        if settings.read_tokens:
            self.register_blueprint(create_reads(settings, reader))
        if settings.console_tokens:
            from service.app.console import create_console  # noqa: PLC0415

            self.register_blueprint(create_console(settings, settings.console_tokens, reader.queries))
        return reader

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Bind the routes to a request; accept any Host header, unless Flask is configured to check it."""
        checks_host = self.config["TRUSTED_HOSTS"] or self.config["SERVER_NAME"] or self.url_map.host_matching
        if request is None or checks_host:
            return super().create_url_adapter(request)
        if request.environ["PATH_INFO"].startswith("//"):
            raise exceptions.NotFound  # werkzeug would drop the leading slashes
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
        """Make an `async def` view run on the server's event loop, if the server has one."""
        in_own_loop = super().async_to_sync(func)

        def call(*args: Any, **kwargs: Any) -> Any:
            if waiting.is_on_loop():
                # In a task of its own, which has this greenlet's context, with Flask's request.
                return waiting.await_only(asyncio.ensure_future(func(*args, **kwargs)))
            return in_own_loop(*args, **kwargs)

        return call

    def log_exception(self, exc_info: Any) -> None:
        """Log an unexpected exception, without anything of the request."""
        self.logger.error("request_failed", exc_info=exc_info)


def create_app(settings: Settings | None = None, store: SessionStore | None = None) -> RelayFlask:
    """Return the WSGI application. Hooks, routes, extensions and middleware can be added to it.

    Args:
        settings: by default they are read from the environment. Given ones also configure the logs; with
            those of the environment, logs that the process configured before stay as they are.
        store: where state is kept; by default one is built from the settings.

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
    """A response that has all of its headers, so that werkzeug need not work them out."""

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Headers:  # noqa: ARG002  # werkzeug's signature
        return self.headers


def respond(response: HttpResponse) -> Response:
    """Return a response as Flask takes it."""
    return RelayResponse(response.body, response.status, response.all_headers())


class _EnvironHeaders:
    """The headers of a request, by lower-case name."""

    def __init__(self, environ: "WSGIEnvironment") -> None:
        self._environ = environ

    def get(self, name: str, /) -> str | None:
        value: str | None = self._environ.get(environ_key(name))
        return value


class _Body:
    """The body of a request. What goes wrong while it is read becomes a RelayError."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def read(self, size: int, /) -> bytes:
        environ = self._request.environ
        if "HTTP_TRANSFER_ENCODING" in environ and not environ.get("wsgi.input_terminated"):
            raise errors.LengthRequiredError("This server does not read chunked bodies: send a Content-Length.")
        try:
            return self._request.stream.read(size)
        except exceptions.RequestEntityTooLarge:
            raise errors.BodyTooLargeError("The body is larger than MAX_CONTENT_LENGTH.") from None
        except errors.RelayError:
            raise
        except Exception:  # noqa: BLE001  # each server raises errors of its own
            raise errors.BadRequestError("The body is cut short, or its chunks are malformed.") from None


def _is_lost_delivery(request: Request) -> bool:
    """Tell whether a request looks like a delivery that was sent to another path."""
    is_signed = "svix-signature" in request.headers or "webhook-signature" in request.headers
    return is_signed and request.method == "POST" and request.path != WEBHOOK_PATH


def _http_exception(error: exceptions.HTTPException) -> ResponseReturnValue:
    """Return problem details for what Flask, werkzeug or `abort` raise."""
    match error:
        case exceptions.HTTPException(response=Response() as response):
            return response
        case exceptions.NotFound():
            known: errors.RelayError = errors.NotFoundError("Webhooks go to /webhooks/clerk.")
        case exceptions.MethodNotAllowed():
            known = errors.MethodNotAllowedError(error.valid_methods or ())
        case exceptions.RequestEntityTooLarge():
            known = errors.BodyTooLargeError("The body is larger than MAX_CONTENT_LENGTH.")
        case exceptions.InternalServerError():
            known = errors.RelayError()
        case _:
            headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
            return respond(responses.for_status(error.code or 500, error.description, headers))
    return respond(responses.for_error(known))
