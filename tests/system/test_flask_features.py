"""What Flask documents works on `create_app()`: in process, and under `serve --app` with one and two workers."""

import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import httpx
import pytest
from flask.testing import FlaskClient
from support import own_apps
from support.clock import eventually
from support.constants import EVENTS_KEY, NO_REDIS, ROOT, SECRET, SERVE, SESSION_KEY, TESTS
from support.events import IGNORED, clerk_event
from support.network import free_port
from support.redis_clients import client_of
from support.relay import make_settings
from support.services import ServiceProcess, run_service
from support.signing import signed
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter
from werkzeug.test import TestResponse

from service.app.factory import RelayFlask, create_app
from service.app.webhook import WEBHOOK_PATH
from service.dev.embedded import EmbeddedRedis
from service.errors import RelayError, StoreUnavailableError

PYTHONPATH = f"{ROOT}:{TESTS}"


def event_body(**values: Any) -> bytes:
    return json.dumps(clerk_event(**values)).encode()


def deliver(client: FlaskClient, body: bytes = IGNORED, **headers: str) -> TestResponse:
    return client.post(WEBHOOK_PATH, data=body, headers=signed(body) | headers)


def problem_of(response: TestResponse | httpx.Response) -> tuple[int, str, str]:
    """Return status, code and detail of an answer, which has to be problem details."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.text)
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"], problem["detail"]


@pytest.fixture
def app(any_redis: EmbeddedRedis, any_client: Any) -> Iterator[RelayFlask]:
    """The application as it is made, on a Redis that is empty."""
    app = create_app(make_settings(any_redis.url))
    yield app
    app.store.close()


@pytest.fixture
def client(app: RelayFlask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def app_without_redis() -> Iterator[RelayFlask]:
    app = create_app(make_settings(NO_REDIS))
    yield app
    app.store.close()


# Deliveries


def test_the_test_client_delivers(client: FlaskClient, any_client: Any) -> None:
    response = deliver(client, event_body())

    assert (response.status_code, response.get_json()["outcome"]) == (200, "applied")
    assert json.loads(any_client.hget(SESSION_KEY, "state"))["session"]["id"] == "sess_1"
    assert any_client.xlen(EVENTS_KEY) == 1


def test_what_a_hook_refuses_does_not_reach_redis(app: RelayFlask, client: FlaskClient, any_client: Any) -> None:
    app.before_request(lambda: flask.abort(403, "Not from you."))

    assert problem_of(deliver(client, event_body())) == (403, "forbidden", "Not from you.")
    assert list(any_client.scan_iter("*")) == []


def test_a_hook_may_answer_itself(app: RelayFlask, client: FlaskClient, any_client: Any) -> None:
    app.before_request(lambda: ({"mine": True}, 200))

    assert deliver(client, event_body()).get_json() == {"mine": True}
    assert list(any_client.scan_iter("*")) == []


def test_hooks_run_in_the_order_that_flask_documents(app: RelayFlask, client: FlaskClient) -> None:
    ran: list[str] = []

    def after(response: flask.Response) -> flask.Response:
        ran.append("after_request")
        return response

    app.url_value_preprocessor(lambda endpoint, _: ran.append(f"preprocessor {endpoint}"))
    app.before_request(lambda: ran.append("before_request"))
    app.after_request(after)
    app.teardown_request(lambda error: ran.append(f"teardown_request {error}"))
    app.teardown_appcontext(lambda error: ran.append(f"teardown_appcontext {error}"))

    assert deliver(client).status_code == 200
    assert ran == [
        "preprocessor receive_delivery",
        "before_request",
        "after_request",
        "teardown_request None",
        "teardown_appcontext None",
    ]


def test_what_a_delivery_is_refused_with_has_the_headers_of_after_request(app: RelayFlask, client: FlaskClient) -> None:
    @app.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["X-After"] = "yes"
        return response

    response = client.post(WEBHOOK_PATH, data=b"{}")

    assert (response.status_code, response.headers["X-After"]) == (400, "yes")


def test_after_this_request(app: RelayFlask, client: FlaskClient) -> None:
    @app.before_request
    def hook() -> None:
        @flask.after_this_request
        def mark(response: flask.Response) -> flask.Response:
            response.headers["X-Once"] = "yes"
            return response

    assert deliver(client).headers["X-Once"] == "yes"


def test_a_hook_that_reads_the_body_gets_nothing_and_the_delivery_passes(app: RelayFlask, client: FlaskClient) -> None:
    read: list[Any] = []

    @app.before_request
    def hook() -> None:
        flask_request = flask.request
        read.extend([flask_request.get_data(), flask_request.get_data(as_text=True), flask_request.data])
        read.extend([flask_request.get_json(silent=True), dict(flask_request.form), dict(flask_request.files)])

    response = deliver(client, event_body(), **{"content-type": "application/json"})

    assert response.get_json()["outcome"] == "applied"
    assert read == [b"", "", b"", None, {}, {}]


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_hook_that_reads_a_form_does_not_take_the_body(
    app: RelayFlask, client: FlaskClient, content_type: str
) -> None:
    app.before_request(lambda: flask.request.values.get("a"))

    response = deliver(client, event_body(), **{"content-type": content_type})

    assert response.get_json()["outcome"] == "applied"


def test_a_view_on_another_path_reads_its_body(app: RelayFlask, client: FlaskClient) -> None:
    @app.post("/echo")
    def echo() -> Any:
        return flask.request.get_json()

    assert client.post("/echo", json={"a": [1]}).get_json() == {"a": [1]}
    assert client.post("/echo", data=b"{", content_type="application/json").status_code == 400


def test_middleware_sees_deliveries(app: RelayFlask, client: FlaskClient) -> None:
    app.wsgi_app = own_apps.Tagging(app.wsgi_app)  # type: ignore[method-assign]

    assert deliver(client).headers["X-Middleware"] == WEBHOOK_PATH


def test_a_blueprint_has_hooks_of_its_own_and_for_all(client: FlaskClient, app: RelayFlask) -> None:
    own_apps._add_blueprint(app)

    page, delivery = client.get("/mine/page"), deliver(client)

    assert page.get_json() == {"here": True}
    assert (page.headers["X-Blueprint"], page.headers["X-Blueprint-App"]) == ("yes", "yes")
    assert (delivery.headers.get("X-Blueprint"), delivery.headers["X-Blueprint-App"]) == (None, "yes")


# Errors


@pytest.mark.parametrize("kind", [RelayError, StoreUnavailableError, Exception])
def test_an_own_error_handler_wins(app_without_redis: RelayFlask, kind: type[Exception]) -> None:
    """But for one of Exception: Flask asks ours first, whose class is nearer."""
    app_without_redis.register_error_handler(kind, lambda error: ({"mine": error.code}, 299))

    response = deliver(app_without_redis.test_client(), event_body())

    expected = (503, None) if kind is Exception else (299, "store_unavailable")
    assert (response.status_code, response.get_json().get("mine")) == expected


def test_an_own_handler_of_a_status_is_for_what_views_abort_with(app_without_redis: RelayFlask) -> None:
    """As Flask has it: what is no HTTPException has no status, so a delivery's 503 stays ours."""
    app_without_redis.register_error_handler(503, lambda error: ({"mine": error.description}, 503))
    app_without_redis.add_url_rule("/away", view_func=lambda: flask.abort(503, "away"))
    client = app_without_redis.test_client()

    assert client.get("/away").get_json() == {"mine": "away"}
    assert problem_of(deliver(client, event_body()))[1] == "store_unavailable"


