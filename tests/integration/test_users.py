"""Users who go: what an event about a user makes of their sessions, on each Redis that the relay runs on.

docs/contract.md, section 10. The limits of time, on a real service, are in tests/system/test_users.py.
"""

import contextlib
import itertools
import json
from typing import Any, Final

import pytest
from clerk_session_feed.keys import Keys, partition_of
from structlog.testing import CapturingLogger
from support.clock import eventually
from support.constants import (
    DAY_MS,
    DEAD_LETTERS_KEY,
    EVENTS_KEY,
    EXPIRY_KEY,
    GONE_KEY,
    HOUR_MS,
    NO_REDIS,
    NOW_MS,
    PENDING_KEY,
    SESSION_KEY,
    USER_KEY,
)
from support.events import ABSENT, clerk_event, user_event
from support.redis_clients import client_of, contents, subscribed
from support.relay import Relay, make_settings, run_relay

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError
from service.ingest import Ingest
from service.models import Outcome
from service.store import scanning, users
from service.store.dead_letters import DeadLetters
from service.store.sessions import SessionStore
from service.workers.expiry import ExpiryWorker

CHANNELS: Final = ("clerk:sessions", "clerk:sessions:user:user_1")
BANNED_AT: Final = NOW_MS - 1500
"""`updated_at` of the event about a ban."""
BOTH: Final = pytest.mark.parametrize(("type_", "status"), [("user.deleted", "removed"), ("user.updated", "revoked")])


def session(status: str = "active", number: int = 1, **values: Any) -> dict[str, Any]:
    """Return the body of a delivery about a session that began an hour ago."""
    began = {"created_at": NOW_MS - HOUR_MS, "updated_at": NOW_MS - HOUR_MS}
    return clerk_event(status, session_id=f"sess_{number}", **began | values)


def state(client: Any, number: int = 1) -> Any:
    return json.loads(client.hget(f"{{clerk}}:session:sess_{number}", "state"))


def statuses(client: Any) -> dict[str, str]:
    return {key.rpartition(":")[2]: client.hget(key, "status") for key in client.scan_iter("{clerk}:session:*")}


# The sessions that end


