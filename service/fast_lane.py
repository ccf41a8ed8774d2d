"""Deliveries past Flask's contexts, where nothing could tell the difference.

Contexts, routing and werkzeug's Response cost more CPU time than the rest of a delivery. So where Flask would do
no more than call our view, `serve` calls the same `Webhook` itself. Whether that holds is asked of Flask's own
registries at each delivery, since a hook or a receiver may be added at any time. docs/server.md explains it;
tests/test_fast_lane.py compares both ways. A module of its own, so that it can be read, and removed, as one.
"""

from operator import attrgetter
from typing import TYPE_CHECKING, Final

import flask
from flask import signals

from service import replies
from service.errors import RelayError
from service.replies import Reply
from service.signature import Headers
from service.webhook import WEBHOOK_PATH, Readable, Webhook

if TYPE_CHECKING:
    from service.app import RelayFlask

_METHODS: Final = (
    *("__call__", "wsgi_app", "request_context", "full_dispatch_request", "preprocess_request", "dispatch_request"),
    *("ensure_sync", "make_response", "finalize_request", "process_response", "do_teardown_request"),
    *("handle_user_exception", "handle_http_exception", "handle_exception"),
)
"""What of Flask's a request passes. Middleware and tracers replace one of them, on the class or the instance."""
_REPLACEABLE: Final = frozenset((*_METHODS, "request_class", "response_class", "session_interface"))
_HOOKS: Final = attrgetter(
    "before_request_funcs",
    "after_request_funcs",
    "teardown_request_funcs",
    "teardown_appcontext_funcs",
    "url_value_preprocessors",
)
_SIGNALS: Final = [each for each in vars(signals).values() if hasattr(each, "receivers")]
_CONFIGURATION: Final = (
    *("TRUSTED_HOSTS", "SERVER_NAME", "MAX_CONTENT_LENGTH", "DEBUG", "TESTING", "PROPAGATE_EXCEPTIONS"),
    *("TRAP_HTTP_EXCEPTIONS", "TRAP_BAD_REQUEST_ERRORS"),
)
"""What of the configuration acts on requests, or on their errors."""
_methods = attrgetter(*_METHODS)


class FastLane:
    """Takes deliveries while an application is as `create_app` makes it."""

    def __init__(self, app: "RelayFlask", webhook: Webhook, *, is_on: bool) -> None:
        self._app = app
        self._webhook = webhook
        self._view = app.view_functions["receive_delivery"]
        self._error_handlers = self._registered_error_handlers()
        self._class = _methods(type(app))
        flasks = all(method.__code__.co_filename.startswith(flask.__path__[0]) for method in self._class)
        self._closed = "" if is_on and flasks else "a replaced method of Flask" if is_on else "SERVE_FAST_LANE"

    def closed_by(self) -> str:
        """Return what would notice that Flask is not called; nothing, if nothing would."""
        app = self._app
        if self._closed or any(_HOOKS(app)):
            return self._closed or "a hook"
        for signal in _SIGNALS:
            if signal.receivers:
                return "a receiver of a signal"
        if not _REPLACEABLE.isdisjoint(vars(app)) or _methods(type(app)) != self._class:
            return "a replaced method of Flask"
        if app.view_functions["receive_delivery"] is not self._view:
            return "another view"
        if self._registered_error_handlers() != self._error_handlers:
            return "an error handler"
        if any(map(app.config.get, _CONFIGURATION)) or app.subdomain_matching or app.url_map.host_matching:
            return "the configuration"
        return ""

    def takes(self, method: str, path: str) -> bool:
        """Tell whether a request is a delivery that nothing but the view would see."""
        return path == WEBHOOK_PATH and method == "POST" and not self.closed_by()

    def receive(self, headers: Headers, body: Readable) -> Reply:
        """Take a delivery, and return what Flask would send for it."""
        try:
            return replies.of(self._webhook.receive(headers, body))
        except RelayError as error:
            return replies.of(error)
        except Exception as error:  # noqa: BLE001  # as Flask does, which would be called if anybody handled it
            self._app.log_exception((type(error), error, error.__traceback__))
            return replies.of(RelayError())

    def _registered_error_handlers(self) -> list[object]:
        by_scope = self._app.error_handler_spec.values()
        return [each for by_code in by_scope for handlers in by_code.values() for each in handlers.values()]
