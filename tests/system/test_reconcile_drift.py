# ruff: noqa: T201  # figures are there to be read
"""`reconcile` of an instance of which a fifth drifted, with webhooks arriving, faults of Clerk's API, and kill -9.

The short form. The long one, by hand, takes half an hour:
RECONCILE_USERS=10000 RECONCILE_KILLS=20 make test ARGS="-n 0 -s tests/system/test_reconcile_drift.py"
"""

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.children import Program, started
from support.clock import eventually
from support.constants import PROC, RELAY
from support.drift import Instance, repeated_requests, run_instance, wrong_ends, wrong_states
from support.reconciling import dump
from support.redis_clients import client_of

from service.dev.embedded import EmbeddedRedis
from service.dev.fake_clerk import FakeClerk

USERS = int(os.environ.get("RECONCILE_USERS", "40"))
SESSIONS_EACH = 10
KILLS = int(os.environ.get("RECONCILE_KILLS", "1"))
SEED = int(os.environ.get("RECONCILE_SEED", "1"))
IS_LONG = USERS >= 1000
BUDGET = 200
"""Requests in 10 s: a fifth of what Clerk takes for a production instance."""


@contextlib.contextmanager
def reconciling(clerk: FakeClerk, redis_url: str, cwd: Path, *options: str) -> Iterator[Program]:
    environment = {
        "REDIS_URL": redis_url,
        "CLERK_SECRET_KEY": clerk.secret_key,
        "CLERK_API_URL": clerk.url,
        "STREAM_MAXLEN": "10000000",
    }
    with started([*RELAY, "reconcile", "--full", "--json", *options], cwd, environment) as program:
        yield program


def reconcile(clerk: FakeClerk, redis_url: str, cwd: Path, *options: str) -> Any:
    with reconciling(clerk, redis_url, cwd, *options) as program:
        status = program.end(within=3600)
        assert (status, program.stdout != "") == (0, True), program.stderr
        return json.loads(program.stdout)


def some_429(seed: int) -> Any:
    chance = random.Random(seed)
    return lambda *_: 429 if chance.random() < 0.005 else None


@pytest.mark.real_redis
def test_all_drift_is_mended_in_one_pass_whatever_happens_meanwhile(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    faults = {"errors": 0.005, "on_request": some_429(SEED), "latency": 0.01}
    with run_instance(own_redis.url, SEED, **faults) as instance:
        instance.fill(USERS, SESSIONS_EACH)
        clerk, chance = instance.clerk, random.Random(SEED)
        began = time.monotonic()
        with instance.busy(per_second=20):
            for _ in range(KILLS):
                kill_at_random(clerk, own_redis.url, tmp_path, chance)
            result = reconcile(clerk, own_redis.url, tmp_path)
        report(instance, result, time.monotonic() - began, own_redis.url)

        assert result["resumed"] or not IS_LONG  # a short run is killed before it has stored how far it came
        assert wrong_states(instance, own_redis.url) == {}
        assert wrong_ends(instance, own_redis.url) == []
        assert set(instance.drifted.values()) <= KINDS_MENDED.keys()
        assert all(result["drift"].get(kind, 0) for kind in KINDS_MENDED.values())
        assert repeated_requests(clerk) <= KILLS * (BUDGET + 5 * BUDGET / 10)
        if IS_LONG or not KILLS:  # else the test took the dead run's lock away
            assert clerk.most_in_window(10) <= BUDGET

        assert_a_second_pass_writes_nothing(clerk, own_redis.url, tmp_path)


KINDS_MENDED = {
    "missing": "missing",
    "missing and over": "missing",
    "late end": "late_end",
    "abandoned": "late_end",
    "extended": "extended",
    "expired and extended": "extended",
    "gone": "gone",
    "wrong user": "wrong_user",
}


def kill_at_random(clerk: FakeClerk, redis_url: str, cwd: Path, chance: random.Random) -> None:
    before = len(clerk.requests)
    with reconciling(clerk, redis_url, cwd) as program:
        if IS_LONG:
            eventually(lambda: len(clerk.requests) > before, within=60)  # it has got the lock
            time.sleep(chance.uniform(0, 45))
        else:
            eventually(lambda: len(clerk.requests) >= before + USERS // 2, within=60)
        program.process.kill()
        program.end()
    if not IS_LONG:
        with client_of(redis_url) as client:
            client.delete("{clerk}:reconcile:lock")  # as after half a minute


def report(instance: Instance, result: Any, seconds: float, redis_url: str) -> None:
    clerk = instance.clerk
    requests = len(clerk.requests)
    with client_of(redis_url) as client:
        entries, held = client.xlen("{clerk}:events"), client.dbsize()
    print(
        f"\n{result}\n{USERS} users, {len(clerk._records.sessions)} sessions at Clerk, {len(instance.drifted)} drifted,"
        f" {dict(instance.happened)} meanwhile, {KILLS} kills, {entries} events, {held} keys\n"
        f"{requests} requests in {seconds:.1f} s, the budget forces {max(0, (requests - BUDGET) / BUDGET * 10):.1f} s;"
        f" at most {clerk.most_in_window(10)} in 10 s; {repeated_requests(clerk)} repeated"
    )


def assert_a_second_pass_writes_nothing(clerk: FakeClerk, redis_url: str, cwd: Path) -> None:
    clerk.errors, clerk.on_request = 0, None
    with client_of(redis_url) as client:
        before = dump(client)
        # As many users as before, so the same time once more: of a large instance, what is stored.
        result = reconcile(clerk, redis_url, cwd)
        assert result["drift"] == {}
        assert dump(client) == before
    assert clerk.most_in_window(10) <= BUDGET or not IS_LONG


@pytest.mark.real_redis
@pytest.mark.skipif(not IS_LONG, reason="the long form")
def test_it_takes_no_longer_than_the_budget_forces_and_its_memory_is_bounded(
    own_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    with run_instance(own_redis.url, SEED) as instance:
        instance.fill(USERS, SESSIONS_EACH)
        clerk = instance.clerk
        began = time.monotonic()
        with reconciling(clerk, own_redis.url, tmp_path) as program:
            status = PROC / str(program.process.pid) / "status"
            peak = ""
            while program.process.poll() is None:
                with contextlib.suppress(OSError):
                    peak = next((line for line in status.read_text().splitlines() if "VmHWM" in line), peak)
                time.sleep(0.5)
            assert program.end() == 0, program.stderr
        seconds = time.monotonic() - began
        report(instance, json.loads(program.stdout), seconds, own_redis.url)
        print(peak)
        forced = (len(clerk.requests) - BUDGET) / BUDGET * 10
        assert clerk.most_in_window(10) <= BUDGET
        # The 15 s do not grow: to start, the second question, and the window in which the last requests have to wait.
        assert seconds <= 1.1 * forced + 15
