"""`session-relay serve`: a Redis that hangs or restarts, and how it ends."""

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from support.children import started
from support.clock import eventually, stopwatch
from support.constants import EVENTS_KEY, RELAY, ROOT, SECRET, SERVE
from support.events import IGNORED, sample_body
from support.network import free_port, unused_port
from support.raw_http import exchange, genuine, raw_connection, request_head
from support.redis_clients import client_of
from support.redis_servers import frozen
from support.services import Endpoint, ServiceProcess, run_service, workers_of
from support.signing import signed

from service.dev.embedded import EmbeddedRedis

# Redis


@pytest.fixture
def own_service(own_redis: EmbeddedRedis) -> Iterator[ServiceProcess]:
    with run_service(own_redis.url) as service:
        assert service.deliver(sample_body("sess_0")).status_code == 200
        yield service


def timed(port: int, request: bytes, method: str = "GET") -> tuple[int, float]:
    """Send a request over a connection of its own; return the status, and the seconds it took, by a stopwatch."""
    with stopwatch() as measured:
        status = exchange(port, request, method).status
    return status, measured.seconds


def delivery(session_id: str) -> bytes:
    body = sample_body(session_id)
    return request_head(genuine(body)) + body


def test_a_redis_that_hangs_costs_every_delivery_a_503_in_time_and_health_nothing(
    own_service: ServiceProcess, own_redis: EmbeddedRedis
) -> None:
    port = own_service.port
    has_recovered = threading.Event()

    def watch(path: bytes) -> list[tuple[int, float]]:
        answers = [timed(port, request_head([], method=b"GET", target=path))]
        while not has_recovered.is_set():
            answers.append(timed(port, request_head([], method=b"GET", target=path)))
            has_recovered.wait(0.02)
        return answers

    with ThreadPoolExecutor(10) as threads:
        with frozen(own_redis):
            healthz, readyz = threads.submit(watch, b"/healthz"), threads.submit(watch, b"/readyz")
            deliveries = [threads.submit(timed, port, delivery(f"sess_{i}"), "POST") for i in range(8)]
            for future in deliveries:
                status, seconds = future.result(timeout=30)
                assert status == 503
                assert seconds < 5
            # One timeout was enough: for a second, refusals come at once.
            status, seconds = timed(port, delivery("sess_at_once"), "POST")
            assert status == 503
            assert seconds < 1
        eventually(lambda: own_service.deliver(sample_body("sess_after")).status_code == 200)
        eventually(lambda: own_service.http.get("/readyz").status_code == 200)
        has_recovered.set()

    assert {status for status, _ in healthz.result()} == {200}
    assert {status for status, _ in readyz.result()} - {200} == {503}
    assert max(seconds for _, seconds in healthz.result()) < 1
    assert max(seconds for _, seconds in readyz.result()) < 1


def test_a_redis_that_restarts_needs_no_restart_of_the_service(
    own_service: ServiceProcess, own_redis: EmbeddedRedis, start_redis: Callable[..., EmbeddedRedis]
) -> None:
    assert own_redis.process is not None
    own_redis.process.kill()
    own_redis.process.wait()
    assert own_service.deliver(sample_body("sess_1")).status_code == 503
    assert own_service.http.get("/readyz").status_code == 503
    assert own_service.http.get("/healthz").status_code == 200

    start_redis(port=own_redis.port)

    assert own_service.deliver(sample_body("sess_1")).json()["outcome"] == "applied"
    assert own_service.http.get("/readyz").status_code == 200


def test_the_service_starts_without_redis(start_redis: Callable[..., EmbeddedRedis]) -> None:
    port = free_port()
    with run_service(f"redis://127.0.0.1:{port}/0") as service:
        assert service.deliver(sample_body()).status_code == 503
        start_redis(port=port)
        assert service.deliver(sample_body()).json()["outcome"] == "applied"


# What it says at its start


def said(service: ServiceProcess, event: str) -> dict[str, Any]:
    """Return the first log line of an event, once it is there."""

    def found() -> list[dict[str, Any]]:
        # A line may be half written.
        return [json.loads(line) for line in service.log_text().split("\n")[:-1] if f'"event":"{event}"' in line]

    first, *_ = eventually(found)
    return dict(first)