@BOTH
def test_every_open_session_of_the_user_ends_and_no_other(relay: Relay, client: Any, type_: str, status: str) -> None:
    relay.take(session("active", 1), "msg_1")
    relay.take(session("pending", 2), "msg_2")
    relay.take(session("active", 3, expire_at=None), "msg_3")
    relay.take(session("active", 4, expire_at=NOW_MS - HOUR_MS // 2), "msg_4")  # ran out before it was told of
    relay.take(session("ended", 5), "msg_5")
    relay.take(session("active", 6, user_id="user_2"), "msg_6")

    assert relay.take(user_event(type_), "msg_end") == Outcome("applied", sessions=4)

    assert statuses(client) == {
        **{f"sess_{number}": status for number in (1, 2, 3, 4)},
        "sess_5": "ended",
        "sess_6": "active",
    }
    assert not client.exists(USER_KEY, PENDING_KEY)
    assert client.zrange(EXPIRY_KEY, 0, -1) == ["sess_6"]


@BOTH
def test_an_end_is_published_with_the_users_event_and_the_session_as_it_was(
    relay: Relay, client: Any, type_: str, status: str
) -> None:
    relay.take(session(), "msg_1")
    before = state(client)

    with subscribed(client, *CHANNELS) as subscriber:
        relay.take(user_event(type_), "msg_end")
        published = subscriber.rest()

    message = state(client)
    assert message == {
        "schema_version": 1,
        "cursor": client.hget(SESSION_KEY, "cursor"),
        "revision": 2,
        "previous_status": "active",
        "event": {
            "id": "msg_end",
            "type": type_,
            "occurred_at": NOW_MS - 1000,
            "instance_id": "ins_1",
            "source": "clerk",
        },
        "session": before["session"] | {"status": status, "live": False},
    }
    assert sorted(channel for channel, _ in published) == sorted(CHANNELS)
    assert {data for _, data in published} == {client.hget(SESSION_KEY, "state")}
    (_, (cursor, entry)) = client.xrange(EVENTS_KEY)
    assert cursor == message["cursor"]
    assert (entry["outcome"], entry["session_id"], entry["user_id"]) == ("applied", "sess_1", "user_1")
    assert json.loads(entry["message"]) == message | {"cursor": None}


@BOTH
def test_a_user_without_sessions_is_applied_too(relay: Relay, client: Any, type_: str, status: str) -> None:
    assert relay.take(user_event(type_), "msg_end") == Outcome("applied", sessions=0)

    assert set(contents(client)) == {GONE_KEY}
    assert status not in client.hkeys(GONE_KEY)


@BOTH
def test_a_repeated_event_is_a_duplicate_and_changes_nothing(
    relay: Relay, client: Any, type_: str, status: str
) -> None:
    relay.take(session(), "msg_1")
    relay.take(user_event(type_), "msg_end")
    before = contents(client)

    with subscribed(client, *CHANNELS) as subscriber:
        assert relay.take(user_event(type_), "msg_end") == Outcome("duplicate")
        assert subscriber.rest() == []

    assert contents(client) == before
    assert statuses(client) == {"sess_1": status}


def test_twenty_events_about_a_user_are_counted_in_bounded_space(relay: Relay, client: Any) -> None:
    for number in range(20):
        relay.take(user_event(), f"msg_{number}")

    assert len(client.hget(GONE_KEY, "done").split()) == 16
    assert relay.take(user_event(), "msg_19") == Outcome("duplicate")
    assert relay.take(user_event(), "msg_0") == Outcome("applied", sessions=0)


def test_an_end_without_an_instance_names_that_of_the_session(relay: Relay, client: Any) -> None:
    relay.take(session(), "msg_1")
    instance_id = state(client)["event"]["instance_id"]
    relay.take(user_event() | {"instance_id": None}, "msg_end")
    relay.take(session(number=2), "msg_2")

    assert instance_id is not None
    assert [state(client, number)["event"]["instance_id"] for number in (1, 2)] == [instance_id, instance_id]


def test_an_event_without_a_time_is_of_now(relay: Relay, client: Any) -> None:
    relay.take(session(), "msg_1")
    relay.take(user_event(occurred_at=None), "msg_end")

    assert state(client)["event"]["occurred_at"] == NOW_MS


def test_who_is_gone_is_forgotten_after_400_days(relay: Relay, client: Any) -> None:
    relay.take(user_event(), "msg_end")

    assert 400 * DAY_MS - 60_000 < client.pttl(GONE_KEY) <= 400 * DAY_MS


def test_more_sessions_than_one_chunk_all_end(relay: Relay, client: Any) -> None:
    count = 2 * scanning.CHUNK + 3
    assert relay.take_all((session(number=number), f"msg_{number}") for number in range(count)) == {"applied"}

    assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=count)

    assert set(statuses(client).values()) == {"removed"}
    assert not client.exists(USER_KEY)


def test_a_session_whose_key_has_another_type_is_in_no_others_way(real_redis: EmbeddedRedis) -> None:
    with client_of(real_redis.url) as client, run_relay(real_redis.url) as relay:
        client.flushall()
        for number in (1, 2):
            relay.take(session(number=number), f"msg_{number}")
        client.delete("{clerk}:session:sess_1")
        client.set("{clerk}:session:sess_1", "text")

        assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=1)

        client.delete("{clerk}:session:sess_1")
        assert set(statuses(client).values()) == {"removed"}


def test_a_session_that_can_not_be_read_is_in_no_others_way(
    relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr(users, "log", logger)
    for number in range(1, scanning.CHUNK + 3):
        relay.take(session(number=number), f"msg_{number}")
    client.hset("{clerk}:session:sess_2", "state", '{"schema_version":2}')
    client.hdel("{clerk}:session:sess_3", "_order")
    client.zadd(USER_KEY, {b"\xff": 1, "sess_forgotten": 2})

    assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=scanning.CHUNK)

    assert {number for number, status in statuses(client).items() if status == "active"} == {"sess_2", "sess_3"}
    assert {call.kwargs["session_id"] for call in logger.calls} == {"sess_2", "sess_3", "\\xff"}
    client.delete("{clerk}:session:sess_2", "{clerk}:session:sess_3")


# What comes late


