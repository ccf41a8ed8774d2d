"""What one run of `reconcile` mends, and what it leaves: docs/contract.md, section 10, at a time that the test sets.

The command, in processes of its own, is in test_reconcile_command.py.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from clerk_session_feed.keys import partition_of
from support.clock import eventually
from support.constants import DAY_MS, HOUR_MS, SESSION_KEY
from support.reconciling import WEEK_MS, World, dump, run_world
from support.redis_clients import monitored

from service.dev.embedded import EmbeddedRedis
from service.dev.fake_clerk import ABSENT
from service.errors import ClerkCursorError, ClerkKeyError
from service.workers.expiry import ExpiryWorker
from service.workers.gone import TooManyGoneError
from service.workers.instance import WrongInstanceError
from service.workers.runs import LockLostError, Runs, RunUnderWayError


@pytest.fixture
def world(any_redis: EmbeddedRedis, any_client: Any) -> Iterator[World]:
    with run_world(any_redis.url) as world:
        yield world


def signed_in(world: World, **fields: Any) -> str:
    """Return a session of a user of its own, which is stored as Clerk has it."""
    return world.clerk.sign_in(world.clerk.add_user(), **fields)


def missed(world: World, change: Callable[..., Any], *args: Any, **fields: Any) -> Any:
    """Let something happen at Clerk of which no webhook tells, a while ago."""
    with world.clerk.webhooks_lost():
        result = change(*args, **fields)
    world.later()
    return result


def assert_a_second_pass_writes_nothing(world: World, **scope: Any) -> None:
    before = dump(world.client)
    world.later()
    report = world.reconcile(**scope)
    assert (report.drift, report.faults, dump(world.client)) == ({}, {}, before)


# What is mended


def test_an_open_session_that_was_never_seen_is_stored_as_if_created(world: World) -> None:
    session_id = missed(world, signed_in, world)

    report = world.reconcile(full=True)

    message = world.message(session_id)
    assert report.drift == {"missing": 1}
    assert message["event"] == {
        "id": message["event"]["id"],
        "type": "session.created",
        "occurred_at": world.now_ms,
        "instance_id": world.clerk.instance_id,
        "source": "clerk-api",
    }
    assert re.fullmatch("api_[0-9a-f]{32}", message["event"]["id"])
    assert (message["revision"], message["previous_status"], message["session"]["live"]) == (1, None, True)
    assert world.disagreeing() == []
    assert_a_second_pass_writes_nothing(world, full=True)


def test_a_pending_session_is_found_by_the_default_mode_and_is_not_live(world: World) -> None:
    session_id = signed_in(world, status="pending")
    missed(world, world.clerk.set, session_id, tasks=[])

    assert world.reconcile().drift == {"changed": 1}
    assert (world.session(session_id)["status"], world.session(session_id)["live"]) == ("pending", False)
    assert_a_second_pass_writes_nothing(world)


def test_a_pending_session_that_was_never_seen_is_stored_as_if_created(world: World) -> None:
    session_id = missed(world, signed_in, world, status="pending")

    world.reconcile(full=True)

    assert world.message(session_id)["event"]["type"] == "session.created"
    assert world.disagreeing() == []


@pytest.mark.parametrize("status", ["ended", "removed", "revoked", "replaced", "expired", "abandoned"])
def test_an_end_that_was_missed_is_stored(world: World, status: str) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.end, session_id, status)

    report = world.reconcile()

    assert report.drift == {"late_end": 1}
    assert world.message(session_id)["event"]["type"] == f"session.{status}"
    assert world.disagreeing() == []
    assert_a_second_pass_writes_nothing(world)


@pytest.mark.parametrize("later", [2 * WEEK_MS, None])
def test_a_later_end_is_stored(world: World, later: int | None) -> None:
    session_id = signed_in(world)
    expire_at = later and world.now_ms + later
    missed(world, world.clerk.set, session_id, expire_at=expire_at)

    assert world.reconcile().drift == {"extended": 1}
    assert world.session(session_id)["expire_at"] == expire_at
    assert_a_second_pass_writes_nothing(world)


def test_a_session_that_is_another_users_is_stored_as_that_ones(world: World) -> None:
    session_id, other = signed_in(world), world.clerk.add_user()
    former = world.session(session_id)["user_id"]
    missed(world, world.clerk.set, session_id, user_id=other)

    report = world.reconcile(full=True)

    assert report.drift == {"wrong_user": 1}
    assert world.session(session_id)["user_id"] == other
    assert world.client.zrange(f"{{clerk}}:user:{other}:sessions", 0, -1) == [session_id]
    assert not world.client.exists(f"{{clerk}}:user:{former}:sessions")
    assert_a_second_pass_writes_nothing(world, full=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"client_id": "client_other"},
        {"abandon_at": 1_800_000_000_000},
        {"actor": {"sub": "user_support", "iss": "x"}},
        {"last_active_organization_id": "org_1"},
        {"tasks": [{"key": "choose-organization"}]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_each_field_that_is_compared_is_news_alone(world: World, fields: dict[str, Any]) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.set, session_id, **fields)

    report = world.reconcile()

    assert report.drift == {"changed": 1}
    assert world.session(session_id).items() >= fields.items()
    assert world.message(session_id)["event"]["type"] == "session.active"
    assert_a_second_pass_writes_nothing(world)


# No news


@pytest.mark.parametrize(
    "fields",
    [
        {"updated_at": 1_795_422_805_000},
        {"last_active_at": 1_795_422_805_000},
        {"created_at": 1_795_422_805_000},
        {"latest_activity": {"object": "session_activity", "id": "sess_activity_1", "city": "Oslo"}},
        {"latest_activity": None},
        {"latest_activity": ABSENT},
    ],
    ids=" ".join,
)
def test_what_moves_with_use_is_no_news(world: World, fields: dict[str, Any]) -> None:
    session_id = signed_in(world)
    before = dump(world.client)
    missed(world, world.clerk.set, session_id, **fields)

    report = world.reconcile()

    assert (report.drift, report.sessions) == ({}, 1)
    assert dump(world.client) == before


def test_what_moves_with_use_is_taken_along(world: World) -> None:
    session_id = signed_in(world)
    used = {
        "updated_at": world.now_ms + 3000,
        "last_active_at": world.now_ms + 2000,
        "latest_activity": {**world.session(session_id)["latest_activity"], "id": "sess_activity_1", "city": "Oslo"},
    }
    missed(world, world.clerk.set, session_id, **used, last_active_organization_id="org_1")

    world.reconcile()

    assert world.session(session_id).items() >= used.items()


@pytest.mark.parametrize("activity", [None, ABSENT])
def test_an_activity_that_is_left_out_nulls_nothing(world: World, activity: Any) -> None:
    session_id = signed_in(world)
    before = world.session(session_id)["latest_activity"]
    assert before["city"]
    missed(world, world.clerk.set, session_id, latest_activity=activity, last_active_organization_id="org_1")

    world.reconcile()

    after = world.session(session_id)
    assert (after["last_active_organization_id"], after["latest_activity"]) == ("org_1", before)


OMITTED = ("client_id", "expire_at", "abandon_at", "actor", "last_active_organization_id", "tasks", "latest_activity")


def test_fields_that_are_omitted_are_no_news(any_redis: EmbeddedRedis, any_client: Any) -> None:
    with run_world(any_redis.url, omit_fields=",".join(OMITTED)) as world:
        session_id = signed_in(world, actor={"sub": "user_support"})
        before = dump(any_client)
        changes = {"client_id": "client_other", "expire_at": world.now_ms + 2 * WEEK_MS, "abandon_at": None}
        missed(world, world.clerk.set, session_id, **changes, actor=None, tasks=[{"key": "choose-organization"}])

        assert world.reconcile().drift == {}
        assert dump(any_client) == before


def test_fields_that_are_omitted_are_not_published_by_a_mended_state(any_redis: EmbeddedRedis, any_client: Any) -> None:
    with run_world(any_redis.url, omit_fields=",".join(OMITTED)) as world:
        session_id, never_seen = signed_in(world), missed(world, signed_in, world)
        missed(world, world.clerk.end, session_id)

        world.reconcile(full=True)

        for each in (session_id, never_seen):
            assert [world.session(each)[name] for name in OMITTED] == [None, None, None, None, None, [], None]
        assert world.status(session_id) == "ended"
        assert_a_second_pass_writes_nothing(world, full=True)


def test_a_field_that_is_omitted_since_is_removed(any_redis: EmbeddedRedis, any_client: Any) -> None:
    with run_world(any_redis.url) as world:
        session_id = signed_in(world, last_active_organization_id="org_1")
        world._settings["omit_fields"] = "last_active_organization_id"
        world.later()

        assert world.reconcile().drift == {"changed": 1}
        assert world.session(session_id)["last_active_organization_id"] is None
        assert_a_second_pass_writes_nothing(world)


def test_the_users_request_stays_a_field_of_events_where_it_is_published(
    any_redis: EmbeddedRedis, any_client: Any
) -> None:
    with run_world(any_redis.url, publish_http_request=True) as world:
        session_id, vanished = signed_in(world), signed_in(world)
        missed(world, world.clerk.end, session_id)
        missed(world, world.clerk.vanish, vanished)

        world.reconcile()

        for each in (session_id, vanished):
            assert world.message(each)["event"]["http_request"] is None


# Order


def test_a_webhook_from_before_the_answer_is_stale(world: World) -> None:
    session_id = signed_in(world)
    late = world.clerk.event("session.created", session_id)
    late["data"]["updated_at"] = world.now_ms + 9000
    missed(world, world.clerk.set, session_id, last_active_organization_id="org_1")
    world.reconcile()

    assert world.deliver(late) == "stale"
    assert world.session(session_id)["last_active_organization_id"] == "org_1"


def test_a_webhook_from_after_the_answer_wins(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.set, session_id, last_active_organization_id="org_1")
    world.reconcile()
    world.later(1)
    event = world.clerk.event("session.created", session_id)
    event["data"] |= {"updated_at": world.now_ms, "last_active_organization_id": "org_2"}

    assert world.deliver(event) == "applied"
    assert world.session(session_id)["last_active_organization_id"] == "org_2"


def test_an_open_state_that_is_newer_than_the_answer_stays(world: World) -> None:
    session_id = signed_in(world)
    newer = world.clerk.event("session.created", session_id)
    newer["data"] |= {"updated_at": world.now_ms + HOUR_MS, "last_active_organization_id": "org_1"}
    world.deliver(newer)
    before = dump(world.client)

    assert world.reconcile().drift == {}
    assert dump(world.client) == before


def test_an_event_that_is_applied_between_reading_and_writing_is_compared_again(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.set, session_id, last_active_organization_id="org_1")

    def end(_: str, path: str, query: dict[str, str]) -> None:
        if path == "/v1/sessions":
            world.clerk.on_request = None
            event = world.clerk.event("session.ended", session_id)
            event["data"] |= {"status": "ended", "updated_at": world.now_ms}
            world.deliver(event)

    world.clerk.on_request = end

    assert world.reconcile().drift == {}
    assert world.status(session_id) == "ended"


def test_what_ended_at_clerk_never_comes_back(world: World) -> None:
    session_id = signed_in(world)
    world.clerk.end(session_id)
    world.clerk.set(session_id, status="active", updated_at=world.now_ms + HOUR_MS)
    signed_in(world)
    before = dump(world.client)
    world.later()

    assert world.reconcile(full=True).drift == {}
    assert dump(world.client) == before


def expired(world: World, **newer: Any) -> str:
    """Return a session that the expiry worker has ended, after an event that set these fields."""
    session_id = signed_in(world, expire_at=world.now_ms + 5000)
    if newer:
        event = world.clerk.event("session.created", session_id)
        event["data"] |= newer
        assert world.deliver(event) == "applied"
    world.later()
    worker = ExpiryWorker(world.settings(), clock=lambda: world.now)
    worker.run_once()
    worker.close()
    assert world.message(session_id)["event"]["source"] == "synthetic"
    return session_id


@pytest.mark.parametrize("later", [WEEK_MS, None])
def test_an_expiry_is_undone_by_a_later_end(world: World, later: int | None) -> None:
    session_id = expired(world)
    expire_at = later and world.now_ms + later
    missed(world, world.clerk.set, session_id, expire_at=expire_at)

    report = world.reconcile(full=True)

    assert report.drift == {"extended": 1}
    assert (world.session(session_id)["live"], world.session(session_id)["expire_at"]) == (True, expire_at)
    assert_a_second_pass_writes_nothing(world, full=True)


def test_an_expiry_is_not_undone_by_the_same_end(world: World) -> None:
    session_id = expired(world)
    missed(world, world.clerk.set, session_id, last_active_organization_id="org_1", updated_at=world.now_ms)
    before = dump(world.client)

    assert world.reconcile(full=True).drift == {}
    assert dump(world.client) == before


def test_an_expiry_is_not_undone_by_an_answer_that_is_older_than_what_expired(world: World) -> None:
    session_id = expired(world, updated_at=world.now_ms + HOUR_MS)
    missed(world, world.clerk.set, session_id, expire_at=None)
    before = dump(world.client)

    assert world.reconcile(full=True).drift == {}
    assert dump(world.client) == before


def test_an_end_at_clerk_follows_an_expiry(world: World) -> None:
    session_id = expired(world)
    missed(world, world.clerk.end, session_id, "abandoned")

    world.reconcile(full=True)

    assert world.status(session_id) == "abandoned"
    assert_a_second_pass_writes_nothing(world, full=True)


def test_an_expiry_that_clerk_has_found_too_is_no_news(world: World) -> None:
    session_id = expired(world)
    missed(world, world.clerk.end, session_id, "expired")
    before = dump(world.client)

    assert world.reconcile(full=True).drift == {}
    assert dump(world.client) == before


@pytest.mark.parametrize("change", ["ban", "delete_user"])
def test_an_open_session_of_a_user_who_is_gone_is_stored_as_ended(world: World, change: str) -> None:
    user_id = world.clerk.add_user()
    session_id = missed(world, world.clerk.sign_in, user_id)
    event = world.clerk.event("user.deleted" if change == "delete_user" else "user.updated", user_id)
    if change == "ban":
        event["data"] |= {"banned": True, "updated_at": world.now_ms}
    world.deliver(event)

    world.reconcile(full=True)

    assert world.status(session_id) == ("removed" if change == "delete_user" else "revoked")
    assert_a_second_pass_writes_nothing(world, full=True)


# Sessions that are over


def test_a_session_that_ended_lately_is_stored_so_that_a_late_event_does_not_open_it(world: World) -> None:
    user_id = world.clerk.add_user()
    session_id = missed(world, world.clerk.sign_in, user_id)
    created = world.clerk.event("session.created", session_id)
    missed(world, world.clerk.end, session_id)

    assert world.reconcile(full=True).drift == {"missing": 1}
    assert world.message(session_id)["event"]["type"] == "session.ended"
    assert world.deliver(created) == "stale"
    assert_a_second_pass_writes_nothing(world, full=True)


def test_a_session_that_ended_before_the_retention_and_was_never_seen_is_not_stored(world: World) -> None:
    ago = world.now_ms - 8 * DAY_MS
    missed(world, signed_in, world, status="ended", created_at=ago, updated_at=ago, expire_at=ago)
    before = dump(world.client)

    report = world.reconcile(full=True)

    assert (report.drift, report.sessions, dump(world.client)) == ({}, 1, before)


# Gone


def test_a_session_that_clerk_no_longer_has_ends_as_removed(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.vanish, session_id)

    report = world.reconcile()

    message = world.message(session_id)
    asked = [each for each in world.clerk.requests if each.target == f"/v1/sessions/{session_id}"]
    assert report.drift == {"gone": 1}
    assert [each.status for each in asked] == [404, 404]
    assert (message["session"]["status"], message["session"]["live"]) == ("removed", False)
    assert message["event"].items() >= {
        ("type", "session.removed"), ("source", "clerk-api"), ("occurred_at", world.now_ms),
        ("instance_id", world.clerk.instance_id),
    }  # fmt: skip
    assert re.fullmatch("api_[0-9a-f]{32}", message["event"]["id"])
    assert_a_second_pass_writes_nothing(world, full=True)


def test_sessions_of_a_user_whom_clerk_no_longer_has_end_as_removed(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.delete_user, world.session(session_id)["user_id"])

    assert world.reconcile(full=True).drift == {"gone": 1}
    assert world.status(session_id) == "removed"


def test_it_is_asked_for_twice_some_seconds_apart(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.vanish, session_id)

    world.reconcile(ask_again_seconds=0.5)

    first, second = [each.at for each in world.clerk.requests if each.status == 404]
    assert second - first >= 0.5


def answer(world: World, session_id: str, *statuses: int | None) -> None:
    """Let Clerk answer requests for a session with these statuses, one after the other; None: as it would."""
    left = list(statuses)

    def choose(_: str, path: str, query: dict[str, str]) -> int | None:
        return left.pop(0) if path == f"/v1/sessions/{session_id}" and left else None

    world.clerk.on_request = choose


def hide(world: World, session_id: str) -> None:
    """Let Clerk leave a session out of its lists: it is another user's by then, for whom nobody asks."""
    world.clerk._records._owned[world.clerk.get(session_id)["user_id"]].pop(session_id)