def test_the_log_says_which_relay_with_which_settings_on_which_redis(own_redis: EmbeddedRedis) -> None:
    url = own_redis.url.replace("//", "//default:hunter2@")
    with client_of(own_redis.url) as client:
        client.config_set("requirepass", "hunter2")
        client.auth("hunter2")
        version = client.info("server")["redis_version"]
    with run_service(url, METRICS_TOKEN="hunter3", STREAM_MAXLEN="7") as service:
        starting, redis = said(service, "starting"), said(service, "redis")
        everything = service.log_text()

    assert starting["version"] == importlib.metadata.version("clerk-session-relay")
    assert starting["settings"] == {
        "CLERK_WEBHOOK_SIGNING_SECRET": "1 set",
        "REDIS_URL": own_redis.url,
        "STREAM_MAXLEN": 7,
        "HOST": "127.0.0.1",
        "PORT": service.port,
        "METRICS_TOKEN": "set",
    }
    assert (redis["address"], redis["server"]) == (own_redis.url, f"Redis {version}")
    assert "hunter" not in everything


def test_no_request_has_a_line_of_the_servers_own(any_redis: EmbeddedRedis) -> None:
    with run_service(any_redis.url) as service:
        for method, path in (
            ("HEAD", "/healthz"),
            ("HEAD", "/nowhere?secret=x"),
            ("GET", "/healthz"),
            ("GET", "/nowhere"),
        ):
            exchange(service.port, request_head({}, method=method.encode(), target=path.encode()), method)
        service.stop()
        log = service.log_text()

    assert "Finished server process" in log
    assert "HTTP/1.1" not in log


def test_a_misspelt_setting_is_a_warning(any_redis: EmbeddedRedis) -> None:
    with run_service(any_redis.url, METRIC_TOKEN="hunter2") as service:
        line = said(service, "setting_misspelt")

    assert line["level"] == "warning"
    assert line["advice"] == "METRIC_TOKEN is not a setting. If you mean METRICS_TOKEN, rename it"


def test_a_token_that_could_be_guessed_is_a_warning_and_opens(any_redis: EmbeddedRedis) -> None:
    with run_service(any_redis.url, READ_TOKEN="x y") as service:
        line = said(service, "token_short")
        response = service.http.get("/stats", headers={"Authorization": "Bearer x y"})

    assert line["level"] == "warning"
    assert "READ_TOKEN has a token of less than 16 characters" in line["advice"]
    assert response.status_code == 200


def test_a_redis_that_may_not_be_asked_for_its_version_is_named_without_it(own_redis: EmbeddedRedis) -> None:
    with client_of(own_redis.url) as client:
        client.acl_setuser(
            "relay", enabled=True, passwords=["+hunter2"], keys=["*"], channels=["*"], commands=["+@all", "-info"]
        )
    with run_service(own_redis.url.replace("//", "//relay:hunter2@"), WEB_CONCURRENCY="3") as service:
        assert said(service, "redis")["server"] is None
        assert service.deliver(sample_body()).status_code == 200
        eventually(lambda: service.log_text().count('"event":"listening"') == 3)
        assert service.log_text().count('"event":"redis"') == 1
        assert "redis_failed" not in service.log_text()
    with client_of(own_redis.url) as client:
        assert sum(each["count"] for each in client.acl_log()) == 1


def test_a_redis_that_hangs_does_not_delay_the_start(own_redis: EmbeddedRedis) -> None:
    with frozen(own_redis), run_service(own_redis.url, REDIS_TIMEOUT="60") as service:
        assert service.http.get("/healthz").status_code == 200
        assert service.stop() == 0


def test_options_win_over_the_environment(any_redis: EmbeddedRedis) -> None:
    port = free_port()
    with unused_port() as wrong:
        command = [*SERVE, "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
        environment = {"CLERK_WEBHOOK_SIGNING_SECRET": SECRET, "REDIS_URL": any_redis.url}
        environment |= {"HOST": "203.0.113.1", "PORT": str(wrong), "WEB_CONCURRENCY": "1"}
        with started(command, ROOT, environment) as program:
            listening = f'"host":"127.0.0.1","port":{port},.*"event":"listening"'
            program.wait_for(f"{listening}(?s:.)*{listening}", stream="stderr")  # in both workers
            assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
            assert program.stop() == 0


# What waited for a worker


def slow_delivery(service: ServiceProcess) -> dict[str, Any]:
    """Return the log line of the one delivery that Redis did not take."""

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in service.log_text().split("\n")[:-1]]
        return [line for line in lines if line["event"] == "delivery" and line["outcome"] == "failed"]

    (line,) = eventually(found)
    return line


