"""One delivery in Redis: what the Lua scripts hold, index, append and publish, on each Redis they run on.

docs/contract.md, sections 4 to 6. Each test hands whole deliveries to a store, at a frozen time.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.constants import (
    DAY_MS,
    DEAD_LETTERS_KEY,
    EVENTS_KEY,
    EXPIRY_KEY,
    HOUR_MS,
    NOW_MS,
    SESSION_KEY,
    USER_KEY,
    WEEK_S,
)
from support.events import clerk_event
from support.redis_clients import contents, subscribed
from support.relay import Relay, run_relay

from service.clerk.events import SessionEvent, parse
from service.clerk.normalize import normalize
from service.clerk.ordinary import OrdinaryEvent
from service.dev.embedded import EmbeddedRedis
from service.errors import DeadLettersFullError
from service.models import OPEN, Outcome, SessionChange

CAP_MS = 400 * DAY_MS
CHANNELS = ("clerk:sessions", "clerk:sessions:user:user_1")


def state(client: Any, session_id: str = "sess_1") -> Any:
    return json.loads(client.hget(f"{{clerk}}:session:{session_id}", "state"))


def is_about(milliseconds: int, expected: int) -> bool:
    return expected - 60_000 < milliseconds <= expected


# Outcomes


def test_the_first_event_of_a_session_is_applied(relay: Relay, client: Any) -> None:
    outcome = relay.take(clerk_event(), "msg_1")

    [(cursor, _)] = client.xrange(EVENTS_KEY)
    assert outcome == Outcome("applied", "sess_1", cursor, 1)


def test_each_applied_state_counts_a_revision(relay: Relay) -> None:
    revisions = [relay.take(clerk_event(updated_at=NOW_MS - 1000 + step), f"msg_{step}").revision for step in range(3)]

    assert revisions == [1, 2, 3]


def test_an_older_event_is_stale_with_a_cursor_of_its_own_and_no_revision(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 1000), "msg_new")

    outcome = relay.take(clerk_event(updated_at=NOW_MS - 2000), "msg_old")

    [_, (cursor, _)] = client.xrange(EVENTS_KEY)
    assert outcome == Outcome("stale", "sess_1", cursor, None)


def test_a_stale_event_changes_no_state_and_publishes_nothing(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 1000), "msg_new")
    before = contents(client)

    with subscribed(client, *CHANNELS) as subscriber:
        relay.take(clerk_event(updated_at=NOW_MS - 2000, user_id="user_2"), "msg_old")
        assert subscriber.rest() == []

    after = contents(client)
    assert after[SESSION_KEY][0].pop("_message:msg_old")
    del before[EVENTS_KEY], after[EVENTS_KEY]
    assert after == before


def test_a_message_seen_before_is_a_duplicate_with_cursor_and_revision_of_the_first_time(relay: Relay) -> None:
    event = clerk_event(updated_at=NOW_MS - 3000)
    first = relay.take(event, "msg_1")
    relay.take(clerk_event(updated_at=NOW_MS - 2000), "msg_2")

    again = relay.take(event, "msg_1")

    assert again == Outcome("duplicate", "sess_1", first.cursor, 1)


def test_a_stale_message_seen_before_is_a_duplicate_without_revision(relay: Relay) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 1000), "msg_new")
    late = clerk_event(updated_at=NOW_MS - 2000)
    stale = relay.take(late, "msg_old")

    again = relay.take(late, "msg_old")

    assert again == Outcome("duplicate", "sess_1", stale.cursor, None)


def test_a_duplicate_changes_nothing_at_all(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(), "msg_1")
    before = contents(client)

    with subscribed(client, *CHANNELS) as subscriber:
        for _ in range(3):
            relay.take(clerk_event(), "msg_1")
        assert subscriber.rest() == []

    assert contents(client) == before


@pytest.mark.parametrize("first_updated_at", [NOW_MS - 1000, NOW_MS - 3000], ids=["applied", "stale"])
def test_a_message_id_seen_with_another_body_is_reported_and_never_applied(
    relay: Relay, client: Any, first_updated_at: int
) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 2000), "msg_0")
    event = clerk_event(updated_at=first_updated_at)
    first = relay.take(event, "msg_1")
    before = contents(client)

    other = relay.take(clerk_event("ended", updated_at=NOW_MS), "msg_1")
    same = relay.take(event, "msg_1")

    assert other == Outcome("duplicate", "sess_1", first.cursor, first.revision, "other_body")
    assert same == Outcome("duplicate", "sess_1", first.cursor, first.revision)
    assert contents(client) == before


def test_sessions_do_not_share_message_ids(relay: Relay) -> None:
    first = relay.take(clerk_event(session_id="sess_1"), "msg_1")
    second = relay.take(clerk_event(session_id="sess_2"), "msg_1")

    assert (first.outcome, second.outcome) == ("applied", "applied")


# Order


def _ids(lesser: str, greater: str) -> Any:
    return pytest.param({}, lesser, {}, greater, id=f"id: {lesser} < {greater}")


def _ranks(*statuses: str) -> Iterator[Any]:
    for lesser, greater in itertools.pairwise(statuses):
        yield pytest.param(
            {"status": lesser, "type_": "session.updated"},
            "msg_2",
            {"status": greater, "type_": "session.updated"},
            "msg_1",
            id=f"rank: {lesser} < {greater}",
        )


@pytest.mark.parametrize("late_first", [False, True], ids=["in order", "late first"])
@pytest.mark.parametrize(
    ("lesser", "lesser_id", "greater", "greater_id"),
    [
        pytest.param(
            {"status": "active", "updated_at": NOW_MS + HOUR_MS},
            "msg_2",
            {"status": "ended", "updated_at": NOW_MS - DAY_MS},
            "msg_1",
            id="terminal before live",
        ),
        pytest.param(
            {"status": "revoked", "updated_at": NOW_MS - 2, "occurred_at": NOW_MS},
            "msg_2",
            {"status": "abandoned", "updated_at": NOW_MS - 1, "occurred_at": NOW_MS - 9},
            "msg_1",
            id="updated_at before occurred_at, rank and id",
        ),
        pytest.param(
            {"status": "revoked", "updated_at": NOW_MS, "occurred_at": NOW_MS - 2},
            "msg_2",
            {"status": "abandoned", "updated_at": NOW_MS, "occurred_at": NOW_MS - 1},
            "msg_1",
            id="occurred_at before rank and id",
        ),
        pytest.param(
            {"updated_at": 999_999_999_999},
            "msg_2",
            {"updated_at": 1_000_000_000_000},
            "msg_1",
            id="times are numbers, not text",
        ),
        *_ranks("pending", "active"),
        *_ranks("abandoned", "expired", "replaced", "removed", "ended", "revoked"),
        _ids("msg_a", "msg_b"),
        _ids("msg", "msg_"),
        _ids("msg-", "msg0"),
        _ids("msg9", "msgA"),
        _ids("msgZ", "msg_"),
        _ids("msg_", "msga"),
        _ids("msgZ", "msga"),
        _ids("msgB", "msga"),
        _ids("msg-2", "msg_1"),
        _ids("exp_sess_1_1795422761000", "msg_1"),
    ],
)
def test_the_greater_event_is_the_state_whichever_comes_first(
    relay: Relay,
    client: Any,
    lesser: dict[str, Any],
    lesser_id: str,
    greater: dict[str, Any],
    greater_id: str,
    late_first: bool,
) -> None:
    deliveries = [(lesser, lesser_id), (greater, greater_id)]
    for values, message_id in reversed(deliveries) if late_first else deliveries:
        last = relay.take(clerk_event(**values), message_id)

    assert state(client)["event"]["id"] == greater_id
    assert last.outcome == ("stale" if late_first else "applied")


def test_a_terminal_event_of_a_session_never_seen_leaves_a_tombstone(relay: Relay, client: Any) -> None:
    assert relay.take(clerk_event("ended"), "msg_2").outcome == "applied"

    late = relay.take(clerk_event("active", updated_at=NOW_MS + HOUR_MS), "msg_1")

    assert late.outcome == "stale"
    assert client.hget(SESSION_KEY, "status") == "ended"
    assert not client.exists(USER_KEY, EXPIRY_KEY)


@pytest.mark.parametrize("type_", ["session.ended", "session.removed", "session.revoked"])
@pytest.mark.parametrize("reported", ["active", "pending", None])
def test_a_terminal_type_outranks_an_open_status(relay: Relay, client: Any, type_: str, reported: str | None) -> None:
    relay.take(clerk_event(reported, type_=type_), "msg_1")

    assert client.hget(SESSION_KEY, "status") == type_.removeprefix("session.")
    assert state(client)["session"]["status"] == type_.removeprefix("session.")


def test_an_unknown_session_type_is_applied_like_any_other(relay: Relay, client: Any) -> None:
    assert relay.take(clerk_event("active", type_="session.updated"), "msg_1").outcome == "applied"
    assert state(client)["event"]["type"] == "session.updated"


@pytest.mark.parametrize(
    ("later", "outcome", "status"),
    [
        pytest.param(clerk_event("active", updated_at=NOW_MS - 1), "applied", "active", id="evidence of life"),
        pytest.param(clerk_event("ended", updated_at=NOW_MS - DAY_MS), "applied", "ended", id="a real end"),
        pytest.param(clerk_event("active", updated_at=NOW_MS - DAY_MS), "stale", "expired", id="a late event"),
    ],
)
def test_an_expiry_of_an_earlier_version_gives_way_to_what_clerk_says_later(
    relay: Relay, client: Any, later: dict[str, Any], outcome: str, status: str
) -> None:
    """That has no `_base`, so a late event can't be compared with the state that it was made from."""
    expire_at = NOW_MS - HOUR_MS
    relay.take(clerk_event("active", updated_at=NOW_MS - 2 * HOUR_MS, expire_at=expire_at), "msg_1")
    session = clerk_event("expired", updated_at=NOW_MS - 2 * HOUR_MS, expire_at=expire_at)
    found = parse(json.dumps(session).encode(), lambda _: None)
    assert isinstance(found, SessionEvent | OrdinaryEvent)
    change = normalize(found, message_id=f"exp_sess_1_{expire_at}", now_ms=NOW_MS)
    assert isinstance(change, SessionChange)
    change = dataclasses.replace(
        change,
        event=dataclasses.replace(change.event, source="synthetic"),
        order=change.order._replace(terminal=OPEN, updated_at_ms=expire_at),
    )

    assert relay.call(relay.store.apply, change, b"", NOW_MS).result(timeout=30).outcome == "applied"
    assert relay.call(relay.store.apply, change, b"", NOW_MS).result(timeout=30).outcome == "duplicate"
    assert state(client)["event"]["source"] == "synthetic"
    assert not client.exists(USER_KEY, EXPIRY_KEY)

    assert relay.take(later, "msg_2").outcome == outcome
    assert client.hget(SESSION_KEY, "status") == status
    assert client.zrange(USER_KEY, 0, -1) == (["sess_1"] if status == "active" else [])