@pytest.mark.parametrize("kind", [HTTPException, 404, 405])
def test_an_own_handler_of_http_errors_wins(app: RelayFlask, client: FlaskClient, kind: Any) -> None:
    app.register_error_handler(kind, lambda error: ({"mine": error.code}, error.code))

    for code, response in ((404, client.get("/nowhere")), (405, client.get(WEBHOOK_PATH))):
        assert response.status_code == code
        assert ("mine" in response.get_json()) == (kind in {HTTPException, code})


def test_abort_in_an_own_view_is_a_problem(app: RelayFlask, client: FlaskClient) -> None:
    app.add_url_rule("/closed", view_func=lambda: flask.abort(403, "Not this."))

    assert problem_of(client.get("/closed")) == (403, "forbidden", "Not this.")


def test_abort_with_a_response_is_that_response(app: RelayFlask, client: FlaskClient) -> None:
    app.add_url_rule("/closed", view_func=lambda: flask.abort(flask.Response("mine", 499)))

    response = client.get("/closed")

    assert (response.status_code, response.text) == (499, "mine")


def test_a_relay_error_of_an_own_view_is_a_problem(app: RelayFlask, client: FlaskClient) -> None:
    @app.get("/full")
    def full() -> str:
        raise StoreUnavailableError("Not now.")

    assert problem_of(client.get("/full")) == (503, "store_unavailable", "Not now.")


