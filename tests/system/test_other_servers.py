"""`create_app()` under servers that are not ours; docs/server.md says how they differ."""

import concurrent.futures
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clock import eventually
from support.constants import EVENTS_KEY, NO_REDIS, ROOT, SECRET, TESTS
from support.events import IGNORED, clerk_event, sample_body
from support.network import free_port
from support.raw_http import exchange, request_head, with_length
from support.relay import make_settings
from support.services import ServiceProcess
from support.signing import signed

from service.app.factory import create_app
from service.app.webhook import WEBHOOK_PATH
from service.dev import simulator
from service.dev.embedded import EmbeddedRedis

Command = Callable[[int], list[str]]


def gunicorn(*options: str, app: str = "service.app:create_app()") -> Command:
    def command(port: int) -> list[str]:
        bind = ["--worker-class", "gthread", "--bind", f"127.0.0.1:{port}"]
        return [sys.executable, "-m", "gunicorn", *bind, *options, app]

    return command


def granian(port: int) -> list[str]:
    options = ["--interface", "wsgi", "--factory", "--blocking-threads", "8", "--host", "127.0.0.1"]
    return [sys.executable, "-m", "granian", *options, "--port", str(port), "service.app:create_app"]


def waitress(port: int) -> list[str]:
    options = [f"--listen=127.0.0.1:{port}", "--threads=8", "--call"]
    return [sys.executable, "-m", "waitress", *options, "service.app:create_app"]


def flask_run(port: int) -> list[str]:
    return [sys.executable, "-m", "flask", "--app", "service.app", "run", "--port", str(port)]


SERVERS: dict[str, Command] = {
    "gunicorn": gunicorn("--workers", "1", "--threads", "8"),
    "granian": granian,
    "waitress": waitress,
    "flask run": flask_run,
}


@contextlib.contextmanager
def run_server(command: Command, redis_url: str, **settings: str) -> Iterator[ServiceProcess]:
    """Run a server on a free port until it answers."""
    environment = {
        "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
        "REDIS_URL": redis_url,
        "PYTHONPATH": f"{ROOT}:{TESTS}",
        **settings,
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    with tempfile.TemporaryDirectory(prefix="session-relay-test-") as directory, contextlib.ExitStack() as stack:
        for _ in range(3):  # someone else may take the free port first
            port = free_port()
            log = Path(directory) / "log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command(port),
                    cwd=directory,
                    env=inherited | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            stack.callback(_end, process)
            service = ServiceProcess(process, port, log)
            stack.callback(service.http.close)
            if eventually(lambda: _state(service), within=60) == "answers":  # noqa: B023  # called at once
                yield service
                return
        raise RuntimeError(f"The server did not start:\n{log.read_text()}")


def _state(service: ServiceProcess) -> str:
    if service.process.poll() is not None:
        return "ended"
    try:
        return "answers" if service.http.get("/healthz").status_code == 200 else ""
    except httpx.TransportError:
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=SERVERS)
def shared_server(request: pytest.FixtureRequest, any_redis: EmbeddedRedis) -> Iterator[ServiceProcess]:
    with run_server(SERVERS[request.param], any_redis.url) as server:
        yield server


@pytest.fixture
def server(shared_server: ServiceProcess, any_client: Any) -> ServiceProcess:
    return shared_server


# Each server


def test_a_delivery_is_applied_and_its_duplicate_is_one(server: ServiceProcess, any_client: Any) -> None:
    event = clerk_event()

    first, second = (server.deliver(event, "msg_1") for _ in range(2))

    assert (first.status_code, first.json()["outcome"]) == (200, "applied")
    assert second.json() == first.json() | {"outcome": "duplicate"}
    assert any_client.xlen(EVENTS_KEY) == 1


def test_a_forged_delivery_is_refused(server: ServiceProcess, any_client: Any) -> None:
    body = json.dumps(clerk_event()).encode()

    response = server.post(body, signed(body, secret=simulator.new_secret()))

    assert (response.status_code, response.json()["code"]) == (400, "invalid_signature")
    assert list(any_client.scan_iter("*")) == []


def test_a_chunked_delivery_is_taken(server: ServiceProcess) -> None:
    body = sample_body()

    response = server.post(iter([body[:100], body[100:]]), signed(body))

    assert (response.status_code, response.json()["outcome"]) == (200, "applied")