# The message


def expected_message(event: dict[str, Any], message_id: str, **head: Any) -> str:
    """Write the line of docs/contract.md, section 4, for a sample of Clerk's."""
    data = event["data"]
    names = [
        *("object", "id", "user_id", "client_id", "actor", "status", "live"),
        *("last_active_organization_id", "last_active_at", "latest_activity", "expire_at", "abandon_at"),
        *("updated_at", "created_at", "tasks"),
    ]
    session = {"live": True, "tasks": []} | data
    message = {
        "schema_version": 1,
        "cursor": head["cursor"],
        "revision": head["revision"],
        "previous_status": head["previous_status"],
        "event": {
            "id": message_id,
            "type": event["type"],
            "occurred_at": event["timestamp"],
            "instance_id": event["instance_id"],
            "source": "clerk",
        },
        "session": {name: session[name] for name in names},
    }
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def test_state_and_both_channels_get_exactly_the_line_of_the_contract(relay: Relay, client: Any) -> None:
    event = clerk_event(
        "active",
        actor={"sub": "user_støtte", "iss": "https://clerk.example"},
        last_active_organization_id="org_1",
        tasks=[{"key": "choose-organization"}],
        latest_activity=clerk_event()["data"]["latest_activity"] | {"city": 'Tromsø "\\'},
    )
    with subscribed(client, *CHANNELS) as subscriber:
        outcome = relay.take(event, "msg_1")
        published = dict(subscriber.rest())

    line = expected_message(event, "msg_1", cursor=outcome.cursor, revision=1, previous_status=None)
    assert client.hget(SESSION_KEY, "state") == line
    assert published == dict.fromkeys(CHANNELS, line)
    assert "\n" not in line