@pytest.mark.parametrize("late", ["active", "pending"])
@BOTH
def test_an_open_session_of_a_user_who_is_gone_ends_as_it_comes(
    relay: Relay, client: Any, type_: str, status: str, late: str
) -> None:
    relay.take(user_event(type_), "msg_end")

    with subscribed(client, *CHANNELS) as subscriber:
        outcome = relay.take(session(late), "msg_late")
        assert len(subscriber.rest()) == 2

    assert outcome == Outcome("applied", "sess_1", client.hget(SESSION_KEY, "cursor"), 1)
    message = state(client)
    assert (message["event"]["id"], message["event"]["type"]) == ("msg_end", type_)
    assert (message["session"]["status"], message["session"]["live"]) == (status, False)
    assert message["previous_status"] is None
    assert not client.exists(USER_KEY, PENDING_KEY, EXPIRY_KEY)
    assert relay.take(session(late), "msg_late").outcome == "duplicate"


@pytest.mark.parametrize("updated_at", [NOW_MS - 2 * HOUR_MS, NOW_MS + HOUR_MS])
@BOTH
def test_nothing_revives_a_session(relay: Relay, client: Any, type_: str, status: str, updated_at: int) -> None:
    relay.take(session(), "msg_1")
    relay.take(user_event(type_), "msg_end")

    extended = session(updated_at=updated_at, expire_at=None)
    newer = updated_at > NOW_MS
    assert relay.take(extended, "msg_late").outcome == ("applied" if newer else "stale")

    message = state(client)
    assert (message["session"]["status"], message["session"]["live"]) == (status, False)
    assert message["event"]["id"] == "msg_end"
    assert message["session"]["updated_at"] == (updated_at if newer else NOW_MS - HOUR_MS)
    assert not client.exists(USER_KEY, PENDING_KEY, EXPIRY_KEY)


@BOTH
def test_a_late_event_changes_nothing_of_a_session_that_had_ended(
    relay: Relay, client: Any, type_: str, status: str
) -> None:
    relay.take(session("replaced"), "msg_1")
    assert relay.take(user_event(type_), "msg_end") == Outcome("applied", sessions=0)

    assert relay.take(session(updated_at=NOW_MS), "msg_late").outcome == "stale"

    assert statuses(client) == {"sess_1": "replaced"} != {"sess_1": status}


@pytest.mark.parametrize(
    ("updated_at", "outcome", "status"), [(NOW_MS - HOUR_MS, "stale", "removed"), (NOW_MS, "applied", "ended")]
)
def test_the_end_of_a_session_counts_by_its_time(
    relay: Relay, client: Any, updated_at: int, outcome: str, status: str
) -> None:
    relay.take(session(), "msg_1")
    relay.take(user_event(), "msg_end")

    assert relay.take(session("ended", updated_at=updated_at), "msg_2").outcome == outcome

    assert statuses(client) == {"sess_1": status}


def test_an_extension_of_a_session_that_ran_out_ends_as_it_comes(relay: Relay, relay_redis: EmbeddedRedis) -> None:
    relay.take(session(expire_at=NOW_MS - 1), "msg_1")
    with contextlib.closing(ExpiryWorker(make_settings(relay_redis.url), clock=lambda: NOW_MS / 1000)) as worker:
        assert worker.run_once() == (1, 0)
    assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=0)

    assert relay.take(session(updated_at=NOW_MS - 3 * HOUR_MS, expire_at=None), "msg_2").outcome == "stale"
    assert relay.take(session(updated_at=NOW_MS, expire_at=None), "msg_3").outcome == "applied"

    with client_of(relay_redis.url) as client:
        assert statuses(client) == {"sess_1": "removed"}


# Who is banned


@pytest.mark.parametrize(
    ("created_at", "ends"), [(None, True), (BANNED_AT - 1, True), (BANNED_AT, True), (BANNED_AT + 1, False)]
)
@pytest.mark.parametrize("is_late", [False, True])
def test_a_ban_ends_the_sessions_from_before(
    relay: Relay, client: Any, created_at: int | None, *, ends: bool, is_late: bool
) -> None:
    deliveries = [(session(created_at=created_at), "msg_1"), (user_event("user.updated"), "msg_end")]
    for body, message_id in reversed(deliveries) if is_late else deliveries:
        relay.take(body, message_id)

    assert statuses(client) == {"sess_1": "revoked" if ends else "active"}
    assert client.zrange(USER_KEY, 0, -1) == ([] if ends else ["sess_1"])


