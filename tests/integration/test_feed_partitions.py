"""A feed with another number of PARTITIONS than the data: it says so, and finds nothing that is none."""

import contextlib
from typing import Any

import pytest
import redis
from clerk_session_feed import CursorLostError, FeedError, PartitionsError, RedisError, transport
from support.clock import eventually
from support.constants import NOW_MS
from support.events import clerk_event
from support.feeds import OpenFeed, Reconnects, Updates
from support.partitions import fill, take_some
from support.relay import make_settings, run_relay
from support.topologies import cluster_of

from service.dev.embedded import EmbeddedRedis
from service.workers.repartition import repartition

pytestmark = pytest.mark.real_redis

MARK = "{clerk}:partitions"
NUMBERS = [(1, 8), (8, 1), (2, 4), (4, 2), (3, 5)]
READS: dict[str, tuple[str, ...]] = {
    "get": ("sess_1",),
    "status": ("sess_1", "user_1"),
    "is_live": ("sess_1", "user_1"),
    "live_sessions": ("user_1",),
    "history": ("sess_1",),
    "now": (),
}


@pytest.fixture
def relay_redis(real_redis: EmbeddedRedis) -> EmbeddedRedis:
    """The mark of the stand-in is read like that of any Redis; that it has one, test_partitions.py shows."""
    return real_redis


@pytest.fixture
def reconnects(monkeypatch: pytest.MonkeyPatch) -> Reconnects:
    return Reconnects(monkeypatch)


@pytest.mark.parametrize(("was", "is_"), NUMBERS)
def test_nothing_is_read_of_data_with_another_number(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, was: int, is_: int
) -> None:
    take_some(relay_redis.url, was)
    said = f"^PARTITIONS={is_}, but the data has {was}: set PARTITIONS={was}.$"
    for name, arguments in READS.items():
        feed = open_feed(relay_redis.url, partitions=is_)
        for _ in range(2):
            with pytest.raises(PartitionsError, match=said):
                feed.do(getattr(feed.feed, name), *arguments)
    feed = open_feed(relay_redis.url, partitions=is_)
    for updates in (feed.follow(), feed.follow("0-0"), feed.consume(), feed.consume(after="0-0", resync=True)):
        with pytest.raises(PartitionsError, match=said):
            updates.next()


def test_it_is_an_error_of_the_library_that_no_retry_helps() -> None:
    assert issubclass(PartitionsError, FeedError)
    assert not issubclass(PartitionsError, RedisError)


def test_a_mark_of_a_later_version_is_not_guessed_at(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any
) -> None:
    client.hset(MARK, "partitions", "by another rule")
    with pytest.raises(PartitionsError, match="upgrade"):
        open_feed(relay_redis.url).get("sess_1")


@pytest.mark.parametrize("partitions", [1, 2, 8])
def test_data_with_the_same_number_is_read(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, partitions: int
) -> None:
    take_some(relay_redis.url, partitions)
    feed = open_feed(relay_redis.url, partitions=partitions)
    assert feed.get("sess_1", "user_1") is not None
    assert len(feed.follow().take(20)) == 20