@pytest.mark.parametrize("statuses", [(404, None), (None,), (400,), (422, None), (404, 410)], ids=str)
def test_anything_but_two_404_leaves_it(world: World, statuses: tuple[int | None, ...]) -> None:
    session_id = signed_in(world)
    hide(world, session_id)
    before = dump(world.client)
    answer(world, session_id, *statuses)

    report = world.reconcile()

    assert (report.drift, dump(world.client)) == ({}, before)
    refused = [each for each in statuses if each not in {404, None}]
    assert list(report.faults.values()) == [f"Clerk refuses to show it (status {each})" for each in refused]


def test_a_session_that_is_only_left_out_of_the_list_is_mended_by_what_clerk_says_of_it(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.end, session_id)
    hide(world, session_id)

    assert world.reconcile().drift == {"late_end": 1}
    assert world.status(session_id) == "ended"


def test_an_event_between_the_two_404_saves_it(world: World) -> None:
    session_id = signed_in(world)
    event = world.clerk.event("session.created", session_id)
    missed(world, world.clerk.vanish, session_id)
    asked = []

    def live(_: str, path: str, query: dict[str, str]) -> None:
        if path == f"/v1/sessions/{session_id}":
            asked.append(path)
            if len(asked) == 2:
                event["data"]["updated_at"] = (
                    world.now_ms - 1
                )  # older than the answer, and yet later than what was read
                assert world.deliver(event) == "applied"

    world.clerk.on_request = live

    assert world.reconcile().drift == {}
    assert world.status(session_id) == "active"