def test_the_second_message_says_what_the_status_was_before(relay: Relay, client: Any) -> None:
    relay.take(clerk_event("pending", updated_at=NOW_MS - 2000), "msg_1")
    event = clerk_event("active", updated_at=NOW_MS - 1000)

    outcome = relay.take(event, "msg_2")

    line = expected_message(event, "msg_2", cursor=outcome.cursor, revision=2, previous_status="pending")
    assert client.hget(SESSION_KEY, "state") == line


def test_messages_of_a_user_go_to_that_users_channel_alone(relay: Relay, client: Any) -> None:
    with subscribed(client, "clerk:sessions", "clerk:sessions:user:user_2") as subscriber:
        relay.take(clerk_event(session_id="sess_1", user_id="user_1"), "msg_1")
        relay.take(clerk_event(session_id="sess_2", user_id="user_2"), "msg_2")
        published = [(channel, json.loads(data)["session"]["id"]) for channel, data in subscriber.rest()]

    assert sorted(published) == [
        ("clerk:sessions", "sess_1"),
        ("clerk:sessions", "sess_2"),
        ("clerk:sessions:user:user_2", "sess_2"),
    ]


def test_what_clerk_leaves_out_is_null_and_tasks_are_a_list(relay: Relay, client: Any) -> None:
    relay.take(
        {
            "type": "session.created",
            "data": {"id": "sess_1", "user_id": "user_1", "status": "active", "updated_at": NOW_MS},
        },
        "msg_1",
    )

    message = state(client)
    assert message["event"] == {
        "id": "msg_1",
        "type": "session.created",
        "occurred_at": NOW_MS,
        "instance_id": None,
        "source": "clerk",
    }
    assert message["session"] == {
        "object": "session",
        "id": "sess_1",
        "user_id": "user_1",
        "client_id": None,
        "actor": None,
        "status": "active",
        "live": True,
        "last_active_organization_id": None,
        "last_active_at": None,
        "latest_activity": None,
        "expire_at": None,
        "abandon_at": None,
        "updated_at": NOW_MS,
        "created_at": None,
        "tasks": [],
    }


