"""What `session-relay check` says of the data: dead letters, sessions that nobody expires, what came last, channels."""

import itertools
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checking import findings, lines, problems
from support.children import finished
from support.constants import DAY_MS, HOUR_MS, RELAY, ROOT, SECRET
from support.events import clerk_event
from support.redis_clients import client_of, contents, emptied, subscribed
from support.redis_servers import redis_server, scripted_redis
from support.relay import Relay, make_settings, run_relay
from support.topologies import cluster_of, run_sentinels

from service.cli.check_channel import check_channel
from service.dev.embedded import EmbeddedRedis

StartRedis = Callable[..., EmbeddedRedis]


@pytest.fixture(scope="module")
def redis(redis_binary: str) -> Iterator[EmbeddedRedis]:
    with redis_server(redis_binary, "--appendonly", "yes") as server:
        yield server


@pytest.fixture
def own(redis: EmbeddedRedis) -> Iterator[Any]:
    """A client of a Redis in which `check` finds nothing wrong."""
    with emptied(redis.url) as client:
        yield client


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def relay_now(redis: EmbeddedRedis, own: Any) -> Iterator[Relay]:
    with run_relay(redis.url, now_ms=now_ms()) as relay:
        yield relay


def about(word: str, redis: EmbeddedRedis, **settings: Any) -> str:
    """Return the one line that has this word."""
    (line,) = [line for line in lines(findings(redis.url, **settings)).splitlines() if word in line]
    return line


# Dead letters


def keep_dead_letters(client: Any, count: int) -> None:
    if count:
        client.hset("{clerk}:dead-letters", mapping={f"msg_{number}": "{}" for number in range(count)})


@pytest.mark.parametrize(
    ("kept", "most", "said"),
    [
        (0, 10, "ok dead letters: 0 of 10"),
        (8, 10, "ok dead letters: 8 of 10: session-relay dead-letters list shows them"),
        (9, 10, "warning dead letters: 9 of 10, so it is nearly full: work them off"),
        (10, 10, "warning dead letters: 10 of 10, so it is full: an event that can't be read gets 503"),
        (11, 10, "warning dead letters: 11 of 10, so it is full: an event that can't be read gets 503"),
        (0, 1, "ok dead letters: 0 of 1"),
        (1, 1, "warning dead letters: 1 of 1, so it is full"),
        (0, 0, "ok dead letters: DEAD_LETTER_MAX=0 keeps none; an event that can't be read gets 503"),
        (3, 0, "warning dead letters: 3 of 0, so it is full"),
    ],
)
def test_a_box_of_dead_letters_that_is_full_is_named(
    redis: EmbeddedRedis, own: Any, kept: int, most: int, said: str
) -> None:
    keep_dead_letters(own, kept)

    assert about("dead letters: ", redis, dead_letter_max=most).startswith(said)


# The expiry worker


def expire_at(relay: Relay, *ends: int) -> None:
    """Store a session for each of these ends: milliseconds from now."""
    number = itertools.count(len(ends) * 1000)
    for end in ends:
        id_ = next(number)
        event = clerk_event(session_id=f"sess_{id_}", user_id=f"user_{id_}", expire_at=now_ms() + end)
        relay.take(event, f"msg_{id_}")


def test_sessions_that_nobody_expires_are_named(redis: EmbeddedRedis, relay_now: Relay) -> None:
    expire_at(relay_now, -3 * HOUR_MS, -HOUR_MS, DAY_MS)

    assert about("overdue", redis).startswith(
        "warning nobody expires sessions, or not fast enough: 2 are overdue, the first by 3 hours: run session-relay expire"
    )


def test_a_session_that_ended_just_now_is_the_workers(redis: EmbeddedRedis, relay_now: Relay) -> None:
    expire_at(relay_now, -30_000, DAY_MS)

    assert about("overdue", redis) == "ok no session is overdue for session-relay expire"


def test_overdue_sessions_of_all_partitions_are_counted(redis: EmbeddedRedis, own: Any) -> None:
    with run_relay(redis.url, now_ms=now_ms(), partitions=4) as relay:
        expire_at(relay, *(-minutes * 60_000 for minutes in range(10, 30)))

    assert "20 are overdue, the first by 29 min" in about("nobody expires", redis, partitions=4)


# What came last