def test_where_nothing_is_stored_any_number_fits(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> None:
    assert [open_feed(relay_redis.url, partitions=number).get("sess_1") for number in (1, 3)] == [None, None]


def test_a_subscription_does_not_depend_on_partitions(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any
) -> None:
    take_some(relay_redis.url, 3)
    waiting = open_feed(relay_redis.url).subscribe().begin()
    eventually(lambda: dict(client.pubsub_numsub("clerk:sessions"))["clerk:sessions"] == 1)
    with run_relay(relay_redis.url, partitions=3) as relay:
        relay.take(clerk_event(session_id="sess_new"), "msg_new")
    assert waiting.result(30)[0].session.id == "sess_new"


# While the data is moved


def test_a_short_read_says_that_the_data_is_being_moved(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any
) -> None:
    client.hset(MARK, "partitions", f"1>8@{NOW_MS}")
    for number in (1, 8, 3):
        feed = open_feed(relay_redis.url, partitions=number)
        said = f"^PARTITIONS={number}, but the data is being moved from 1 partitions to 8: wait .* PARTITIONS=8.$"
        with pytest.raises(PartitionsError, match=said):
            feed.is_live("sess_1", "user_1")


@pytest.mark.parametrize("kind", ["follow", "consume"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_an_iterator_waits_for_the_end_of_a_move(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, reconnects: Reconnects, kind: str, partitions: int
) -> None:
    take_some(relay_redis.url, 3)
    client.hset(MARK, "partitions", f"1>3@{NOW_MS}")
    feed = open_feed(relay_redis.url, partitions=partitions)
    waiting = getattr(feed, kind)(on_reconnect=reconnects).begin(20)
    eventually(lambda: len(reconnects.errors) >= 3)
    assert all("is being moved from 1 partitions to 3" in str(error) for error in reconnects.errors)

    client.hset(MARK, "partitions", "3")
    if partitions == 3:
        assert len(waiting.result(30)) == 20
    else:
        with pytest.raises(PartitionsError, match="set PARTITIONS=3"):
            waiting.result(30)


# Feeds that run while the data is moved


@pytest.mark.parametrize("kind", ["follow", "consume"])
@pytest.mark.parametrize(("was", "to"), [(1, 3), (4, 2)])
@pytest.mark.parametrize("resync", [False, True])
def test_an_iterator_that_runs_does_not_go_on_under_the_former_number(
    open_feed: OpenFeed,
    relay_redis: EmbeddedRedis,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    was: int,
    to: int,
    resync: bool,
) -> None:
    monkeypatch.setattr(transport, "BLOCK_MS", 100)
    reconnects = Reconnects(monkeypatch, at_most=100_000)
    fill(relay_redis.url, was)
    feed = open_feed(relay_redis.url, partitions=was)
    updates: Updates = getattr(feed, kind)(after="0-0", resync=resync, on_reconnect=reconnects)
    updates.take(50)
    waiting = updates.begin(10_000)

    repartition(make_settings(relay_redis.url), to)
    with run_relay(relay_redis.url, partitions=to) as relay:
        for number in range(9):
            relay.take(clerk_event(session_id=f"sess_new_{number}", user_id=f"user_{number}"), "msg_new")

    expected = PartitionsError if resync else (CursorLostError, PartitionsError)
    with pytest.raises(expected):
        waiting.result(60)
    with pytest.raises(PartitionsError, match=f"set PARTITIONS={to}"):
        getattr(feed, kind)(on_reconnect=reconnects).next()


def test_short_reads_notice_after_some_minutes_over_the_same_connection(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PARTITIONS_SECONDS", 0.0)
    take_some(relay_redis.url, 1)
    feed = open_feed(relay_redis.url)
    assert feed.get("sess_1", "user_1") is not None
    repartition(make_settings(relay_redis.url), 3)
    with pytest.raises(PartitionsError, match="set PARTITIONS=3"):
        feed.is_live("sess_1", "user_1")


def test_the_number_is_compared_once_in_ten_minutes(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any
) -> None:
    take_some(own_redis.url, 3)
    feed = open_feed(own_redis.url, partitions=3)
    own_client.config_resetstat()
    for _ in range(10):
        feed.do(feed.feed.live_sessions, "user_unknown")
    assert own_client.info("commandstats")["cmdstat_hmget"]["calls"] == 1
    assert transport.PARTITIONS_SECONDS == 600


def test_who_begins_at_a_stream_that_is_empty_after_a_move_gets_what_comes_first(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any
) -> None:
    with run_relay(relay_redis.url) as relay:
        relay.take(clerk_event(session_id="sess_1"), "msg_1")
    repartition(make_settings(relay_redis.url), 2)
    feed = open_feed(relay_redis.url, partitions=2)
    updates = feed.follow()
    assert updates.next().is_snapshot
    waiting = updates.begin()
    with run_relay(relay_redis.url, partitions=2) as relay:
        relay.take(clerk_event(session_id="sess_2"), "msg_2")
    assert waiting.result(30)[0].session.id == "sess_2"


# Rights, and a cluster


def test_a_user_without_a_right_to_the_mark_reads_as_before(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any
) -> None:
    take_some(own_redis.url, 3)
    own_client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~{clerk:*}:*", "+@all")
    feed = open_feed(own_redis.url.replace("//", "//reader:secret@"), partitions=3)
    assert feed.get("sess_1", "user_1") is not None
    assert len(feed.follow().take(20)) == 20


@pytest.mark.parametrize(("was", "is_"), NUMBERS)
def test_on_a_cluster_another_node_is_asked(redis_binary: str, open_feed: OpenFeed, was: int, is_: int) -> None:
    with cluster_of(redis_binary, replicas=0) as cluster:
        take_some(cluster.url, was)
        for number in range(8):
            feed = open_feed(cluster.url, partitions=is_)
            with pytest.raises(PartitionsError, match=f"the data has {was}: set"):
                feed.is_live(f"sess_{number}", f"user_{number}")
        with pytest.raises(PartitionsError, match=f"the data has {was}: set"):
            open_feed(cluster.url, partitions=is_).follow().next()
        assert open_feed(cluster.url, partitions=was).get("sess_1", "user_1") is not None


def test_on_a_cluster_a_node_that_was_away_is_asked_again_soon(
    redis_binary: str, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transport.AWAY_SECONDS == 10
    monkeypatch.setattr(transport, "AWAY_SECONDS", 0.0)
    ask = transport.Connection.execute_apart
    asked = []

    async def is_away(self: Any, *commands: Any, **options: Any) -> Any:
        asked.append(commands)
        raise redis.ConnectionError("Connection refused.")

    with cluster_of(redis_binary, replicas=0) as cluster:
        take_some(cluster.url, 2)
        for number in range(8):  # of these, some are on the node that tells
            monkeypatch.setattr(transport.Connection, "execute_apart", is_away)
            feed = open_feed(cluster.url, partitions=8)
            asked.clear()
            with contextlib.suppress(PartitionsError):
                feed.is_live(f"sess_{number}", f"user_{number}")
            if asked:
                break
        assert asked
        monkeypatch.setattr(transport.Connection, "execute_apart", ask)
        with pytest.raises(PartitionsError, match="the data has 2: set"):
            feed.is_live(f"sess_{number}", f"user_{number}")