def test_the_embedded_user_is_nowhere(relay: Relay, client: Any) -> None:
    with subscribed(client, *CHANNELS) as subscriber:
        relay.take(clerk_event("active"), "msg_1")
        relay.take(clerk_event("active", updated_at=NOW_MS - 2000), "msg_2")
        said = json.dumps([subscriber.rest(), contents(client)])

    assert "user_1" in said
    assert "Sunniva" not in said
    assert "never published" not in said


def test_omitted_fields_are_null_wherever_the_message_is(relay_redis: EmbeddedRedis, client: Any) -> None:
    omitted = "latest_activity.ip_address,latest_activity.city, updated_at,tasks"
    with subscribed(client, *CHANNELS) as subscriber, run_relay(relay_redis.url, omit_fields=omitted) as relay:
        relay.take(clerk_event("active", tasks=[{"key": "choose-organization"}]), "msg_1")
        messages = [json.loads(data) for _, data in subscriber.rest()]

    [(_, entry)] = client.xrange(EVENTS_KEY)
    for message in [state(client), json.loads(entry["message"]), *messages]:
        session = message["session"]
        assert session["latest_activity"]["ip_address"] is None
        assert session["latest_activity"]["city"] is None
        assert session["latest_activity"]["country"] == "NO"
        assert session["updated_at"] is None
        assert session["tasks"] == []


