"""Flask, less what a webhook has no use for."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask
from werkzeug.exceptions import MethodNotAllowed, NotFound

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class LightFlask(Flask):
    """Routes are Flask's. There are no contexts (so no `flask.request`), sessions, signals nor hooks.

    A view is a function of the WSGI environ and returns a WSGI application; a route has no variable parts.
    """

    def __init__(self, name: str, on_error: "Callable[[Exception], WSGIApplication]") -> None:
        """on_error: answers for a view that raises; HTTPException if there is none."""
        super().__init__(name, static_folder=None)
        self.url_map.merge_slashes = False  # a redirect is a failure to the sender, so there is none
        self._urls = self.url_map.bind("relay")  # hosts are nobody's business here
        self._views: dict[tuple[str, str], Any] = {}
        self._on_error = on_error

    def wsgi_app(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        try:
            view = self._view(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            answer: WSGIApplication = view(environ)
        except Exception as error:  # noqa: BLE001  # whatever it is, it gets an answer
            answer = self._on_error(error)
        return answer(environ, start_response)

    def _view(self, method: str, path: str) -> Any:
        """Return the view of a route; raise HTTPException if there is none."""
        view = self._views.get((method, path))
        if view is not None:
            return view
        # werkzeug drops leading slashes, and takes `post` for POST.
        if path.startswith("//"):
            raise NotFound
        if not method.isupper():
            allowed = self._urls.allowed_methods(path)
            raise MethodNotAllowed(allowed) if allowed else NotFound
        endpoint, _ = self._urls.match(path, method)
        view = self._views[method, path] = self.view_functions[endpoint]
        return view