def test_a_defect_is_a_problem_that_tells_nothing(app: RelayFlask, client: FlaskClient) -> None:
    own_apps._add_views(app)

    status, code, detail = problem_of(client.get("/fails"))

    assert (status, code) == (500, "internal_error")
    assert "ZeroDivision" not in detail


@pytest.mark.parametrize("name", ["TESTING", "PROPAGATE_EXCEPTIONS"])
def test_a_defect_is_raised_in_the_test_client_if_it_is_asked_for(
    app: RelayFlask, client: FlaskClient, name: str
) -> None:
    own_apps._add_views(app)
    app.config[name] = True

    with pytest.raises(ZeroDivisionError):
        client.get("/fails")
    assert client.post(WEBHOOK_PATH, data=b"{}").status_code == 400, "what is no defect is still answered"


def test_signals_are_sent(app: RelayFlask, client: FlaskClient) -> None:
    own_apps._add_views(app)
    sent: list[str] = []

    def receiver(name: str) -> Callable[..., None]:
        def receive(sender: Any, **values: Any) -> None:
            assert sender is app
            sent.append(f"{name} {type(values['exception']).__name__}" if values.get("exception") else name)

        return receive

    started, failed = receiver("started"), receiver("failed")
    finished, torn_down = receiver("finished"), receiver("torn down")
    with (
        flask.request_started.connected_to(started, app),
        flask.got_request_exception.connected_to(failed, app),
        flask.request_finished.connected_to(finished, app),
        flask.request_tearing_down.connected_to(torn_down, app),
    ):
        deliver(client)
        assert sent == ["started", "finished", "torn down"]
        sent.clear()
        client.get("/fails")

    assert sent == ["started", "failed ZeroDivisionError", "finished", "torn down"]


# Views


def test_url_converters_and_url_for(app: RelayFlask, client: FlaskClient) -> None:
    own_apps._add_views(app)

    assert client.get("/items/7?q=a%20b").get_json() == {"number": 7, "url": "/items/8", "q": "a b"}
    assert problem_of(client.get("/items/seven"))[:2] == (404, "not_found")


def test_a_converter_of_the_users(app: RelayFlask, client: FlaskClient) -> None:
    class Words(BaseConverter):
        def to_python(self, value: str) -> list[str]:
            return value.split("+")

    app.url_map.converters["words"] = Words
    app.add_url_rule("/say/<words:words>", endpoint="say", view_func=lambda words: words)

    assert client.get("/say/a+b").get_json() == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/text", (200, "text/html; charset=utf-8", "text")),
        ("/response", (200, "text/html; charset=utf-8", "<b>")),
        ("/tuple", (201, "text/html; charset=utf-8", "made")),
        ("/stream", (200, "text/html; charset=utf-8", "/stream 0\n/stream 1\n/stream 2\n")),
        ("/recall", (200, "application/json", '{"value":null}\n')),
    ],
)
def test_whatever_a_view_may_return(
    app: RelayFlask, client: FlaskClient, path: str, expected: tuple[int, str, str]
) -> None:
    own_apps._add_views(app)

    response = client.get(path)

    assert (response.status_code, response.content_type, response.text) == expected