def test_omitted_times_still_order_events(relay_redis: EmbeddedRedis, client: Any) -> None:
    with run_relay(relay_redis.url, omit_fields="updated_at,expire_at") as relay:
        relay.take(clerk_event("active", updated_at=NOW_MS - 1000), "msg_new")
        assert relay.take(clerk_event("active", updated_at=NOW_MS - 2000), "msg_old").outcome == "stale"

    assert client.zscore(USER_KEY, "sess_1") == NOW_MS + DAY_MS


@pytest.mark.parametrize("publish", [False, True])
def test_the_http_request_is_published_only_on_request(relay_redis: EmbeddedRedis, client: Any, publish: bool) -> None:
    with run_relay(relay_redis.url, publish_http_request=publish) as relay:
        relay.take(clerk_event(), "msg_1")

    event = state(client)["event"]
    if publish:
        assert event["http_request"] == {"client_ip": "192.0.2.44", "user_agent": "Mozilla/5.0 (simulated)"}
    else:
        assert "http_request" not in event


# Keys


def test_the_session_hash_holds_what_the_contract_names(relay: Relay, client: Any) -> None:
    outcome = relay.take(clerk_event("active"), "msg_1")

    stored = client.hgetall(SESSION_KEY)
    public = {name: value for name, value in stored.items() if not name.startswith("_")}
    assert json.loads(public.pop("state"))["session"]["id"] == "sess_1"
    assert public == {"status": "active", "live": "1", "user_id": "user_1", "revision": "1", "cursor": outcome.cursor}


@pytest.mark.parametrize(
    ("status", "expire_at", "live", "open_"),
    [
        ("active", NOW_MS + DAY_MS, True, True),
        ("active", NOW_MS + 1, True, True),
        ("active", NOW_MS, False, True),
        ("active", NOW_MS - DAY_MS, False, True),
        ("active", None, True, True),
        ("pending", NOW_MS + DAY_MS, False, True),
        ("pending", None, False, True),
        *(
            (status, NOW_MS + DAY_MS, False, False)
            for status in ("ended", "removed", "revoked", "replaced", "expired", "abandoned")
        ),
    ],
)
def test_live_sessions_are_in_the_users_set_and_open_ones_await_their_expiry(
    relay: Relay, client: Any, status: str, expire_at: int | None, live: bool, open_: bool
) -> None:
    relay.take(clerk_event(status, expire_at=expire_at), "msg_1")

    score = float("inf") if expire_at is None else float(expire_at)
    assert client.zrange(USER_KEY, 0, -1, withscores=True) == ([("sess_1", score)] if live else [])
    assert client.zrange(EXPIRY_KEY, 0, -1, withscores=True) == (
        [("sess_1", score)] if open_ and expire_at is not None else []
    )
    assert client.hget(SESSION_KEY, "live") == ("1" if live else "0")
    assert state(client)["session"]["live"] is live


def test_a_session_that_ends_leaves_both_sets(relay: Relay, client: Any) -> None:
    relay.take(clerk_event("active"), "msg_1")
    relay.take(clerk_event("active", session_id="sess_2"), "msg_2")

    relay.take(clerk_event("ended", updated_at=NOW_MS), "msg_3")

    assert client.zrange(USER_KEY, 0, -1) == ["sess_2"]
    assert client.zrange(EXPIRY_KEY, 0, -1) == ["sess_2"]


def test_scores_follow_the_state(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(updated_at=NOW_MS - 3000, expire_at=None), "msg_1")
    relay.take(clerk_event(updated_at=NOW_MS - 2000, expire_at=NOW_MS + HOUR_MS), "msg_2")
    assert client.zscore(USER_KEY, "sess_1") == NOW_MS + HOUR_MS
    assert client.zscore(EXPIRY_KEY, "sess_1") == NOW_MS + HOUR_MS

    relay.take(clerk_event(updated_at=NOW_MS - 1000, expire_at=None), "msg_3")
    assert client.zscore(USER_KEY, "sess_1") == float("inf")
    assert client.zscore(EXPIRY_KEY, "sess_1") is None