def test_evidence_of_life_after_it_was_gone_makes_it_live_again(world: World) -> None:
    session_id = signed_in(world)
    event = world.clerk.event("session.created", session_id)
    missed(world, world.clerk.vanish, session_id)
    world.reconcile()
    assert world.status(session_id) == "removed"
    world.later()

    event["data"]["updated_at"] = world.now_ms
    assert world.deliver(event) == "applied"
    assert world.session(session_id)["live"] is True


def test_a_late_event_from_before_it_was_gone_does_not_open_it(world: World) -> None:
    session_id = signed_in(world)
    event = world.clerk.event("session.created", session_id)
    missed(world, world.clerk.vanish, session_id)
    world.reconcile()

    assert world.deliver(event) == "stale"


def test_a_session_that_clerk_shows_again_is_live_again(world: World) -> None:
    session_id = signed_in(world)
    session = world.clerk.get(session_id)
    missed(world, world.clerk.vanish, session_id)
    world.reconcile()
    world.clerk._records.put(session)
    world.later()

    assert world.reconcile(full=True).drift == {"extended": 1}
    assert world.session(session_id)["live"] is True
    assert_a_second_pass_writes_nothing(world, full=True)


# The brake


def vanished(world: World, count: int, of: int) -> list[str]:
    user_id = world.clerk.add_user()
    ids = [world.clerk.sign_in(user_id) for _ in range(of)]
    for session_id in ids[:count]:
        missed(world, world.clerk.vanish, session_id)
    return ids[:count]