def test_a_ban_without_its_own_time_is_of_the_events(relay: Relay, client: Any) -> None:
    relay.take(session(number=1, created_at=NOW_MS - 1000), "msg_1")
    relay.take(session(number=2, created_at=NOW_MS - 999), "msg_2")

    relay.take(user_event("user.updated", updated_at=None), "msg_end")

    assert statuses(client) == {"sess_1": "revoked", "sess_2": "active"}


def test_a_second_ban_ends_what_began_after_the_first(relay: Relay, client: Any) -> None:
    later = user_event("user.updated", occurred_at=NOW_MS, updated_at=NOW_MS)
    relay.take(user_event("user.updated"), "msg_end")
    relay.take(session(created_at=NOW_MS - 500), "msg_1")

    assert relay.take(later, "msg_end_2") == Outcome("applied", sessions=1)
    assert relay.take(user_event("user.updated"), "msg_end_3") == Outcome("applied", sessions=0)

    relay.take(session(number=2, created_at=NOW_MS - 500), "msg_2")
    assert statuses(client) == {"sess_1": "revoked", "sess_2": "revoked"}
    assert state(client, 2)["event"]["id"] == "msg_end_2"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_deleted_outweighs_banned_for_what_comes_late(relay: Relay, client: Any, order: tuple[int, ...]) -> None:
    events = [
        (user_event("user.updated"), "msg_banned"),
        (user_event("user.deleted"), "msg_deleted"),
        (session(created_at=NOW_MS), "msg_1"),
    ]
    for number in order:
        relay.take(*events[number])

    assert statuses(client) == {"sess_1": "removed"}
    assert state(client)["event"]["id"] == "msg_deleted"


@pytest.mark.parametrize("banned", [ABSENT, None, False, 0, 1, "true", [True], {}], ids=repr)
def test_an_update_that_bans_nobody_is_ignored_without_redis(banned: object) -> None:
    event = user_event("user.updated", banned=banned)
    if banned is ABSENT:
        del event["data"]["banned"]

    with run_relay(NO_REDIS) as relay:
        assert relay.take(event, "msg_1") == Outcome("ignored")


# Settings


def test_partitions_end_the_users_sessions_where_they_are(relay_redis: EmbeddedRedis, client: Any) -> None:
    keys = Keys("{clerk}", "clerk:sessions").split(4)[partition_of("user_1", 4)]
    with run_relay(relay_redis.url, partitions=4) as relay:
        relay.take(session(), "msg_1")
        relay.take(user_event(), "msg_end")
        relay.take(session(number=2), "msg_2")

        assert relay.take(user_event(), "msg_end") == Outcome("duplicate")

    assert [client.hget(keys.session(f"sess_{number}"), "status") for number in (1, 2)] == ["removed", "removed"]
    assert client.exists(keys.user_gone("user_1"))
    assert {key.partition(":user")[0].partition(":session")[0] for key in client.scan_iter("*:*_[12]*")} == {
        keys.prefix
    }


def test_an_end_omits_what_is_to_be_omitted_even_if_it_was_published_before(
    relay_redis: EmbeddedRedis, client: Any
) -> None:
    with run_relay(relay_redis.url) as before:
        before.take(session(), "msg_1")
    assert state(client)["session"]["latest_activity"]["ip_address"]

    with run_relay(relay_redis.url, omit_fields="latest_activity.ip_address,client_id,tasks") as relay:
        relay.take(user_event(), "msg_end")
        relay.take(session(number=2), "msg_2")

    for number in (1, 2):
        published = state(client, number)["session"]
        assert (published["client_id"], published["tasks"]) == (None, [])
        assert published["latest_activity"]["ip_address"] is None