def test_a_stream_entry_holds_the_message_without_its_cursor(relay: Relay, client: Any) -> None:
    event = clerk_event("active")
    outcome = relay.take(event, "msg_1")

    [(cursor, entry)] = client.xrange(EVENTS_KEY)
    assert cursor == outcome.cursor
    assert entry == {
        "outcome": "applied",
        "session_id": "sess_1",
        "user_id": "user_1",
        "message": expected_message(event, "msg_1", cursor=None, revision=1, previous_status=None),
    }
    assert list(entry) == ["outcome", "session_id", "user_id", "message"]


def test_a_stale_events_stream_entry_has_no_revision_and_no_previous_status(relay: Relay, client: Any) -> None:
    relay.take(clerk_event("active", updated_at=NOW_MS - 1000), "msg_new")
    event = clerk_event("active", updated_at=NOW_MS - 2000, user_id="user_2")

    relay.take(event, "msg_old")

    [_, (_, entry)] = client.xrange(EVENTS_KEY)
    assert entry == {
        "outcome": "stale",
        "session_id": "sess_1",
        "user_id": "user_2",
        "message": expected_message(event, "msg_old", cursor=None, revision=None, previous_status=None),
    }


def test_the_stream_has_each_event_once_in_the_order_taken(relay: Relay, client: Any) -> None:
    times = {"msg_b": NOW_MS - 2000, "msg_c": NOW_MS - 1000, "msg_a": NOW_MS - 3000}
    for message_id in ["msg_b", "msg_c", "msg_b", "msg_a", "msg_a", "msg_c"]:
        relay.take(clerk_event(updated_at=times[message_id]), message_id)

    entries = [entry for _, entry in client.xrange(EVENTS_KEY)]
    assert [json.loads(entry["message"])["event"]["id"] for entry in entries] == ["msg_b", "msg_c", "msg_a"]
    assert [entry["outcome"] for entry in entries] == ["applied", "applied", "stale"]


def test_the_stream_is_trimmed_to_about_its_length(relay_redis: EmbeddedRedis, client: Any) -> None:
    with run_relay(relay_redis.url, stream_maxlen=50) as relay:
        futures = [relay.begin(clerk_event(session_id=f"sess_{i}"), f"msg_{i}") for i in range(250)]
        for future in futures:
            future.result(timeout=30)

    # `~` trims whole nodes of the stream: of 100 entries, or 4 kB.
    assert 50 <= client.xlen(EVENTS_KEY) <= 150


def test_prefix_and_channel_are_settings(relay_redis: EmbeddedRedis, client: Any) -> None:
    with (
        subscribed(client, "auth", "auth:user:user_1") as subscriber,
        run_relay(relay_redis.url, redis_key_prefix="{app}:x", redis_channel="auth") as relay,
    ):
        relay.take(clerk_event(), "msg_1")
        relay.take(b'{"type":"session.created"}', "msg_2")
        published = [channel for channel, _ in subscriber.rest()]

    assert sorted(published) == ["auth", "auth:user:user_1"]
    assert sorted(client.scan_iter("*")) == [
        "{app}:x:dead-letters",
        "{app}:x:events",
        "{app}:x:expiry",
        "{app}:x:session:sess_1",
        "{app}:x:user:user_1:sessions",
    ]


@pytest.mark.parametrize("id_", ["a", "_", "-", "A-Z_a-z-0", "s" * 128, "sess_1-expiry", "events"])
def test_any_id_of_the_contract_works_for_sessions_users_and_messages(relay: Relay, client: Any, id_: str) -> None:
    event = clerk_event(session_id=id_, user_id=id_)

    outcomes = [relay.take(event, id_).outcome for _ in range(2)]

    assert outcomes == ["applied", "duplicate"]
    assert client.hget(f"{{clerk}}:session:{id_}", "user_id") == id_
    assert client.zrange(f"{{clerk}}:user:{id_}:sessions", 0, -1) == [id_]


# Times to live