def test_head_and_options_of_an_own_view(app: RelayFlask, client: FlaskClient) -> None:
    own_apps._add_views(app)

    head, options = client.head("/text"), client.options("/text")

    assert (head.status_code, head.text, head.content_length) == (200, "", 4)
    assert (options.status_code, set(options.allow)) == (200, {"GET", "HEAD", "OPTIONS"})


def test_an_own_view_with_a_trailing_slash_redirects(app: RelayFlask, client: FlaskClient) -> None:
    own_apps._add_views(app)

    response = client.get("/folder")

    assert (response.status_code, response.location) == (308, "http://localhost/folder/")


def test_async_views_and_hooks_run_in_process(app: RelayFlask, client: FlaskClient) -> None:
    own_apps._add_hooks(app)
    own_apps._add_views(app)

    found = client.get("/async").get_json()
    refused = client.post(WEBHOOK_PATH, headers={own_apps.CLOSED: "async hook"})

    assert (found["before"], found["after"]) == ("/async", "/async")
    assert problem_of(refused) == (403, "forbidden", "Not from you.")
    assert deliver(client).status_code == 200


def test_sessions_need_a_secret_key_only_to_be_written_to(app: RelayFlask, client: FlaskClient) -> None:
    own_apps._add_views(app)

    assert client.get("/recall").get_json() == {"value": None}
    assert client.get("/remember/x").status_code == 500
    app.secret_key = "for tests"
    assert client.get("/remember/x").text == "kept"
    assert client.get("/recall").get_json() == {"value": "x"}


def test_an_own_response_class_and_json_provider(app: RelayFlask, client: FlaskClient) -> None:
    class Marked(flask.Response):
        default_mimetype = "text/plain"

    app.response_class = Marked
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.add_url_rule("/plain", endpoint="plain", view_func=lambda: "plain")
    app.add_url_rule("/keys", endpoint="keys", view_func=lambda: {"b": 1, "a": 2})

    assert client.get("/plain").content_type == "text/plain; charset=utf-8"
    assert list(client.get("/keys").get_json()) == ["b", "a"]
    assert deliver(client).get_json() == {"outcome": "ignored"}


def test_the_cli_knows_our_routes(app: RelayFlask) -> None:
    result = app.test_cli_runner().invoke(flask.cli.routes_command)

    assert WEBHOOK_PATH in result.output


# Configuration


def test_a_host_that_is_not_trusted_is_refused(app: RelayFlask, client: FlaskClient) -> None:
    app.config["TRUSTED_HOSTS"] = ["relay.example"]

    refused = client.post(WEBHOOK_PATH, data=IGNORED, headers=signed(IGNORED))
    taken = client.post(WEBHOOK_PATH, data=IGNORED, headers=signed(IGNORED), base_url="https://relay.example")

    assert problem_of(refused)[:2] == (400, "bad_request")
    assert taken.status_code == 200


@pytest.mark.parametrize("host", ["a b", "é", "", "relay.example:x", "[::1"])
def test_without_trusted_hosts_an_odd_host_does_not_matter(client: FlaskClient, host: str) -> None:
    assert deliver(client, host=host).status_code == 200


def test_a_smaller_max_content_length_counts(app: RelayFlask, client: FlaskClient) -> None:
    app.config["MAX_CONTENT_LENGTH"] = 30

    assert deliver(client, IGNORED).status_code == 200
    assert problem_of(deliver(client, IGNORED.ljust(31)))[:2] == (413, "body_too_large")