def test_an_end_has_no_http_request_of_its_own(relay_redis: EmbeddedRedis, client: Any) -> None:
    caused = {"event_attributes": {"http_request": {"client_ip": "192.0.2.1", "user_agent": "x"}}}
    with run_relay(relay_redis.url, publish_http_request=True) as relay:
        relay.take(session() | caused, "msg_1")
        assert state(client)["event"]["http_request"]["client_ip"] == "192.0.2.1"
        relay.take(user_event() | caused, "msg_end")
        relay.take(session(number=2) | caused, "msg_2")

    assert [state(client, number)["event"]["http_request"] for number in (1, 2)] == [None, None]


def test_a_setting_that_changed_meanwhile_counts_for_what_comes_late(relay_redis: EmbeddedRedis, client: Any) -> None:
    with run_relay(relay_redis.url, publish_http_request=True) as relay:
        relay.take(user_event(), "msg_end")
    with run_relay(relay_redis.url) as relay:
        relay.take(session(), "msg_1")

    assert "http_request" not in state(client)["event"]


# What is read and kept of a user

PROFILE: Final[dict[str, Any]] = {
    "first_name": "Sunniva",
    "email_addresses": [{"email_address": "sunniva@example.com"}],
    "private_metadata": {"note": "Sunniva"},
}


@BOTH
def test_nothing_of_a_users_profile_is_kept(relay: Relay, client: Any, type_: str, status: str) -> None:
    relay.take(session(), "msg_1")
    event = user_event(type_, **PROFILE) | {"event_attributes": {"http_request": {"client_ip": "Sunniva"}}}
    relay.take(event, "msg_end")
    relay.take(session(number=2), "msg_2")
    relay.take(user_event(type_, id=17, **PROFILE), "msg_unreadable")

    assert set(statuses(client).values()) == {status}
    assert "sunniva" not in json.dumps(contents(client)).lower()


@pytest.mark.parametrize("id_", [ABSENT, None, 17, "", "user.1", "u" * 129, ["user_1"]], ids=repr)
@BOTH
def test_without_an_id_of_a_user_it_is_a_dead_letter_of_those_fields_only(
    relay: Relay, client: Any, type_: str, status: str, id_: object
) -> None:
    event = user_event(type_, id=id_, **PROFILE)
    if id_ is ABSENT:
        del event["data"]["id"]

    assert relay.take(event, "msg_1") == Outcome("dead_lettered", reason="invalid_user_id")

    stored = json.loads(client.hget(DEAD_LETTERS_KEY, "msg_1"))
    assert stored["reason"] == "invalid_user_id"
    assert "data" in stored["detail"]
    assert json.loads(stored["body"]) == {
        "type": type_,
        "timestamp": NOW_MS - 1000,
        "instance_id": "ins_1",
        "data": {
            "id": id_ if isinstance(id_, str) else 17 if id_ == 17 else None,
            "banned": event["data"].get("banned"),
            "updated_at": event["data"].get("updated_at"),
            "deleted": event["data"].get("deleted"),
        },
    }
    assert status not in stored["body"]
    assert set(contents(client)) == {DEAD_LETTERS_KEY}


def test_a_dead_letter_about_a_user_can_be_replayed(relay_redis: EmbeddedRedis, relay: Relay, client: Any) -> None:
    """A later version may read what this one can't."""
    relay.take(session(), "msg_1")
    letter = {"id": "msg_end", "received_at": NOW_MS, "reason": "invalid_user_id", "detail": "data.id: odd"}
    client.hset(DEAD_LETTERS_KEY, "msg_end", json.dumps(letter | {"body": json.dumps(user_event())}))

    with contextlib.closing(DeadLetters(make_settings(relay_redis.url))) as letters:
        ingest = Ingest(relay.store, clock=lambda: NOW_MS / 1000)
        replayed = relay.call(lambda: letters.replay("msg_end", ingest)).result(timeout=30)

    assert (replayed.outcome, replayed.detail) == ("applied", "1 sessions ended")
    assert statuses(client) == {"sess_1": "removed"}
    assert not client.exists(DEAD_LETTERS_KEY)


# What an earlier version wrote


def make_earlier(client: Any) -> None:
    """Leave of what is stored what the version before these events stored: no pending sessions, no bases."""
    for key in client.scan_iter("{clerk}:user:*:pending"):
        client.delete(key)
    for key in client.scan_iter("{clerk}:session:*"):
        client.hdel(key, "_base")