@pytest.mark.parametrize(
    ("status", "expire_at", "retention_s", "ttl_ms"),
    [
        ("active", NOW_MS + DAY_MS, WEEK_S, 8 * DAY_MS),
        ("active", NOW_MS - DAY_MS, WEEK_S, 7 * DAY_MS),
        ("ended", NOW_MS + DAY_MS, WEEK_S, 8 * DAY_MS),
        ("active", NOW_MS + DAY_MS, 172_800, 3 * DAY_MS),
        ("active", NOW_MS + 392 * DAY_MS, WEEK_S, 399 * DAY_MS),
        ("active", NOW_MS + 394 * DAY_MS, WEEK_S, CAP_MS),
        ("active", 10**14, WEEK_S, CAP_MS),
        ("active", None, WEEK_S, CAP_MS),
        ("ended", None, 172_800, CAP_MS),
    ],
)
def test_a_session_outlives_its_end_by_the_retention_but_400_days_at_most(
    relay_redis: EmbeddedRedis, client: Any, status: str, expire_at: int | None, retention_s: int, ttl_ms: int
) -> None:
    with run_relay(relay_redis.url, session_retention=retention_s) as relay:
        relay.take(clerk_event(status, expire_at=expire_at), "msg_1")

    assert is_about(client.pttl(SESSION_KEY), ttl_ms)
    if client.exists(USER_KEY):
        assert is_about(client.pttl(USER_KEY), ttl_ms)


def test_a_users_time_to_live_grows_and_never_shrinks(relay: Relay, client: Any) -> None:
    ttls = []
    for number, days in enumerate([2, 30, 1]):
        event = clerk_event(session_id=f"sess_{number}", expire_at=NOW_MS + days * DAY_MS)
        relay.take(event, f"msg_{number}")
        ttls.append(client.pttl(USER_KEY))

    assert is_about(ttls[0], 9 * DAY_MS)
    assert is_about(ttls[1], 37 * DAY_MS)
    assert is_about(ttls[2], 37 * DAY_MS)


def test_a_session_that_ends_does_not_shorten_its_users_time_to_live(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(session_id="sess_1", expire_at=NOW_MS + 30 * DAY_MS), "msg_1")
    relay.take(clerk_event(session_id="sess_2", expire_at=NOW_MS + DAY_MS), "msg_2")

    relay.take(clerk_event("ended", updated_at=NOW_MS, expire_at=NOW_MS), "msg_3")

    assert is_about(client.pttl(USER_KEY), 37 * DAY_MS)


def test_a_late_event_keeps_a_session_for_as_long_as_its_sender_retries(relay: Relay, client: Any) -> None:
    relay.take(clerk_event("ended"), "msg_2")
    client.pexpire(SESSION_KEY, HOUR_MS)

    relay.take(clerk_event("active"), "msg_1")

    assert is_about(client.pttl(SESSION_KEY), 7 * DAY_MS)


# A session that changes its user


@pytest.mark.parametrize("late_first", [False, True], ids=["in order", "late first"])
def test_the_greater_event_names_the_user(relay: Relay, client: Any, late_first: bool) -> None:
    deliveries = [
        (clerk_event(user_id="user_1", updated_at=NOW_MS - 2000), "msg_1"),
        (clerk_event(user_id="user_2", updated_at=NOW_MS - 1000), "msg_2"),
    ]
    for event, message_id in reversed(deliveries) if late_first else deliveries:
        relay.take(event, message_id)

    assert client.hget(SESSION_KEY, "user_id") == "user_2"
    assert state(client)["session"]["user_id"] == "user_2"
    assert client.zrange("{clerk}:user:user_1:sessions", 0, -1) == []
    assert client.zrange("{clerk}:user:user_2:sessions", 0, -1) == ["sess_1"]


def test_the_old_users_other_sessions_stay(relay: Relay, client: Any) -> None:
    relay.take(clerk_event(session_id="sess_1", updated_at=NOW_MS - 2000), "msg_1")
    relay.take(clerk_event(session_id="sess_2", updated_at=NOW_MS - 2000), "msg_2")

    relay.take(clerk_event("ended", user_id="user_2", updated_at=NOW_MS - 1000), "msg_3")

    assert client.zrange(USER_KEY, 0, -1) == ["sess_2"]
    assert not client.exists("{clerk}:user:user_2:sessions")