def test_a_proxy_in_front_tells_of_the_sender(app: RelayFlask, client: FlaskClient) -> None:
    own_apps._add_views(app)
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.example"}

    before = client.get("/who", headers=forwarded).get_json()
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1)  # type: ignore[method-assign]
    after = client.get("/who", headers=forwarded).get_json()

    assert before == {"address": "127.0.0.1", "scheme": "http", "host": "localhost"}
    assert after == {"address": "203.0.113.7", "scheme": "https", "host": "a.example"}


# The fast lane, which must not skip what is added


class Agent:
    """What tracers put in a method's place: it looks like the method, and is equal to it, as wrapt's are."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._method == other)

    def __hash__(self) -> int:
        return hash(self._method)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else Agent(self._method.__get__(instance, owner))

    def __call__(self, *arguments: Any) -> Any:
        return self._method(*arguments)


class Unlike:
    """The same, but it does not look like a function."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self._method, instance)


@pytest.mark.parametrize("kind", [Agent, Unlike])
@pytest.mark.parametrize("name", ["wsgi_app", "full_dispatch_request", "dispatch_request"])
def test_an_agents_wrapper_closes_the_fast_lane(
    app: RelayFlask, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    monkeypatch.setattr(flask.Flask, name, kind(getattr(flask.Flask, name)))

    assert app.fast_lane.closed_by(), "patched after the application was made"
    with contextlib.closing(create_app(make_settings(NO_REDIS)).store) as store:
        assert RelayFlask(app.settings, store).fast_lane.closed_by(), "patched before"


@pytest.mark.parametrize("name", ["session_interface", "request_class", "create_url_adapter"])
def test_what_a_subclass_replaces_closes_the_fast_lane(app: RelayFlask, name: str) -> None:
    mine = {
        "session_interface": flask.sessions.SecureCookieSessionInterface(),
        "request_class": type("Mine", (app.request_class,), {}),
        "create_url_adapter": lambda *_: None,
    }
    subclass = type("Mine", (RelayFlask,), {name: mine[name]})

    assert subclass(app.settings, app.store).fast_lane.closed_by()


# Under `serve --app`


def serve_app(factory: str) -> list[str]:
    return [*SERVE, "--app", f"support.own_apps:{factory}"]


Served = tuple[ServiceProcess, httpx.Client]


@pytest.fixture(scope="module", params=["1", "2"], ids=["one worker", "two workers"])
def shared(request: pytest.FixtureRequest, any_redis: EmbeddedRedis) -> Iterator[Served]:
    environment = {"PYTHONPATH": PYTHONPATH, "WEB_CONCURRENCY": request.param}
    with (
        run_service(any_redis.url, command=serve_app("with_everything"), **environment) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=15, verify=False) as http,
    ):
        yield service, http


@pytest.fixture
def served(shared: Served, any_client: Any) -> ServiceProcess:
    return shared[0]


@pytest.fixture
def http(shared: Served, any_client: Any) -> httpx.Client:
    """A client that, unlike the service's own, does not ask for what the contract says."""
    return shared[1]