@pytest.mark.parametrize(("count", "of"), [(10, 10), (11, 220)])
def test_as_many_as_are_credible_end(world: World, count: int, of: int) -> None:
    gone = vanished(world, count, of)

    assert world.reconcile().drift == {"gone": count}
    assert {world.status(each) for each in gone} == {"removed"}


@pytest.mark.parametrize(("count", "of"), [(11, 11), (11, 218)])
def test_more_than_are_credible_stop_the_run_and_none_ends(world: World, count: int, of: int) -> None:
    gone, late = vanished(world, count, of), signed_in(world)
    missed(world, world.clerk.end, late)

    with pytest.raises(TooManyGoneError, match=rf"no longer has {count} of {of + 1} sessions.* --allow {count}\."):
        world.reconcile()

    assert {world.status(each) for each in gone} == {"active"}
    assert world.status(late) == "ended"  # the others are mended


def test_a_number_that_is_allowed_ends(world: World) -> None:
    gone = vanished(world, 11, 11)
    with pytest.raises(TooManyGoneError):
        world.reconcile(allow=10)

    assert world.reconcile(allow=11).drift == {"gone": 11}
    assert {world.status(each) for each in gone} == {"removed"}


def test_the_run_that_is_allowed_goes_on_from_the_one_that_was_stopped(world: World) -> None:
    vanished(world, 11, 11)
    with pytest.raises(TooManyGoneError):
        world.reconcile()
    world.clerk.requests.clear()

    world.reconcile(allow=11)

    assert [each.target for each in world.clerk.requests] == ["/v1/instance"]


def test_after_a_stopped_run_the_next_one_looks_anew(world: World) -> None:
    user_id = world.clerk.add_user()
    sessions = [world.clerk.get(world.clerk.sign_in(user_id)) for _ in range(11)]
    for session in sessions:
        missed(world, world.clerk.vanish, session["id"])
    with pytest.raises(TooManyGoneError):
        world.reconcile()
    for session in sessions:
        world.clerk._records.put(session)

    report = world.reconcile()

    assert (report.drift, report.resumed, report.sessions) == ({}, False, 11)


# What can't be compared


def test_an_unknown_status_leaves_that_session_and_the_others_are_mended(world: World) -> None:
    user_id = world.clerk.add_user()
    unknown, late, other = (world.clerk.sign_in(each) for each in (user_id, user_id, world.clerk.add_user()))
    missed(world, world.clerk.set, unknown, status="frozen")
    missed(world, world.clerk.end, late)
    missed(world, world.clerk.end, other)
    before = world.message(unknown)

    report = world.reconcile()

    assert report.faults == {unknown: "its status frozen is unknown to this version: upgrade"}
    assert (report.fault_count, report.drift, world.message(unknown)) == (1, {"late_end": 2}, before)


def test_an_unknown_status_of_a_session_that_is_only_left_out_of_the_list_leaves_it(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.set, session_id, status="frozen")
    hide(world, session_id)

    assert list(world.reconcile().faults) == [session_id]
    assert world.status(session_id) == "active"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"expire_at": "soon"}, "expire_at: "),
        ({"status": ABSENT}, "status: missing"),
        ({"actor": {"iss": "no sub"}}, "actor: not an object with a string `sub`"),
        ({"updated_at": 1_795_422_800_000 + 2 * DAY_MS}, "updated_at: over a day in the future"),
        ({"user_id": "no id"}, "user_id: "),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, dict) else "",
)
def test_a_session_that_is_not_as_documented_stays_and_is_named(world: World, fields: dict[str, Any], why: str) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.set, session_id, **fields)
    before = dump(world.client)

    report = world.reconcile()

    assert list(report.faults) == [session_id]
    assert report.faults[session_id].startswith(why)
    assert dump(world.client) == before