def test_malformed_chunks_are_a_bad_request_and_no_defect(server: ServiceProcess) -> None:
    head = request_head(signed(IGNORED) | {"transfer-encoding": "chunked"})

    answer = exchange(server.port, head + b"zz\r\n\r\n")

    assert answer.status == 400
    assert "request_failed" not in server.log_text()


def test_deliveries_at_the_same_time_are_all_applied(server: ServiceProcess, any_client: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        events = [clerk_event(session_id=f"sess_{number}") for number in range(40)]
        statuses = [response.status_code for response in threads.map(server.deliver, events)]

    assert statuses == [200] * 40
    assert any_client.xlen(EVENTS_KEY) == 40


def test_a_body_that_is_too_large_is_refused(server: ServiceProcess) -> None:
    body = b" " * 1_048_577

    # Over a connection of its own: gunicorn and granian may end it, since they leave the body unread.
    url = f"http://127.0.0.1:{server.port}{WEBHOOK_PATH}"
    response = httpx.post(url, content=body, headers=signed(body), timeout=15, verify=False)

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_another_method_and_another_path_are_problems(server: ServiceProcess) -> None:
    method, path = server.http.get(WEBHOOK_PATH), server.http.get("/nowhere")

    assert (method.status_code, method.json()["code"], method.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert (path.status_code, path.json()["code"]) == (404, "not_found")


def test_head_has_no_body_and_the_connection_goes_on(server: ServiceProcess) -> None:
    head = server.http.head("/healthz")

    assert (head.status_code, head.content) == (200, b"")
    assert server.http.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/webhooks/clerk/", {404}),
        ("/webhooks//clerk", {404}),
        ("//webhooks/clerk", {404, 200}),  # waitress and `flask run` take leading slashes for one
        ("/webhooks%2Fclerk", {404, 200}),  # PEP 3333 has the path decoded
    ],
)
def test_an_odd_path_is_never_a_redirect(server: ServiceProcess, path: str, expected: set[int]) -> None:
    """A sender takes a redirect for a failure."""
    headers = with_length(signed(IGNORED), IGNORED)

    answer = exchange(server.port, request_head(headers, target=path.encode()) + IGNORED)

    assert answer.status in expected


def test_health_and_metrics_answer(server: ServiceProcess) -> None:
    assert server.http.get("/readyz").status_code == 200
    assert "session_relay_deliveries_total" in server.http.get("/metrics").text


# Several processes


def together(server: ServiceProcess, ask: Callable[[httpx.Client], httpx.Response]) -> list[httpx.Response]:
    """Ask eight times at once, over connections of their own, so that all workers have something to do."""
    address = f"http://127.0.0.1:{server.port}"

    def once(_: int) -> httpx.Response:
        with httpx.Client(base_url=address, timeout=15, verify=False) as http:
            return ask(http)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        return list(threads.map(once, range(8)))


def answers_of_all(
    server: ServiceProcess, workers: int, ask: Callable[[httpx.Client], httpx.Response]
) -> list[httpx.Response]:
    """Ask until each worker has answered."""
    answers: list[httpx.Response] = []

    def all_did() -> bool:
        answers.extend(together(server, ask))
        return len({answer.headers["x-worker"] for answer in answers}) == workers

    eventually(all_did, within=20)
    return answers


def deliver_one(http: httpx.Client) -> httpx.Response:
    body = sample_body(simulator.new_id("sess"))
    return http.post(WEBHOOK_PATH, content=body, headers=signed(body))


def test_workers_forked_from_a_process_that_was_in_use_all_take_deliveries(
    any_redis: EmbeddedRedis, any_client: Any
) -> None:
    """With `--preload`, the parent's connection to Redis and its thread must not be theirs."""
    command = gunicorn("--preload", "--workers", "2", "--threads", "8", app="support.own_apps:warmed_up()")
    with run_server(command, any_redis.url) as server:
        answers = answers_of_all(server, 2, deliver_one)
        log = server.log_text()

    assert [(answer.status_code, answer.json()["outcome"]) for answer in answers] == [(200, "applied")] * len(answers)
    assert any_client.xlen(EVENTS_KEY) == 1 + len(answers)
    assert "Traceback" not in log