def test_what_was_received_last_is_named_with_its_time(redis: EmbeddedRedis, own: Any, relay_now: Relay) -> None:
    expire_at(relay_now, DAY_MS)
    cursor = own.xrevrange("{clerk}:events", count=1)[0][0]

    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(int(cursor.partition("-")[0]) // 1000))
    assert re.fullmatch(rf"ok last received: session\.created, \d+ s ago \({at} UTC\)", about("received", redis))


def test_the_last_of_all_partitions_is_named(redis: EmbeddedRedis, own: Any) -> None:
    with run_relay(redis.url, now_ms=now_ms(), partitions=4) as relay:
        expire_at(relay, *([DAY_MS] * 10))
        relay.take(clerk_event("ended", user_id="user_last", expire_at=now_ms() + DAY_MS), "msg_last")

    assert about("received", redis, partitions=4).startswith("ok last received: session.ended, ")


def test_what_the_relay_made_itself_was_not_received(redis: EmbeddedRedis, own: Any, relay_now: Relay) -> None:
    message = json.dumps({"event": {"type": "session.expired", "source": "synthetic"}})
    own.xadd("{clerk}:events", {"user_id": "user_1", "message": message})
    assert about("none of Clerk's", redis).startswith("ok the newest 20 events are none of Clerk's: see that")

    expire_at(relay_now, DAY_MS)
    own.xadd("{clerk}:events", {"user_id": "user_1", "message": message})
    assert about("received", redis).startswith("ok last received: session.created, ")


def test_where_nothing_came_it_says_where_to_look(redis: EmbeddedRedis, own: Any) -> None:
    assert about("received", redis).startswith(
        "ok nothing received yet, dead letters aside: see that an endpoint in Clerk's Dashboard"
    )


@pytest.mark.parametrize("message", ["", "[]", "{", "1", '{"event":1}', '{"event":{"source":"clerk","type":7}}', None])
def test_entries_of_others_are_passed_over(redis: EmbeddedRedis, own: Any, message: str | None) -> None:
    own.xadd("{clerk}:events", {"a": "b"} if message is None else {"message": message})

    assert "error" not in problems(findings(redis.url))


def test_several_clerk_instances_in_one_relay_are_named(redis: EmbeddedRedis, own: Any, relay_now: Relay) -> None:
    for number, instance in enumerate(["ins_production", "ins_development"]):
        event = clerk_event(session_id=f"sess_{number}", user_id="user_1", expire_at=now_ms() + DAY_MS)
        relay_now.take(event | {"instance_id": instance}, f"msg_{number}")

    assert about("instances", redis).startswith(
        "warning events of several Clerk instances arrive here: ins_development, ins_production: let each have a relay"
    )


# Channels


def test_a_database_with_the_default_channel_is_named(redis: EmbeddedRedis, own: Any) -> None:
    with subscribed(own, "clerk:sessions"):
        found = problems(findings(redis.url.replace("/0", "/3")))

    assert found.startswith("warning REDIS_URL names database 3, and pub/sub knows no databases: ")
    assert "(1 listen now)" in found
    assert found.endswith("a REDIS_CHANNEL of its own, like clerk:sessions:3")


def test_a_database_with_a_channel_of_its_own_is_fine(redis: EmbeddedRedis, own: Any) -> None:
    assert problems(findings(redis.url.replace("/0", "/3"), redis_channel="mine")) == ""


@pytest.mark.parametrize(
    ("theirs", "ours", "named"),
    [
        ((5, {}), (0, {}), "database 5, {clerk}:*"),
        ((0, {}), (0, {"redis_key_prefix": "{staging}"}), "database 0, {clerk}:*"),
        ((2, {"redis_key_prefix": "{staging}"}), (0, {"redis_key_prefix": "{staging}"}), "database 2, {staging}:*"),
        ((5, {"partitions": 4}), (0, {}), "database 5, {clerk}:*"),
    ],
    ids=str,
)
def test_another_relay_on_the_same_channel_is_named(
    redis: EmbeddedRedis, own: Any, theirs: tuple[int, dict[str, Any]], ours: tuple[int, dict[str, Any]], named: str
) -> None:
    with run_relay(redis.url.replace("/0", f"/{theirs[0]}"), now_ms=now_ms(), **theirs[1]) as relay:
        expire_at(relay, DAY_MS)
    url = redis.url.replace("/0", f"/{ours[0]}")

    (found,) = [line for line in problems(findings(url, **ours[1])).splitlines() if "REDIS_CHANNEL" in line]

    assert found.startswith(f"warning there is another relay in this Redis ({named})")
    assert "REDIS_CHANNEL" not in problems(findings(url, redis_channel="mine", **ours[1]))


def test_a_server_whose_keyspace_says_more_is_looked_through() -> None:
    """As KeyDB's and others' may."""
    keyspace = b"# Keyspace\r\ndb0:keys=1,expires=0\r\ndb_total:7\r\ndb5:keys=1,expires=0\r\n"
    replies = {b"INFO": b"$%d\r\n%s" % (len(keyspace), keyspace), b"SELECT": b"+OK", b"EXISTS": b":1"}
    with scripted_redis(lambda words: replies.get(words[0], b"-ERR unknown command")) as server:
        (found,) = check_channel(make_settings(server.url))

    assert "another relay in this Redis (database 5, {clerk}:*)" in found.text


def test_one_relay_alone_hears_no_other(redis: EmbeddedRedis, own: Any, relay_now: Relay) -> None:
    expire_at(relay_now, DAY_MS)
    own.select(7)
    own.set("somebody's", "else")

    assert problems(findings(redis.url)) == ""


# Nothing stays


def test_nothing_stays_in_a_cluster(redis_binary: str) -> None:
    with cluster_of(redis_binary, replicas=0) as cluster:
        found = findings(cluster.url, partitions=4)

        assert ("ok", "Redis takes deliveries") in found
        assert "error" not in problems(found)
        for (node,) in cluster.shards:
            with client_of(node.url) as client:
                assert client.keys() == []


def test_nothing_stays_behind_sentinels(redis_binary: str, start_redis: StartRedis) -> None:
    with run_sentinels(redis_binary, start_redis) as sentinels:
        found = findings(sentinels.url, redis_min_replicas=2)

        assert ("ok", "Redis takes deliveries") in found
        assert "error" not in problems(found)
        with client_of(sentinels.servers[0].url) as client:
            assert client.keys() == []


@pytest.mark.parametrize("partitions", [1, 3])
def test_nothing_stays_and_nothing_changes(redis: EmbeddedRedis, own: Any, partitions: int) -> None:
    with run_relay(redis.url, now_ms=now_ms(), partitions=partitions) as relay:
        expire_at(relay, DAY_MS, -DAY_MS)
    keep_dead_letters(own, 3)
    before = contents(own)

    found = findings(redis.url, partitions=partitions)

    assert contents(own) == before
    assert "error" not in problems(found)


# For machines, and what serve needs of the system


def run_check(cwd: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PYTHONPATH": str(ROOT), "CLERK_WEBHOOK_SIGNING_SECRET": SECRET} | environment
    return finished([*RELAY, "check", *options], cwd, settings)


def test_json_says_the_same(redis: EmbeddedRedis, own: Any, tmp_path: Path) -> None:
    keep_dead_letters(own, 1)
    environment = {"REDIS_URL": redis.url, "DEAD_LETTER_MAX": "1"}

    ran, plain = run_check(tmp_path, "--json", **environment), run_check(tmp_path, **environment)

    document = json.loads(ran.stdout)
    assert ran.returncode == plain.returncode == 0
    assert document["can_work"] is True
    assert [each["level"] for each in document["results"]] == [line.split()[0] for line in plain.stdout.splitlines()]
    assert {"level": "ok", "text": "Redis takes deliveries"} in document["results"]
    assert any(each["level"] == "warning" and "1 of 1" in each["text"] for each in document["results"])
    assert ran.stderr == ""


def test_json_has_the_same_exit_status(tmp_path: Path) -> None:
    ran = run_check(tmp_path, "--json", REDIS_URL="unix:///nonexistent/redis.sock")

    assert ran.returncode == 1
    assert json.loads(ran.stdout)["can_work"] is False
    assert run_check(tmp_path, "--json", REDIS_URL="nonsense").returncode == 2


def test_processes_that_have_no_directory_to_count_in_are_an_error(
    redis: EmbeddedRedis, own: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    nowhere = {"REDIS_URL": redis.url, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "file")}

    several = run_check(tmp_path, WEB_CONCURRENCY="2", **nowhere)
    one = run_check(tmp_path, WEB_CONCURRENCY="1", **nowhere)

    assert several.returncode == 1
    (line,) = [line for line in several.stdout.splitlines() if line.startswith("error")]
    assert line.startswith("error    serve does not start: PROMETHEUS_MULTIPROC_DIR: no directory can be made")
    assert one.returncode == 0, one.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