def test_live_sessions_that_an_earlier_version_wrote_end(relay: Relay, client: Any) -> None:
    relay.take(session(), "msg_1")
    relay.take(session("ended", 2), "msg_2")
    make_earlier(client)

    assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=1)

    assert statuses(client) == {"sess_1": "removed", "sess_2": "ended"}


def test_pending_sessions_that_an_earlier_version_wrote_end_with_their_next_event(relay: Relay, client: Any) -> None:
    """No index has them, until they change; `reconcile` mends it."""
    relay.take(session("pending"), "msg_1")
    make_earlier(client)

    assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=0)
    assert statuses(client) == {"sess_1": "pending"}

    assert relay.take(session(updated_at=NOW_MS), "msg_2").outcome == "applied"
    assert statuses(client) == {"sess_1": "removed"}
    assert not client.exists(EXPIRY_KEY)


# What fails half-way


def open_sessions(relay: Relay, count: int) -> None:
    assert relay.take_all((session(number=number), f"msg_{number}") for number in range(count)) == {"applied"}


def break_off(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let Redis fail after it has ended so many sessions for events about users."""
    replace, ended = SessionStore.replace, itertools.count()

    def failing(self: SessionStore, *arguments: Any) -> Any:
        if next(ended) >= after:
            raise StoreUnavailableError("Redis did not answer in time.")
        return replace(self, *arguments)

    monkeypatch.setattr(SessionStore, "replace", failing)


@pytest.mark.parametrize("after", [0, 1, scanning.CHUNK - 1, scanning.CHUNK, scanning.CHUNK + 5])
def test_the_next_attempt_goes_on_where_one_broke_off(
    relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    count = scanning.CHUNK + 10
    open_sessions(relay, count)

    with monkeypatch.context() as patched:
        break_off(patched, after)
        with pytest.raises(StoreUnavailableError):
            relay.take(user_event(), "msg_end")
        assert relay.take(session(number=count), "msg_late").outcome == "applied"  # ended as it came

    eventually(lambda: list(statuses(client).values()).count("removed") == after + 1)
    assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=count - after)
    assert relay.take(user_event(), "msg_end") == Outcome("duplicate")
    assert set(statuses(client).values()) == {"removed"}


def test_what_does_not_fit_into_the_time_is_for_the_next_attempt(
    relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.take(session(), "msg_1")
    with monkeypatch.context() as patched:
        patched.setattr(users, "CHUNK_SECONDS", users.END_SECONDS)
        with pytest.raises(StoreUnavailableError, match="the next attempt goes on"):
            relay.take(user_event(), "msg_end")
    assert statuses(client) == {"sess_1": "active"}

    assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=1)


def test_a_session_that_changes_after_it_was_read_is_read_again(
    relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.take(session(), "msg_1")
    read = SessionStore.read

    def overtaken(self: SessionStore, *arguments: Any) -> Any:
        states = read(self, *arguments)
        monkeypatch.setattr(SessionStore, "read", read)
        client.hset(SESSION_KEY, "cursor", "1-1")
        return states

    monkeypatch.setattr(SessionStore, "read", overtaken)

    assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=1)
    assert statuses(client) == {"sess_1": "removed"}


def test_events_about_a_user_that_come_together_end_each_session_once(relay: Relay, client: Any) -> None:
    count = 3 * scanning.CHUNK
    open_sessions(relay, count)
    events = [
        (user_event(type_), type_.replace(".", "_")) for type_ in ("user.deleted", "user.updated", "user.deleted")
    ]
    late = [(session(number=count + number), f"msg_late_{number}") for number in range(20)]

    begun = [relay.begin(*each) for each in itertools.chain(events, late)]
    outcomes = [each.result(timeout=30) for each in begun]

    assert {each.outcome for each in outcomes} <= {"applied", "duplicate"}
    assert sum(each.sessions or 0 for each in outcomes) <= count
    assert set(statuses(client).values()) <= {"removed", "revoked"}
    assert not client.exists(USER_KEY, PENDING_KEY)
    ends = [fields for _, fields in client.xrange(EVENTS_KEY) if '"type":"user.' in fields["message"]]
    assert len(ends) == count + len(late)