def test_workers_that_do_not_share_their_metrics_say_so_once(any_redis: EmbeddedRedis, any_client: Any) -> None:
    command = gunicorn("--workers", "2", "--threads", "8", app="support.own_apps:counted()")
    with run_server(command, any_redis.url) as server:
        for _ in range(2):
            answers_of_all(server, 2, lambda http: http.get("/metrics"))
        lines = server.log_text().splitlines()

    warnings = [json.loads(line) for line in lines if "metrics_not_shared" in line]
    assert [line["level"] for line in warnings] == ["warning"] * 2
    assert "PROMETHEUS_MULTIPROC_DIR" in warnings[0]["event"]


def test_workers_that_share_their_metrics_tell_the_sum(
    any_redis: EmbeddedRedis, any_client: Any, tmp_path: Path
) -> None:
    command = gunicorn("--preload", "--workers", "2", "--threads", "8", app="support.own_apps:counted()")
    with run_server(command, any_redis.url, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as server:
        answers = answers_of_all(server, 2, deliver_one)
        scrapes = answers_of_all(server, 2, lambda http: http.get("/metrics"))
        log = server.log_text()

    counted = f'session_relay_deliveries_total{{outcome="applied",reason=""}} {len(answers)}.0'
    assert all(counted in scrape.text for scrape in scrapes)
    assert "metrics_not_shared" not in log


def test_one_worker_does_not_warn(any_redis: EmbeddedRedis, any_client: Any) -> None:
    app = create_app(make_settings(any_redis.url))
    with contextlib.closing(app.store), _recorded("service.telemetry.metrics") as records:
        assert app.test_client().get("/metrics").status_code == 200

    assert records == []


class _Recorder(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@contextlib.contextmanager
def _recorded(name: str) -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    handler = _Recorder(records)
    logging.getLogger(name).addHandler(handler)
    try:
        yield records
    finally:
        logging.getLogger(name).removeHandler(handler)


# Logs


def said_by(script: str, **settings: str) -> str:
    """Run a script that makes an application, in a process of its own; return what stands on stderr."""
    environment = {"CLERK_WEBHOOK_SIGNING_SECRET": SECRET, "REDIS_URL": NO_REDIS, "PYTHONPATH": str(ROOT)}
    first = "import logging\nfrom service.app.factory import create_app\nfrom service.config import Settings\n"
    last = '\napp.test_client().post("/webhooks/clerk")\n'
    command = [sys.executable, "-c", first + script + last]
    environment = os.environ | environment | settings
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    return ended.stderr


def test_an_application_logs_as_its_settings_say() -> None:
    as_json = said_by("app = create_app(Settings(_env_file=None))")
    as_text = said_by("app = create_app(Settings(_env_file=None, log_format='console'))")
    nothing = said_by("app = create_app(Settings(_env_file=None, log_level='warning'))")

    assert json.loads(as_json)["reason"] == "missing_signature"
    assert "reason=missing_signature" in as_text
    assert nothing == ""


def test_without_arguments_it_logs_as_the_environment_says() -> None:
    assert json.loads(said_by("app = create_app()"))["reason"] == "missing_signature"
    assert said_by("app = create_app()", LOG_LEVEL="error") == ""


def test_without_arguments_it_leaves_a_process_alone_that_configured_its_logs() -> None:
    script = """
logging.basicConfig(format="OWN %(levelname)s %(name)s %(message)s", level="INFO")
before = logging.root.handlers[:], logging.root.level, logging.getLogger("httpx").level
app = create_app()
assert (logging.root.handlers, logging.root.level, logging.getLogger("httpx").level) == before
"""
    [line] = said_by(script, LOG_LEVEL="error").splitlines()

    assert line.startswith("OWN INFO service.access delivery ")
    assert "reason='missing_signature'" in line


# ASGI


def granian_asgi(port: int) -> list[str]:
    options = ["--interface", "asgi", "--factory", "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "granian", *options, "service.server.processes:application"]


def uvicorn(port: int) -> list[str]:
    return [sys.executable, "-m", "uvicorn", "--factory", "--port", str(port), "service.server.processes:application"]


@pytest.mark.parametrize("command", [granian_asgi, uvicorn])
def test_another_asgi_server_takes_deliveries(any_redis: EmbeddedRedis, any_client: Any, command: Command) -> None:
    with run_server(command, any_redis.url) as server:
        body = sample_body()
        assert server.post(body, signed(body, "msg_1")).json()["outcome"] == "applied"
        assert server.post(body, signed(body, "msg_1")).json()["outcome"] == "duplicate"