def test_a_session_without_an_id_is_named_by_its_user(world: World) -> None:
    session_id = signed_in(world)
    user_id = world.session(session_id)["user_id"]
    nameless = missed(world, world.clerk.sign_in, user_id)
    world.clerk._records.sessions[nameless]["id"] = 7

    assert list(world.reconcile().faults) == [f"a session of {user_id}"]
    assert world.status(session_id) == "active"


def test_a_state_of_another_schema_is_named_and_stays(world: World) -> None:
    session_id, other = signed_in(world), signed_in(world)
    world.client.hset(f"{{clerk}}:session:{session_id}", "state", '{"schema_version":2}')
    missed(world, world.clerk.end, session_id)
    missed(world, world.clerk.end, other)

    report = world.reconcile()
    state = world.client.hget(f"{{clerk}}:session:{session_id}", "state")
    world.client.delete(f"{{clerk}}:session:{session_id}")  # the fixture looks for states that keep to the schema

    assert report.faults == {session_id: "its state is of another schema, or of another session"}
    assert (state, world.status(other)) == ('{"schema_version":2}', "ended")


@pytest.mark.parametrize("change", ["end", "vanish"])
def test_a_session_of_which_only_a_part_is_stored_is_named(world: World, change: str) -> None:
    session_id = signed_in(world)
    world.client.hdel(f"{{clerk}}:session:{session_id}", "_order")
    missed(world, getattr(world.clerk, change), session_id)

    assert world.reconcile().faults == {session_id: "fields of its hash are missing"}


def test_a_session_of_another_instance_is_named_and_stays(world: World) -> None:
    foreign = signed_in(world)
    for _ in range(2):
        signed_in(world)
    key = f"{{clerk}}:session:{foreign}"
    state = world.client.hget(key, "state").replace(world.clerk.instance_id, "ins_other")
    world.client.hset(key, "state", state)
    world.client.zrem("{clerk}:expiry", foreign)  # so that the sample of instances does not have it
    missed(world, world.clerk.vanish, foreign)

    report = world.reconcile()

    assert report.faults == {foreign: "its event names another Clerk instance"}
    assert world.status(foreign) == "active"


def test_other_keys_among_the_sessions_cost_nothing(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.end, session_id)
    world.client.set(f"{SESSION_KEY}:not:a:session", "x", ex=100)
    world.client.set("{clerk}:session:sess_text", "x", ex=100)
    world.client.hset("{clerk}:session:sess_odd", mapping={"status": "active", "user_id": "no id"})
    world.client.expire("{clerk}:session:sess_odd", 100)

    report = world.reconcile()
    world.client.delete("{clerk}:session:sess_odd")

    assert report.faults == {"sess_odd": "its stored user_id is not an id"}
    assert world.status(session_id) == "ended"


# The instance


def test_the_first_run_writes_down_the_instance(world: World) -> None:
    signed_in(world)
    world.reconcile()

    assert world.client.hget("{clerk}:reconcile", "instance_id") == world.clerk.instance_id
    assert world.client.ttl("{clerk}:reconcile") > 0


@pytest.mark.parametrize("named_by", ["a run", "the stream", "an open session"])
def test_with_the_key_of_another_instance_nothing_changes(world: World, named_by: str) -> None:
    session_id = signed_in(world)
    if named_by == "a run":
        world.reconcile()
    if named_by != "the stream":
        world.client.delete("{clerk}:events")
    if named_by != "an open session":
        world.client.delete("{clerk}:expiry")
    world.clerk._records.instance["id"] = "ins_other"
    missed(world, world.clerk.end, session_id)
    before = dump(world.client, runs=True)

    with pytest.raises(
        WrongInstanceError, match=f"ins_other .*but the stored sessions are of {world.clerk.instance_id}"
    ):
        world.reconcile(full=True)

    assert dump(world.client, runs=True) == before


def test_events_that_can_not_be_read_name_no_instance(world: World) -> None:
    signed_in(world)
    for fields in ({"message": "{"}, {"message": "[]"}, {"message": '{"event":7}'}, {"other": "x"}):
        world.client.xadd("{clerk}:events", fields)
    world.client.xadd("{clerk}:events", {"message": '{"event":{"instance_id":["ins_other"]}}'})

    report = world.reconcile()
    world.client.delete("{clerk}:events")  # the fixture looks for messages that keep to the schema

    assert report.users == 1


def test_with_a_wrong_key_nothing_changes(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.end, session_id)
    before = dump(world.client, runs=True)
    settings = world.settings
    world.settings = lambda: settings().model_copy(update={"clerk_secret_key": _Key()})  # type: ignore[method-assign]

    with pytest.raises(ClerkKeyError, match="refuses CLERK_SECRET_KEY"):
        world.reconcile()

    assert dump(world.client, runs=True) == before


class _Key:
    def get_secret_value(self) -> str:
        return "sk_test_wrong"


def test_users_that_clerk_fails_to_show_are_named_and_not_visited(world: World) -> None:
    failing, late = signed_in(world), signed_in(world)
    for each in (failing, late):
        missed(world, world.clerk.end, each)
    user_id = world.session(failing)["user_id"]
    world.clerk.on_request = lambda _, __, query: 418 if query.get("user_id") == user_id else None

    report = world.reconcile(full=True)

    assert (list(report.faults), report.fault_count) == ([user_id], 1)
    assert (world.status(failing), world.status(late)) == ("active", "ended")


# What is looked at


def test_by_default_users_are_looked_at_of_whom_an_open_session_is_stored(world: World) -> None:
    stored, never_seen = signed_in(world), missed(world, signed_in, world)
    another = missed(world, world.clerk.sign_in, world.session(stored)["user_id"])

    report = world.reconcile()

    assert (report.users, report.sessions, report.drift) == (1, 2, {"missing": 1})
    assert (world.status(another), world.status(never_seen)) == ("active", None)


def test_full_looks_at_all_users_and_at_what_is_stored_besides(world: World) -> None:
    gone, never_seen = signed_in(world), missed(world, signed_in, world)
    missed(world, world.clerk.delete_user, world.session(gone)["user_id"])

    report = world.reconcile(full=True)

    assert (report.users, report.drift) == (2, {"missing": 1, "gone": 1})
    assert world.status(never_seen) == "active"


