"""What a run of `reconcile` meets that is not as it should be, in Redis and at Clerk: it is named, and costs no more.

What a run mends is in test_reconcile.py.
"""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.constants import DAY_MS, HOUR_MS
from support.reconciling import World, dump, run_world

from service.dev.embedded import EmbeddedRedis
from service.errors import ClerkError, ClerkKeyError, ClerkUnavailableError
from service.store.wrong_types import WrongTypeError
from service.workers.runs import EndlessLockError, Runs
from service.workers.user_check import UserCheck, UserResult

LOCK = "{clerk}:reconcile:lock"


@pytest.fixture
def world(any_redis: EmbeddedRedis, any_client: Any) -> Iterator[World]:
    with run_world(any_redis.url) as world:
        yield world
        any_client.flushall()  # the fixture looks for keys as the relay writes them


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.clerk.api_requests.BACKOFF_SECONDS", (0.0,) * 4)


def late(world: World, count: int) -> dict[str, str]:
    """Return sessions by user, whose ends no webhook told."""
    users = [world.clerk.add_user() for _ in range(count)]
    sessions = {user_id: world.clerk.sign_in(user_id) for user_id in users}
    with world.clerk.webhooks_lost():
        for session_id in sessions.values():
            world.clerk.end(session_id)
    world.later()
    return sessions


# At Clerk


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("scope", [{"full": True}, {}], ids=str)
def test_users_whom_clerk_always_fails_to_show_are_named_and_the_run_goes_on(world: World, scope: Any) -> None:
    sessions = late(world, 12)
    failing = list(sessions)[3:10]
    world.clerk.on_request = lambda _, __, query: 500 if query.get("user_id") in failing else None

    report = world.reconcile(**scope)

    assert (set(report.faults), report.fault_count) == (set(failing), len(failing))
    assert report.drift == {"late_end": 5}
    assert {each for each, session_id in sessions.items() if world.status(session_id) == "active"} == set(failing)
    recorded = world.client.hgetall("{clerk}:reconcile")
    assert ("last_success_at" in recorded, f"ended_at_{'full' if scope else 'stored'}" in recorded) == (False, True)


@pytest.mark.usefixtures("_impatient")
def test_a_run_stops_if_clerk_does_not_even_name_the_instance(world: World) -> None:
    late(world, 4)
    asked: list[str] = []

    def fail(_: str, path: str, __: dict[str, str]) -> int | None:
        asked.append(path)
        return 503 if len(asked) > 1 else None  # it begins with the instance

    world.clerk.on_request = fail

    with pytest.raises(ClerkUnavailableError, match="status 503; 5 attempts"):
        world.reconcile()


@pytest.mark.usefixtures("_impatient")
def test_a_run_stops_if_clerk_shows_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.workers.reconcile.MOST_FAILURES_IN_A_ROW", 5)
    late(world, 8)
    world.clerk.on_request = lambda _, __, query: 500 if "user_id" in query else None

    with pytest.raises(ClerkError, match=r"^5 users in a row can't be read, like user_.*status 500; 5 attempts"):
        world.reconcile()


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_session_that_is_gone_and_stored_with_a_later_time_is_named(world: World, dry_run: bool) -> None:
    session_id = world.clerk.sign_in(world.clerk.add_user())
    event = world.clerk.event("session.created", session_id)
    event["data"]["updated_at"] = world.now_ms + HOUR_MS
    world.deliver(event)
    with world.clerk.webhooks_lost():
        world.clerk.vanish(session_id)
    before = dump(world.client)

    report = world.reconcile(dry_run=dry_run)

    text = "Clerk does not have it, but the stored state is of a later time than Clerk's response"
    assert (report.drift, report.faults) == ({}, {session_id: text})
    assert dump(world.client) == before


@pytest.mark.parametrize("sooner_ms", [HOUR_MS, 3 * DAY_MS])
def test_an_end_that_became_earlier_is_a_change_and_no_extension(world: World, sooner_ms: int) -> None:
    session_id = world.clerk.sign_in(world.clerk.add_user())
    expire_at = world.session(session_id)["expire_at"] - sooner_ms
    with world.clerk.webhooks_lost():
        world.clerk.set(session_id, expire_at=expire_at)
    world.later()

    assert world.reconcile().drift == {"changed": 1}
    assert world.session(session_id)["expire_at"] == expire_at


def test_an_end_that_is_omitted_since_is_a_change_and_no_extension(world: World) -> None:
    world.clerk.sign_in(world.clerk.add_user())
    world._settings["omit_fields"] = "expire_at"
    world.later()

    assert world.reconcile().drift == {"changed": 1}


def test_no_more_users_are_begun_than_three_windows_of_the_budget_have_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(world, 20)
    begun: list[str] = []

    async def look(_: UserCheck, user_id: str, unindexed: Any) -> UserResult:
        assert not unindexed
        begun.append(user_id)
        if len(begun) == 9:  # the last for whom there is room
            for __ in range(1000):  # whoever could begin would by then
                await asyncio.sleep(0)
            raise ClerkKeyError
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(UserCheck, "__call__", look)

    with pytest.raises(ClerkKeyError):
        world.reconcile(full=True, requests=3)
    assert len(begun) == 9


