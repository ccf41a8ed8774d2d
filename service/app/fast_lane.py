"""Processes deliveries without Flask's contexts, where nothing could observe the difference.

Contexts, routing and werkzeug's Response take about a third of a delivery's CPU time. Where Flask would only
call our view, `serve` calls the view's `Webhook` itself. Flask's registries are looked at for each delivery,
because a hook or a receiver can be added at any time. docs/server.md explains it, and
tests/system/test_fast_lane.py compares both ways. A module of its own, so that it can be removed as a whole.
"""

from operator import attrgetter, is_
from types import FunctionType
from typing import Final

from flask import Flask, signals

from service.app import responses
from service.app.responses import HttpResponse
from service.app.webhook import WEBHOOK_PATH, Readable, Webhook
from service.clerk.signature import Headers
from service.errors import RelayError
from service.waiting import Steps

# Flask's methods that a request passes. Middleware and tracers replace one, on the class or the instance.
_METHODS: Final = (
    *("__call__", "wsgi_app", "request_context", "full_dispatch_request", "preprocess_request"),
    *("dispatch_request", "ensure_sync", "make_response", "finalize_request", "process_response"),
    *("do_teardown_request", "handle_user_exception", "handle_http_exception", "handle_exception"),
    "raise_routing_exception",
)
_HOOKS: Final = (
    *("before_request_funcs", "after_request_funcs", "teardown_request_funcs"),
    *("teardown_appcontext_funcs", "url_value_preprocessors"),
)
_CONFIGURATION: Final = (
    *("TRUSTED_HOSTS", "SERVER_NAME", "MAX_CONTENT_LENGTH", "DEBUG", "TESTING", "PROPAGATE_EXCEPTIONS"),
    *("TRAP_HTTP_EXCEPTIONS", "TRAP_BAD_REQUEST_ERRORS"),
)
_ATTRIBUTES: Final = {*_METHODS, *("create_url_adapter", "request_class", "response_class", "session_interface")}
_methods, _hooks = attrgetter(*_METHODS), attrgetter(*_HOOKS)
_receivers: Final = [each.receivers for each in vars(signals).values() if hasattr(each, "receivers")]


def _is_flasks(method: object) -> bool:
    # By its globals: `functools.wraps` copies a function's name and module.
    return type(method) is FunctionType and method.__globals__["__name__"].partition(".")[0] == "flask"


class FastLane:
    """Processes deliveries while an application is as `create_app` makes it.

    An application of another class than `original_class` is Flask's: a subclass may override anything.
    """

    def __init__(self, app: Flask, webhook: Webhook, *, original_class: type[Flask], is_on: bool) -> None:
        self._app, self._webhook, self._is_on = app, webhook, is_on
        self._view = app.view_functions["receive_delivery"]
        self._error_handlers = self._registered_error_handlers()
        self._class = _methods(type(app))
        self._is_flasks = type(app) is original_class and all(map(_is_flasks, self._class))

    def closed_by(self) -> str:
        """Return what would notice that Flask is not called; an empty string if nothing would."""
        app = self._app
        if not self._is_on:
            return "SERVE_FAST_LANE"
        if any(_hooks(app)) or any(_receivers):
            return "a hook, or a receiver of a signal"
        # By identity: an agent's wrapper may compare equal to what it wraps.
        is_flasks = self._is_flasks and all(map(is_, _methods(type(app)), self._class))
        if not is_flasks or not _ATTRIBUTES.isdisjoint(vars(app)):
            return "a replaced method of Flask"
        if app.view_functions["receive_delivery"] is not self._view:
            return "another view"
        if self._registered_error_handlers() != self._error_handlers:
            return "an error handler"
        is_configured = any(map(app.config.get, _CONFIGURATION)) or app.url_map.host_matching
        return "the configuration" if is_configured else ""

    def takes(self, method: str, path: str) -> bool:
        """Tell whether a request is a delivery that Flask need not see."""
        return path == WEBHOOK_PATH and method == "POST" and not self.closed_by()

    def steps(self, headers: Headers, body: Readable) -> Steps[HttpResponse]:
        """Process a delivery, and return the response that Flask would send."""
        try:
            return responses.for_outcome((yield from self._webhook.steps(headers, body)))
        except RelayError as error:
            return responses.for_error(error)
        except Exception as error:  # noqa: BLE001  # as Flask does
            self._app.log_exception((type(error), error, error.__traceback__))  # type: ignore[arg-type]
            return responses.for_error(RelayError())

    def _registered_error_handlers(self) -> list[object]:
        by_scope = self._app.error_handler_spec.values()
        return [each for by_code in by_scope for handlers in by_code.values() for each in handlers.values()]
