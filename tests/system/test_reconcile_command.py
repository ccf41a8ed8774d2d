"""`session-relay reconcile` as it is typed: what it prints, its exit status, signals, and what fails around it.

What a run mends is in tests/integration/test_reconcile.py; kill -9 is in test_reconcile_drift.py.
"""

import asyncio
import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.children import Program, started
from support.cli import run
from support.clock import eventually
from support.constants import NO_REDIS, RELAY, ROOT
from support.network import free_port
from support.reconciling import dump
from support.redis_clients import client_of
from support.redis_servers import durable_redis
from support.relay import Relay, run_relay
from support.topologies import cluster_of

from service.clerk.budget import Budget
from service.cli import reconcile_view
from service.dev.embedded import EmbeddedRedis
from service.dev.fake_clerk import FakeClerk
from service.workers.reconcile import Reconciler

LOCK = "{clerk}:reconcile:lock"


class Setup:
    """A Clerk instance, a relay that gets its webhooks, and the command."""

    def __init__(self, clerk: FakeClerk, relay: Relay, redis_url: str, client: Any, cwd: Path) -> None:
        self.clerk, self.relay, self.redis_url, self.client, self.cwd = clerk, relay, redis_url, client, cwd
        self._number = 0
        clerk.on_webhook = self.deliver

    def deliver(self, event: Any) -> None:
        self._number += 1
        self.relay.take(event, f"msg_{self._number}")

    def environment(self, **settings: str) -> dict[str, str]:
        clerk = {"CLERK_SECRET_KEY": self.clerk.secret_key, "CLERK_API_URL": self.clerk.url}
        return {"REDIS_URL": self.redis_url, **clerk, **settings}

    def reconcile(self, *options: str, **settings: str) -> Result:
        """Run it in this process."""
        return run("reconcile", *options, environment=self.environment(**settings))

    @contextlib.contextmanager
    def start(self, *options: str, **settings: str) -> Iterator[Program]:
        with started([*RELAY, "reconcile", *options], self.cwd, self.environment(**settings)) as program:
            yield program

    def signed_in(self) -> str:
        return self.clerk.sign_in(self.clerk.add_user())

    def ended(self) -> str:
        """Return a session whose end no webhook told."""
        session_id = self.signed_in()
        with self.clerk.webhooks_lost():
            self.clerk.end(session_id)
        return session_id

    def vanished(self) -> str:
        """Return a session that Clerk no longer has; to find that out takes five seconds."""
        session_id = self.signed_in()
        with self.clerk.webhooks_lost():
            self.clerk.vanish(session_id)
        return session_id

    def status(self, session_id: str) -> str:
        return str(self.client.hget(f"{{clerk}}:session:{session_id}", "status"))