# In Redis


def test_an_order_that_can_not_be_read_is_named_as_that(world: World) -> None:
    ((_, session_id),) = late(world, 1).items()
    world.client.hset(f"{{clerk}}:session:{session_id}", "_order", "x")

    assert world.reconcile().faults == {session_id: "its order can't be read"}


def put(client: Any, key: str) -> None:
    """Give a key a type that no key of the relay has."""
    client.delete(key)
    client.sadd(key, "x")
    client.expire(key, 1000)


@pytest.mark.parametrize("is_gone", [False, True])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_session_whose_key_has_another_type_is_named_and_costs_no_other(
    world: World, dry_run: bool, is_gone: bool
) -> None:
    user_id = world.clerk.add_user()
    wrong, other = world.clerk.sign_in(user_id), world.clerk.sign_in(user_id)
    with world.clerk.webhooks_lost():
        world.clerk.end(other)
        if is_gone:
            world.clerk.vanish(wrong)
    put(world.client, f"{{clerk}}:session:{wrong}")

    report = world.reconcile(full=True, dry_run=dry_run)

    assert (report.drift, report.faults) == ({"late_end": 1}, {wrong: "its key is not a hash"})


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("name", ["sessions", "pending"])
@pytest.mark.parametrize("scope", [{"full": True}, {}], ids=str)
def test_a_user_whose_key_has_another_type_is_named_and_costs_no_other(
    world: World, scope: Any, name: str, dry_run: bool
) -> None:
    wrong, other = late(world, 2)
    key = f"{{clerk}}:user:{wrong}:{name}"
    put(world.client, key)

    report = world.reconcile(**scope, dry_run=dry_run)

    assert list(report.faults) == [wrong]
    assert report.faults[wrong].startswith(f"{key} has another type than the relay gives it")
    assert report.drift["late_end"] >= 1
    assert dry_run or world.status(late_session(world, other)) == "ended"


def late_session(world: World, user_id: str) -> str:
    (session,) = world.clerk._records.owned_by(user_id)
    return str(session["id"])


def test_a_mark_of_a_user_that_has_another_type_is_named(world: World) -> None:
    user_id, other = world.clerk.add_user(), world.clerk.add_user()
    with world.clerk.webhooks_lost():
        for each in (user_id, other):
            world.clerk.sign_in(each)
    put(world.client, f"{{clerk}}:user:{user_id}:gone")

    report = world.reconcile(full=True)

    assert report.drift == {"missing": 1}
    assert report.faults[user_id].startswith(f"{{clerk}}:user:{user_id}:gone has another type")


@pytest.mark.parametrize(
    "name", ["events", "expiry", "reconcile", "reconcile:spent", "reconcile:run:full", "reconcile:run:full:visited"]
)
def test_a_key_of_all_that_has_another_type_ends_the_run_and_is_named(world: World, name: str) -> None:
    late(world, 1)
    put(world.client, f"{{clerk}}:{name}")

    with pytest.raises(WrongTypeError, match=rf"^\{{clerk}}:{name} has another type"):
        world.reconcile(full=True)


def test_pending_revokes_whose_key_has_another_type_are_named_and_stop_nothing(world: World) -> None:
    late(world, 1)
    put(world.client, "{clerk}:revokes")

    report = world.reconcile()

    assert report.drift == {"late_end": 1}
    assert report.faults["what Clerk has still to revoke"].startswith("{clerk}:revokes has another type")


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("kind", ["list", "string"])
def test_a_lock_that_does_not_expire_is_an_error_that_names_it(world: World, kind: str, dry_run: bool) -> None:
    if kind == "list":
        world.client.lpush(LOCK, "x")
    else:
        world.client.set(LOCK, "x")

    with pytest.raises(EndlessLockError, match=rf"^\{LOCK} does not expire, so it is not the lock of a run: delete it"):
        world.reconcile(dry_run=dry_run)


def test_progress_of_another_version_is_forgotten(world: World) -> None:
    late(world, 1)
    world.client.hset("{clerk}:reconcile:run:full", "after", "user_9")
    world.client.set("{clerk}:reconcile:run:full:visited", "12345678")

    report = world.reconcile(full=True)

    assert (report.resumed, report.drift) == (False, {"late_end": 1})


def test_progress_that_is_saved_slowly_is_not_left_by_a_run_that_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(world, 1)
    is_saving, has_ended = threading.Event(), threading.Event()
    save, forget = Runs.save, Runs.forget

    def stall(runs: Runs, *args: Any) -> None:
        if not is_saving.is_set():
            is_saving.set()
            has_ended.wait(0.5)  # it does not: the end waits for this
        save(runs, *args)

    def end(runs: Runs, mode: str) -> None:
        forget(runs, mode)
        has_ended.set()

    monkeypatch.setattr(Runs, "save", stall)
    monkeypatch.setattr(Runs, "forget", end)
    monkeypatch.setattr("service.workers.reconcile.SAVE_SECONDS", 0.001)
    world.clerk.on_request = lambda _, path, __: 500 if path == "/v1/sessions" and not is_saving.wait(20) else None

    world.reconcile(full=True)

    assert list(world.client.scan_iter("*:reconcile:run:*")) == []
