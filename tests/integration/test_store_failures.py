"""A script that fails half-way: nothing of it remains, nothing was published, and a retry applies.

docs/contract.md, section 6. On a real Redis only: it is Redis that does the failing.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from structlog.testing import CapturingLogger
from support.constants import (
    DAY_MS,
    DEAD_LETTERS_KEY,
    EVENTS_KEY,
    EXPIRY_KEY,
    GONE_KEY,
    NOW_MS,
    PENDING_KEY,
    SESSION_KEY,
    USER_KEY,
)
from support.events import clerk_event, user_event
from support.redis_clients import client_of, contents, subscribed
from support.relay import Relay, make_settings, run_relay

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError
from service.models import Outcome
from service.store import pipeline
from service.workers.expiry import ExpiryWorker

CHANNELS = ("clerk:sessions", "clerk:sessions:user:user_1")


@pytest.fixture
def real_intake(real_redis: EmbeddedRedis, real_client: Any) -> Iterator[Relay]:
    with run_relay(real_redis.url) as relay:
        yield relay


UNREADABLE = b'{"type":"session.created"}'

HISTORIES: dict[str, Callable[[], list[Any]]] = {
    "a session never seen": list,
    "a live session": lambda: [clerk_event("active", updated_at=NOW_MS - 5000)],
    "a pending session": lambda: [clerk_event("pending", updated_at=NOW_MS - 5000)],
    "a live session of another user": lambda: [clerk_event("active", updated_at=NOW_MS - 5000, user_id="user_0")],
    "one of two live sessions": lambda: [
        clerk_event("active", updated_at=NOW_MS - 5000),
        clerk_event("active", updated_at=NOW_MS - 5000, session_id="sess_2"),
    ],
}
NEXT: dict[str, Callable[[], Any]] = {
    "an update": lambda: clerk_event("active", updated_at=NOW_MS - 1000, expire_at=NOW_MS + 20 * DAY_MS),
    "its end": lambda: clerk_event("ended", updated_at=NOW_MS - 1000),
    "a late event": lambda: clerk_event("pending", updated_at=NOW_MS - 9000),
}


KEYS = (USER_KEY, PENDING_KEY, GONE_KEY, EXPIRY_KEY, EVENTS_KEY, SESSION_KEY)


def needs(key: str, next_: str, history: str) -> bool:
    """Tell whether the event reads or writes a key."""
    if key == GONE_KEY:
        return next_ != "its end"
    is_stale = next_ == "a late event" and history != "a session never seen"
    if key == PENDING_KEY:
        return not is_stale and (history == "a pending session" or next_ == "a late event")
    return not is_stale or key in {EVENTS_KEY, SESSION_KEY}


@pytest.mark.parametrize("broken", KEYS)
@pytest.mark.parametrize("next_", NEXT)
@pytest.mark.parametrize("history", HISTORIES)
def test_a_failure_at_any_key_leaves_nothing_and_a_retry_applies(
    real_redis: EmbeddedRedis, real_intake: Relay, real_client: Any, history: str, next_: str, broken: str
) -> None:
    # Given: what was stored, and a key of the wrong type in the way
    for number, event in enumerate(HISTORIES[history]()):
        real_intake.take(event, f"msg_{number}")
    with client_of(real_redis.url, decode_responses=False) as binary:
        intact = binary.dump(broken)
        ttl = max(0, binary.pttl(broken))
        binary.delete(broken)
        binary.set(broken, "in the way", ex=3600)
        before = contents(real_client)

        # If: an event comes that would be written there
        with subscribed(real_client, *CHANNELS) as subscriber:
            result = real_intake.begin(NEXT[next_](), "msg_next").exception(timeout=30)
            if not needs(broken, next_, history):
                assert result is None
                assert real_client.get(broken) == "in the way"
                return
            # I expect: a refusal, nothing published, nothing changed
            assert isinstance(result, StoreUnavailableError)
            assert subscriber.rest() == []
        assert contents(real_client) == before

        # And, once the key is as it was: that the retry is no duplicate
        binary.delete(broken)
        if intact is not None:
            binary.restore(broken, ttl, intact)
    assert real_intake.take(NEXT[next_](), "msg_next").outcome in {"applied", "stale"}
    assert real_intake.take(NEXT[next_](), "msg_next").outcome == "duplicate"


@pytest.mark.parametrize("set_", ["sessions", "pending"])
def test_a_failure_at_the_old_users_set_leaves_nothing(real_intake: Relay, real_client: Any, set_: str) -> None:
    real_intake.take(clerk_event(user_id="user_0", updated_at=NOW_MS - 5000), "msg_1")
    real_client.delete(f"{{clerk}}:user:user_0:{set_}")
    real_client.set(f"{{clerk}}:user:user_0:{set_}", "in the way", ex=3600)
    before = contents(real_client)

    with pytest.raises(StoreUnavailableError):
        real_intake.take(clerk_event(user_id="user_1"), "msg_2")

    assert contents(real_client) == before
    real_client.delete(f"{{clerk}}:user:user_0:{set_}")
    assert real_intake.take(clerk_event(user_id="user_1"), "msg_2").outcome == "applied"


@pytest.mark.parametrize("broken", [USER_KEY, EXPIRY_KEY])
def test_an_expiry_is_as_it_was_if_its_extension_fails(
    real_redis: EmbeddedRedis, real_intake: Relay, real_client: Any, broken: str
) -> None:
    real_intake.take(clerk_event(updated_at=NOW_MS - 5000, expire_at=NOW_MS - 1), "msg_1")
    with contextlib.closing(ExpiryWorker(make_settings(real_redis.url), clock=lambda: NOW_MS / 1000)) as worker:
        assert worker.run_once() == (1, 0)
    extension = clerk_event(updated_at=NOW_MS - 4000, expire_at=NOW_MS + DAY_MS)
    real_client.set(broken, "in the way", ex=3600)
    before = contents(real_client)
    assert before[SESSION_KEY][0]["_base"]

    with pytest.raises(StoreUnavailableError):
        real_intake.take(extension, "msg_2")

    assert contents(real_client) == before
    real_client.delete(broken)
    assert real_intake.take(extension, "msg_2").outcome == "applied"
    assert "_base" not in real_client.hgetall(SESSION_KEY)


def test_a_users_end_that_fails_half_way_goes_on_there(real_intake: Relay, real_client: Any) -> None:
    real_intake.take(clerk_event("active"), "msg_1")
    real_client.set(PENDING_KEY, "in the way", ex=3600)
    with pytest.raises(StoreUnavailableError):
        real_intake.take(user_event(), "msg_end")
    assert real_client.hget(SESSION_KEY, "status") == "removed"

    real_client.delete(PENDING_KEY)
    assert real_intake.take(user_event(), "msg_end") == Outcome("applied", sessions=0)
    assert real_intake.take(user_event(), "msg_end") == Outcome("duplicate")


# A session's key of another type costs that session only: test_users.
@pytest.mark.parametrize("broken", [key for key in KEYS if key not in {PENDING_KEY, SESSION_KEY}])
def test_a_users_end_that_fails_at_any_key_publishes_nothing_and_a_retry_ends_all(
    real_redis: EmbeddedRedis, real_intake: Relay, real_client: Any, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    real_intake.take(clerk_event("active"), "msg_1")
    real_intake.take(clerk_event("active", session_id="sess_2"), "msg_2")
    real_intake.take(clerk_event("pending", session_id="sess_3"), "msg_3")
    with client_of(real_redis.url, decode_responses=False) as binary:
        intact = binary.dump(broken)
        binary.delete(broken)
        binary.set(broken, "in the way", ex=3600)
        before = contents(real_client)

        with subscribed(real_client, *CHANNELS) as subscriber:
            with pytest.raises(StoreUnavailableError):
                real_intake.take(user_event(), "msg_end")
            assert subscriber.rest() == []
        after = contents(real_client)
        mark, has_ttl = after.pop(GONE_KEY)
        assert has_ttl
        if broken != GONE_KEY:
            assert set(mark) == {"deleted", "deleted_at"}
        assert after == {key: value for key, value in before.items() if key != GONE_KEY}

        binary.delete(broken)
        if intact is not None:
            binary.restore(broken, 3_600_000, intact)
    assert real_intake.take(user_event(), "msg_end") == Outcome("applied", sessions=3)
    ended = [real_client.hget(key, "status") for key in real_client.scan_iter("{clerk}:session:*")]
    assert ended == ["removed"] * 3
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []  # of errors that nobody read


@pytest.mark.parametrize("allowed", [(), ("clerk:sessions",), ("clerk:sessions:user:*",)])
@pytest.mark.parametrize("history", HISTORIES)
def test_a_user_that_may_not_publish_leaves_nothing(
    own_redis: EmbeddedRedis, own_client: Any, history: str, allowed: tuple[str, ...]
) -> None:
    with run_relay(own_redis.url) as relay:
        for number, event in enumerate(HISTORIES[history]()):
            relay.take(event, f"msg_{number}")
    rules = ["on", ">secret", "~*", "+@all", "resetchannels", *(f"&{channel}" for channel in allowed)]
    own_client.execute_command("ACL", "SETUSER", "relay", *rules)
    before = contents(own_client)
    url = own_redis.url.replace("redis://", "redis://relay:secret@")

    with subscribed(own_client, *CHANNELS) as subscriber, run_relay(url) as relay:
        with pytest.raises(StoreUnavailableError):
            relay.take(NEXT["an update"](), "msg_next")
        published = subscriber.rest()
        if not own_client.info("server")["redis_version"].startswith("6."):  # which can't be asked for rights
            assert published == []
        assert contents(own_client) == before

        own_client.execute_command("ACL", "SETUSER", "relay", "allchannels")
        assert relay.take(NEXT["an update"](), "msg_next").outcome == "applied"
        assert len(subscriber.rest()) == 2


def skip_unless_rights_can_be_asked_for(client: Any) -> None:
    if client.info("server")["redis_version"].startswith("6."):
        pytest.skip("Redis 6.2 can't tell a script about rights")


WITHDRAWN = [
    "-xdel -hset",
    *(f"-{command}" for command in ("xadd", "xdel", "hset", "hdel", "del", "pexpire", "zadd", "zrem", "publish")),
    *(f"-@{category}" for category in ("hash", "sortedset", "stream", "keyspace", "pubsub", "write", "read")),
    *(f"resetchannels &{channel}" for channel in ("clerk:sessions", "clerk:sessions:user:*")),
]


@pytest.mark.parametrize("withdrawn", WITHDRAWN)
@pytest.mark.parametrize("next_", NEXT)
@pytest.mark.parametrize("history", HISTORIES)
def test_a_right_that_is_withdrawn_from_a_connection_leaves_all_of_an_event_or_nothing(
    own_redis: EmbeddedRedis, own_client: Any, history: str, next_: str, withdrawn: str
) -> None:
    skip_unless_rights_can_be_asked_for(own_client)
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", "~*", "allchannels", "+@all")
    with (
        subscribed(own_client, *CHANNELS) as subscriber,
        run_relay(own_redis.url.replace("redis://", "redis://relay:secret@")) as relay,
    ):
        relay.take(clerk_event(session_id="sess_3"), "msg_before")  # so that the rights have been asked for
        for number, event in enumerate(HISTORIES[history]()):
            relay.take(event, f"msg_{number}")
        before = contents(own_client)
        subscriber.rest()

        own_client.execute_command("ACL", "SETUSER", "relay", *withdrawn.split())
        error = relay.begin(NEXT[next_](), "msg_next").exception(timeout=30)

        if error is not None:
            assert isinstance(error, StoreUnavailableError)
            assert contents(own_client) == before
            assert subscriber.rest() == []
            own_client.execute_command("ACL", "SETUSER", "relay", "+@all", "allchannels")
            assert relay.take(NEXT[next_](), "msg_next").outcome in {"applied", "stale"}
        own_client.execute_command("ACL", "SETUSER", "relay", "+@all", "allchannels")
        assert relay.take(NEXT[next_](), "msg_next").outcome == "duplicate"


def test_all_rights_are_asked_for_once_for_each_connection_and_after_a_refusal(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    skip_unless_rights_can_be_asked_for(own_client)

    def allow(*rules: str) -> None:
        own_client.execute_command("ACL", "SETUSER", "relay", *rules)

    allow("on", ">secret", "~*", "allchannels", "+@all")
    with run_relay(own_redis.url.replace("redis://", "redis://relay:secret@")) as relay:

        def outcome(message_id: str) -> str | None:
            error = relay.begin(clerk_event(session_id=f"sess_{message_id}"), message_id).exception(timeout=30)
            return None if error is None else str(error)

        assert outcome("msg_0") is None  # it was submitted before there was a connection
        assert outcome("msg_1") is None
        allow("-del")  # a right that only undoing takes
        assert outcome("msg_2") is None
        for client in own_client.client_list():
            if client["user"] == "relay":
                own_client.client_kill_filter(_id=client["id"])
        assert outcome("msg_3") is None  # it was submitted before there was another connection
        assert "NOPERM" in str(outcome("msg_4"))
        allow("+del")
        assert outcome("msg_4") is None

        allow("-hset")
        assert "NOPERM" in str(outcome("msg_5"))
        allow("+hset", "-del")
        assert "NOPERM" in str(outcome("msg_5"))


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("next_", NEXT)
def test_a_full_memory_leaves_nothing_and_still_answers_duplicates(
    own_redis: EmbeddedRedis, own_client: Any, history: str, next_: str
) -> None:
    with run_relay(own_redis.url) as relay:
        for number, event in enumerate(HISTORIES[history]()):
            relay.take(event, f"msg_{number}")
        before = contents(own_client)
        own_client.config_set("maxmemory", "1")

        with pytest.raises(StoreUnavailableError):
            relay.take(NEXT[next_](), "msg_next")
        with pytest.raises(StoreUnavailableError):
            relay.take(UNREADABLE, "msg_bad")
        with pytest.raises(StoreUnavailableError):
            relay.call(relay.store.probe).result(timeout=30)
        if history != "a session never seen":
            assert relay.take(HISTORIES[history]()[0], "msg_0").outcome == "duplicate"
        assert contents(own_client) == before

        own_client.config_set("maxmemory", "0")
        assert relay.take(NEXT[next_](), "msg_next").outcome in {"applied", "stale"}
        assert relay.take(UNREADABLE, "msg_bad").outcome == "dead_lettered"


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("next_", NEXT)
def test_wherever_memory_runs_out_all_of_an_event_is_there_or_nothing(
    own_redis: EmbeddedRedis, own_client: Any, history: str, next_: str
) -> None:
    refused = 0
    with run_relay(own_redis.url) as relay:
        for number, event in enumerate(HISTORIES[history]()):
            relay.take(event, f"msg_{number}")
        before = contents(own_client)
        for spare in range(-100_000, 200_000, 1000):  # at first too little for sure: what it uses varies
            own_client.config_set("maxmemory", own_client.info("memory")["used_memory"] + spare)
            error = relay.begin(NEXT[next_](), "msg_next").exception(timeout=30)
            own_client.config_set("maxmemory", "0")
            if error is None:
                break
            assert contents(own_client) == before
            refused += 1
        assert refused > 0, "memory never ran out"
        assert relay.take(NEXT[next_](), "msg_next").outcome == "duplicate"


def test_a_full_memory_ends_nothing_and_still_answers_duplicates(own_redis: EmbeddedRedis, own_client: Any) -> None:
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event("active"), "msg_1")
        relay.take(user_event(user_id="user_2"), "msg_2")
        before = contents(own_client)
        own_client.config_set("maxmemory", "1")

        with pytest.raises(StoreUnavailableError):
            relay.take(user_event(), "msg_end")
        assert relay.take(user_event(user_id="user_2"), "msg_2") == Outcome("duplicate")
        assert contents(own_client) == before

        own_client.config_set("maxmemory", "0")
        assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=1)


@pytest.mark.parametrize("denied", ["hset", "pexpire"])
def test_a_user_that_may_not_mark_leaves_no_mark(own_redis: EmbeddedRedis, own_client: Any, denied: str) -> None:
    rules = ["on", ">secret", "~*", "allchannels", "+@all", f"-{denied}"]
    own_client.execute_command("ACL", "SETUSER", "relay", *rules)
    url = own_redis.url.replace("redis://", "redis://relay:secret@")

    with run_relay(url) as relay:
        with pytest.raises(StoreUnavailableError):
            relay.take(user_event(), "msg_end")
        assert contents(own_client) == {}

        own_client.execute_command("ACL", "SETUSER", "relay", f"+{denied}")
        assert relay.take(user_event(), "msg_end") == Outcome("applied", sessions=0)


def test_a_dead_letter_box_of_the_wrong_type_is_a_refusal(real_intake: Relay, real_client: Any) -> None:
    real_client.set(DEAD_LETTERS_KEY, "in the way")

    with pytest.raises(StoreUnavailableError):
        real_intake.take(UNREADABLE, "msg_1")

    real_client.delete(DEAD_LETTERS_KEY)
    assert real_intake.take(UNREADABLE, "msg_1").outcome == "dead_lettered"


# Rights

SESSION_KEYS = [f"~{key}" for key in ("{clerk}:session:*", "{clerk}:user:*", "{clerk}:events", "{clerk}:expiry")]


def failures_of(url: str, event: Any) -> list[str]:
    """Return the kinds of errors that are counted for a delivery that Redis refuses."""
    failures: list[str] = []
    with run_relay(url) as relay:
        relay.store.set_metrics_hooks(lambda *_: None, failures.append)
        with pytest.raises(StoreUnavailableError):
            relay.take(event, "msg_refused")
    return failures


@pytest.mark.parametrize(
    ("command", "event"),
    [
        *((command, clerk_event()) for command in ("evalsha", "script", "exists", "xadd", "pttl", "hset")),
        *((command, clerk_event()) for command in ("pexpire", "zadd", "publish")),
        ("zrem", clerk_event("ended")),
        *((command, UNREADABLE) for command in ("hexists", "hlen", "hset")),
        *((command, user_event()) for command in ("hmget", "exists", "hset", "pexpire")),
    ],
)
def test_a_command_that_the_user_may_not_run_is_a_missing_right(
    own_redis: EmbeddedRedis, own_client: Any, command: str, event: Any
) -> None:
    rules = ["on", ">secret", "~*", "allchannels", "+@all", f"-{command}"]
    own_client.execute_command("ACL", "SETUSER", "relay", *rules)

    assert failures_of(own_redis.url.replace("redis://", "redis://relay:secret@"), event) == ["NOPERM"]


def test_a_right_that_only_later_events_take_is_missing_at_the_first(own_redis: EmbeddedRedis, own_client: Any) -> None:
    skip_unless_rights_can_be_asked_for(own_client)
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", "~*", "allchannels", "+@all", "-hmget")

    assert failures_of(own_redis.url.replace("redis://", "redis://relay:secret@"), clerk_event()) == ["NOPERM"]


@pytest.mark.parametrize("missing", SESSION_KEYS)
def test_a_key_that_the_user_may_not_use_is_a_missing_right(
    own_redis: EmbeddedRedis, own_client: Any, missing: str
) -> None:
    keys = [key for key in SESSION_KEYS if key != missing]
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", *keys, "allchannels", "+@all")

    assert failures_of(own_redis.url.replace("redis://", "redis://relay:secret@"), clerk_event()) == ["NOPERM"]


@pytest.mark.parametrize("allowed", ["clerk:sessions", "clerk:sessions:user:*"])
def test_a_channel_that_the_user_may_not_use_is_a_missing_right_and_the_log_says_what_to_do(
    own_redis: EmbeddedRedis, own_client: Any, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr(pipeline, "log", logger)
    rules = ["on", ">secret", "~*", "resetchannels", f"&{allowed}", "+@all"]
    own_client.execute_command("ACL", "SETUSER", "relay", *rules)

    assert failures_of(own_redis.url.replace("redis://", "redis://relay:secret@"), clerk_event()) == ["NOPERM"]
    (line,) = logger.calls
    assert line.kwargs["error"] == "NOPERM"
    assert line.kwargs["detail"].endswith(": give the user the rights that docs/redis.md lists")


def test_a_session_of_another_user_that_may_not_be_touched_is_a_missing_right(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    # Its name stands in the session, not among the KEYS: Redis notices when the script comes to it.
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event(user_id="user_0", updated_at=NOW_MS - 5000), "msg_1")
    keys = [*SESSION_KEYS, "~{clerk}:user:user_1:*"]
    keys.remove("~{clerk}:user:*")
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", *keys, "allchannels", "+@all")

    assert failures_of(own_redis.url.replace("redis://", "redis://relay:secret@"), clerk_event()) == ["NOPERM"]