WAITED: Final = 3.0
"""Seconds that a delivery waits for a process, of the 4 that it has."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long a request has waited")
def test_a_delivery_that_waited_for_a_busy_process_has_only_the_rest_of_its_time(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url, REDIS_TIMEOUT="60") as service, raw_connection(service.port) as connection:
        assert service.deliver(sample_body("sess_0")).status_code == 200
        with frozen(own_redis):
            service.process.send_signal(signal.SIGSTOP)
            connection.send(delivery("sess_1"))
            time.sleep(WAITED)
            service.process.send_signal(signal.SIGCONT)

            assert connection.response().status == 503
            assert slow_delivery(service)["duration_ms"] < 3500


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long a request has waited")
def test_a_delivery_that_waited_for_the_successor_of_a_dead_worker_has_only_the_rest_of_its_time(
    own_redis: EmbeddedRedis,
) -> None:
    with run_service(own_redis.url, REDIS_TIMEOUT="60", WEB_CONCURRENCY="2") as service:
        main = service.process
        workers = workers_of(main.pid)
        with frozen(own_redis):
            main.send_signal(signal.SIGSTOP)
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            with raw_connection(service.port) as connection:
                connection.send(delivery("sess_1"))
                time.sleep(WAITED)
                main.send_signal(signal.SIGCONT)

                assert connection.response().status == 503
                assert slow_delivery(service)["duration_ms"] < 3500


def test_a_worker_that_died_is_replaced_while_another_one_hangs(two_workers: ServiceProcess) -> None:
    main = two_workers.process
    hanging, dead = sorted(workers_of(main.pid))  # the main process looks at the first one first
    os.kill(dead, signal.SIGKILL)
    os.kill(hanging, signal.SIGSTOP)
    try:
        eventually(lambda: workers_of(main.pid) - {hanging, dead}, within=60)
        assert hanging in workers_of(main.pid), "the one that hangs was waited for first"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(hanging, signal.SIGKILL)


# Several processes


def test_several_processes_serve_one_port(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url, WEB_CONCURRENCY="2") as service:
        request = delivery("sess_1")

        def deliver(_: int) -> str:
            outcome: str = json.loads(exchange(service.port, request).body)["outcome"]
            return outcome

        with ThreadPoolExecutor(8) as threads:
            outcomes = list(threads.map(deliver, range(40)))

        assert sorted(outcomes) == ["applied"] + ["duplicate"] * 39
        assert service.stop() == 0


# How it ends


def test_sigterm_lets_what_has_begun_finish(own_service: ServiceProcess, own_redis: EmbeddedRedis) -> None:
    body = sample_body("sess_last")
    with raw_connection(own_service.port) as begun:
        begun.send(request_head(genuine(body)) + body[:100])
        # Answered, so the service has read what came before it, too.
        assert own_service.deliver(IGNORED).status_code == 200

        own_service.process.terminate()
        eventually(lambda: not accepts(own_service.port))
        begun.send(body[100:])

        answer = begun.response()
        assert (answer.status, json.loads(answer.body)["outcome"]) == (200, "applied")
    assert own_service.process.wait(timeout=25) == 0
    with client_of(own_redis.url) as client:
        assert client.exists("{clerk}:session:sess_last")


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_sigterm_under_load_answers_all_that_it_took(own_service: ServiceProcess, own_redis: EmbeddedRedis) -> None:
    enough = threading.Event()
    stop = threading.Event()

    def deliver_until_the_end(worker: int) -> tuple[set[str], set[str]]:
        """Return the sessions that were answered for, and those whose answer never came."""
        answered, unanswered = set(), set()
        with Endpoint(own_service.port).http as client:
            for number in range(100_000):
                if stop.is_set():
                    break
                session_id = f"sess_{worker}_{number}"
                body = sample_body(session_id)
                try:
                    response = client.post("/webhooks/clerk", content=body, headers=signed(body))
                except httpx.ConnectError:
                    break
                except httpx.TransportError:
                    unanswered.add(session_id)
                    break
                assert response.json()["outcome"] == "applied"
                answered.add(session_id)
                if number == 30:
                    enough.set()
        return answered, unanswered

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(deliver_until_the_end, worker) for worker in range(8)]
        try:
            assert enough.wait(timeout=30)
            assert own_service.stop() == 0
        finally:
            stop.set()
        results = [future.result(timeout=30) for future in futures]

    with client_of(own_redis.url) as client:
        taken = {entry["session_id"] for _, entry in client.xrange(EVENTS_KEY)} - {"sess_0"}
    assert taken == {session_id for answered, _ in results for session_id in answered}


def test_idle_connections_do_not_hold_up_the_end(own_service: ServiceProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            idle = stack.enter_context(raw_connection(own_service.port))
            idle.send(request_head(genuine()) + IGNORED)
            assert idle.response().status == 200
        stack.enter_context(raw_connection(own_service.port))
        started = time.monotonic()
        assert own_service.stop() == 0
        assert time.monotonic() - started < 20  # a platform kills after 30 s


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_status_0_though_redis_is_away_or_hangs(
    own_service: ServiceProcess, own_redis: EmbeddedRedis, number: signal.Signals
) -> None:
    with frozen(own_redis):
        own_service.process.send_signal(number)
        assert own_service.process.wait(timeout=25) == 0


@pytest.mark.parametrize("moment", ["Shutting down", "Application shutdown complete", "Finished server process"])
def test_being_told_again_to_stop_changes_nothing(own_redis: EmbeddedRedis, moment: str) -> None:
    with run_service(own_redis.url) as service:
        service.process.terminate()
        eventually(lambda: moment in service.log_text())
        while service.process.poll() is None:
            service.process.terminate()
        assert service.process.returncode == 0


def test_no_process_is_left_behind(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url, WEB_CONCURRENCY="2") as service:
        children = workers_of(service.process.pid)
        assert len(children) >= 2
        assert service.stop() == 0

    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_no_worker_outlives_a_main_process_that_was_killed(own_redis: EmbeddedRedis) -> None:
    with run_service(own_redis.url, WEB_CONCURRENCY="2") as service:
        children = workers_of(service.process.pid)
        service.process.kill()

        eventually(lambda: not any(is_running(child) for child in children))


@pytest.fixture
def two_workers(own_redis: EmbeddedRedis) -> Iterator[ServiceProcess]:
    with run_service(own_redis.url, WEB_CONCURRENCY="2") as service:
        yield service


def test_no_worker_that_still_starts_outlives_its_main_process(two_workers: ServiceProcess) -> None:
    main = two_workers.process
    first, second = workers_of(two_workers.process.pid)
    os.kill(first, signal.SIGKILL)
    (successor,) = eventually(lambda: set(workers_of(two_workers.process.pid)) - {first, second})
    os.kill(successor, signal.SIGSTOP)
    main.kill()
    main.wait(timeout=25)
    os.kill(successor, signal.SIGCONT)
    try:
        eventually(lambda: not is_running(successor))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(successor, signal.SIGKILL)


def test_workers_that_die_one_after_the_other_are_replaced(two_workers: ServiceProcess) -> None:
    def takes_a_delivery() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return two_workers.deliver(sample_body("sess_1")).status_code == 200
        return False

    for _ in range(3):
        before = workers_of(two_workers.process.pid)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: len(workers_of(two_workers.process.pid) - {killed}) == 2)  # noqa: B023

    eventually(takes_a_delivery, within=30)
    assert two_workers.stop() == 0


def test_it_ends_at_once_while_it_still_starts(tmp_path: Path, any_redis: EmbeddedRedis) -> None:
    environment = {
        "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
        "REDIS_URL": any_redis.url,
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
    }
    with started([*RELAY, "serve"], tmp_path, environment) as program:
        program.wait_for("Started server process", stream="stderr")
        assert program.stop() == 0


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
