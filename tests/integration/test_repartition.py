"""The move of what is stored to another number of partitions."""

import contextlib
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from clerk_session_feed.cursors import position
from clerk_session_feed.errors import ConfigurationError, CursorLostError
from clerk_session_feed.keys import Keys, partition_of
from support.clock import eventually
from support.constants import NOW_MS, ROOT
from support.events import clerk_event
from support.feeds import OpenFeed
from support.partitions import fill, misplaced, portrait
from support.redis_clients import contents, counts_entries
from support.relay import make_settings, run_relay
from support.topologies import cluster_of

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError
from service.store import places
from service.store.layout import PartitionsError
from service.store.partitions import refuse_other_partitions
from service.store.places import Places, RepartitionError
from service.workers.moving import Moved
from service.workers.repartition import repartition

MOVES = [(1, 8), (8, 1), (3, 5), (5, 3), (2, 4)]
AFTER_MARKS = 5
"""The write after those that mark the whole and 3 partitions, and record where the new streams begin."""
TTL_MS = 60_000
"""How much two TTLs of one key may differ, that were asked for one after the other."""


@pytest.fixture
def relay_redis(real_redis: EmbeddedRedis) -> EmbeddedRedis:
    """A real one: a single test shows that a move works on the stand-in, too."""
    return real_redis


def move(redis_url: str, to: int, was: int | None = None, **settings: Any) -> Moved:
    return repartition(make_settings(redis_url, **settings), to, was=was)


def assert_same(after: Any, before: Any) -> None:
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys()
    assert [
        (key, after[1][key], before[1][key]) for key in before[1] if abs(after[1][key] - before[1][key]) >= TTL_MS
    ] == []


