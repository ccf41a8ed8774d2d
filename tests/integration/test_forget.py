"""What a deletion request removes, and what it leaves: at the stores' level; the command is in test_revoke_command.py."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from clerk_session_feed import CursorLostError
from clerk_session_feed.keys import partition_of
from support.constants import DAY_MS, DEAD_LETTERS_KEY, EVENTS_KEY, EXPIRY_KEY, NOW_MS, SESSION_KEY, USER_KEY
from support.events import clerk_event
from support.feeds import OpenFeed
from support.redis_clients import client_of, contents, monitored
from support.relay import Relay, make_settings, run_relay

from service.dev.embedded import EmbeddedRedis
from service.store import forget, revokes
from service.store.forget import Forgotten, forget_user

GONE_KEY = "{clerk}:user:user_1:gone"
DELETED = {"type": "user.deleted", "object": "event", "timestamp": NOW_MS, "data": {"id": "user_1", "deleted": True}}


def live(relay: Relay, session_id: str, user_id: str = "user_1", **values: Any) -> None:
    relay.take(clerk_event(session_id=session_id, user_id=user_id, **values), f"msg_{session_id}")


def dead_letter(relay: Relay, message_id: str, event: Any) -> None:
    assert relay.take(event, message_id).outcome == "dead_lettered"


def unreadable(user_id: str, spelling: str = "user_id") -> Any:
    event = clerk_event(user_id=user_id)
    del event["data"]["user_id"]
    event["data"] |= {spelling: user_id, "status": "paused"}
    return event


def forgotten_on(server: EmbeddedRedis, user_id: str = "user_1", **settings: Any) -> Forgotten:
    return forget_user(make_settings(server.url, **settings), user_id)


def mentions(client: Any, user_id: str = "user_1") -> list[str]:
    """Return the keys whose name, or whose content in any form, names a user."""
    return sorted(key for key, value in contents(client).items() if user_id in f"{key} {value!r}")


def test_nothing_of_the_user_stays_but_the_mark_of_the_deletion(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any
) -> None:
    live(relay, "sess_live")
    live(relay, "sess_pending", status="pending")
    live(relay, "sess_ended", status="ended")
    live(relay, "sess_endless", expire_at=None)
    relay.take(clerk_event(session_id="sess_ended", updated_at=NOW_MS - 5000), "msg_stale")
    for spelling in ("user_id", "userId"):
        dead_letter(relay, f"msg_{spelling}", unreadable("user_1", spelling))
    relay.take(DELETED, "msg_deleted")
    revokes.add(relay.store.partitions[0], ["sess_live"], NOW_MS)
    assert len(mentions(client)) > 5

    forgotten = forgotten_on(relay_redis)

    assert mentions(client) == [GONE_KEY]
    assert set(client.hgetall(GONE_KEY)) == {"deleted", "deleted_at", "done"}
    assert "user_1" not in json.dumps(client.hgetall(GONE_KEY))
    assert forgotten == Forgotten(is_deleted=True, sessions=4, entries=8, dead_letters=2)
    assert client.exists(EXPIRY_KEY, "{clerk}:revokes") == 0


def test_what_is_stored_of_others_stays_as_it_is(relay: Relay, relay_redis: EmbeddedRedis, client: Any) -> None:
    live(relay, "sess_2", "user_2")
    live(relay, "sess_10", "user_10")  # whose id begins like the other's
    live(relay, "sess_3", "user_3", actor={"sub": "user_1"})
    dead_letter(relay, "msg_dead", unreadable("user_10"))
    revokes.add(relay.store.partitions[0], ["sess_2"], NOW_MS)
    before = contents(client)
    live(relay, "sess_1")

    forgotten_on(relay_redis)

    assert contents(client) == before


def test_it_counts_sessions_that_were_open(relay: Relay, relay_redis: EmbeddedRedis, client: Any) -> None:
    live(relay, "sess_live")
    live(relay, "sess_pending", status="pending")
    live(relay, "sess_ended", status="ended")

    assert forgotten_on(relay_redis) == Forgotten(sessions=3, open_sessions=2, entries=3)


def test_a_user_who_is_banned_is_not_deleted(relay: Relay, relay_redis: EmbeddedRedis, client: Any) -> None:
    banned = {"id": "user_1", "banned": True, "updated_at": NOW_MS}
    relay.take(DELETED | {"type": "user.updated", "data": banned}, "msg_banned")

    assert not forgotten_on(relay_redis).is_deleted


def test_nothing_is_removed_of_a_user_of_whom_nothing_is_stored(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any
) -> None:
    assert forgotten_on(relay_redis) == Forgotten()
    assert contents(client) == {}


@pytest.mark.parametrize("lost", [[USER_KEY, EVENTS_KEY], [SESSION_KEY, USER_KEY], [SESSION_KEY, EVENTS_KEY]])
def test_each_trace_is_found_without_the_others(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any, lost: list[str]
) -> None:
    live(relay, "sess_1")
    client.delete(*lost)

    forgotten_on(relay_redis)

    assert mentions(client) == []
    assert client.exists(EXPIRY_KEY) == 0


def test_more_than_fits_into_one_step_is_removed(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHUNK", "PAGE", "SCAN_COUNT", "DEAD_LETTERS"):
        monkeypatch.setattr(forget, name, 3)
    for n in range(20):
        live(relay, f"sess_{n}", status="active" if n % 2 else "ended")
        live(relay, f"sess_other_{n}", "user_2")
        dead_letter(relay, f"msg_dead_{n}", unreadable("user_1"))

    forgotten = forgotten_on(relay_redis)

    assert forgotten == Forgotten(sessions=20, open_sessions=10, entries=20, dead_letters=20)
    assert mentions(client) == []
    assert client.xlen(EVENTS_KEY) == client.zcard("{clerk}:user:user_2:sessions") == 20


def test_a_session_that_became_another_users_stays(relay: Relay, relay_redis: EmbeddedRedis, client: Any) -> None:
    live(relay, "sess_1")
    relay.take(clerk_event(user_id="user_2", updated_at=NOW_MS), "msg_2")
    client.zadd(USER_KEY, {"sess_1": NOW_MS + DAY_MS})  # as if the set was left behind
    client.expire(USER_KEY, 100)

    forgotten = forgotten_on(relay_redis)

    assert forgotten == Forgotten(entries=1)
    assert mentions(client) == []
    assert client.hget(SESSION_KEY, "user_id") == "user_2"
    assert client.zscore(EXPIRY_KEY, "sess_1") is not None


def test_a_user_is_forgotten_in_his_partition(relay_redis: EmbeddedRedis, client: Any) -> None:
    users = [f"user_{n}" for n in range(8)]
    assert {partition_of(each, 4) for each in users} == {0, 1, 2, 3}
    with run_relay(relay_redis.url, partitions=4) as relay:
        for user in users:
            live(relay, f"sess_{user}", user)
            dead_letter(relay, f"msg_dead_{user}", unreadable(user))

    for user in users:
        assert forgotten_on(relay_redis, user, partitions=4) == Forgotten(
            sessions=1, open_sessions=1, entries=1, dead_letters=1
        )

    assert contents(client).keys() == {"{clerk}:partitions"}


@pytest.mark.parametrize("spelling", ["user_id", "userId", "id"])
def test_a_dead_letter_is_found_by_each_name_of_the_users_id(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any, spelling: str
) -> None:
    dead_letter(relay, "msg_1", {"type": "session.created", "data": {"nested": {spelling: "user_1"}}})
    dead_letter(relay, "msg_2", {"type": "session.created", "data": {"nested": {spelling: "user_11"}}})

    assert forgotten_on(relay_redis).dead_letters == 1
    assert client.hkeys(DEAD_LETTERS_KEY) == ["msg_2"]


def test_what_is_no_dead_letter_is_removed_if_it_names_the_user(relay_redis: EmbeddedRedis, client: Any) -> None:
    client.hset(DEAD_LETTERS_KEY, mapping={"odd": '{"user_id": "user_1"}', "bytes": b"\xff user_2"})

    assert forgotten_on(relay_redis).dead_letters == 1
    assert client.hkeys(DEAD_LETTERS_KEY) == ["bytes"]


def test_a_dead_letter_of_another_version_is_removed_if_its_body_names_the_user(
    relay_redis: EmbeddedRedis, client: Any
) -> None:
    bodies = {
        user_id: json.dumps(unreadable(user_id), indent=1).replace(":", " :\n") for user_id in ("user_1", "user_11")
    }
    texts = {user_id: json.dumps({"v": 9, "body": body}) for user_id, body in bodies.items()}
    client.hset(DEAD_LETTERS_KEY, mapping=texts)

    assert forgotten_on(relay_redis).dead_letters == 1
    assert client.hkeys(DEAD_LETTERS_KEY) == ["user_11"]


def test_a_late_event_of_a_deleted_user_opens_nothing(relay: Relay, relay_redis: EmbeddedRedis, client: Any) -> None:
    relay.take(DELETED, "msg_deleted")
    live(relay, "sess_1")
    forgotten_on(relay_redis)

    live(relay, "sess_1")

    assert client.hget(SESSION_KEY, "status") == "removed"


def test_what_was_interrupted_is_finished_by_the_next_run(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget, "CHUNK", 2)
    for n in range(6):
        live(relay, f"sess_{n}")

    remove, steps = forget._User._remove, []

    def remove_then_die(*arguments: Any) -> None:
        remove(*arguments)
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(forget._User, "_remove", remove_then_die)
    with pytest.raises(KeyboardInterrupt):
        forgotten_on(relay_redis)
    assert mentions(client)

    forgotten_on(relay_redis)

    assert mentions(client) == []
    assert client.exists(EXPIRY_KEY) == 0


def test_deliveries_meanwhile_lose_nothing_of_others(relay: Relay, relay_redis: EmbeddedRedis, client: Any) -> None:
    for n in range(50):
        live(relay, f"sess_{n}")
    with ThreadPoolExecutor(1) as threads:
        forgetting = threads.submit(forgotten_on, relay_redis)
        for n in range(100):
            live(relay, f"sess_other_{n}", "user_2")
        forgotten = forgetting.result(timeout=30)

    assert forgotten.sessions == forgotten.entries == 50
    assert mentions(client) == []
    assert client.zcard("{clerk}:user:user_2:sessions") == client.xlen(EVENTS_KEY) == 100


# Followers


def test_a_follower_whose_last_entry_was_removed_learns_that_it_begins_again(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any, open_feed: OpenFeed
) -> None:
    live(relay, "sess_2", "user_2")
    live(relay, "sess_1")
    feed = open_feed(relay_redis.url)
    cursor = feed.follow("0-0").take(2)[-1].cursor
    forgotten_on(relay_redis)

    with pytest.raises(CursorLostError):
        feed.follow(cursor).next()
    assert feed.follow(cursor, resync=True).next().session.id == "sess_2"


def test_a_follower_whose_last_entry_is_anothers_goes_on(
    relay: Relay, relay_redis: EmbeddedRedis, client: Any, open_feed: OpenFeed
) -> None:
    live(relay, "sess_1")
    live(relay, "sess_2", "user_2")
    live(relay, "sess_1", updated_at=NOW_MS)
    feed = open_feed(relay_redis.url)
    cursor = client.xrange(EVENTS_KEY)[1][0]
    forgotten_on(relay_redis)
    live(relay, "sess_3", "user_2")

    assert feed.follow(cursor).next().session.id == "sess_3"


# What Redis has of another type. The stand-in closes connections after errors.


@pytest.mark.parametrize("key", [USER_KEY, EXPIRY_KEY, "{clerk}:revokes", GONE_KEY, EVENTS_KEY, DEAD_LETTERS_KEY])
def test_a_key_of_another_type_is_named(real_redis: EmbeddedRedis, real_client: Any, key: str) -> None:
    real_client.set(key, "text")

    with pytest.raises(redis.ResponseError) as raised:
        forgotten_on(real_redis)

    assert str(raised.value).startswith(f"{key} is a string, not a ")
    assert real_client.get(key) == "text"


def test_a_key_that_is_named_like_a_sessions_stays_and_is_named(real_redis: EmbeddedRedis, real_client: Any) -> None:
    real_client.set(SESSION_KEY, "text")
    real_client.zadd(USER_KEY, {"sess_1": 1})
    real_client.expire(USER_KEY, 100)

    assert forgotten_on(real_redis) == Forgotten(wrong_type={SESSION_KEY})
    assert contents(real_client) == {SESSION_KEY: ("text", False)}


def test_no_command_names_more_than_a_chunk(real_redis: EmbeddedRedis, real_client: Any) -> None:
    with run_relay(real_redis.url) as relay:
        relay.take_all((clerk_event(session_id=f"sess_{n}"), f"msg_{n}") for n in range(500))
    with client_of(real_redis.url) as watcher, monitored(watcher) as commands:
        assert forgotten_on(real_redis).sessions == 500

    assert {"DEL", "ZREM", "XDEL"} <= {command.split()[0] for command in commands}
    assert max(len(command.split()) for command in commands) <= forget.CHUNK + 2


def test_a_full_redis_gets_room(own_redis: EmbeddedRedis, own_client: Any) -> None:
    with run_relay(own_redis.url) as relay:
        live(relay, "sess_1")
        dead_letter(relay, "msg_dead", unreadable("user_1"))
    own_client.config_set("maxmemory", "1")

    forgotten = forgotten_on(own_redis)

    assert forgotten == Forgotten(sessions=1, open_sessions=1, entries=1, dead_letters=1)
    assert mentions(own_client) == []
