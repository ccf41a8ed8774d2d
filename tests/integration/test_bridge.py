"""The asynchronous layer: what waits, waits without a thread, and never for longer than 5 s."""

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import uvloop
from flask import Response, request
from support.asgi import Client, chunk, scope
from support.constants import NO_REDIS
from support.relay import make_settings

from service import waiting
from service.app import environ
from service.app.factory import RelayFlask, create_app
from service.errors import StoreUnavailableError
from service.server import bridge
from service.server.bridge import FlaskBridge
from service.server.protocol import ARRIVED_AT

LIMIT = 100


class Store:
    """Stands in for the store where only its start and end matter."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def set_metrics_hooks(self, *_: Any) -> None:
        pass

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self.calls.append("bind_loop")

    def probe(self) -> None:
        self.calls.append("probe")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def futures() -> dict[str, Future[str]]:
    """What the requests for /wait/long and /wait/briefly wait for."""
    return {"long": Future(), "briefly": Future()}


@pytest.fixture
def flask(futures: dict[str, Future[str]]) -> RelayFlask:
    store: Any = Store()
    flask = create_app(make_settings(NO_REDIS, max_body_bytes=LIMIT), store)

    @flask.post("/echo")
    def echo() -> Response:
        return Response(request.stream.read())

    @flask.post("/unread")
    def unread() -> str:
        return "unread"

    @flask.post("/seen")
    def seen() -> dict[str, Any]:
        headers = {name.lower(): value for name, value in request.headers.items()}
        return {"headers": headers, "query": request.query_string.decode(), "path": request.path}

    @flask.post("/wait/<name>")
    def wait(name: str) -> str:
        try:
            return str(waiting.wait(futures[name], 0.05 if name == "briefly" else 30))
        except TimeoutError:
            raise StoreUnavailableError("Redis did not answer in time.") from None

    @flask.post("/compute/<name>")
    def compute(name: str) -> str:
        try:
            return waiting.read_body(bytes(waiting.LARGE_BYTES + 1), futures[name].result, 30)
        except TimeoutError:
            raise StoreUnavailableError("Too many large bodies wait to be read.") from None

    @flask.post("/stream")
    def stream() -> Iterator[str]:
        yield "first"
        yield str(waiting.wait(futures["long"]))

    return flask


@pytest.fixture
def app(flask: RelayFlask) -> FlaskBridge:
    return FlaskBridge(flask)


def call(app: FlaskBridge, scope: dict[str, Any], client: Client) -> Client:
    asyncio.run(FlaskBridge(app._app)(scope, client.receive, client.send))  # a new loop needs a new bridge
    return client


# Bodies


def test_a_body_in_one_piece(app: FlaskBridge) -> None:
    client = call(app, scope(), Client(chunk(b"hello")))

    assert (client.status, client.body) == (200, b"hello")
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]


def test_a_body_in_many_pieces(app: FlaskBridge) -> None:
    pieces = [*(chunk(bytes([letter]), more=True) for letter in b"hello"), chunk(b"")]

    assert call(app, scope(), Client(*pieces)).body == b"hello"


def test_content_length_and_body_agree(app: FlaskBridge) -> None:
    client = call(app, scope(), Client(chunk(b"hello")))

    assert client.headers[b"content-length"] == b"5"
    assert all(name == name.lower() for name in client.headers)


def test_a_body_cut_short_is_a_bad_request(app: FlaskBridge) -> None:
    client = call(app, scope(), Client(chunk(b"hel", more=True), {"type": "http.disconnect"}))

    assert (client.status, json.loads(client.body)["code"]) == (400, "bad_request")


def test_a_body_too_large_is_read_to_its_end(app: FlaskBridge) -> None:
    pieces = [chunk(b"x" * 60, more=True) for _ in range(50)]

    client = call(app, scope(), Client(*pieces, chunk(b"")))

    assert (client.status, json.loads(client.body)["code"]) == (413, "body_too_large")
    assert client.received == 51, "the rest is read, so that the sender reads the response"


def test_a_body_without_end_is_not_read_for_ever(app: FlaskBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "DRAINED_BYTES", 200)

    client = call(app, scope(), Client(*(chunk(b"x" * 60, more=True) for _ in range(50))))

    assert client.status == 413
    assert client.received < 10


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "BODY_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("pieces", [[], [chunk(b"hel", more=True)]])
def test_a_body_that_does_not_arrive_is_a_request_timeout(app: FlaskBridge, pieces: list[dict[str, Any]]) -> None:
    client = call(app, scope(), Client(*pieces, then_hang=True))

    assert (client.status, json.loads(client.body)["code"]) == (408, "request_timeout")


@pytest.mark.usefixtures("impatient")
def test_a_late_body_that_nobody_reads_does_not_matter(app: FlaskBridge) -> None:
    assert call(app, scope("/unread"), Client(then_hang=True)).body == b"unread"


@pytest.mark.usefixtures("impatient")
def test_a_body_that_is_too_large_already_is_not_late(app: FlaskBridge) -> None:
    client = call(app, scope(), Client(chunk(b"x" * 101, more=True), then_hang=True))

    assert client.status == 413


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ["/echo", "/missing"])
def test_nothing_of_a_refused_request_keeps_its_connection_or_its_body(app: FlaskBridge, path: str) -> None:
    """The server closes a connection with half a body once nobody can receive from it any more."""
    client = Client(chunk(b"x" * LIMIT, more=True), then_hang=True)
    connection = weakref.ref(client)
    gc.collect()
    gc.disable()  # Flask's errors and their frames refer to each other: they alone may wait for a collection
    try:
        asyncio.run(app(scope(path), client.receive, client.send))
        assert client.status in {404, 408}
        del client
        assert connection() is None
        bodies = [each for each in gc.get_objects() if type(each) is environ.Body]  # quick, and asks no proxy
        assert all(body.closed for body in bodies)
    finally:
        gc.enable()


def test_large_bodies_together_have_a_bound_and_small_ones_pass(
    app: FlaskBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "SMALL_BYTES", 10)
    app._buffered_at_most = 140

    async def four() -> list[Client]:
        arriving = Client(chunk(b"x" * 100, more=True), then_hang=True)
        task = asyncio.create_task(app(scope(), arriving.receive, arriving.send))
        await asyncio.sleep(0)
        clients = [Client(chunk(b"x" * 70)), Client(chunk(b"x" * 50)), Client(chunk(b"x" * 10))]
        for client in clients:
            await app(scope(), client.receive, client.send)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        last = Client(chunk(b"x" * 100))
        await app(scope(), last.receive, last.send)
        return [*clients, last]

    too_much, fits, small, after = asyncio.run(four())

    assert (too_much.status, json.loads(too_much.body)["code"]) == (503, "store_unavailable")
    assert (fits.status, small.status, after.status) == (200, 200, 200)


def test_computing_that_waits_too_long_for_a_thread_is_answered_in_time(
    app: FlaskBridge, futures: dict[str, Future[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "RESPONSE_SECONDS", 0.1)
    client = Client(chunk(b""))

    async def answered() -> None:
        await app(scope("/compute/long"), client.receive, client.send)
        futures["long"].set_result("too late")

    asyncio.run(answered())

    assert (client.status, json.loads(client.body)["code"]) == (503, "store_unavailable")


# A request that waited for this process


def waited(app: FlaskBridge, path: str, seconds: float, client: Client) -> Client:
    """Let the bridge see a request so many seconds after its arrival."""

    async def served() -> None:
        arrived = {ARRIVED_AT: asyncio.get_running_loop().time() - seconds}
        await FlaskBridge(app._app)(scope(path) | arrived, client.receive, client.send)

    asyncio.run(served())
    return client


def test_the_time_for_a_response_begins_with_the_arrival(app: FlaskBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "RESPONSE_SECONDS", 3600)

    client = waited(app, "/wait/long", 3599.7, Client(chunk(b"")))

    assert (client.status, json.loads(client.body)["code"]) == (503, "store_unavailable")


def test_the_time_for_a_body_begins_with_the_arrival_of_the_head(
    app: FlaskBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "BODY_SECONDS", 3600)

    client = waited(app, "/echo", 3599.7, Client(chunk(b"hel", more=True), then_hang=True))

    assert (client.status, json.loads(client.body)["code"]) == (408, "request_timeout")


def test_a_request_that_waited_too_long_is_still_served(
    app: FlaskBridge, futures: dict[str, Future[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "GRACE_SECONDS", 60)
    threading.Timer(0.05, futures["long"].set_result, ["done"]).start()

    assert waited(app, "/wait/long", 3600, Client(chunk(b""))).body == b"done"


def test_computing_in_a_thread_does_not_keep_the_loop(app: FlaskBridge, futures: dict[str, Future[str]]) -> None:
    async def both() -> tuple[Client, Client]:
        large, small = Client(chunk(b"")), Client(chunk(b"hello"))
        task = asyncio.create_task(app(scope("/compute/long"), large.receive, large.send))
        await app(scope(), small.receive, small.send)
        assert not large.sent
        futures["long"].set_result("done")
        await task
        return large, small

    large, small = asyncio.run(both())

    assert (large.body, small.body) == (b"done", b"hello")


def test_a_streamed_response_is_sent_as_it_comes(app: FlaskBridge, futures: dict[str, Future[str]]) -> None:
    async def streamed() -> list[bytes]:
        client = Client(chunk(b""))
        task = asyncio.create_task(app(scope("/stream"), client.receive, client.send))
        while len(client.sent) < 2:  # noqa: ASYNC110  # awaits steps of the loop, no time
            await asyncio.sleep(0)
        before = client.body
        futures["long"].set_result("second")
        await task
        return [before, client.body]

    assert asyncio.run(streamed()) == [b"first", b"firstsecond"]


# Results that are waited for


def test_a_result_that_is_there_already(app: FlaskBridge, futures: dict[str, Future[str]]) -> None:
    futures["long"].set_result("done")

    assert call(app, scope("/wait/long"), Client(chunk(b""))).body == b"done"


def test_a_result_that_comes_from_another_thread_is_waited_for(
    app: FlaskBridge, futures: dict[str, Future[str]]
) -> None:
    async def both() -> Client:
        client = Client(chunk(b""))
        task = asyncio.create_task(app(scope("/wait/long"), client.receive, client.send))
        await asyncio.to_thread(futures["long"].set_result, "done")
        await task
        return client

    assert asyncio.run(both()).body == b"done"


def test_a_result_that_does_not_come_is_503_and_its_future_is_cancelled(
    app: FlaskBridge, futures: dict[str, Future[str]]
) -> None:
    client = call(app, scope("/wait/briefly"), Client(chunk(b"")))

    assert (client.status, json.loads(client.body)["code"]) == (503, "store_unavailable")
    assert client.headers[b"retry-after"] == b"5"
    assert futures["briefly"].cancelled()


def test_a_result_under_way_that_does_not_come_is_503_too(app: FlaskBridge, futures: dict[str, Future[str]]) -> None:
    futures["briefly"].set_running_or_notify_cancel()

    client = call(app, scope("/wait/briefly"), Client(chunk(b"")))

    assert (client.status, json.loads(client.body)["code"]) == (503, "store_unavailable")


def test_a_timeout_of_any_length_is_a_timeout() -> None:
    async def wait_for(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        greenlets = waiting.Greenlets(loop)
        with pytest.raises(TimeoutError):
            await greenlets.run(loop.time() + 1, waiting.wait, loop.create_future(), seconds)

    for tenth in range(10):  # of a millisecond, by which uvloop rounds
        uvloop.run(wait_for(0.01 + tenth / 10_000))


def test_a_result_that_is_a_defect_says_so_and_no_more(app: FlaskBridge, futures: dict[str, Future[str]]) -> None:
    futures["long"].set_exception(ZeroDivisionError("a secret detail"))

    client = call(app, scope("/wait/long"), Client(chunk(b"")))

    assert (client.status, json.loads(client.body)["code"]) == (500, "internal_error")
    assert b"a secret detail" not in client.body


def test_while_one_request_waits_others_are_answered(app: FlaskBridge, futures: dict[str, Future[str]]) -> None:
    async def both() -> list[bytes]:
        waiting, other = Client(chunk(b"")), Client(chunk(b"hello"))
        stalled = Client(chunk(b"hel", more=True), then_hang=True)
        tasks = [
            asyncio.create_task(app(scope("/wait/long"), waiting.receive, waiting.send)),
            asyncio.create_task(app(scope(), stalled.receive, stalled.send)),
        ]
        await app(scope(), other.receive, other.send)
        assert not waiting.sent
        assert not stalled.sent
        futures["long"].set_result("done")
        await tasks[0]
        tasks[1].cancel()
        return [other.body, waiting.body]

    assert asyncio.run(both()) == [b"hello", b"done"]


# What Flask gets to see


def seen(app: FlaskBridge, *headers: tuple[bytes, bytes]) -> Any:
    return json.loads(call(app, scope("/seen", *headers), Client(chunk(b""))).body)


def test_headers(app: FlaskBridge) -> None:
    headers = seen(app, (b"svix-id", b"msg_1"), (b"content-type", b"text/x"), (b"content-length", b"0"))

    assert headers["headers"] == {"svix-id": "msg_1", "content-type": "text/x", "content-length": "0"}


def test_a_repeated_header_is_a_list(app: FlaskBridge) -> None:
    assert seen(app, (b"x-a", b"1"), (b"x-a", b"2"))["headers"]["x-a"] == "1,2"


def test_a_header_with_an_underscore_is_not_the_one_with_a_hyphen(app: FlaskBridge) -> None:
    assert seen(app, (b"svix_id", b"forged"), (b"svix-id", b"msg_1"))["headers"]["svix-id"] == "msg_1"
    assert "svix-id" not in seen(app, (b"svix_id", b"forged"))["headers"]


def test_bytes_that_are_not_ascii(app: FlaskBridge) -> None:
    assert seen(app, (b"x-a", b"\xff\xc3\xa9"))["headers"]["x-a"] == b"\xff\xc3\xa9".decode("latin-1")


def test_percent_encoded_paths_and_queries(app: FlaskBridge) -> None:
    encoded = scope("/seen") | {"raw_path": b"/see%6E", "query_string": b"a=%ff&b"}
    seen_path = json.loads(call(app, encoded, Client(chunk(b""))).body)

    assert seen_path["path"] == "/seen"
    assert seen_path["query"] == "a=%ff&b"


def test_a_server_that_leaves_out_what_it_may(app: FlaskBridge) -> None:
    bare = scope("/seen")
    del bare["raw_path"], bare["server"]

    assert call(app, bare, Client(chunk(b""))).status == 200


# The service's life


def test_the_store_connects_at_the_start_and_closes_at_the_end(app: FlaskBridge) -> None:
    client = Client({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})

    call(app, {"type": "lifespan"}, client)

    assert [message["type"] for message in client.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert app._app.store.calls == ["bind_loop", "probe", "close"]  # type: ignore[attr-defined]


def test_other_protocols_are_left_alone(app: FlaskBridge) -> None:
    assert call(app, {"type": "websocket"}, Client()).sent == []
