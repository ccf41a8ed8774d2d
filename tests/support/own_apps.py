"""Applications as users would build them on ours: factories for `--app`, and for other servers."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import flask
from flask import Blueprint, abort, g, request, session
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from service.app.factory import RelayFlask, create_app
from service.app.webhook import WEBHOOK_PATH
from service.errors import MissingSignatureError, StoreUnavailableError
from service.server.bridge import FlaskBridge
from support.events import clerk_event
from support.signing import signed

CLOSED = "x-closed"
"""A header that says which hook shall refuse the request: `hook` or `async hook`."""
ODD_HOST = "elsewhere.example"


class Tagging:
    """WSGI middleware that marks every response."""

    def __init__(self, application: Any) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, ("X-Middleware", environ["PATH_INFO"])], *rest)

        return self._application(environ, start)


def build(app: RelayFlask) -> RelayFlask:
    """Add one of everything that Flask documents."""
    app.secret_key = "for tests"
    app.config["TRUSTED_HOSTS"] = ["127.0.0.1", "localhost", "relay.example"]
    app.config["MAX_CONTENT_LENGTH"] = 20_000
    app.wsgi_app = ProxyFix(Tagging(app.wsgi_app))  # type: ignore[method-assign]
    _add_hooks(app)
    _add_error_handlers(app)
    _add_views(app)
    _add_blueprint(app)

    def started(_: Any, **__: Any) -> None:
        app.logger.warning("signal request_started %s", request.path)

    def failed(_: Any, exception: Exception) -> None:
        app.logger.warning("signal got_request_exception %s", type(exception).__name__)

    flask.request_started.connect(started, app, weak=False)
    flask.got_request_exception.connect(failed, app, weak=False)
    return app


def _add_hooks(app: RelayFlask) -> None:
    @app.before_request
    def refuse() -> None:
        g.body = request.get_data()
        if request.headers.get(CLOSED) == "hook":
            abort(403, "Not from you.")

    @app.before_request
    async def refuse_later() -> None:
        await asyncio.sleep(0)
        if request.headers.get(CLOSED) == "async hook":
            abort(403, "Not from you.")

    @app.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["X-After"] = f"{request.method} {request.path}"
        response.headers["X-Body"] = str(len(g.body)) if "body" in g else "none"
        response.headers["X-Worker"] = str(os.getpid())
        return response

    @app.teardown_request
    def tear_down(_: BaseException | None) -> None:
        app.logger.warning("torn down %s", request.path)


def _add_error_handlers(app: RelayFlask) -> None:
    @app.errorhandler(MissingSignatureError)
    def unsigned(error: MissingSignatureError) -> tuple[dict[str, str], int]:
        return {"mine": error.code}, 422

    @app.errorhandler(StoreUnavailableError)
    def away(error: StoreUnavailableError) -> tuple[dict[str, str], int]:
        return {"mine": error.code}, 503

    @app.errorhandler(418)
    def teapot(error: HTTPException) -> tuple[dict[str, str], int]:
        return {"mine": str(error.description)}, 418


def _add_views(app: RelayFlask) -> None:  # noqa: C901  # a list
    @app.get("/items/<int:number>")
    def item(number: int) -> dict[str, Any]:
        return {"number": number, "url": flask.url_for("item", number=number + 1), "q": request.args.get("q")}

    @app.get("/text")
    def text() -> str:
        return "text"

    @app.get("/response")
    def response() -> flask.Response:
        return flask.Response("<b>", mimetype="text/html")

    @app.get("/tuple")
    def tuple_() -> tuple[str, int, dict[str, str]]:
        return "made", 201, {"X-Made": "yes"}

    @app.get("/stream")
    def stream() -> Iterator[str]:
        @flask.stream_with_context
        def parts() -> Iterator[str]:
            for number in range(3):
                yield f"{request.path} {number}\n"

        return parts()  # type: ignore[call-arg]  # its types know no function without arguments

    @app.get("/folder/")
    def folder() -> str:
        return "in it"

    @app.get("/async")
    async def awaiting() -> dict[str, Any]:
        before = request.path
        await asyncio.sleep(0.001)
        loop = type(asyncio.get_running_loop())
        return {"before": before, "after": request.path, "body": len(g.body), "loop": loop.__module__}

    @app.get("/remember/<value>")
    def remember(value: str) -> str:
        session["value"] = value
        return "kept"

    @app.get("/recall")
    def recall() -> dict[str, Any]:
        return {"value": session.get("value")}

    @app.get("/who")
    def who() -> dict[str, Any]:
        return {"address": request.remote_addr, "scheme": request.scheme, "host": request.host}

    @app.get("/forbidden")
    def forbidden() -> str:
        abort(403, "Not this.")

    @app.get("/teapot")
    def teapot() -> str:
        abort(418, "short and stout")

    @app.get("/fails")
    def fails() -> str:
        raise ZeroDivisionError


def _add_blueprint(app: RelayFlask) -> None:
    mine = Blueprint("mine", __name__, url_prefix="/mine")

    @mine.before_request
    def only_here() -> None:
        g.here = True

    @mine.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["X-Blueprint"] = "yes"
        return response

    @mine.after_app_request
    def mark_all(response: flask.Response) -> flask.Response:
        response.headers["X-Blueprint-App"] = "yes"
        return response

    @mine.get("/page")
    def page() -> dict[str, bool]:
        return {"here": g.here}

    app.register_blueprint(mine)


def with_everything() -> RelayFlask:
    return build(create_app())


# ASGI

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Wrapper:
    """ASGI middleware with a path of its own."""

    def __init__(self, application: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/own":
            headers = [(b"content-type", b"text/plain"), (b"content-length", b"3")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"own"})
        else:
            await self._application(scope, receive, send)


def wrapped() -> Wrapper:
    return Wrapper(FlaskBridge(create_app()))


# What does not start


def raising() -> RelayFlask:
    raise ZeroDivisionError


def mistaken() -> RelayFlask:
    raise TypeError("a mistake of the factory's")


def unfit() -> object:
    return create_app().wsgi_app


# Under other servers


def counted() -> RelayFlask:
    """Say in each response which process made it."""
    app = create_app()

    @app.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["X-Worker"] = str(os.getpid())
        return response

    return app


def warmed_up() -> RelayFlask:
    """Use the application before the server forks, so that it has a connection to Redis, and a thread."""
    app = counted()
    client = app.test_client()
    body = json.dumps(clerk_event(session_id="sess_warm")).encode()
    assert client.get("/readyz").status_code == 200
    assert client.post(WEBHOOK_PATH, data=body, headers=signed(body, "msg_warm")).status_code == 200
    assert client.get("/metrics").status_code == 200
    return app
