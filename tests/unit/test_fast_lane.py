"""The fast lane is open only where nothing could tell the difference."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from flask import Flask, Response, signals
from support.constants import NO_REDIS
from support.relay import make_settings

from service.app.factory import RelayFlask, create_app

PATH = "/webhooks/clerk"


@pytest.fixture
def app() -> Iterator[RelayFlask]:
    app = create_app(make_settings(NO_REDIS))
    with contextlib.closing(app.store):
        yield app


def test_it_is_open_for_the_application_as_it_is_made(app: RelayFlask) -> None:
    assert app.fast_lane.closed_by() == ""
    assert app.fast_lane.takes("POST", PATH)


def test_what_is_no_request_does_not_close_it(app: RelayFlask) -> None:
    app.config["SECRET_KEY"] = "x"
    app.cli.command("mine")(lambda: None)
    app.add_url_rule("/mine", view_func=lambda: "mine")
    assert app.logger
    app.test_client().get("/nowhere")

    assert app.fast_lane.closed_by() == ""


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", f"{PATH}/"), ("POST", "/mine")])
def test_other_requests_are_flasks(app: RelayFlask, method: str, path: str) -> None:
    assert not app.fast_lane.takes(method, path)


def hooked_blueprint(app: Flask) -> None:
    blueprint = flask.Blueprint("mine", __name__)
    blueprint.before_app_request(lambda: None)
    app.register_blueprint(blueprint)


def replaced_view(app: Flask) -> None:
    view = app.view_functions["receive_delivery"]
    app.view_functions["receive_delivery"] = functools.partial(view)


class Middleware:
    def __init__(self, application: Any) -> None:
        self.application = application

    def __call__(self, *arguments: Any) -> Any:
        return self.application(*arguments)


def middleware(app: Any) -> None:
    app.wsgi_app = Middleware(app.wsgi_app)


def another_session_interface(app: Flask) -> None:
    app.session_interface = flask.sessions.SecureCookieSessionInterface()


OBSERVERS: dict[str, Callable[[Flask], Any]] = {
    "before_request": lambda app: app.before_request(lambda: None),
    "after_request": lambda app: app.after_request(lambda response: response),
    "teardown_request": lambda app: app.teardown_request(lambda _: None),
    "teardown_appcontext": lambda app: app.teardown_appcontext(lambda _: None),
    "url_value_preprocessor": lambda app: app.url_value_preprocessor(lambda *_: None),
    "a blueprint's hook": hooked_blueprint,
    "errorhandler": lambda app: app.register_error_handler(503, lambda _: Response("mine")),
    "errorhandler instead of ours": lambda app: app.register_error_handler(
        next(iter(app.error_handler_spec[None][None])), lambda _: Response("mine")
    ),
    "middleware": middleware,
    "a replaced view": replaced_view,
    "session_interface": another_session_interface,
    "TRUSTED_HOSTS": lambda app: app.config.update(TRUSTED_HOSTS=["relay.example"]),
    "MAX_CONTENT_LENGTH": lambda app: app.config.update(MAX_CONTENT_LENGTH=10),
    "PROPAGATE_EXCEPTIONS": lambda app: app.config.update(PROPAGATE_EXCEPTIONS=True),
}


@pytest.mark.parametrize("what", OBSERVERS)
def test_it_is_closed_by(app: RelayFlask, what: str) -> None:
    OBSERVERS[what](app)

    assert app.fast_lane.closed_by()


@pytest.mark.parametrize("name", [name for name, each in vars(signals).items() if hasattr(each, "receivers")])
def test_it_is_closed_while_a_signal_has_a_receiver(app: RelayFlask, name: str) -> None:
    def receive(*_: Any, **__: Any) -> None: ...

    with getattr(signals, name).connected_to(receive):
        assert app.fast_lane.closed_by()
    assert app.fast_lane.closed_by() == ""


def test_it_is_closed_by_an_agent_that_patches_flask(app: RelayFlask, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Flask.dispatch_request

    def traced(self: Flask) -> Any:
        return original(self)

    monkeypatch.setattr(Flask, "dispatch_request", traced)

    assert app.fast_lane.closed_by(), "patched after the application was made"
    assert create_app(make_settings(NO_REDIS)).fast_lane.closed_by(), "patched before"
