"""The end of sessions by order: here, at a Clerk that the tests make up, and what is left of it when either fails."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clerk_session_feed.keys import Keys, partition_of
from clerk_session_feed.models import ID
from support.constants import DAY_MS, EXPIRY_KEY, HOUR_MS, NOW_MS, SESSION_KEY, USER_KEY
from support.events import clerk_event
from support.redis_clients import client_of, subscribed
from support.relay import Relay, make_settings, run_relay

from service.clerk.api_sessions import ApiSession
from service.clerk.backend_api import BackendApi
from service.clerk.budget import Budget
from service.clerk.events import SessionData
from service.config import ClerkSettings, load
from service.dev.embedded import EmbeddedRedis
from service.dev.fake_clerk import FakeClerk
from service.store import revokes
from service.store.revokes import PendingRevoke
from service.store.sessions import MAX_TTL_MS, SessionStore
from service.store.wrong_types import WrongTypeError
from service.workers.expiry import ExpiryWorker
from service.workers.mend import Mender
from service.workers.report import Gone
from service.workers.revoke import CHUNK, Revoked, open_at_clerk, order, order_impersonated, order_user, retry_pending

REVOKES_KEY = "{clerk}:revokes"
INSTANCE = clerk_event()["instance_id"]
LATER = NOW_MS + HOUR_MS


def clock() -> float:
    return NOW_MS / 1000


@pytest.fixture
def clerk() -> Iterator[FakeClerk]:
    """The instance that the events of these tests name, with one user."""
    with FakeClerk(environment="production", instance_id=INSTANCE, clock=clock) as clerk:
        clerk.add_user(id="user_1")
        yield clerk


def retry(
    store: SessionStore, clerk: FakeClerk, secret_key: str | None = None
) -> tuple[tuple[int, int], list[Revoked]]:
    """Let Clerk revoke what is pending, without pauses after failures; return what became of it."""
    results: list[Revoked] = []

    async def no_pause(_: float) -> None:
        await asyncio.sleep(0)

    async def run() -> tuple[int, int]:
        settings = load(
            ClerkSettings, _env_file=None, clerk_secret_key=secret_key or clerk.secret_key, clerk_api_url=clerk.url
        )
        async with BackendApi(settings, budget=Budget(1000, sleep=no_pause)) as api:
            return await retry_pending(store, api, clerk.instance_id, report=results.append, clock=clock)

    return asyncio.run(run()), results


def sign_in(relay: Relay, clerk: FakeClerk, session_id: str = "sess_1", **fields: Any) -> None:
    """Let a session begin at Clerk, and take the webhook in."""
    clerk.sign_in("user_1", id=session_id, created_at=NOW_MS - 1000, **fields)
    event = clerk.event("session.created", session_id)
    relay.take(event | {"timestamp": NOW_MS - 1000}, f"msg_{session_id}")


def state(client: Any, session_id: str = "sess_1") -> Any:
    return json.loads(client.hget(f"{{clerk}}:session:{session_id}", "state"))


def pending(client: Any) -> list[str]:
    found: list[str] = client.zrange(REVOKES_KEY, 0, -1)
    return found


def posts(clerk: FakeClerk) -> list[str]:
    """Return the ids of the sessions that Clerk was told to revoke, in that order."""
    return [each.target.split("/")[3] for each in clerk.requests if each.method == "POST"]


def reported_active(session_id: str = "sess_1") -> ApiSession:
    data = clerk_event(session_id=session_id, updated_at=LATER, expire_at=LATER + DAY_MS)["data"]
    return ApiSession(SessionData.model_validate(data), LATER)


# Here


def test_a_session_that_is_revoked_has_ended_by_order_of_the_relay(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 1000), "msg_1")
    before = state(client)

    (ended,) = order(relay.store, ["sess_1"], clock=clock)

    after = state(client)
    assert (ended.user_id, ended.status, ended.fault) == ("user_1", "revoked", None)
    assert after["previous_status"] == "active"
    assert after["session"] == before["session"] | {"status": "revoked", "live": False}
    id_ = after["event"].pop("id")
    assert ID.fullmatch(id_)
    assert id_.startswith("rev_")
    assert len(id_) == len("rev_") + 32
    assert after["event"] == {
        "type": "session.revoked", "occurred_at": NOW_MS, "instance_id": INSTANCE, "source": "relay",
    }  # fmt: skip
    assert client.exists(USER_KEY, EXPIRY_KEY) == 0


def test_followers_know_before_clerk_is_asked(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    sign_in(relay, clerk)
    with subscribed(client, "clerk:sessions") as subscriber:
        order(relay.store, ["sess_1"], clock=clock)

        _, message = subscriber.next()

    assert json.loads(message)["session"]["status"] == "revoked"
    assert clerk.requests == []


@pytest.mark.parametrize(
    "event",
    [
        clerk_event("revoked", updated_at=LATER),
        clerk_event("active", updated_at=LATER, expire_at=LATER + DAY_MS),
        clerk_event("active", updated_at=NOW_MS - 2000),
        clerk_event("ended", updated_at=LATER),
    ],
    ids=["Clerk's own webhook", "a later sign of life", "a late session.created", "a later end"],
)
def test_nothing_that_clerk_sends_follows_an_order(relay: Relay, client: Any, event: Any) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 1000), "msg_1")
    order(relay.store, ["sess_1"], clock=clock)
    before = state(client)

    assert relay.take(event, "msg_2").outcome == "stale"

    assert state(client) == before


def test_a_session_that_clerk_reads_as_active_stays_ended(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 1000), "msg_1")
    order(relay.store, ["sess_1"], clock=clock)
    before = state(client)

    Mender(relay.store, INSTANCE, clock=lambda: LATER / 1000).apply([reported_active()])

    assert state(client) == before


def test_a_session_that_clerk_has_ended_is_left_as_it_is(relay: Relay, client: Any) -> None:
    relay.take(clerk_event("ended"), "msg_1")
    before = client.hgetall(SESSION_KEY)

    (ended,) = order(relay.store, ["sess_1"], clock=clock)

    assert ended.status == "ended"
    assert client.hgetall(SESSION_KEY) == before


def run_out(relay: Relay, settings: Any) -> None:
    relay.take(clerk_event(expire_at=NOW_MS - 500), "msg_1")
    worker = ExpiryWorker(settings, clock=clock)
    assert worker.run_once() == (1, 0)
    worker.close()


def vanish(relay: Relay, _: Any) -> None:
    relay.take(clerk_event(), "msg_1")
    partition = relay.store.partitions[0]
    (stored,) = relay.store.read(partition, ["sess_1"])
    assert stored is not None
    assert not isinstance(stored, ValueError)
    Mender(relay.store, INSTANCE, clock=clock).end_gone(partition, [Gone("sess_1", "user_1", stored.cursor, NOW_MS)])


@pytest.mark.parametrize("end", [run_out, vanish], ids=["it ran out", "Clerk did not find it"])
def test_an_end_that_could_be_undone_becomes_one_that_can_not(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any, end: Callable[[Relay, Any], None]
) -> None:
    end(relay, make_settings(relay_redis.url))
    assert state(client)["session"]["status"] in {"expired", "removed"}

    order(relay.store, ["sess_1"], clock=clock)

    late = clerk_event(updated_at=LATER, expire_at=LATER + DAY_MS)
    assert relay.take(late, "msg_2").outcome == "stale"
    assert state(client)["session"]["status"] == "revoked"


def test_an_event_that_comes_between_reading_and_ending_costs_nothing(
    relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 1000), "msg_1")
    read, reads = relay.store.read, []

    def read_then_change(*arguments: Any) -> Any:
        states = read(*arguments)
        reads.append(1)
        if len(reads) == 2:  # the one for the end
            relay.take(clerk_event("pending", updated_at=NOW_MS - 500), "msg_2")
        return states

    monkeypatch.setattr(relay.store, "read", read_then_change)

    order(relay.store, ["sess_1"], clock=clock)

    assert len(reads) == 3
    assert (state(client)["previous_status"], state(client)["session"]["status"]) == ("pending", "revoked")


def test_a_state_of_another_version_is_named_and_costs_no_other(relay: Relay, client: Any) -> None:
    for each in ("sess_1", "sess_2"):
        relay.take(clerk_event(session_id=each), f"msg_{each}")
    client.hset(SESSION_KEY, "state", '{"schema_version":2}')

    ended = order(relay.store, ["sess_1", "sess_2"], clock=clock)

    assert [each.status for each in ended] == [None, "revoked"]
    assert ended[0].fault == "its state is of another schema, or of another session"
    client.delete(SESSION_KEY)


def test_a_key_of_another_type_is_named_and_costs_no_other(real_redis: EmbeddedRedis) -> None:
    with client_of(real_redis.url) as client, run_relay(real_redis.url) as relay:
        client.flushall()
        client.set(SESSION_KEY, "text")
        relay.take(clerk_event(session_id="sess_2"), "msg_2")

        ended = order(relay.store, ["sess_1", "sess_2"], clock=clock)

    assert [each.status for each in ended] == [None, "revoked"]
    assert ended[0].fault == "its key is not a hash"


def test_a_key_of_the_user_with_another_type_is_named_and_costs_no_other(
    real_redis: EmbeddedRedis, lasting_client: Callable[[EmbeddedRedis], Any]
) -> None:
    client = lasting_client(real_redis)
    client.flushall()
    with run_relay(real_redis.url) as relay:
        for n in (1, 2):
            relay.take(clerk_event(session_id=f"sess_{n}", user_id=f"user_{n}"), f"msg_{n}")
        client.delete(USER_KEY)
        client.set(USER_KEY, "text")

        ended = order(relay.store, ["sess_1", "sess_2"], clock=clock)
        client.flushall()

    assert (ended[1].status, ended[1].is_new) == ("revoked", True)
    assert str(ended[0].fault).startswith(f"{USER_KEY} has another type than the relay gives it")
    assert ended[0].is_new is False


@pytest.mark.parametrize("key", [REVOKES_KEY, USER_KEY])
def test_a_set_with_another_type_is_named(
    real_redis: EmbeddedRedis, lasting_client: Callable[[EmbeddedRedis], Any], key: str
) -> None:
    client = lasting_client(real_redis)
    client.flushall()
    client.set(key, "text")
    with run_relay(real_redis.url) as relay:
        relay.take(clerk_event(session_id="sess_2", user_id="user_2"), "msg_1")

        with pytest.raises(WrongTypeError, match=rf"^\{key} has another type"):
            list(order_user(relay.store, "user_1" if key == USER_KEY else "user_2", clock=clock))
    client.flushall()


def test_a_session_ends_anew_only_if_it_was_open(relay: Relay) -> None:
    relay.take(clerk_event(session_id="sess_1"), "msg_1")
    relay.take(clerk_event("ended", session_id="sess_2"), "msg_2")

    first, second = (order(relay.store, ["sess_1", "sess_2", "sess_unknown"], clock=clock) for _ in range(2))

    assert [each.is_new for each in first] == [True, False, False]
    assert [each.is_new for each in second] == [False, False, False]


# What is recorded


def test_what_clerk_has_to_do_is_recorded_before_the_session_ends(
    relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.take(clerk_event(), "msg_1")

    def be_killed(*_: object) -> None:
        raise SystemError

    monkeypatch.setattr(relay.store, "replace", be_killed)
    with pytest.raises(SystemError):
        order(relay.store, ["sess_1"], clock=clock)

    assert pending(client) == ["sess_1"]
    assert state(client)["session"]["status"] == "active"


def test_a_record_without_an_end_leads_to_both(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    sign_in(relay, clerk)
    revokes.add(relay.store.partitions[0], ["sess_1"], NOW_MS)  # and no more: whoever did so was killed

    assert retry(relay.store, clerk)[0] == (1, 0)

    assert state(client)["event"]["source"] == "relay"
    assert clerk.get("sess_1")["status"] == "revoked"
    assert pending(client) == []


def test_the_record_lasts_as_long_as_a_sessions_key_may(relay: Relay, client: Any) -> None:
    order(relay.store, ["sess_1"], clock=clock)

    assert MAX_TTL_MS - 60_000 < client.pttl(REVOKES_KEY) <= MAX_TTL_MS


def test_a_second_order_keeps_the_time_of_the_first(relay: Relay) -> None:
    for now in (NOW_MS, LATER):
        order(relay.store, ["sess_1"], clock=lambda now=now: now / 1000)  # type: ignore[misc]

    assert revokes.pending(relay.store.partitions[0], 0, 10) == [PendingRevoke("sess_1", NOW_MS)]


def test_a_local_order_records_nothing(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(), "msg_1")

    ended = order(relay.store, ["sess_1", "sess_unknown"], local=True, clock=clock)

    assert [each.status for each in ended] == ["revoked", None]
    assert client.exists(REVOKES_KEY) == 0


def test_partitions_are_all_looked_into(relay_redis: EmbeddedRedis, client: Any) -> None:
    users = [f"user_{n}" for n in range(8)]
    keys = Keys().split(4)
    with run_relay(relay_redis.url, partitions=4) as relay:
        for n, user in enumerate(users):
            relay.take(clerk_event(session_id=f"sess_{n}", user_id=user), "msg_1")

        ended = order(relay.store, [*(f"sess_{n}" for n in range(8)), "sess_unknown"], clock=clock)

    assert [each.user_id for each in ended] == [*users, None]
    assert {partition_of(each, 4) for each in users} == {0, 1, 2, 3}
    for number, part in enumerate(keys):
        recorded = {f"sess_{n}" for n, user in enumerate(users) if partition_of(user, 4) == number}
        assert set(client.zrange(part.revokes, 0, -1)) == recorded | ({"sess_unknown"} if number == 0 else set())


# Which ones


def test_all_open_sessions_of_a_user_end_but_the_excepted_one(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(session_id="sess_active"), "msg_1")
    relay.take(clerk_event("pending", session_id="sess_pending"), "msg_2")
    relay.take(clerk_event(session_id="sess_kept"), "msg_3")
    relay.take(clerk_event("ended", session_id="sess_ended"), "msg_4")
    relay.take(clerk_event(session_id="sess_other", user_id="user_2"), "msg_5")

    ended = list(order_user(relay.store, "user_1", ["sess_kept"], clock=clock))

    assert {each.session_id for each in ended} == {"sess_active", "sess_pending"} == set(pending(client))
    statuses = {each: state(client, f"sess_{each}")["session"]["status"] for each in ("kept", "ended", "other")}
    assert statuses == {"kept": "active", "ended": "ended", "other": "active"}


def test_more_sessions_than_a_chunk_end_each_once(relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revokes, "CHUNK", 3)
    for n in range(10):
        relay.take(clerk_event(session_id=f"sess_{n}"), f"msg_{n}")

    ended = [each.session_id for each in order_user(relay.store, "user_1", ["sess_0", "sess_5"], clock=clock)]

    assert sorted(ended) == [f"sess_{n}" for n in range(10) if n not in {0, 5}]
    assert client.xlen("{clerk}:events") == 10 + 8


def test_deliveries_meanwhile_revive_nothing(relay: Relay, client: Any) -> None:
    ids = [f"sess_{n}" for n in range(30)]  # three deliveries each, which have 4 s together
    for each in ids:
        relay.take(clerk_event(session_id=each, updated_at=NOW_MS - 1000), f"msg_{each}")
    with ThreadPoolExecutor(2) as threads:
        orders = [threads.submit(lambda: list(order_user(relay.store, "user_1", clock=clock))) for _ in range(2)]
        deliveries = [
            relay.begin(clerk_event(status, session_id=each, updated_at=NOW_MS + later), f"msg_{each}_{later}")
            for each in ids
            for later, status in enumerate(["active", "pending", "active"])
        ]
        for delivery in deliveries:
            delivery.result(timeout=60)
        for ordered in orders:
            assert {each.status for each in ordered.result(timeout=60)} <= {"revoked"}

    assert {state(client, each)["event"]["source"] for each in ids} == {"relay"}
    assert set(pending(client)) == set(ids)
    assert client.exists(USER_KEY, "{clerk}:user:user_1:pending", EXPIRY_KEY) == 0


@pytest.mark.parametrize("partitions", [1, 4])
def test_sessions_with_an_actor_are_found_wherever_they_are(
    relay_redis: EmbeddedRedis, client: Any, partitions: int
) -> None:
    nested = {"sub": "user_admin", "actor": None}
    with run_relay(relay_redis.url, partitions=partitions) as relay:
        for n in range(12):
            actor = {0: {"sub": "user_admin"}, 1: nested}.get(n % 4)
            relay.take(clerk_event(session_id=f"sess_{n}", user_id=f"user_{n}", actor=actor), f"msg_{n}")
        relay.take(
            clerk_event("ended", session_id="sess_4", user_id="user_4", actor=nested, updated_at=NOW_MS), "msg_x"
        )

        ended = [each.session_id for each in order_impersonated(relay.store, clock=clock)]

    assert sorted(ended) == ["sess_0", "sess_1", "sess_5", "sess_8", "sess_9"]


def test_a_prefix_with_signs_of_patterns_is_taken_literally(relay_redis: EmbeddedRedis, client: Any) -> None:
    actor = {"sub": "user_admin"}
    for prefix in ("{a*}[b]", "{axx}b"):
        with run_relay(relay_redis.url, redis_key_prefix=prefix) as relay:
            relay.take(clerk_event(session_id=f"sess_{len(prefix)}", actor=actor), "msg_1")
    with run_relay(relay_redis.url, redis_key_prefix="{a*}[b]") as relay:
        assert [each.session_id for each in order_impersonated(relay.store, clock=clock)] == ["sess_7"]


# At Clerk


def test_clerk_revokes_what_ended_here(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    sign_in(relay, clerk)
    order(relay.store, ["sess_1"], clock=clock)

    counts, (revoked,) = retry(relay.store, clerk)

    assert counts == (1, 0)
    assert revoked == Revoked("sess_1", "user_1", "revoked", NOW_MS, "revoked")
    assert clerk.get("sess_1")["status"] == "revoked"
    assert client.exists(REVOKES_KEY) == 0


def test_what_clerk_says_of_a_session_that_is_not_stored_is_applied(
    relay: Relay, client: Any, clerk: FakeClerk
) -> None:
    clerk.sign_in("user_1", id="sess_1")
    order(relay.store, ["sess_1"], clock=clock)

    _, (revoked,) = retry(relay.store, clerk)

    assert (revoked.user_id, revoked.status, revoked.clerk) == ("user_1", "revoked", "revoked")
    assert state(client)["event"]["source"] == "clerk-api"
    assert (
        relay.take(clerk.event("session.created", "sess_1") | {"data": clerk_event()["data"]}, "msg_1").outcome
        == "stale"
    )


def test_a_session_that_is_stored_only_later_ends_although_clerk_is_away(
    relay: Relay, client: Any, clerk: FakeClerk
) -> None:
    order(relay.store, ["sess_1"], clock=clock)
    sign_in(relay, clerk)
    clerk.errors = 1.0

    counts, (left,) = retry(relay.store, clerk)

    assert counts == (0, 1)
    assert (left.status, left.clerk) == ("revoked", "pending")
    assert pending(client) == ["sess_1"]


def test_a_session_that_is_stored_only_later_is_found_in_another_partition(
    relay_redis: EmbeddedRedis, client: Any, clerk: FakeClerk
) -> None:
    assert partition_of("user_1", 3) != 0
    with run_relay(relay_redis.url, partitions=3) as relay:
        order(relay.store, ["sess_1"], clock=clock)
        sign_in(relay, clerk)
        clerk.errors = 1.0

        _, (left,) = retry(relay.store, clerk)

    assert (left.user_id, left.status, left.clerk) == ("user_1", "revoked", "pending")


def test_a_session_that_clerk_does_not_know_is_done(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    relay.take(clerk_event(), "msg_1")
    order(relay.store, ["sess_1"], clock=clock)

    counts, (revoked,) = retry(relay.store, clerk)

    assert counts == (1, 0)
    assert (revoked.status, revoked.clerk, revoked.detail) == ("revoked", "not_found", None)
    assert pending(client) == []


def test_a_session_that_nobody_knows_is_told_of(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    order(relay.store, ["sess_1"], clock=clock)

    counts, (revoked,) = retry(relay.store, clerk)

    assert counts == (1, 0)
    assert (revoked.clerk, revoked.detail) == ("not_found", "neither Clerk nor the relay knows it")
    assert pending(client) == []


def test_a_state_that_cannot_be_read_is_told_of_whatever_clerk_says(
    relay: Relay, client: Any, clerk: FakeClerk
) -> None:
    for each in ("sess_1", "sess_2"):
        relay.take(clerk_event(session_id=each), f"msg_{each}")
        client.hset(f"{{clerk}}:session:{each}", "state", '{"schema_version":2}')
    clerk.sign_in("user_1", id="sess_2")
    order(relay.store, ["sess_1", "sess_2"], clock=clock)

    counts, results = retry(relay.store, clerk)

    assert counts == (2, 0)
    assert {each.clerk for each in results} == {"not_found", "revoked"}
    assert {each.detail for each in results} == {"its state is of another schema, or of another session"}
    client.delete(SESSION_KEY, "{clerk}:session:sess_2")


def test_a_session_of_another_instance_stays_pending(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    relay.take(clerk_event() | {"instance_id": "ins_other"}, "msg_1")
    order(relay.store, ["sess_1"], clock=clock)

    counts, (left,) = retry(relay.store, clerk)

    assert counts == (0, 1)
    assert left.detail == f"it is of ins_other, and CLERK_SECRET_KEY is of {INSTANCE}"
    assert pending(client) == ["sess_1"]


def refuse_posts(clerk: FakeClerk, status: int) -> None:
    clerk.on_request = lambda method, *_: status if method == "POST" else None


def test_a_refusal_is_fine_if_the_session_is_over(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    clerk.sign_in("user_1", id="sess_1")
    clerk.end("sess_1", "replaced")
    refuse_posts(clerk, 422)
    order(relay.store, ["sess_1"], clock=clock)

    counts, (revoked,) = retry(relay.store, clerk)

    assert counts == (1, 0)
    assert (revoked.status, revoked.clerk, revoked.detail) == ("replaced", "over", None)
    assert state(client)["session"]["status"] == "replaced"  # Clerk's answer


@pytest.mark.parametrize("status", [404, 422])
def test_a_refusal_for_an_open_session_leaves_it_pending(
    relay: Relay, client: Any, clerk: FakeClerk, status: int
) -> None:
    sign_in(relay, clerk)
    refuse_posts(clerk, status)
    order(relay.store, ["sess_1"], clock=clock)

    counts, (left,) = retry(relay.store, clerk)

    assert counts == (0, 1)
    assert (left.clerk, left.detail) == ("pending", "Clerk does not revoke it, and does not say that it is over")
    assert pending(client) == ["sess_1"]


@pytest.mark.parametrize("is_stored", [True, False])
def test_an_answer_that_cannot_be_read_is_one_nevertheless_and_told_of(
    relay: Relay, client: Any, clerk: FakeClerk, is_stored: bool
) -> None:
    if is_stored:
        sign_in(relay, clerk)
    else:
        clerk.sign_in("user_1", id="sess_1")
    clerk.set("sess_1", expire_at="soon")
    order(relay.store, ["sess_1"], clock=clock)

    counts, (revoked,) = retry(relay.store, clerk)

    assert (counts, revoked.clerk, revoked.status) == ((1, 0), "revoked", "revoked" if is_stored else None)
    assert str(revoked.detail).startswith("Clerk's response can't be read, and is not stored: expire_at: ")
    assert pending(client) == []


def test_why_a_session_stays_pending_says_what_clerk_answered(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    for each in ("sess_1", "sess_2"):
        sign_in(relay, clerk, each)
    clerk.set("sess_1", status="frozen")
    clerk.on_request = lambda method, path, _: 422 if method == "POST" else 418 if "sess_2" in path else None
    order(relay.store, ["sess_1", "sess_2"], clock=clock)

    _, results = retry(relay.store, clerk)

    why = "Clerk does not revoke it, and does not say that it is over"
    assert {each.session_id: each.detail for each in results} == {
        "sess_1": f"{why}: its status frozen is unknown to this version: upgrade",
        "sess_2": f"{why}: Clerk refuses to show it (status 418)",
    }


def test_a_wrong_key_leaves_all_pending_after_one_chunk(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    order(relay.store, [f"sess_{n}" for n in range(3 * CHUNK)], clock=clock)

    counts, results = retry(relay.store, clerk, "sk_live_wrong")

    assert counts == (0, 3 * CHUNK)
    assert {each.clerk for each in results} == {"pending"}
    assert all("CLERK_SECRET_KEY" in str(each.detail) for each in results)
    assert len(clerk.requests) == CHUNK
    assert len(pending(client)) == 3 * CHUNK


def test_a_clerk_that_fails_is_not_asked_about_all(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    order(relay.store, [f"sess_{n}" for n in range(2 * CHUNK)], clock=clock)
    clerk.errors = 1.0

    counts, results = retry(relay.store, clerk)

    assert counts == (0, 2 * CHUNK)
    assert all("does not respond" in str(each.detail) for each in results)
    assert len(set(posts(clerk))) == CHUNK


def test_one_that_fails_holds_up_no_other(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    ids = [f"sess_{n}" for n in range(2 * CHUNK)]
    for each in ids:
        clerk.sign_in("user_1", id=each)
    clerk.on_request = lambda _, path, __: 500 if "/sess_7/" in path else None
    order(relay.store, ids, clock=clock)

    counts, _ = retry(relay.store, clerk)

    assert counts == (2 * CHUNK - 1, 1)
    assert pending(client) == ["sess_7"]
    assert {clerk.get(each)["status"] for each in ids if each != "sess_7"} == {"revoked"}


def test_those_ordered_last_come_first(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    for n in range(3):
        order(relay.store, [f"sess_{n}"], clock=lambda n=n: NOW_MS / 1000 + n)  # type: ignore[misc]

    _, results = retry(relay.store, clerk)

    assert [each.session_id for each in results] == ["sess_2", "sess_1", "sess_0"]


def test_what_is_no_id_goes_without_being_sent(relay: Relay, client: Any, clerk: FakeClerk) -> None:
    for hostile in ("../users/user_1", b"sess_\xff", ""):
        client.zadd(REVOKES_KEY, {hostile: NOW_MS})
    client.pexpire(REVOKES_KEY, MAX_TTL_MS)

    counts, results = retry(relay.store, clerk)

    assert counts == (3, 0)
    assert {each.detail for each in results} == {"it is not an id of a session"}
    assert clerk.requests == []
    assert pending(client) == []


def test_clerk_lists_the_open_sessions_of_a_user(clerk: FakeClerk) -> None:
    for name in ("active", "excepted", "odd", "over"):
        clerk.sign_in("user_1", id=f"sess_{name}")
    clerk.set("sess_odd", status="paused")
    clerk.end("sess_over")
    clerk.sign_in("user_1", id="sess_pending", status="pending")
    settings = load(ClerkSettings, _env_file=None, clerk_secret_key=clerk.secret_key, clerk_api_url=clerk.url)

    async def listed() -> list[str]:
        async with BackendApi(settings) as api:
            return await open_at_clerk(api, "user_1", ["sess_excepted"])

    assert sorted(asyncio.run(listed())) == ["sess_active", "sess_odd", "sess_pending"]