class KilledError(BaseException):
    """Stands for the end of a process."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, *, before: bool) -> None:
    """Let a run end at its n-th write: just before it, or just after."""
    write, count = Places.write, itertools.count()

    def write_or_die(*arguments: Any) -> None:
        is_last = next(count) == number
        if is_last and before:
            raise KilledError
        write(*arguments)
        if is_last:
            raise KilledError

    monkeypatch.setattr(Places, "write", write_or_die)


@pytest.mark.parametrize(("was", "to"), MOVES)
def test_all_that_is_stored_is_in_its_new_place(relay_redis: EmbeddedRedis, client: Any, was: int, to: int) -> None:
    assert_all_moves(relay_redis, client, was, to)


def test_all_that_the_stand_in_stores_is_in_its_new_place(stand_in: EmbeddedRedis, lasting_client: Any) -> None:
    client = lasting_client(stand_in)
    client.flushall()
    assert_all_moves(stand_in, client, 3, 5)


def assert_all_moves(server: EmbeddedRedis, client: Any, was: int, to: int) -> None:
    fill(server.url, was)
    before = portrait(client)

    moved = move(server.url, to)

    assert_same(portrait(client), before)
    assert misplaced(client, to) == []
    assert moved.part == 1.0
    assert moved.sessions > 0
    assert moved.unreadable == set()


@pytest.mark.parametrize(("was", "to"), MOVES)
def test_the_relay_goes_on_with_the_new_number(relay_redis: EmbeddedRedis, client: Any, was: int, to: int) -> None:
    fill(relay_redis.url, was)
    move(relay_redis.url, to)

    with run_relay(relay_redis.url, partitions=to) as relay:
        again = [
            relay.take(clerk_event("revoked", session_id=f"sess_{n}_revoked", user_id=f"user_{n}"), f"msg_revoked_{n}")
            for n in range(9)
        ]
        late = [
            relay.take(clerk_event(session_id=f"sess_{n}_revoked", user_id=f"user_{n}"), f"msg_new_{n}")
            for n in range(9)
        ]
        opened = relay.take(clerk_event(session_id="sess_late", user_id="user_gone_0"), "msg_opened")

    assert {each.outcome for each in again} == {"duplicate"}
    assert {each.outcome for each in late} == {"stale"}
    assert opened.outcome == "applied"
    (key,) = client.scan_iter("*:session:sess_late")
    assert client.hget(key, "status") == "removed"


@pytest.mark.parametrize("before", [True, False])
def test_wherever_a_run_is_killed_the_next_one_goes_on(
    real_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, before: bool, lasting_client: Any
) -> None:
    client = lasting_client(real_redis)
    monkeypatch.setattr(places, "SCAN_COUNT", 40)
    client.flushall()
    fill(real_redis.url, 3)
    stored = portrait(client)
    kills = 0
    for number in itertools.count(int(before)):  # nothing has begun before the first write
        with monkeypatch.context() as patch:
            killed_at(patch, number, before=before)
            try:
                move(real_redis.url, 5)
                break
            except KilledError:
                kills += 1
        with run_relay(real_redis.url, partitions=3) as old, pytest.raises(StoreUnavailableError):
            old.take(clerk_event(), "msg_meanwhile")
        assert number < 500

    assert kills > 10
    assert_same(portrait(client), stored)
    assert misplaced(client, 5) == []


def test_meanwhile_a_connected_relay_takes_nothing(
    relay_redis: EmbeddedRedis, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(relay_redis.url, 1)
    with run_relay(relay_redis.url) as relay:
        relay.take(clerk_event(), "msg_before")
        with monkeypatch.context() as patch:
            killed_at(patch, AFTER_MARKS, before=True)
            with pytest.raises(KilledError):
                move(relay_redis.url, 3)
        stored = contents(client)
        for event in (clerk_event(), {"type": "user.deleted", "data": {"id": "user_1", "deleted": True}}):
            with pytest.raises(PartitionsError, match=r"^PARTITIONS=1, but .* from 1 partitions to 3: wait for .*$"):
                relay.take(event, "msg_meanwhile")
        with pytest.raises(PartitionsError):
            relay.call(relay.store.probe).result(timeout=30)
        assert contents(client) == stored

        move(relay_redis.url, 1)  # back
        relay.call(relay.store.probe).result(timeout=30)
        assert relay.take(clerk_event(), "msg_meanwhile").outcome == "applied"


def test_a_relay_of_the_old_number_takes_nothing_afterwards(relay_redis: EmbeddedRedis, client: Any) -> None:
    fill(relay_redis.url, 3)
    with run_relay(relay_redis.url, partitions=3) as relay:
        relay.take(clerk_event(), "msg_before")
        move(relay_redis.url, 5)

        with pytest.raises(PartitionsError, match=r"^PARTITIONS=3, but the data has 5: set PARTITIONS=5, or move .*$"):
            relay.take(clerk_event(updated_at=NOW_MS), "msg_after")


def test_another_number_is_refused_until_the_move_is_done(
    relay_redis: EmbeddedRedis, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(relay_redis.url, 1)
    with monkeypatch.context() as patch:
        killed_at(patch, 1, before=True)
        with pytest.raises(KilledError):
            move(relay_redis.url, 3)

    with pytest.raises(RepartitionError, match="finish that with --to 3, or take it back with --to 1"):
        move(relay_redis.url, 4)


def test_a_run_that_stood_still_anywhere_writes_nothing_after_another_has_finished(
    real_redis: EmbeddedRedis, lasting_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = lasting_client(real_redis)
    write = Places.write
    for number in range(12):  # the first marks the whole, the next ones the partitions
        client.flushall()
        fill(real_redis.url, 1)
        count, after = itertools.count(), list[Any]()

        def finish_first(*arguments: Any, at: int = number, count: Any = count, after: Any = after) -> None:
            if next(count) == at:
                with monkeypatch.context() as patch:
                    patch.setattr(Places, "write", write)
                    move(real_redis.url, 3)
                with run_relay(real_redis.url, partitions=3) as relay:
                    relay.take(clerk_event("ended", session_id="sess_0_live", user_id="user_0"), "msg_ended")
                after.append(contents(client))
            write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Places, "write", finish_first)
            with pytest.raises(RepartitionError, match="Another run"):
                move(real_redis.url, 3)

        assert [contents(client)] == after


def test_what_is_taken_while_the_last_partitions_are_settled_stays(
    relay_redis: EmbeddedRedis, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(relay_redis.url, 1)
    with monkeypatch.context() as patch:
        killed_at(patch, AFTER_MARKS, before=True)
        with pytest.raises(KilledError):
            move(relay_redis.url, 3)
    writes = 0
    write = Places.write

    def counted(*arguments: Any) -> None:
        nonlocal writes
        writes += 1
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Places, "write", counted)
        move(relay_redis.url, 3)
    client.flushall()
    fill(relay_redis.url, 1)
    with monkeypatch.context() as patch:
        killed_at(patch, writes - 3, before=False)  # the whole and the first partition are settled
        with contextlib.suppress(KilledError):
            move(relay_redis.url, 3)
    marks = [client.hget(keys.layout, "partitions") for keys in (Keys(), *Keys().split(3))]
    assert marks[:2] == ["3", "3"]
    assert ">" in marks[3]
    user = next(f"user_{n}" for n in range(99) if partition_of(f"user_{n}", 3) == 0)

    with pytest.raises(ConfigurationError, match=r"being moved from 1 partitions to 3: wait for .*, or run it again"):
        refuse_other_partitions(make_settings(relay_redis.url, partitions=3))
    with run_relay(relay_redis.url, partitions=3) as relay:
        taken = relay.take(clerk_event(session_id="sess_new", user_id=user), "msg_new")
        with pytest.raises(PartitionsError):
            relay.call(relay.store.probe).result(timeout=30)
        move(relay_redis.url, 3)
        relay.call(relay.store.probe).result(timeout=30)

    assert [id_ for id_, _ in client.xrange("{clerk:0}:events")] == [taken.cursor]
    assert [client.hget(keys.layout, "partitions") for keys in Keys().split(3)] == ["3", "3", "3"]


def test_the_next_move_begins_its_streams_behind_the_last_entries(relay_redis: EmbeddedRedis, client: Any) -> None:
    fill(relay_redis.url, 1)
    move(relay_redis.url, 3)
    with run_relay(relay_redis.url, partitions=3) as relay:
        newest = relay.take(clerk_event(session_id="sess_new"), "msg_new").cursor
    move(relay_redis.url, 1)

    began = client.xinfo_stream("{clerk}:events")["last-generated-id"]
    assert position(began) > position(newest or "")


@pytest.mark.parametrize(("kept", "to"), [("*:gone", 8), ("*:expiry", 8), ("*:session:*", 3)])
def test_data_without_a_stream_is_moved(relay_redis: EmbeddedRedis, client: Any, kept: str, to: int) -> None:
    fill(relay_redis.url, 1)
    client.delete(*{*client.scan_iter("*")} - {*client.scan_iter(kept)})

    move(relay_redis.url, to)

    assert misplaced(client, to) == []


def test_data_of_more_partitions_than_are_marked_is_taken_in(relay_redis: EmbeddedRedis, client: Any) -> None:
    fill(relay_redis.url, 16)
    client.hset("{clerk}:partitions", "partitions", "3")
    before = portrait(client)

    move(relay_redis.url, 2)

    assert_same(portrait(client), before)
    assert misplaced(client, 2) == []


def test_there_is_nothing_to_do_twice(relay_redis: EmbeddedRedis, client: Any) -> None:
    fill(relay_redis.url, 3)
    move(relay_redis.url, 5)
    with run_relay(relay_redis.url, partitions=5) as relay:
        relay.take(clerk_event(), "msg_after")
    stored = contents(client)

    assert move(relay_redis.url, 5).sessions == 0
    assert contents(client) == stored


@pytest.mark.parametrize("to", [1, 8])
def test_a_session_that_another_number_brought_back_is_revoked_again(
    relay_redis: EmbeddedRedis, client: Any, to: int
) -> None:
    """As it was before the data told its number: PARTITIONS=8 over data of 1."""
    with run_relay(relay_redis.url) as relay:
        relay.take(clerk_event("revoked"), "msg_revoked")
        (kept,) = client.scan_iter("*:session:sess_1")
        revoked, stream = client.hgetall(kept), client.dump("{clerk}:events")
        client.delete("{clerk}:events")
    with run_relay(relay_redis.url, partitions=8) as relay:
        relay.take(clerk_event(updated_at=NOW_MS - 9000), "msg_created")
    client.restore("{clerk}:events", 0, stream)
    client.delete("{clerk}:partitions")

    move(relay_redis.url, to)

    (key,) = client.scan_iter("*:session:sess_1")
    assert client.hget(key, "status") == "revoked"
    assert {"_message:msg_revoked", "_message:msg_created"} <= client.hgetall(key).keys()
    assert [*client.scan_iter("*:user:user_1:*"), *client.scan_iter("*:expiry")] == []
    assert client.hget(key, "state") == revoked["state"]


def test_a_users_set_that_is_made_anew_for_a_session_found_twice_has_a_ttl(
    relay_redis: EmbeddedRedis, client: Any
) -> None:
    with run_relay(relay_redis.url) as relay:
        relay.take(clerk_event(), "msg_created")
        stream = client.dump("{clerk}:events")
        client.delete("{clerk}:events", "{clerk}:expiry", "{clerk}:user:user_1:sessions")
    with run_relay(relay_redis.url, partitions=8) as relay:
        relay.take(clerk_event(), "msg_created")
    client.restore("{clerk}:events", 0, stream)
    client.delete("{clerk}:partitions", *client.scan_iter("*:user:user_1:sessions"))

    move(relay_redis.url, 1)

    assert client.zrange("{clerk}:user:user_1:sessions", 0, -1) == ["sess_1"]
    assert client.ttl("{clerk}:user:user_1:sessions") > 0


def test_after_a_move_each_number_but_the_new_one_is_refused_at_the_start(
    relay_redis: EmbeddedRedis, client: Any
) -> None:
    fill(relay_redis.url, 3)
    move(relay_redis.url, 5)

    refuse_other_partitions(make_settings(relay_redis.url, partitions=5))
    for number in (1, 2, 3, 4, 6, 10):
        with pytest.raises(ConfigurationError, match=f"^PARTITIONS={number}, but the data has 5: set PARTITIONS=5"):
            refuse_other_partitions(make_settings(relay_redis.url, partitions=number))


def test_a_key_that_is_not_the_relays_stays(own_redis: EmbeddedRedis, own_client: Any) -> None:
    fill(own_redis.url, 1)
    own_client.hset("{clerk}:session:odd", "name", "value")
    own_client.expire("{clerk}:session:odd", 1000)
    own_client.set("{clerk}:session:text", "", ex=1000)

    moved = move(own_redis.url, 3)

    assert moved.unreadable == {"{clerk}:session:odd", "{clerk}:session:text"}
    assert own_client.exists(*moved.unreadable) == 2
    own_client.delete(*moved.unreadable)


def test_the_rights_that_the_docs_name_are_enough(own_redis: EmbeddedRedis, own_client: Any) -> None:
    (rights,) = re.findall(r"needs `(\+watch [^`]*)`", (ROOT / "docs/redis.md").read_text())
    user = ("ACL", "SETUSER", "mover", "on", ">password", "-@all", *rights.split(), "+wait")
    own_client.execute_command(*user, "~{clerk:*}:*", "~{clerk}:*")
    fill(own_redis.url, 1)

    with contextlib.suppress(RepartitionError):  # there is no replica
        move(own_redis.url.replace("//", "//mover:password@"), 3, redis_min_replicas=1)
    move(own_redis.url.replace("//", "//mover:password@"), 3)

    assert own_client.acl_log() == []


# Consumers


@pytest.mark.parametrize(("was", "to"), [(1, 3), (3, 1), (3, 5)])
def test_a_cursor_from_before_is_lost(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, was: int, to: int
) -> None:
    fill(relay_redis.url, was)
    newest = {n: client.xrevrange(keys.events, count=1)[0][0] for n, keys in enumerate(Keys().split(was))}
    cursors = {n: newest[n % was] for n in range(to)}
    move(relay_redis.url, to)

    for number in range(to):
        with run_relay(relay_redis.url, partitions=to) as relay:
            relay.take(clerk_event(session_id=f"sess_new_{number}", user_id=f"user_{number}"), "msg_new")
    with pytest.raises(CursorLostError):
        open_feed(relay_redis.url, partitions=to).follow(cursors).next()


def test_who_begins_after_a_move_loses_nothing(open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any) -> None:
    if not counts_entries(own_client):
        pytest.skip("Redis 6.2 can't tell what came to empty streams before somebody waits at each: docs/feed.md")
    fill(own_redis.url, 1)
    sessions = len(portrait(own_client)[1]) - sum(
        ":" in key.removeprefix("session:") for key in portrait(own_client)[1]
    )
    move(own_redis.url, 3)
    feed = open_feed(own_redis.url, partitions=3)
    updates = feed.follow()
    snapshots = updates.take(sessions)

    with run_relay(own_redis.url, partitions=3) as relay:
        begun = [relay.begin(clerk_event(session_id=f"sess_new_{n}", user_id=f"user_{n}"), "msg_new") for n in range(9)]
        assert {each.result(timeout=30).outcome for each in begun} == {"applied"}

    assert {each.is_snapshot for each in snapshots} == {True}
    assert sorted(each.session.id for each in updates.take(9)) == [f"sess_new_{n}" for n in range(9)]


def test_a_group_begins_again_after_a_move(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> None:
    fill(relay_redis.url, 3)
    before = open_feed(relay_redis.url, partitions=3).consume(after="0-0")
    before.take(3)
    before.leave()
    move(relay_redis.url, 5)

    updates = open_feed(relay_redis.url, partitions=5).consume(resync=True)
    with run_relay(relay_redis.url, partitions=5) as relay:
        relay.take(clerk_event(session_id="sess_new"), "msg_new")

    assert eventually(lambda: updates.next().session.id == "sess_new", within=60)


# A cluster


@pytest.fixture
def cluster(redis_binary: str) -> Iterator[tuple[str, Any]]:
    """Return the URL of a cluster, and a client of it."""
    options: dict[str, Any] = {"decode_responses": True, "protocol": 2}
    with (
        cluster_of(redis_binary, replicas=0) as cluster,
        redis.RedisCluster(host="127.0.0.1", port=cluster.shards[0][0].port, **options) as client,
    ):
        yield cluster.url, client


def test_partitions_move_between_the_nodes_of_a_cluster(cluster: tuple[str, Any]) -> None:
    url, client = cluster
    fill(url, 1)
    before = portrait(client)
    for to in (4, 2, 1):
        move(url, to)
        assert_same(portrait(client), before)
        assert misplaced(client, to) == []


def test_on_a_cluster_all_of_what_is_not_marked_is_found(cluster: tuple[str, Any]) -> None:
    url, client = cluster
    fill(url, 5)
    client.delete("{clerk}:partitions")
    before = portrait(client)

    move(url, 2)

    assert_same(portrait(client), before)
    assert misplaced(client, 2) == []