# Dead letters

UNREADABLE = b'{"type":"session.created","data":{"id":"sess 1"},"user":"\xc3\xb8"}'


def test_a_dead_letter_is_kept_with_its_body(relay: Relay, client: Any) -> None:
    outcome = relay.take(UNREADABLE, "msg_1")

    assert outcome == Outcome("dead_lettered", reason="invalid_id")
    assert list(client.scan_iter("*")) == [DEAD_LETTERS_KEY]
    dead_letter = json.loads(client.hget(DEAD_LETTERS_KEY, "msg_1"))
    assert list(dead_letter) == ["id", "received_at", "reason", "detail", "body"]
    assert isinstance(dead_letter.pop("detail"), str)
    assert dead_letter == {"id": "msg_1", "received_at": NOW_MS, "reason": "invalid_id", "body": UNREADABLE.decode()}


def test_a_dead_letter_is_kept_once_per_message(relay: Relay, client: Any) -> None:
    first = relay.take(UNREADABLE, "msg_1")
    before = client.hgetall(DEAD_LETTERS_KEY)
    relay.now_ms += 5000

    again = relay.take(UNREADABLE, "msg_1")

    assert again == first
    assert client.hgetall(DEAD_LETTERS_KEY) == before


def test_a_full_box_refuses_one_more_but_knows_those_it_has(relay_redis: EmbeddedRedis, client: Any) -> None:
    with run_relay(relay_redis.url, dead_letter_max=2) as relay:
        for number in range(2):
            relay.take(UNREADABLE, f"msg_{number}")

        with pytest.raises(DeadLettersFullError):
            relay.take(UNREADABLE, "msg_2")

        assert relay.take(UNREADABLE, "msg_1").outcome == "dead_lettered"
        assert client.hlen(DEAD_LETTERS_KEY) == 2
        client.hdel(DEAD_LETTERS_KEY, "msg_0")
        assert relay.take(UNREADABLE, "msg_2").outcome == "dead_lettered"


def test_a_box_for_none_is_always_full(relay_redis: EmbeddedRedis, client: Any) -> None:
    with run_relay(relay_redis.url, dead_letter_max=0) as relay, pytest.raises(DeadLettersFullError):
        relay.take(UNREADABLE, "msg_1")

    assert not client.exists(DEAD_LETTERS_KEY)


def test_a_full_box_does_not_stop_sessions(relay_redis: EmbeddedRedis, client: Any) -> None:
    with run_relay(relay_redis.url, dead_letter_max=0) as relay:
        bad, good = relay.begin(UNREADABLE, "msg_1"), relay.begin(clerk_event(), "msg_2")

        assert good.result(timeout=30).outcome == "applied"
        assert isinstance(bad.exception(timeout=30), DeadLettersFullError)


# Readiness


def test_the_probe_leaves_no_trace(relay: Relay, client: Any) -> None:
    relay.call(relay.store.probe).result(timeout=30)
    assert list(client.scan_iter("*")) == []


# Races


def test_two_processes_that_race_for_the_same_messages_take_each_once(relay_redis: EmbeddedRedis, client: Any) -> None:
    deliveries = [(clerk_event(updated_at=NOW_MS - 1000 + i % 7), f"msg_{i}") for i in range(60)]

    def take_all(relay: Relay) -> list[Outcome]:
        futures = [relay.begin(event, message_id) for event, message_id in deliveries]
        return [future.result(timeout=30) for future in futures]

    with run_relay(relay_redis.url) as one, run_relay(relay_redis.url) as other, ThreadPoolExecutor(2) as threads:
        results = list(zip(*threads.map(take_all, [one, other]), strict=True))

    for both in results:
        assert sorted(result.outcome == "duplicate" for result in both) == [False, True]
        assert both[0].cursor == both[1].cursor
        assert both[0].revision == both[1].revision
    assert client.xlen(EVENTS_KEY) == len(deliveries)
    applied = [entry for _, entry in client.xrange(EVENTS_KEY) if entry["outcome"] == "applied"]
    assert client.hget(SESSION_KEY, "revision") == str(len(applied))