def post(http: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    return http.post(WEBHOOK_PATH, content=body, headers=signed(body) | headers)


def test_served_a_delivery_passes_hooks_middleware_and_blueprints(http: httpx.Client, any_client: Any) -> None:
    response = post(http, event_body())

    assert (response.status_code, response.json()["outcome"]) == (200, "applied")
    assert response.headers["x-after"] == f"POST {WEBHOOK_PATH}"
    assert response.headers["x-body"] == "0", "a hook read something of the body"
    assert response.headers["x-middleware"] == WEBHOOK_PATH
    assert response.headers["x-blueprint-app"] == "yes"
    assert any_client.exists(SESSION_KEY)


@pytest.mark.parametrize("which", ["hook", "async hook"])
def test_served_what_a_hook_refuses_does_not_reach_redis(http: httpx.Client, any_client: Any, which: str) -> None:
    response = post(http, event_body(), **{own_apps.CLOSED: which})

    assert problem_of(response) == (403, "forbidden", "Not from you.")
    assert list(any_client.scan_iter("*")) == []


def test_served_teardown_and_signals_run(served: ServiceProcess, http: httpx.Client) -> None:
    before = len(served.log_text())
    post(http, IGNORED)
    http.get("/fails")

    def said() -> str:
        log = served.log_text()[before:]
        return log if log.count("torn down /fails") else ""

    log = eventually(said)
    assert f"torn down {WEBHOOK_PATH}" in log
    assert f"signal request_started {WEBHOOK_PATH}" in log
    assert "signal got_request_exception ZeroDivisionError" in log


def test_served_own_error_handlers_win(http: httpx.Client) -> None:
    unsigned, teapot = http.post(WEBHOOK_PATH, content=b"{}"), http.get("/teapot")

    assert (unsigned.status_code, unsigned.json()) == (422, {"mine": "missing_signature"})
    assert (teapot.status_code, teapot.json()) == (418, {"mine": "short and stout"})


def test_served_errors_of_own_views_are_problems(http: httpx.Client) -> None:
    assert problem_of(http.get("/forbidden")) == (403, "forbidden", "Not this.")
    assert problem_of(http.get("/fails"))[:2] == (500, "internal_error")
    assert problem_of(http.get("/nowhere"))[:2] == (404, "not_found")


def test_served_an_async_view_runs_on_the_servers_loop_and_has_the_request(http: httpx.Client) -> None:
    found = http.get("/async").json()

    assert found == {"before": "/async", "after": "/async", "body": 0, "loop": "uvloop"}


def test_served_async_views_keep_their_own_requests(served: ServiceProcess) -> None:
    async def ask() -> list[httpx.Response]:
        address = f"http://127.0.0.1:{served.port}"
        async with httpx.AsyncClient(base_url=address, timeout=15, verify=False) as http:
            paths = [f"/items/{n}" if n % 2 else "/async" for n in range(40)]
            return await asyncio.gather(*map(http.get, paths))

    for number, response in enumerate(asyncio.run(ask())):
        if number % 2:
            assert response.json()["number"] == number
        else:
            assert (response.json()["before"], response.json()["after"]) == ("/async", "/async")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/text", 200, "text"),
        ("/response", 200, "<b>"),
        ("/tuple", 201, "made"),
        ("/stream", 200, "/stream 0\n/stream 1\n/stream 2\n"),
        ("/mine/page", 200, '{"here":true}\n'),
        ("/items/7", 200, '{"number":7,"q":null,"url":"/items/8"}\n'),
    ],
)
def test_served_whatever_a_view_may_return(http: httpx.Client, path: str, status: int, text: str) -> None:
    response = http.get(path)

    assert (response.status_code, response.text) == (status, text)


def test_served_head_of_an_own_view_has_no_body(http: httpx.Client) -> None:
    head, after = http.head("/text"), http.get("/text")

    assert (head.status_code, head.headers["content-length"], head.content) == (200, "4", b"")
    assert after.text == "text"


def test_served_a_trailing_slash_redirects(http: httpx.Client) -> None:
    response = http.get("/folder")

    assert (response.status_code, response.next_request and response.next_request.url.path) == (308, "/folder/")
    assert http.get("/folder", follow_redirects=True).text == "in it"


def test_served_a_session_is_kept_in_a_cookie_that_every_worker_reads(http: httpx.Client) -> None:
    kept = http.get("/remember/x").cookies
    cookie = {"cookie": f"session={kept['session']}"}
    http.cookies.clear()

    for _ in range(8):
        assert http.get("/recall", headers=cookie | {"connection": "close"}).json() == {"value": "x"}