@contextlib.contextmanager
def set_up(redis_url: str, cwd: Path, **options: Any) -> Iterator[Setup]:
    with (
        FakeClerk(**{"environment": "production"} | options) as clerk,
        run_relay(redis_url, now_ms=time.time_ns() // 1_000_000) as relay,
        client_of(redis_url) as client,
    ):
        yield Setup(clerk, relay, redis_url, client, cwd)


@pytest.fixture
def setup(
    any_redis: EmbeddedRedis, any_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setup]:
    monkeypatch.chdir(tmp_path)  # away from any .env
    with set_up(any_redis.url, tmp_path) as setup:
        yield setup


@pytest.fixture(autouse=True)
def _asks_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs in this process: to wait five seconds proves nothing more."""
    monkeypatch.setattr("service.cli.reconcile.Reconciler", partial(Reconciler, ask_again_seconds=1.0))


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.clerk.api_requests.BACKOFF_SECONDS", (0.01,) * 4)


# What it says


def test_it_says_what_it_mended(setup: Setup) -> None:
    session_id = setup.ended()

    result = setup.reconcile()

    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(r"1 session of 1 user in \d+ s; mended: 1 ended\.\n", result.stdout)
    assert setup.status(session_id) == "ended"


def test_a_dry_run_says_what_is_to_be_mended(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.reconcile.rest", lambda _: asyncio.sleep(0))
    setup.ended()
    setup.vanished()

    result = setup.reconcile("--dry-run")

    assert re.fullmatch(r"2 sessions of 2 users in \d+ s; to be mended: 1 ended, 1 gone\.\n", result.stdout)


def test_a_user_of_whom_nobody_knows_a_session_is_told_of(setup: Setup) -> None:
    result = setup.reconcile("--user", "user_nobody")

    assert (result.exit_code, result.stdout) == (0, "0 sessions of 1 user in 0 s; nothing mended.\n")
    assert result.stderr == (
        "Clerk lists no session of user_nobody, and none is stored as open: see that it is the right id.\n"
    )


def test_it_says_that_nothing_was_to_be_mended(setup: Setup) -> None:
    setup.signed_in()

    assert setup.reconcile("--full").stdout.endswith(" s; nothing mended.\n")


def test_it_prints_json_for_programs(setup: Setup) -> None:
    setup.ended()

    result = json.loads(setup.reconcile("--full", "--json").stdout)

    assert result.pop("seconds") >= 0
    assert abs(result.pop("began_at") / 1000 - time.time()) < 60
    assert result == {
        "mode": "full", "dry_run": False, "resumed": False, "users": 1, "sessions": 1, "drift": {"late_end": 1},
        "faults": [], "fault_count": 0, "pending_revokes": 0, "brake": None,
    }  # fmt: skip


def test_what_could_not_be_compared_is_named_and_the_status_is_1(setup: Setup) -> None:
    unknown, late = setup.signed_in(), setup.ended()
    setup.clerk.set(unknown, status="frozen")

    result = setup.reconcile()

    assert result.exit_code == 1
    assert result.stderr == f"{unknown} stays as it is: its status frozen is unknown to this version: upgrade\n"
    assert (setup.status(unknown), setup.status(late)) == ("active", "ended")


def test_revokes_that_clerk_has_not_taken_are_mentioned(setup: Setup) -> None:
    session_id = setup.signed_in()
    setup.client.zadd("{clerk}:revokes", {session_id: 1})
    setup.client.expire("{clerk}:revokes", 100)
    setup.clerk.on_request = lambda method, *_: 400 if method == "POST" else None

    result = setup.reconcile()

    assert result.exit_code == 0
    assert "Still to be revoked at Clerk: 1 session. session-relay revoke --pending" in result.stderr


def test_too_many_sessions_that_are_gone_stop_it_with_what_to_do(setup: Setup) -> None:
    user_id = setup.clerk.add_user()
    ids = [setup.clerk.sign_in(user_id) for _ in range(11)]
    with setup.clerk.webhooks_lost():
        setup.clerk.delete_user(user_id)

    stopped = setup.reconcile()
    assert (stopped.exit_code, stopped.stdout) == (1, "")
    assert re.fullmatch(r"Clerk no longer has 11 of 11 sessions.* run it again with --allow 11\.\n", stopped.stderr)
    assert {setup.status(each) for each in ids} == {"active"}

    assert setup.reconcile("--allow", "11").exit_code == 0
    assert {setup.status(each) for each in ids} == {"removed"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--full", "--since", "1"), "Use one of --full, --since and --user."),
        (("--full", "--user", "user_1"), "Use one of --full, --since and --user."),
        (("--active-within", "3"), "--active-within goes with --full."),
        (("--every", "5", "--dry-run"), "--every goes with neither --dry-run nor --user."),
        (("--every", "0"), "Invalid value"),
        (("--allow", "-1"), "Invalid value"),
        (("--user", "no id"), "no id is no id of a user"),
        (("--since", "99999999999999"), "99999999999999 is in the future"),
        (("--since", "9999-12-31"), "9999-12-31 is in the future"),
        (("--since", "yesterday"), "yesterday is no time: use ISO 8601 (2026-11-29T08:00:00Z) or Unix time"),
    ],
    ids=str,
)
def test_what_can_not_be_meant_is_refused(setup: Setup, options: tuple[str, ...], text: str) -> None:
    result = setup.reconcile(*options)

    assert result.exit_code == 2
    assert text in result.stderr


@pytest.mark.parametrize(
    ("since", "ms"),
    [
        ("2025-11-29T08:00:00Z", 1_764_403_200_000),
        ("2025-11-29T09:00:00+01:00", 1_764_403_200_000),
        ("2025-11-29T08:00:00", 1_764_403_200_000),
        ("2025-11-29T08:00:00.123Z", 1_764_403_200_123),
        ("2025-11-29", 1_764_374_400_000),
        ("1764403200", 1_764_403_200_000),
        ("1764403200.5", 1_764_403_200_500),
        ("1764403200123", 1_764_403_200_123),
    ],
)
def test_a_time_is_read(setup: Setup, since: str, ms: int) -> None:
    assert json.loads(setup.reconcile("--since", since, "--json").stdout)["mode"] == f"since-{ms}"


def test_without_a_key_it_does_not_start(setup: Setup) -> None:
    result = run("reconcile", environment={"REDIS_URL": setup.redis_url})

    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("CLERK_SECRET_KEY: ")


def test_it_needs_no_webhook_secret(setup: Setup) -> None:
    assert "CLERK_WEBHOOK_SIGNING_SECRET" not in os.environ
    assert setup.reconcile().exit_code == 0


# What fails


def assert_it_fails_and_changes_nothing(setup: Setup, pattern: str, **settings: str) -> None:
    session_id = setup.ended()
    before = dump(setup.client)

    result = setup.reconcile("--full", **settings)

    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert re.search(pattern, result.stderr)
    assert setup.clerk.secret_key not in result.stderr
    assert (dump(setup.client), setup.status(session_id)) == (before, "active")
    assert not setup.client.exists(LOCK)


def test_a_wrong_key_changes_nothing(setup: Setup) -> None:
    assert_it_fails_and_changes_nothing(
        setup, r"refuses CLERK_SECRET_KEY \(status 401\)", CLERK_SECRET_KEY="sk_test_wrong"
    )


def test_the_key_of_another_instance_changes_nothing(setup: Setup) -> None:
    setup.signed_in()
    setup.clerk._records.instance["id"] = "ins_other"
    assert_it_fails_and_changes_nothing(setup, "CLERK_SECRET_KEY is for the instance ins_other")


@pytest.mark.usefixtures("_impatient")
def test_a_network_that_is_away_changes_nothing(setup: Setup) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert_it_fails_and_changes_nothing(setup, f"{url} does not respond .*5 attempts", CLERK_API_URL=url)


@pytest.mark.usefixtures("_impatient")
def test_a_clerk_that_only_fails_changes_nothing(setup: Setup) -> None:
    setup.clerk.on_request = lambda *_: 503
    assert_it_fails_and_changes_nothing(setup, r"does not respond \(status 503; 5 attempts\)")


def test_something_else_at_that_address_changes_nothing(setup: Setup) -> None:
    setup.clerk.on_request = lambda *_: 410
    assert_it_fails_and_changes_nothing(setup, "GET /instance has an unexpected response .* check CLERK_API_URL")


def test_without_redis_it_fails_with_one_line(setup: Setup) -> None:
    result = setup.reconcile(REDIS_URL=NO_REDIS)

    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"Redis: .*\n", result.stderr)


@pytest.mark.real_redis
def test_a_redis_that_goes_away_ends_it_and_the_next_run_goes_on(redis_binary: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with durable_redis(redis_binary, tmp_path / "redis") as server, set_up(server.url, tmp_path) as setup:
        gone = setup.vanished()
        late = setup.ended()
        with setup.start("--full") as program:
            eventually(lambda: setup.client.exists("{clerk}:reconcile:run:full"))
            server.kill()
            assert program.end() == 1
        assert program.stdout == ""
        assert re.fullmatch(r"Redis: .*\n", program.stderr)
        server.start()
        setup.client.delete(LOCK)  # as after half a minute

        result = json.loads(setup.reconcile("--full", "--json").stdout)

        assert result["resumed"] is True
        assert (setup.status(gone), setup.status(late)) == ("removed", "ended")


# One at a time


def test_a_second_run_does_not_begin_beside_one_that_lives(setup: Setup) -> None:
    answer = threading.Event()
    setup.clerk.on_request = lambda *_: answer.wait(60) and None
    with setup.start() as first:
        eventually(lambda: setup.client.exists(LOCK))

        with setup.start() as second:
            assert second.end() == 1
        assert second.stderr == "Another run of reconcile is under way. Wait for its end.\n"
        answer.set()
        assert first.end() == 0


def test_a_run_after_a_dry_one_keeps_to_the_budget_of_both(
    any_redis: EmbeddedRedis, any_client: Any, tmp_path: Path
) -> None:
    with set_up(any_redis.url, tmp_path, environment="development") as setup:
        for _ in range(12):
            setup.ended()
        before = dump(any_client, runs=True)

        with setup.start("--dry-run", "--json") as dry:
            assert dry.end() == 0
        assert dump(any_client, runs=True) == before
        assert json.loads(dry.stdout)["drift"] == {"late_end": 12}
        for _ in range(2):
            with setup.start("--json") as program:
                assert program.end() == 0
            assert len(setup.clerk.requests) in {13 * 2, 13 * 2 + 1}  # nothing is open any more

        assert setup.clerk.most_in_window(10) <= 20


def test_a_run_after_a_dry_one_that_was_stopped_keeps_to_the_budget_of_both(
    any_redis: EmbeddedRedis, any_client: Any, tmp_path: Path
) -> None:
    with set_up(any_redis.url, tmp_path, environment="development") as setup:
        for _ in range(12):
            setup.ended()
        is_stopped, numbers = threading.Event(), itertools.count(1)
        setup.clerk.on_request = lambda *_: next(numbers) == 13 and is_stopped.wait(60) and None
        with setup.start("--dry-run") as dry:
            eventually(lambda: len(setup.clerk.requests) >= 12)
            assert dry.stop() == 1
        is_stopped.set()
        assert dry.stderr == "Error: Stopped.\n"
        with setup.start() as program:
            assert program.end() == 0

        assert setup.clerk.most_in_window(10) <= 20


def test_a_dry_run_that_fails_rests_too(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.signed_in()
    setup.clerk.on_request = lambda _, path, __: 401 if path == "/v1/sessions" else None
    rested = []

    async def rest(budget: Budget) -> None:
        await asyncio.sleep(0)
        rested.append(budget.spent())

    monkeypatch.setattr("service.cli.reconcile.rest", rest)

    assert setup.reconcile("--dry-run").exit_code == 1
    assert rested == [2]


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_which_the_next_one_goes_on_with(setup: Setup, number: signal.Signals) -> None:
    gone = setup.vanished()
    with setup.start("--full") as program:
        eventually(lambda: any(each.status == 404 for each in setup.clerk.requests))
        began = time.monotonic()
        assert program.stop(number) == 1
        assert time.monotonic() - began < 15
    assert program.stderr == "Error: Stopped. The next run of this kind goes on from here.\n"
    assert not setup.client.exists(LOCK)

    result = setup.reconcile("--full")

    assert "It went on with a run" not in result.stdout  # that one has seen nobody
    assert (result.exit_code, setup.status(gone)) == (0, "removed")


def test_a_run_that_goes_on_says_whom_it_does_not_look_at_again(setup: Setup) -> None:
    seen, unseen = setup.ended(), setup.vanished()
    unseen_user = setup.client.hget(f"{{clerk}}:session:{unseen}", "user_id")

    def show_the_other_one_first(_: str, __: str, query: dict[str, str]) -> None:
        if query.get("user_id") == unseen_user:
            eventually(lambda: setup.status(seen) == "ended")

    setup.clerk.on_request = show_the_other_one_first
    with setup.start("--full") as program:
        eventually(lambda: any(each.status == 404 for each in setup.clerk.requests))
        assert program.stop() == 1
    assert setup.client.hget("{clerk}:reconcile:run:full", "users") == "1"

    result = setup.reconcile("--full")

    assert re.search(r"It went on with a run that began at 20\d\d-\S+\+00:00: ", result.stdout)


def test_a_signal_while_it_waits_for_a_dead_runs_lock_stops_it(setup: Setup) -> None:
    setup.client.set(LOCK, "of a dead run", ex=30)
    with setup.start("--user", "user_1") as program:
        with client_of(setup.redis_url) as client, client.monitor() as monitor:
            while not monitor.next_command()["command"].startswith("PTTL"):
                pass
        assert program.stop() == 1
    assert program.stderr == "Error: Stopped.\n"
    assert setup.client.get(LOCK) == "of a dead run"


# A worker


def lines(program: Program, event: str) -> list[Any]:
    return [each for each in map(json.loads, program.stderr.splitlines()) if each["event"] == event]


def has_mended(worker: Program, count: int) -> bool:
    return count == sum(int(each.get("late_end", 0)) for each in lines(worker, "reconcile_done"))


def test_a_worker_goes_on_until_it_is_stopped(setup: Setup) -> None:
    with setup.start("--every", "1") as worker:
        for count in (1, 2):
            session_id = setup.ended()
            eventually(partial(has_mended, worker, count), within=20)
            assert setup.status(session_id) == "ended"
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 15

    assert [each["every_seconds"] for each in lines(worker, "reconcile_started")] == [1]
    assert [each["settings"]["CLERK_SECRET_KEY"] for each in lines(worker, "starting")] == ["set"]
    assert setup.client.hget("{clerk}:reconcile", "drift_late_end") == "2"
    assert not setup.client.exists(LOCK)


def test_a_worker_stops_in_the_middle_of_a_run(setup: Setup) -> None:
    setup.vanished()
    with setup.start("--every", "60") as worker:
        eventually(lambda: any(each.status == 404 for each in setup.clerk.requests))
        assert worker.stop(signal.SIGINT) == 0
    assert setup.client.exists("{clerk}:reconcile:run:stored")


def test_of_several_workers_one_runs_at_a_time(setup: Setup) -> None:
    setup.signed_in()
    with setup.start("--every", "2") as first, setup.start("--every", "2") as second:
        for worker in (first, second):
            worker.wait_for("reconcile_started", stream="stderr")
        eventually(lambda: len(lines(first, "reconcile_done")) + len(lines(second, "reconcile_done")) >= 3, within=30)
        for worker in (first, second):
            assert worker.stop() == 0

    starts = [each.at for each in setup.clerk.requests if each.target == "/v1/instance"]
    assert all(later - earlier > 1.5 for earlier, later in itertools.pairwise(starts))


def test_a_worker_tries_again_when_clerk_is_back(setup: Setup) -> None:
    session_id = setup.ended()
    setup.clerk.on_request = lambda *_: 401
    with setup.start("--every", "1") as worker:
        worker.wait_for("refuses CLERK_SECRET_KEY.*reconcile_failed", stream="stderr")
        setup.clerk.on_request = None
        eventually(lambda: setup.status(session_id) == "ended", within=20)
        assert worker.stop() == 0


@pytest.mark.real_redis
def test_a_worker_tries_again_when_redis_is_back(redis_binary: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with durable_redis(redis_binary, tmp_path / "redis") as server, set_up(server.url, tmp_path) as setup:
        setup.signed_in()
        with setup.start("--every", "1") as worker:
            worker.wait_for("reconcile_done", stream="stderr")
            server.kill()
            worker.wait_for("reconcile_failed", stream="stderr")
            server.start()
            session_id = setup.ended()
            eventually(lambda: setup.status(session_id) == "ended", within=60)
            assert worker.stop() == 0


def test_a_worker_says_what_stopped_a_run_and_goes_on(setup: Setup) -> None:
    setup.signed_in()
    setup.client.hset("{clerk}:reconcile", "instance_id", "ins_other")
    with setup.start("--every", "1") as worker:
        worker.wait_for("CLERK_SECRET_KEY is for the instance.*reconcile_stopped", stream="stderr")
        setup.client.hdel("{clerk}:reconcile", "instance_id")
        worker.wait_for("reconcile_done", stream="stderr")
        assert worker.stop() == 0


def test_a_worker_that_finds_too_many_gone_lets_all_pause(setup: Setup) -> None:
    user_id = setup.clerk.add_user()
    for _ in range(11):
        setup.clerk.sign_in(user_id)
    with setup.clerk.webhooks_lost():
        setup.clerk.delete_user(user_id)

    with setup.start("--every", "60") as worker:
        worker.wait_for("Clerk no longer has 11 of 11 sessions.*reconcile_stopped", stream="stderr")
        assert worker.stop() == 0

    assert setup.client.hkeys("{clerk}:reconcile") == ["instance_id", "ended_at_stored"]


# Progress


def test_where_nobody_watches_a_line_comes_each_minute(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reconcile_view.REPORT_SECONDS == 60
    monkeypatch.setattr(reconcile_view, "REPORT_SECONDS", 0.2)
    for _ in range(3):
        setup.ended()
    setup.vanished()

    result = setup.reconcile("--full", LOG_FORMAT="json")

    told = [json.loads(line) for line in result.stderr.splitlines()]
    assert result.exit_code == 0
    assert {each["event"] for each in told} == {"reconcile_progress"}
    assert told[-1]["users"] == told[-1]["sessions"] == told[-1]["late_end"] == 3
    assert {each["stage"] for each in told} >= {"users"}
    assert {"percent"} <= {name for each in told for name in each}


def test_a_person_who_watches_gets_a_bar_with_rate_and_remaining_time(setup: Setup, tmp_path: Path) -> None:
    for _ in range(40):
        setup.ended()
    setup.vanished()
    setup.clerk.latency = 0.2
    shown = watch(setup, tmp_path, "--full")

    time_ = r"\d+:\d\d:\d\d"
    assert re.search(rf"Clerk's users: \d\d users \(\d+\.\d/s\), \d\d sessions, .*\d% {time_} {time_}", shown)
    assert re.search(r"41 sessions of 41 users in \d+ s; mended: 40 ended, 1 gone\.", shown)
    assert "reconcile_" not in shown  # no lines for machines


def watch(setup: Setup, cwd: Path, *options: str) -> str:
    """Run it on a terminal; return all that this shows."""
    master, slave = pty.openpty()
    environment = os.environ | setup.environment(PYTHONPATH=str(ROOT), COLUMNS="160", TERM="xterm")
    with subprocess.Popen(
        [*RELAY, "reconcile", *options], cwd=cwd, env=environment, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal has nobody at its other end any more
            while more := os.read(master, 65_536):
                shown += more
        assert process.wait(20) == 0
    os.close(master)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))


# Everything together


def test_the_first_day_what_was_signed_in_before_is_live_after_a_full_run(setup: Setup) -> None:
    with setup.clerk.webhooks_lost():
        ids = [setup.signed_in() for _ in range(3)]
    assert setup.client.dbsize() == 0

    result = setup.reconcile("--full")

    assert "mended: 3 missing." in result.stdout
    assert {setup.client.hget(f"{{clerk}}:session:{each}", "live") for each in ids} == {"1"}


@pytest.mark.real_redis
def test_a_cluster_with_partitions_is_mended(
    redis_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        cluster_of(redis_binary, replicas=0) as nodes,
        FakeClerk(environment="production") as clerk,
        run_relay(nodes.url, now_ms=time.time_ns() // 1_000_000, partitions=4) as relay,
    ):
        clerk.on_webhook = lambda event: relay.take(event, f"msg_{event['data']['id']}")
        sessions = [clerk.sign_in(clerk.add_user()) for _ in range(12)]
        with clerk.webhooks_lost():
            for session_id in sessions[:9]:
                clerk.end(session_id)
            for session_id in sessions[9:]:
                clerk.vanish(session_id)
            clerk.sign_in(clerk.add_user())
        settings = {"REDIS_URL": nodes.url, "CLERK_SECRET_KEY": clerk.secret_key, "CLERK_API_URL": clerk.url}

        first, second = (
            json.loads(run("reconcile", "--full", "--json", environment={**settings, "PARTITIONS": "4"}).stdout)
            for _ in range(2)
        )

        assert (first["drift"], second["drift"]) == ({"gone": 3, "late_end": 9, "missing": 1}, {})