def test_full_may_be_narrowed_to_users_who_were_active_lately_by_days(world: World) -> None:
    ago = {days: world.now_ms - days * DAY_MS for days in (1, 3, 5)}
    users = {days: world.clerk.add_user() for days in ago}
    with world.clerk.webhooks_lost():
        sessions = {
            days: world.clerk.sign_in(user_id, created_at=ago[days], expire_at=world.now_ms + DAY_MS)
            for days, user_id in users.items()
        }
    for days, user_id in users.items():
        world.clerk.set(user_id, last_active_at=ago[days], last_sign_in_at=ago[days])

    world.reconcile(full=True, active_within_days=3)

    # One day more, since Clerk knows only the day.
    assert {days: world.status(session_id) for days, session_id in sessions.items()} == {
        1: "active", 3: "active", 5: None
    }  # fmt: skip


@pytest.mark.parametrize("status", [404, 501])
def test_a_run_goes_on_if_clerk_does_not_tell_how_many_users_there_are(world: World, status: int) -> None:
    missed(world, signed_in, world)
    world.clerk.on_request = lambda _, path, __: status if path == "/v1/users/count" else None

    assert world.reconcile(full=True).drift == {"missing": 1}


def test_since_looks_at_users_who_signed_in_since_and_at_every_stored_session(world: World) -> None:
    stored = signed_in(world)
    before = missed(world, signed_in, world)
    since_ms = world.now_ms
    after = missed(world, signed_in, world)
    missed(world, world.clerk.end, stored)

    report = world.reconcile(since_ms=since_ms)

    assert report.users == 2
    assert [world.status(each) for each in (before, after, stored)] == [None, "active", "ended"]
    asked = [parse_qs(urlsplit(each.target).query) for each in world.clerk.requests if "/v1/users" in each.target]
    assert [each["last_sign_in_at_after"] for each in asked] == [[str(since_ms - 1)]] * len(asked)


def test_one_user_may_be_looked_at(world: World) -> None:
    first, second = signed_in(world), signed_in(world)
    for each in (first, second):
        missed(world, world.clerk.end, each)

    report = world.reconcile(user_id=world.session(first)["user_id"])

    assert (report.users, report.drift) == (1, {"late_end": 1})
    assert (world.status(first), world.status(second)) == ("ended", "active")


def test_a_user_whom_nobody_knows_has_no_sessions(world: World) -> None:
    report = world.reconcile(user_id="user_nobody")

    assert (report.users, report.sessions, report.drift, report.faults) == (1, 0, {}, {})


def test_users_who_come_and_go_while_the_list_is_read_cost_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.clerk.backend_api.PAGE_SIZE", 20)
    users = [world.clerk.add_user(created_at=world.now_ms - 10_000 + number) for number in range(44)]
    sessions = {user_id: missed(world, world.clerk.sign_in, user_id) for user_id in (*users[:16:5], *users[21::5])}
    pages = []

    def change(_: str, path: str, query: dict[str, str]) -> None:
        if path == "/v1/users" and (after := query.get("starting_after")) and after not in pages:
            pages.append(after)
            if len(pages) == 1:
                for user_id in users[16:20]:  # the one after whom the list is to go on, and those before
                    with world.clerk.webhooks_lost():
                        world.clerk.delete_user(user_id)
                newcomer = world.clerk.add_user()
                with world.clerk.webhooks_lost():
                    sessions[newcomer] = world.clerk.sign_in(newcomer)

    world.clerk.on_request = change

    report = world.reconcile(full=True)

    assert {world.status(each) for each in sessions.values()} == {"active"}
    assert report.users == 44 + 1
    assert pages[:4] == [users[19], users[18], users[16], users[12]]


def test_a_list_that_can_not_be_gone_on_with_ends_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.clerk.backend_api.PAGE_SIZE", 20)
    for number in range(21):
        world.clerk.add_user(created_at=world.now_ms - 10_000 + number)
    world.clerk.on_request = lambda _, __, query: 422 if "starting_after" in query else None

    with pytest.raises(ClerkCursorError, match="does not list the users after"):
        world.reconcile(full=True)

    assert len([each for each in world.clerk.requests if each.target.startswith("/v1/users?")]) == 2 + 2 * 5


def test_more_sessions_of_a_user_than_a_page_are_all_compared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.clerk.backend_api.PAGE_SIZE", 100)
    user_id = world.clerk.add_user()
    ids = [missed(world, world.clerk.sign_in, user_id) for _ in range(301)]

    report = world.reconcile(full=True)

    assert (report.sessions, report.drift) == (301, {"missing": 301})
    assert {world.status(each) for each in ids} == {"active"}


def test_partitions_have_their_sessions_mended(any_redis: EmbeddedRedis, any_client: Any) -> None:
    with run_world(any_redis.url, partitions=4) as world:
        late = [signed_in(world) for _ in range(12)]
        gone = [signed_in(world) for _ in range(8)]
        for each in late:
            missed(world, world.clerk.end, each)
        for each in gone:
            missed(world, world.clerk.vanish, each)
        new = [missed(world, signed_in, world) for _ in range(8)]
        assert len({partition_of(world.session(each)["user_id"], 4) for each in late}) > 1

        report = world.reconcile(full=True)

        assert report.drift == {"late_end": 12, "gone": 8, "missing": 8}
        assert {world.status(each) for each in gone} == {"removed"}
        assert {world.status(each) for each in new} == {"active"}
        assert world.disagreeing() == []
        assert_a_second_pass_writes_nothing(world, full=True)


def test_an_open_session_that_no_set_of_its_user_has_is_found_and_indexed(world: World) -> None:
    """As an earlier version stored pending ones."""
    session_id = signed_in(world, status="pending")
    key = f"{{clerk}}:user:{world.session(session_id)['user_id']}:pending"
    score = world.client.zscore(key, session_id)
    world.client.delete(key)

    assert world.reconcile().drift == {}
    assert world.client.zscore(key, session_id) == score
    assert world.client.pttl(key) > 0
    assert_a_second_pass_writes_nothing(world)


