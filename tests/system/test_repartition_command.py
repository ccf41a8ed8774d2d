"""`session-relay repartition` and `serve`, in processes of their own, on a real Redis: killed, resumed, refused."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.children import Program, started
from support.cli import run
from support.clock import eventually
from support.constants import NOW_MS, RELAY, SECRET, SERVE
from support.events import clerk_event
from support.network import free_port
from support.partitions import fill, misplaced, portrait
from support.redis_clients import client_of
from support.relay import run_relay
from support.services import ServiceProcess, run_service

from service.dev.embedded import EmbeddedRedis
from service.store.rights import MISSING_RIGHT_ADVICE

StartRedis = Callable[..., EmbeddedRedis]
SESSIONS = 3000


@contextlib.contextmanager
def repartitioning(redis_url: str, cwd: Path, to: int) -> Iterator[Program]:
    command = [*RELAY, "repartition", "--to", str(to), "--json"]
    with started(command, cwd, {"REDIS_URL": redis_url}) as program:
        yield program


def assert_refused(service: ServiceProcess, says: str) -> None:
    """Ask for readiness, and deliver; both get the line."""
    for response in (service.http.get("/readyz"), service.deliver(clerk_event(), "msg_refused")):
        problem = response.json()
        assert (response.status_code, problem["code"]) == (503, "store_unavailable")
        assert problem["detail"].startswith(says), problem
        assert "\n" not in problem["detail"]


def is_ready(service: ServiceProcess) -> bool:
    return service.http.get("/readyz").status_code == 200


def test_ctrl_c_stops_it_with_a_line_that_says_how_to_go_on(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path
) -> None:
    with run_relay(own_redis.url) as relay:
        events = [clerk_event(session_id=f"sess_{n}", user_id=f"user_{n}") for n in range(SESSIONS)]
        assert relay.take_all((event, "msg_1") for event in events) == {"applied"}

    with repartitioning(own_redis.url, tmp_path, 5) as program:
        eventually(lambda: own_client.exists("{clerk}:partitions"))
        program.interrupt()

        assert program.end() == 1

    assert "Error: Stopped. Run it again: it goes on from here." in program.stderr
    assert "Traceback" not in program.stderr
    assert ">" in own_client.hget("{clerk}:partitions", "partitions")


def test_it_is_killed_several_times_and_goes_on(own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path) -> None:
    fill(own_redis.url, 3)
    with run_relay(own_redis.url, partitions=3) as relay:
        events = [clerk_event(session_id=f"sess_more_{n}", user_id=f"user_more_{n}") for n in range(SESSIONS)]
        assert relay.take_all((event, "msg_1") for event in events) == {"applied"}
    before = portrait(own_client)

    def writes() -> int:
        return int(own_client.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"])

    with run_service(own_redis.url, PARTITIONS="3") as service:
        assert is_ready(service)
        for count in (1, 8, 20):
            at = writes() + 6 + count  # six mark the partitions
            with repartitioning(own_redis.url, tmp_path, 5) as program:
                while writes() < at:
                    assert program.process.poll() is None, program.stderr
                program.process.send_signal(signal.SIGKILL)
                assert program.end() == -signal.SIGKILL
            assert_refused(service, "PARTITIONS=3, but the data is being moved from 3 partitions to 5: wait for ")
        with repartitioning(own_redis.url, tmp_path, 5) as program:
            assert program.end(within=120) == 0
        assert json.loads(program.stdout).keys() == {"partitions", "sessions", "user_keys", "unreadable", "seconds"}
        assert_refused(service, "PARTITIONS=3, but the data has 5: set PARTITIONS=5, or move the data with ")

    after = portrait(own_client)
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys()
    assert misplaced(own_client, 5) == []
    with run_service(own_redis.url, PARTITIONS="5") as service:
        again = clerk_event("revoked", session_id="sess_1_revoked", user_id="user_1")
        assert service.deliver(again, "msg_revoked_1").json()["outcome"] == "duplicate"


def test_where_redis_comes_later_the_line_stays_until_it_is_mended(
    start_redis: StartRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from any .env
    port = free_port()
    options = ("--dir", str(tmp_path), "--appendonly", "yes")
    with contextlib.ExitStack() as stack:
        redis = start_redis(*options, port=port)
        with run_relay(redis.url) as relay:
            relay.take(clerk_event("revoked"), "msg_revoked")
        assert redis.process is not None
        redis.process.kill()
        redis.process.wait()
        service = stack.enter_context(run_service(redis.url, PARTITIONS="8"))
        assert not is_ready(service)
        start_redis(*options, port=port)

        with client_of(redis.url) as client:
            eventually(lambda: client.exists("{clerk}:session:sess_1"), within=30)
            eventually(lambda: "PARTITIONS" in service.http.get("/readyz").json()["detail"], within=30)
            assert_refused(service, "PARTITIONS=8 does not fit the data in {clerk}:events: set PARTITIONS=1, or move ")

            moved = run("repartition", "--to", "8", environment={"REDIS_URL": redis.url})
            assert moved.exit_code == 0
            assert moved.stdout.startswith("The data has 8 partitions now: moved: 1 sessions, 0 keys of users, in ")
            assert moved.stderr == "Set PARTITIONS=8 for the relay and all consumers, and restart them.\n"

            eventually(lambda: is_ready(service), within=30)
            late = service.deliver(clerk_event(updated_at=NOW_MS - 9000), "msg_late")
            assert late.json()["outcome"] == "stale"
            assert [client.hget(key, "status") for key in client.scan_iter("*:session:sess_1")] == ["revoked"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_does_not_start_over_data_of_another_number(
    own_redis: EmbeddedRedis, tmp_path: Path, workers: str
) -> None:
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event("revoked"), "msg_revoked")
    environment = {
        "REDIS_URL": own_redis.url,
        "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "PARTITIONS": "8",
        "WEB_CONCURRENCY": workers,
    }

    with started(SERVE, tmp_path, environment) as program:
        assert program.end() == 2
    assert program.stderr.startswith("PARTITIONS=8 does not fit the data in {clerk}:events: set PARTITIONS=1, or ")
    assert program.stderr.count("\n") == 1


def test_what_can_not_be_divided_is_not(
    own_redis: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"REDIS_URL": own_redis.url, "REDIS_KEY_PREFIX": "clerk"}
    refused = run("repartition", "--to", "2", environment=environment)

    assert refused.exit_code == 2
    assert refused.stderr.startswith("PARTITIONS: ")


def test_a_failure_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed = run("repartition", "--to", "2", environment={"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"})

    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: Redis: ")
    assert "Run it again" in failed.stderr
    assert ".." not in failed.stderr


def test_a_right_that_is_missing_is_told_of(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">password", "~*", "+@all", "-scan")
    environment = {"REDIS_URL": own_redis.url.replace("//", "//relay:password@")}
    failed = run("repartition", "--to", "2", environment=environment)

    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: Redis: ")
    assert f": {MISSING_RIGHT_ADVICE}. Run it again" in failed.stderr