def test_served_proxy_fix_changes_address_and_scheme(http: httpx.Client) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}

    assert http.get("/who").json()["address"] == "127.0.0.1"
    found = http.get("/who", headers=forwarded).json()
    assert (found["address"], found["scheme"]) == ("203.0.113.7", "https")


def test_served_another_host_is_refused(http: httpx.Client, any_client: Any) -> None:
    response = post(http, event_body(), host=own_apps.ODD_HOST)

    assert problem_of(response)[:2] == (400, "bad_request")
    assert list(any_client.scan_iter("*")) == []


def test_served_a_smaller_max_content_length_counts(http: httpx.Client, any_client: Any) -> None:
    body = event_body(public_metadata={"long": "x" * 20_000})

    assert problem_of(post(http, body))[:2] == (413, "body_too_large")
    assert list(any_client.scan_iter("*")) == []


def test_served_redis_that_is_away_is_the_users_own_503() -> None:
    with run_service(NO_REDIS, command=serve_app("with_everything"), PYTHONPATH=PYTHONPATH) as service:
        body = event_body()
        url = f"http://127.0.0.1:{service.port}{WEBHOOK_PATH}"
        response = httpx.post(url, content=body, headers=signed(body))

    assert (response.status_code, response.json()) == (503, {"mine": "store_unavailable"})


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_asgi_application_around_the_bridge(any_redis: EmbeddedRedis, any_client: Any, workers: str) -> None:
    environment = {"PYTHONPATH": PYTHONPATH, "WEB_CONCURRENCY": workers}
    with run_service(any_redis.url, command=serve_app("wrapped"), **environment) as service:
        own = httpx.get(f"http://127.0.0.1:{service.port}/own")
        delivered = service.deliver(clerk_event())
        listening = [line for line in service.log_lines() if line["event"] == "listening"]
        status = service.stop()

    assert (own.status_code, own.text) == (200, "own")
    assert delivered.json()["outcome"] == "applied"
    assert len(listening) == int(workers), "the lifespan is not passed on"
    assert status == 0
    assert "Traceback" not in service.final_log


# What does not start


def run_to_its_end(redis_url: str, factory: str, workers: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
        "REDIS_URL": redis_url,
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "PYTHONPATH": PYTHONPATH,
        "WEB_CONCURRENCY": workers,
    }
    command = [*SERVE, "--app", factory]
    environment = os.environ | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("factory", "workers"),
    [
        ("support.own_apps:nothing", "1"),
        ("support.own_apps:nothing", "2"),
        ("nowhere:create", "1"),
        ("own_apps", "1"),
        (":create", "1"),
        (".own_apps:wrapped", "1"),
    ],
)
def test_a_wrong_name_is_status_2_and_one_line(factory: str, workers: str) -> None:
    ended = run_to_its_end(NO_REDIS, factory, workers)

    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert f"--app {factory}: " in line
    assert "MODULE:FACTORY" in line


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("factory", "said"), [("raising", "ZeroDivisionError"), ("mistaken", "in mistaken"), ("unfit", "is neither")]
)
def test_a_factory_that_fails_ends_the_service_and_the_log_says_where(factory: str, said: str, workers: str) -> None:
    ended = run_to_its_end(NO_REDIS, f"support.own_apps:{factory}", workers)

    assert ended.returncode > 0, "not ended by a signal"
    assert said in ended.stderr
    assert SECRET not in ended.stderr


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, any_redis: EmbeddedRedis, any_client: Any) -> None:
    """As other servers do: without PYTHONPATH."""
    (tmp_path / "here.py").write_text("from service.app.factory import create_app as create\n")
    script = f"import os, runpy; os.chdir({str(tmp_path)!r}); runpy.run_module('service', run_name='__main__')"
    command = [sys.executable, "-c", script, "serve", "--app", "here:create"]

    with run_service(any_redis.url, command=command) as service, client_of(any_redis.url) as redis:
        assert service.deliver(clerk_event()).json()["outcome"] == "applied"
        assert redis.exists(SESSION_KEY)