def test_an_open_session_that_no_set_of_its_user_has_ends_if_clerk_no_longer_has_it(world: World) -> None:
    session_id, other = signed_in(world, status="pending"), None
    user_id = world.session(session_id)["user_id"]
    other = world.clerk.sign_in(user_id)
    world.client.delete(f"{{clerk}}:user:{user_id}:pending")
    missed(world, world.clerk.vanish, session_id)

    assert world.reconcile(full=True).drift == {"gone": 1}
    assert (world.status(session_id), world.status(other)) == ("removed", "active")


# Dry runs


def drifted(world: World) -> None:
    """Let there be each kind of drift, and something that can't be read."""
    late, extended, vanished_, pending = (signed_in(world) for _ in range(4))
    missed(world, world.clerk.end, late)
    missed(world, world.clerk.set, extended, expire_at=None)
    missed(world, world.clerk.vanish, vanished_)
    missed(world, signed_in, world)
    missed(world, world.clerk.set, signed_in(world), status="frozen")
    world.client.delete(f"{{clerk}}:user:{world.session(pending)['user_id']}:sessions")


def test_a_dry_run_finds_the_same_and_sends_redis_no_command_that_writes(world: World) -> None:
    drifted(world)
    before = dump(world.client, runs=True)

    with monitored(world.client) as commands:
        dry = world.reconcile(full=True, dry_run=True)

    assert dump(world.client, runs=True) == before
    asked_rights = re.compile("EVALSHA [0-9a-f]{40} 0 ")  # the one script without keys: each connection asks by it
    assert {each.split()[0].upper() for each in commands if not asked_rights.match(each)} <= {
        "HELLO", "CLIENT", "SCRIPT", "HGETALL", "XREVRANGE", "ZRANGE", "ZSCAN", "HMGET", "SCAN", "DBSIZE", "ZSCORE",
        "PTTL", "GET", "SELECT", "EXISTS",
    }  # fmt: skip
    world.later()
    real = world.reconcile(full=True)
    assert (dry.drift, dry.faults) == (real.drift, real.faults)
    assert dry.drift == {"late_end": 1, "extended": 1, "gone": 1, "missing": 1}


def test_a_dry_run_tells_that_a_run_would_be_stopped(world: World) -> None:
    vanished(world, 11, 11)

    report = world.reconcile(dry_run=True)

    assert report.drift == {"gone": 11}
    assert "--allow 11" in str(report.brake)


# The account of runs


def test_drift_is_added_up_by_kind_and_the_last_success_is_recorded(world: World) -> None:
    for _ in range(2):
        missed(world, world.clerk.end, signed_in(world))
        world.reconcile()

    recorded = world.client.hgetall("{clerk}:reconcile")
    assert recorded["drift_late_end"] == "2"
    assert recorded["state_as_of"] == str(world.now_ms)
    assert int(recorded["last_success_at"]) > 0
    assert recorded["ended_at_stored"] == recorded["last_success_at"]


def test_a_run_that_could_not_compare_everything_is_no_success(world: World) -> None:
    missed(world, world.clerk.set, signed_in(world), status="frozen")
    world.reconcile()

    recorded = world.client.hgetall("{clerk}:reconcile")
    assert ("last_success_at" in recorded, "ended_at_stored" in recorded) == (False, True)


def test_a_run_of_one_user_is_no_success_of_all(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.end, session_id)
    world.reconcile(user_id=world.session(session_id)["user_id"])

    recorded = world.client.hgetall("{clerk}:reconcile")
    assert recorded.keys() == {"instance_id", "drift_late_end"}


def test_nothing_is_kept_of_a_run_that_has_ended(world: World) -> None:
    missed(world, world.clerk.end, signed_in(world))
    world.reconcile(full=True)

    assert list(world.client.scan_iter("{clerk}:reconcile:*")) == ["{clerk}:reconcile:spent"]
    assert 0 < world.client.ttl("{clerk}:reconcile:spent") <= 11


# Pending revokes


def test_a_run_lets_clerk_revoke_what_it_has_still_to_revoke(world: World) -> None:
    session_id = signed_in(world)
    world.client.zadd("{clerk}:revokes", {session_id: world.now_ms})
    world.client.expire("{clerk}:revokes", 1000)

    report = world.reconcile()

    assert (report.pending_revokes, world.clerk.get(session_id)["status"]) == (0, "revoked")
    assert not world.client.exists("{clerk}:revokes")


def test_revokes_that_clerk_fails_to_take_are_counted_and_do_not_stop_the_run(world: World) -> None:
    session_id, late = signed_in(world), signed_in(world)
    world.client.zadd("{clerk}:revokes", {session_id: world.now_ms})
    world.client.expire("{clerk}:revokes", 1000)
    missed(world, world.clerk.end, late)
    world.clerk.on_request = lambda method, *_: 400 if method == "POST" else None

    report = world.reconcile()

    assert (report.pending_revokes, world.status(late)) == (1, "ended")


def test_what_was_revoked_here_is_not_undone_by_what_clerk_still_says(world: World) -> None:
    session_id = signed_in(world)
    world.client.zadd("{clerk}:revokes", {session_id: world.now_ms})
    world.client.expire("{clerk}:revokes", 1000)
    world.clerk.on_request = lambda method, *_: 400 if method == "POST" else None
    world.reconcile()
    assert (world.status(session_id), world.clerk.get(session_id)["status"]) == ("revoked", "active")
    missed(world, world.clerk.set, session_id, last_active_organization_id="org_1", expire_at=None)

    assert world.reconcile(full=True).drift == {}
    assert world.status(session_id) == "revoked"


def test_a_dry_run_revokes_nothing(world: World) -> None:
    session_id = signed_in(world)
    world.client.zadd("{clerk}:revokes", {session_id: world.now_ms})
    world.client.expire("{clerk}:revokes", 1000)

    world.reconcile(dry_run=True)

    assert world.clerk.get(session_id)["status"] == "active"


# Going on where a run died


