"""Flask, less what a webhook has no use for."""

from typing import Any, Final

from flask import Flask, Request
from werkzeug.exceptions import NotFound
from werkzeug.routing import MapAdapter


class LightFlask(Flask):
    """Routes, contexts and error handlers are Flask's; there are no sessions, signals, nor hooks around requests.

    A view returns a WSGI application. Half of what Flask costs is in what is left out here.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, static_folder=None)
        self.url_map.merge_slashes = False  # a redirect is a failure to the sender, so there is none

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Match path and method as they are; hosts are nobody's business here.

        werkzeug drops leading slashes, and takes `post` for POST.
        """
        if request is None:
            return super().create_url_adapter(request)
        path, method = request.environ["PATH_INFO"], request.environ["REQUEST_METHOD"]
        if path.startswith("//"):
            raise NotFound
        return MapAdapter(
            self.url_map,
            server_name="relay",
            script_name="/",
            subdomain="",
            url_scheme="http",
            path_info=path,
            default_method=method if method.isupper() else _NO_METHOD,
        )

    def full_dispatch_request(self) -> Any:
        try:
            return self.dispatch_request()
        except Exception as error:  # noqa: BLE001  # whatever it is, the error handlers are for it
            return self.handle_user_exception(error)

    def do_teardown_request(self, exc: BaseException | None = None) -> None:  # type: ignore[override]
        pass

    def do_teardown_appcontext(self, exc: BaseException | None = None) -> None:  # type: ignore[override]
        pass


_NO_METHOD: Final = "NONE"
