"""What Redis keeps of the runs of `reconcile`: the lock, what was spent, how far a run came."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import structlog.testing
from support.clock import eventually
from support.relay import make_settings

from service.clerk.budget import Budget
from service.dev.embedded import EmbeddedRedis
from service.workers import turn
from service.workers.report import Gone
from service.workers.runs import EndlessLockError, LockLostError, Progress, Runs, RunUnderWayError

LOCK = "{clerk}:reconcile:lock"


@pytest.fixture
def new_runs(any_redis: EmbeddedRedis, any_client: Any) -> Iterator[Callable[[], Runs]]:
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Runs(make_settings(any_redis.url))))


@pytest.fixture
def runs(new_runs: Callable[[], Runs]) -> Runs:
    return new_runs()


def test_one_of_two_gets_the_lock(new_runs: Callable[[], Runs]) -> None:
    first, second = new_runs(), new_runs()

    assert (first.acquire(), second.acquire()) == (True, False)
    first.release(0)
    assert second.acquire()


def test_a_dead_run_loses_the_lock_within_a_minute(runs: Runs, any_client: Any) -> None:
    runs.acquire()

    assert 10_000 < any_client.pttl(LOCK) <= 60_000
    assert 10_000 < runs.lock_ms() <= 60_000


def test_the_lock_is_extended_to_its_whole_time(runs: Runs, any_client: Any) -> None:
    runs.acquire()
    any_client.pexpire(LOCK, 1000)

    runs.extend()

    assert any_client.pttl(LOCK) > 25_000


@pytest.mark.parametrize("value", [None, "another run's"])
def test_a_lock_that_is_another_runs_is_lost_and_stays_that_ones(
    runs: Runs, any_client: Any, value: str | None
) -> None:
    runs.acquire()
    any_client.delete(LOCK)
    if value:
        any_client.set(LOCK, value, ex=30)

    with pytest.raises(LockLostError):
        runs.extend()
    runs.release(0)
    assert any_client.get(LOCK) == value


def test_what_a_run_has_spent_the_next_one_lacks(new_runs: Callable[[], Runs]) -> None:
    first, second = new_runs(), new_runs()
    first.acquire()
    first.release(7)
    budget = Budget(10)

    async def spend() -> int:
        async with turn.turn(second, budget, wait=False):
            return budget.spent()

    assert asyncio.run(spend()) == 7


def test_what_a_run_has_spent_is_forgotten_after_the_budgets_window(runs: Runs, any_client: Any) -> None:
    runs.acquire()
    runs.release(7)

    assert runs.spent() == 7
    assert 10 <= any_client.ttl("{clerk}:reconcile:spent") <= 11


@pytest.mark.parametrize("stored", ["abc", b"\xff", "", "1.5"])
def test_what_was_spent_counts_only_if_it_can_be_read(runs: Runs, any_client: Any, stored: Any) -> None:
    any_client.set("{clerk}:reconcile:spent", stored, ex=10)

    assert runs.spent() == 0


def wait_for_turn(runs: Runs) -> None:
    async def take() -> None:
        async with turn.turn(runs, Budget(10), wait=True):
            pass

    asyncio.run(take())


def test_the_lock_of_a_dead_run_is_waited_for(new_runs: Callable[[], Runs], any_client: Any) -> None:
    new_runs().acquire()
    any_client.pexpire(LOCK, 700)

    wait_for_turn(new_runs())

    assert not any_client.exists(LOCK)


def test_a_lock_that_does_not_expire_is_not_waited_for(runs: Runs, any_client: Any) -> None:
    any_client.set(LOCK, "of nobody")

    with pytest.raises(EndlessLockError, match=r"reconcile:lock does not expire.* delete it"):
        wait_for_turn(runs)


def test_the_lock_of_a_run_that_lives_is_not_waited_for(
    new_runs: Callable[[], Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "POLL_SECONDS", 0.05)
    living, other = new_runs(), new_runs()
    living.acquire()
    polls = []
    lock_ms = other.lock_ms

    def look() -> int:
        polls.append(lock_ms())
        if len(polls) == 3:
            living.extend()
        return polls[-1]

    monkeypatch.setattr(other, "lock_ms", look)

    with pytest.raises(RunUnderWayError):
        wait_for_turn(other)
    assert len(polls) == 4


def test_a_run_that_fails_gives_the_lock_back(runs: Runs, any_client: Any) -> None:
    async def fail() -> None:
        async with turn.turn(runs, Budget(10), wait=False):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        asyncio.run(fail())
    assert not any_client.exists(LOCK)


def test_a_lock_that_can_not_be_given_back_does_not_hide_why_the_run_failed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(runs, "release", refuse)

    async def fail() -> None:
        async with turn.turn(runs, Budget(10), wait=False):
            raise LockLostError("of the run")

    with pytest.raises(LockLostError), structlog.testing.capture_logs() as logged:
        asyncio.run(fail())
    assert [(each["event"], each["detail"]) for each in logged] == [("reconcile_lock_left", "away")]


def test_a_dry_run_takes_no_lock_and_does_not_begin_beside_a_run(new_runs: Callable[[], Runs], any_client: Any) -> None:
    async def look(runs: Runs, budget: Budget) -> int:
        async with turn.dry_turn(runs, budget):
            assert not any_client.exists(LOCK)
            return budget.spent()

    other = new_runs()
    other.acquire()
    with pytest.raises(RunUnderWayError):
        asyncio.run(look(new_runs(), Budget(10)))
    other.release(3)
    assert asyncio.run(look(new_runs(), Budget(10))) == 3


def test_after_a_dry_run_its_window_has_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    budget = Budget(10, clock=lambda: now[0])
    budget.preload(2)

    polls = []

    async def sleep(seconds: float) -> None:
        polls.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(turn.rest(budget))

    assert 10 < sum(polls) < 10 + 2 * turn.POLL_SECONDS


def test_how_far_a_run_came_is_read_back(runs: Runs) -> None:
    progress = Progress(
        started_at_ms=5,
        after="user_3",
        users_are_listed=True,
        sessions=10,
        users=4,
        drift={"gone": 2, "missing": 1},
        faults={"sess_1": "its status: unknown", "a session of user_1": "x"},
        fault_count=3,
        is_stopped=True,
    )
    gone = {name: Gone(name, "user_2", "5-1", 7) for name in ("sess_8", "sess_9")}

    runs.save("full", progress, b"\1" * 8, {"sess_8": gone["sess_8"]})
    runs.save("full", progress, b"\2" * 16, {"sess_9": gone["sess_9"]})

    assert runs.load("full") == (progress, b"\1" * 8 + b"\2" * 16, gone)
    assert runs.load("stored") == (None, b"", {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("users", "many"),
        ("started_at_ms", ""),
        ("gone:sess_1", "user_1 1-0"),
        ("drift_gone", "x"),
        ("after", b"\xff"),
        ("faults", "x"),
        ("faults", "[]"),
    ],
    ids=str,
)
def test_progress_that_can_not_be_read_is_deleted(runs: Runs, any_client: Any, field: Any, value: Any) -> None:
    runs.save("full", Progress(5), b"\1" * 8, {})
    any_client.hset("{clerk}:reconcile:run:full", field, value)

    assert runs.load("full") == (None, b"", {})
    assert any_client.exists("{clerk}:reconcile:run:full", "{clerk}:reconcile:run:full:visited") == 0


def test_progress_that_is_not_whole_is_deleted(runs: Runs, any_client: Any) -> None:
    any_client.hset("{clerk}:reconcile:run:full", "after", "user_1")

    assert runs.load("full") == (None, b"", {})
    assert any_client.exists("{clerk}:reconcile:run:full") == 0


def test_how_far_a_run_came_is_kept_for_a_day_and_forgotten_at_its_end(runs: Runs, any_client: Any) -> None:
    runs.save("full", Progress(5), b"\1" * 8, {})

    keys = ["{clerk}:reconcile:run:full", "{clerk}:reconcile:run:full:visited"]
    assert all(86_000 < any_client.ttl(key) <= 86_400 for key in keys)
    runs.forget("full")
    assert any_client.exists(*keys) == 0


def test_what_is_recorded_of_runs_has_a_ttl(runs: Runs, any_client: Any) -> None:
    runs.record_instance("ins_1")
    assert any_client.ttl("{clerk}:reconcile") > 300 * 86_400
    runs.record_drift({"gone": 2})
    runs.record_drift({"gone": 1, "missing": 1})
    runs.record_end("full", state_as_of_ms=5)

    status = runs.status()
    assert status.items() >= {
        ("instance_id", "ins_1"),
        ("drift_gone", "3"),
        ("drift_missing", "1"),
        ("state_as_of", "5"),
    }
    assert status["last_success_at"] == status["ended_at_full"]


def test_when_runs_have_ended_is_known_by_mode(runs: Runs) -> None:
    for mode in ("full", "full-30", "since-5"):
        runs.record_end(mode, state_as_of_ms=5)

    ended = {mode: runs.ended_at_ms(mode) for mode in ("full", "full-30", "since-5", "since-55", "stored")}
    assert min(ended["full"], ended["full-30"], ended["since-5"]) > 1_600_000_000_000
    assert (ended["since-55"], ended["stored"]) == (0, 0)


def test_runs_since_different_times_take_one_field(runs: Runs, any_client: Any) -> None:
    for since in range(5):
        runs.record_end(f"since-{since}")

    assert any_client.hkeys("{clerk}:reconcile") == ["ended_at_since"]
    assert [runs.ended_at_ms(f"since-{since}") > 0 for since in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize("stored", ["abc", b"\xff", ""])
def test_an_end_that_can_not_be_read_is_not_known(runs: Runs, any_client: Any, stored: Any) -> None:
    any_client.hset("{clerk}:reconcile", "ended_at_full", stored)

    assert runs.ended_at_ms("full") == 0


def test_a_lock_that_expires_is_seen(runs: Runs, any_client: Any) -> None:
    runs.acquire()
    any_client.pexpire(LOCK, 50)

    assert eventually(lambda: runs.lock_ms() == 0)