def test_a_run_goes_on_where_the_one_before_was_stopped(world: World) -> None:
    for _ in range(300):
        missed(world, world.clerk.end, signed_in(world))
    answered: list[str] = []

    def fail(_: str, path: str, query: dict[str, str]) -> int | None:
        if path != "/v1/sessions":
            return None
        if len(answered) >= 100:
            return 401
        answered.append(query["user_id"])
        return None

    world.clerk.on_request = fail
    with pytest.raises(ClerkKeyError):
        world.reconcile(full=True)
    stored = world.client.hgetall("{clerk}:reconcile:run:full")
    assert 0 < int(stored["users"]) <= 100
    assert 0 < world.client.ttl("{clerk}:reconcile:run:full") <= 86_400
    assert 0 < world.client.ttl("{clerk}:reconcile:run:full:visited") <= 86_400
    done = int(stored["users"])

    again: list[str] = []
    world.clerk.on_request = lambda _, path, query: again.append(query["user_id"]) if path == "/v1/sessions" else None
    report = world.reconcile(full=True)

    assert (report.resumed, report.users) == (True, 300)
    assert len(again) == 300 - done
    assert world.disagreeing() == []
    assert_a_second_pass_writes_nothing(world, full=True)


def test_a_run_that_goes_on_remembers_what_could_not_be_compared(world: World) -> None:
    frozen, other = signed_in(world), signed_in(world)
    missed(world, world.clerk.set, frozen, status="frozen")
    world.client.delete(f"{{clerk}}:user:{world.session(other)['user_id']}:sessions")
    other_user = world.session(other)["user_id"]
    world.clerk.on_request = lambda _, __, query: 401 if query.get("user_id") == other_user else None
    with pytest.raises(ClerkKeyError):
        world.reconcile(full=True)
    world.clerk.on_request = None

    report = world.reconcile(full=True)

    assert list(report.faults) == [frozen]


def test_a_user_whom_clerk_failed_to_show_is_looked_at_by_the_run_that_goes_on(world: World) -> None:
    failed, other = signed_in(world), signed_in(world)
    users = [world.session(each)["user_id"] for each in (failed, other)]
    missed(world, world.clerk.end, failed)
    statuses = dict(zip(users, (418, 401), strict=True))
    world.clerk.on_request = lambda _, __, query: statuses.get(query.get("user_id", ""))
    with pytest.raises(ClerkKeyError):
        world.reconcile(full=True)
    world.clerk.on_request = None

    report = world.reconcile(full=True)

    assert (report.faults, report.fault_count, world.status(failed)) == ({}, 0, "ended")


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_user_whom_clerk_failed_to_show_is_no_fault_any_more_once_it_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    monkeypatch.setattr("service.workers.reconcile.SAVE_SECONDS", 0.02)
    failed, refused = world.clerk.add_user(), world.clerk.add_user()
    missed(world, world.clerk.sign_in, failed)
    world.clerk.sign_in(refused)
    if not is_listed:  # then only the sweep finds it, after the list
        world.clerk._records.users.pop(refused)

    def stop(looked_at: int, statuses: dict[str, int]) -> None:
        def answer(_: str, __: str, query: dict[str, str]) -> int | None:
            if query.get("user_id") == refused:
                eventually(lambda: world.client.hget("{clerk}:reconcile:run:full", "users") == str(looked_at))
            return statuses.get(query.get("user_id", ""))

        world.clerk.on_request = answer
        with pytest.raises(ClerkKeyError):
            world.reconcile(full=True)

    stop(0, {failed: 418, refused: 401})
    stop(1, {refused: 401})
    world.clerk.on_request = None

    report = world.reconcile(full=True)

    assert (report.resumed, report.faults, report.fault_count) == (True, {}, 0)
    assert (report.drift["missing"], report.users) == (1, 2)


def test_the_list_is_read_again_from_a_user_whom_clerk_failed_to_show(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.clerk.backend_api.PAGE_SIZE", 2)
    users = [world.clerk.add_user(created_at=world.now_ms - 10_000 + number) for number in range(5)]
    sessions = [missed(world, world.clerk.sign_in, user_id) for user_id in users]

    def fail(_: str, __: str, query: dict[str, str]) -> int | None:
        if query.get("user_id") == users[4]:
            eventually(lambda: world.client.hget("{clerk}:reconcile:run:full", "users") == "3")
            return 401
        return 418 if query.get("user_id") == users[2] else None

    monkeypatch.setattr("service.workers.reconcile.SAVE_SECONDS", 0.02)
    world.clerk.on_request = fail
    with pytest.raises(ClerkKeyError):
        world.reconcile(full=True)
    world.clerk.on_request = None
    world.clerk.requests.clear()

    world.reconcile(full=True)

    listed = [each.target for each in world.clerk.requests if each.target.startswith("/v1/users?")]
    assert {world.status(each) for each in sessions} == {"active"}
    assert f"starting_after={users[1]}" in listed[0]


def test_another_mode_does_not_go_on_with_it(world: World) -> None:
    signed_in(world)
    world.clerk.on_request = lambda _, path, __: 401 if path == "/v1/sessions" else None
    with pytest.raises(ClerkKeyError):
        world.reconcile(full=True)
    world.clerk.on_request = None

    assert world.reconcile().resumed is False
    assert world.reconcile(full=True).resumed is True


def test_a_run_without_its_lock_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.workers.turn.EXTEND_SECONDS", 0.01)
    session_id = signed_in(world)
    missed(world, world.clerk.vanish, session_id)

    world.clerk.on_request = lambda *_: world.client.delete("{clerk}:reconcile:lock")

    with pytest.raises(LockLostError, match="has lost its lock"):
        world.reconcile(ask_again_seconds=60)

    assert world.status(session_id) == "active"


def test_a_dry_run_ends_when_another_run_begins(world: World) -> None:
    session_id = signed_in(world)
    missed(world, world.clerk.vanish, session_id)
    runs = Runs(world.settings())
    world.clerk.on_request = lambda _, path, __: runs.acquire() if path == f"/v1/sessions/{session_id}" else None

    with pytest.raises(RunUnderWayError, match="Another run of reconcile is under way"):
        world.reconcile(dry_run=True, ask_again_seconds=60)
    runs.close()
