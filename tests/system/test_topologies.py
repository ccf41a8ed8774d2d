"""Redis that moves: a primary that sentinels name, and a cluster whose nodes hold a part each.

REDIS_URL: docs/contract.md, section 2. On real servers; test_failover.py has failovers under load.
"""

import contextlib
import itertools
import json
import re
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from clerk_session_feed import SessionFeed, SessionUpdate, stream
from clerk_session_feed.keys import partition_of
from support.cli import run
from support.clock import eventually
from support.constants import DAY_MS, DEAD_LETTERS_KEY, NOW_MS, ROOT
from support.events import clerk_event
from support.feeds import KINDS, EndedError, OpenFeed, Reconnects, feeds
from support.network import unused_port
from support.redis_clients import client_of, subscribed
from support.redis_servers import scripted_redis
from support.relay import Relay, make_settings, run_relay
from support.topologies import MASTER, Cluster, Sentinels, cluster_of, kill, run_sentinels

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError
from service.ingest import Ingest
from service.store.dead_letters import DeadLetters, ReplayStore
from service.store.pipeline import Pipeline
from service.store.scripts import SCRIPTS

StartRedis = Callable[..., EmbeddedRedis]
UNREADABLE = b'{"type":"session.created"}'


# Who is asked, and with which name and password


def scripted_primary(words: list[bytes]) -> bytes:
    replies = {b"SCRIPT": b"$40\r\n" + b"0" * 40, b"HMGET": b"*1\r\n$-1", b"EXISTS": b":0"}  # nothing is stored
    return replies.get(words[0], b"+OK")


def is_a_write(words: list[bytes]) -> bool:
    """Tell a script with keys from the question about rights, which has none."""
    return words[0] == b"EVALSHA" and words[2] != b"0"


def flat(*values: object) -> bytes:
    return b"*%d" % len(values) + b"".join(b"\r\n$%d\r\n%s" % (len(v := str(x).encode()), v) for x in values)


def named_by_a_sentinel(port: int) -> bytes:
    state = {"name": MASTER, "ip": "127.0.0.1", "port": port, "flags": "master", "num-other-sentinels": 2}
    return flat(*(part for pair in state.items() for part in pair))


def test_the_primary_gets_the_urls_password_and_the_sentinels_their_own() -> None:
    with scripted_redis(scripted_primary) as primary:
        port = primary.server_address[1]

        def sentinel_says(words: list[bytes]) -> bytes:
            return named_by_a_sentinel(port) if words[0] == b"SENTINEL" else b"+OK"

        with scripted_redis(sentinel_says) as sentinel:
            address = f"127.0.0.1:{sentinel.server_address[1]}"
            url = f"redis+sentinel://app:p%40ss@{address}/{MASTER}/3?sentinel_password=s3cr3t"
            with run_relay(url) as relay:
                relay.call(relay.store.probe).result(timeout=30)

    assert primary.commands[:2] == [[b"AUTH", b"app", b"p@ss"], [b"SELECT", b"3"]]
    assert sentinel.commands == [[b"AUTH", b"s3cr3t"], [b"SENTINEL", b"MASTER", MASTER.encode()]]


def test_a_sentinel_that_is_away_is_passed_over() -> None:
    with scripted_redis(scripted_primary) as primary:
        port = primary.server_address[1]
        with scripted_redis(lambda _: named_by_a_sentinel(port)) as sentinel:
            known = f"127.0.0.1:{sentinel.server_address[1]}"
            with unused_port() as nobodys, run_relay(f"redis+sentinel://127.0.0.1:{nobodys},{known}/{MASTER}") as relay:
                relay.call(relay.store.probe).result(timeout=30)


def test_a_sentinel_that_missed_a_failover_is_passed_over() -> None:
    def read_only(words: list[bytes]) -> bytes:
        return b"-READONLY You can't write" if is_a_write(words) or words[0] == b"LPUSHX" else scripted_primary(words)

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(scripted_redis(say)) for say in (read_only, scripted_primary)]
        names = [named_by_a_sentinel(server.server_address[1]) for server in servers]
        late, informed = (stack.enter_context(scripted_redis(lambda _, name=name: name)) for name in names)  # type: ignore[misc]
        hosts = ",".join(f"127.0.0.1:{sentinel.server_address[1]}" for sentinel in (late, informed))
        relay = stack.enter_context(run_relay(f"redis+sentinel://{hosts}/{MASTER}"))

        relay.call(relay.store.probe).result(timeout=30)

    assert b"LPUSHX" in [words[0] for words in servers[1].commands]


@pytest.mark.parametrize("url", ["redis+sentinel://{}/relay", "redis+cluster://{}"])
def test_when_all_who_could_be_asked_hang_deliveries_are_refused_at_once_for_a_while(url: str) -> None:
    with contextlib.ExitStack() as stack:
        mute = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{server.getsockname()[1]}" for server in mute)
        relay = stack.enter_context(run_relay(url.format(hosts)))

        with pytest.raises(StoreUnavailableError, match="TimeoutError"):
            relay.take(clerk_event(), "msg_1")
        with pytest.raises(StoreUnavailableError, match="a moment ago"):
            relay.take(clerk_event(), "msg_2")


@pytest.mark.parametrize("url", ["redis+sentinel://127.0.0.1:{}/relay", "redis+cluster://127.0.0.1:{}"])
@pytest.mark.parametrize("reply", [b"*0", b"-ERR no", b"+OK", b"*1\r\n*0", None])
def test_whatever_they_say_but_an_address_is_a_refusal(url: str, reply: bytes | None) -> None:
    with scripted_redis(lambda _: reply) as server, run_relay(url.format(server.server_address[1])) as relay:
        for number in range(2):
            with pytest.raises(StoreUnavailableError):
                relay.take(clerk_event(), f"msg_{number}")


# A primary that is none any more


@pytest.mark.parametrize(
    "reply", [b"-MOVED 1234 127.0.0.1:1", b"-READONLY You can't write", b"-NOSCRIPT no", b"-CLUSTERDOWN no"]
)
def test_what_was_not_run_is_sent_once_more_over_a_new_connection(reply: bytes) -> None:
    replies = iter([reply, *([b"*4\r\n$7\r\napplied\r\n$3\r\n1-0\r\n$1\r\n1\r\n$0\r\n"] * 2)])

    def say(words: list[bytes]) -> bytes:
        return next(replies) if is_a_write(words) else scripted_primary(words)

    with scripted_redis(say) as server, run_relay(server.url) as relay:
        assert relay.take(clerk_event(), "msg_1").outcome == "applied"
        assert relay.take(clerk_event(), "msg_2").outcome == "applied"

    first, second, third = [words for words in server.commands if is_a_write(words)]
    assert first == second != third
    loaded = [words[2] for words in server.commands if words[0] == b"SCRIPT"]
    assert [loaded.count(script.source) for script in SCRIPTS] == [2] * len(SCRIPTS)  # for each connection


# Sentinel


@pytest.fixture
def sentinels(redis_binary: str, start_redis: StartRedis) -> Iterator[Sentinels]:
    with run_sentinels(redis_binary, start_redis) as sentinels:
        yield sentinels


def test_a_failover_that_sentinels_were_asked_for_loses_nothing(sentinels: Sentinels) -> None:
    # Until the old primary is demoted it takes writes that get lost; but it can't get both replicas to confirm
    # them: one of the two has become the primary.
    acknowledged: list[str] = []
    held: set[str] = set()
    with (
        run_relay(sentinels.url, redis_min_replicas=2) as relay,
        redis.Redis(port=sentinels.ports[0], protocol=2) as sentinel,
    ):
        relay.call(relay.store.probe).result(timeout=30)
        sentinel.execute_command("SENTINEL", "FAILOVER", MASTER)
        numbers = itertools.count()

        def has_gone_on() -> bool:
            session_id = f"sess_{next(numbers)}"
            with contextlib.suppress(StoreUnavailableError):
                relay.take(clerk_event(session_id=session_id), "msg_1")
                acknowledged.append(session_id)
            if (primary := sentinels.primary()) not in {None, sentinels.servers[0]}:
                with client_of(primary.url) as client:
                    held.update(fields["session_id"] for _, fields in client.xrange("{clerk}:events"))
            return bool(held.intersection(acknowledged[-1:]))

        eventually(has_gone_on, within=60)

    assert set(acknowledged) <= held


def test_readers_go_on_after_a_primary_died_that_sentinels_watch(
    sentinels: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not confirmed may be lost, also after it was seen: then it begins again from the snapshots."""
    acknowledged: set[str] = set()
    with contextlib.ExitStack() as stack:
        feeds_ = [stack.enter_context(feeds(kind))(sentinels.url, redis_timeout=1) for kind in KINDS.values()]
        options: dict[str, Any] = {"after": "0-0", "resync": True, "on_reconnect": Reconnects(monkeypatch)}
        iterators = [feed.follow(**options) for feed in feeds_] + [feeds_[0].consume(**options)]
        relay = stack.enter_context(run_relay(sentinels.url, redis_min_replicas=1))
        numbers = itertools.count()

        def has_taken_one() -> bool:
            session_id = f"sess_{next(numbers)}"
            with contextlib.suppress(StoreUnavailableError):
                relay.take(clerk_event(session_id=session_id), "msg_1")
                acknowledged.add(session_id)
                return sentinels.primary() not in {None, sentinels.servers[0]}
            return False

        eventually(lambda: has_taken_one() or acknowledged, within=60)
        seen = [{updates.next().session.id} for updates in iterators]
        kill(sentinels.servers[0])
        eventually(has_taken_one, within=60)
        primary = sentinels.primary()
        assert primary is not None
        with client_of(primary.url) as client:
            held = {fields["session_id"] for _, fields in client.xrange("{clerk}:events")}
        for updates, ids in zip(iterators, seen, strict=True):
            while not held <= ids:
                ids.add(updates.next().session.id)
        for feed in feeds_:
            assert all(feed.get(session_id) is not None for session_id in held)


# Cluster


@pytest.fixture(scope="module")
def cluster(redis_binary: str) -> Iterator[Cluster]:
    """One for the tests of this module, each of which empties it."""
    with cluster_of(redis_binary) as cluster:
        yield cluster


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[list[Any]]:
    """Clients of the three primaries, which are empty at first."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(cluster.primary(index).url)) for index in range(3)]
        for client in clients:
            client.flushall()
        yield clients


def test_the_script_runs_on_the_node_that_has_the_slot(cluster: Cluster, nodes: list[Any]) -> None:
    owner = nodes[cluster.owner("{clerk}")]
    with subscribed(nodes[0], "clerk:sessions", "clerk:sessions:user:user_1") as subscriber:
        with run_relay(cluster.url) as relay:
            assert relay.take(clerk_event("active"), "msg_1").outcome == "applied"
            assert relay.take(clerk_event("active"), "msg_1").outcome == "duplicate"
            assert relay.take(clerk_event("pending", updated_at=NOW_MS - 5000), "msg_2").outcome == "stale"
            assert relay.take(UNREADABLE, "msg_3").outcome == "dead_lettered"
            relay.call(relay.store.probe).result(timeout=30)
        # Whichever node one subscribes to: a cluster's channels are everywhere.
        channels = [subscriber.next()[0] for _ in range(2)]

    assert sorted(channels) == ["clerk:sessions", "clerk:sessions:user:user_1"]
    assert sorted(owner.scan_iter("*")) == [
        "{clerk}:dead-letters",
        "{clerk}:events",
        "{clerk}:expiry",
        "{clerk}:session:sess_1",
        "{clerk}:user:user_1:sessions",
    ]


def test_any_node_leads_to_the_others(cluster: Cluster, nodes: list[Any]) -> None:
    for node, *_ in cluster.shards:
        with unused_port() as nobodys, run_relay(f"redis+cluster://127.0.0.1:{nobodys},127.0.0.1:{node.port}") as relay:
            assert relay.take(clerk_event(), f"msg_{node.port}").outcome in {"applied", "stale"}

    assert nodes[cluster.owner("{clerk}")].xlen("{clerk}:events") == 3


def test_a_failover_that_was_asked_for_costs_nothing(cluster: Cluster, nodes: list[Any]) -> None:
    index = cluster.owner("{clerk}")
    with run_relay(cluster.url, redis_timeout=20) as relay:
        assert relay.take(clerk_event("active"), "msg_1").outcome == "applied"
        successor = cluster.replica(index)
        fail_over(cluster, "{clerk}")
        with client_of(successor.url) as client:
            assert relay.take(clerk_event("ended"), "msg_2").outcome == "applied"
            assert client.xlen("{clerk}:events") == 2


def test_the_relays_user_needs_one_right_more_on_a_cluster(cluster: Cluster, nodes: list[Any]) -> None:
    (rights,) = re.findall(r"^ACL SETUSER relay (.*)$", (ROOT / "docs/redis.md").read_text(), re.MULTILINE)
    for client in nodes:
        client.execute_command("ACL", "SETUSER", "relay", *rights.split(), "+cluster|slots")
    try:
        with run_relay(cluster.url.replace("//", "//relay:password@")) as relay:
            assert relay.take(clerk_event(), "msg_1").outcome == "applied"
            relay.call(relay.store.probe).result(timeout=30)
        assert [client.acl_log() for client in nodes] == [[], [], []]
    finally:
        for client in nodes:
            client.execute_command("ACL", "DELUSER", "relay")


# Partitions

PARTITIONS = 8
USERS = [f"user_{number}" for number in range(40)]


@pytest.fixture
def spread(cluster: Cluster, nodes: list[Any]) -> Iterator[Relay]:
    """Partitions on a cluster, with a live session of each user."""
    with run_relay(cluster.url, partitions=PARTITIONS) as relay:
        for user in USERS:
            relay.take(clerk_event(session_id=f"sess_of_{user}", user_id=user), f"msg_{user}")
        yield relay


def test_partitions_spread_keys_streams_and_expiry_over_the_shards(
    cluster: Cluster, nodes: list[Any], spread: Relay
) -> None:
    held = {}
    for index, client in enumerate(nodes):
        for key in client.scan_iter("*"):
            held[key] = index
    assert held.pop("{clerk}:partitions") == cluster.owner("{clerk}")
    for user in USERS:
        tag = f"{{clerk:{partition_of(user, PARTITIONS)}}}"
        index = cluster.owner(tag)
        assert held.pop(f"{tag}:session:sess_of_{user}") == index
        assert held.pop(f"{tag}:user:{user}:sessions") == index
        assert nodes[index].zscore(f"{tag}:expiry", f"sess_of_{user}") == NOW_MS + DAY_MS
    assert set(held) == {f"{{clerk:{n}}}:{name}" for n in range(PARTITIONS) for name in ("events", "expiry")}
    assert set(held.values()) == {0, 1, 2}
    assert sum(client.xlen(key) for client in nodes for key in client.scan_iter("*:events")) == len(USERS)


def test_all_live_sessions_of_a_cluster_are_listed_in_one_order(cluster: Cluster, nodes: list[Any]) -> None:
    with run_relay(cluster.url, partitions=PARTITIONS) as relay:
        for user in USERS:
            relay.take(clerk_event(session_id=f"sess_of_{user}", user_id=user, expire_at=None), f"msg_{user}")
    result = run("sessions", "--limit", "30", environment={"REDIS_URL": cluster.url, "PARTITIONS": str(PARTITIONS)})
    *lines, count = result.stdout.splitlines()
    expected = sorted(f"sess_of_{user}" for user in USERS)[:30]
    assert [line.split()[-2] for line in lines] == expected
    assert count == f"40 sessions are live, 30 shown. The next ones: --after {expected[-1]}"


def test_the_live_sessions_of_a_cluster_are_looked_for_once_on_each_node(
    cluster: Cluster, nodes: list[Any], spread: Relay
) -> None:
    """Not once for each partition: a scan looks at every key of a node."""
    spread.take(clerk_event(session_id="sess_1", expire_at=None), "msg_1")
    for client in nodes:
        client.config_resetstat()
    environment = {"REDIS_URL": cluster.url, "PARTITIONS": str(PARTITIONS)}
    assert run("sessions", environment=environment).stdout.endswith("1 session is live, 1 shown.\n")
    assert [client.info("commandstats")["cmdstat_scan"]["calls"] for client in nodes] == [1, 1, 1]


def test_with_partitions_dead_letters_share_one_box(cluster: Cluster, nodes: list[Any], spread: Relay) -> None:
    assert spread.take(UNREADABLE, "msg_unreadable").outcome == "dead_lettered"

    assert nodes[cluster.owner("{clerk}")].hkeys("{clerk}:dead-letters") == ["msg_unreadable"]


def test_with_partitions_a_dead_letter_is_replayed_into_its_users_partition(cluster: Cluster, nodes: list[Any]) -> None:
    box = nodes[cluster.owner(DEAD_LETTERS_KEY)]
    for user in USERS:
        event = clerk_event(session_id=f"sess_of_{user}", user_id=user)
        letter = {"id": user, "received_at": NOW_MS, "reason": "", "detail": "", "body": json.dumps(event)}
        box.hset(DEAD_LETTERS_KEY, user, json.dumps(letter))
    settings = make_settings(cluster.url, partitions=PARTITIONS)
    with (
        contextlib.closing(DeadLetters(settings)) as letters,
        contextlib.closing(SessionFeed(settings)) as feed,
        contextlib.closing(ReplayStore(settings)) as store,
    ):
        replayed = [letters.replay(letter.id, Ingest(store)) for letter in letters.summaries()]
        assert {(letter.id, letter.outcome) for letter in replayed} == {(user, "applied") for user in USERS}
        assert not box.exists(DEAD_LETTERS_KEY)
        for user in USERS:
            tag = f"{{clerk:{partition_of(user, PARTITIONS)}}}"
            assert nodes[cluster.owner(tag)].exists(f"{tag}:session:sess_of_{user}")
            assert feed.get(f"sess_of_{user}") is not None


def test_with_partitions_readiness_asks_every_shard(cluster: Cluster, nodes: list[Any], spread: Relay) -> None:
    spread.call(spread.store.probe).result(timeout=30)
    nodes[2].config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailableError):
            spread.call(spread.store.probe).result(timeout=30)
    finally:
        nodes[2].config_set("maxmemory", "0")


@pytest.mark.parametrize("where", ["cluster", "one server"])
def test_the_feed_reads_all_partitions(
    request: pytest.FixtureRequest,
    start_redis: StartRedis,
    open_feed: OpenFeed,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: NOW_MS * 1_000_000)
    url = request.getfixturevalue("cluster").url if where == "cluster" else start_redis().url
    if where == "cluster":
        request.getfixturevalue("nodes")
    feed = open_feed(url, partitions=PARTITIONS)
    from_now_on = feed.follow(feed.now())
    with run_relay(url, partitions=PARTITIONS) as relay:
        cursors = {
            user: relay.take(clerk_event(session_id=f"sess_of_{user}", user_id=user), f"msg_{user}").cursor
            for user in USERS
        }
    partitions = {user: partition_of(user, PARTITIONS) for user in USERS}
    for updates in (feed.follow("0-0"), from_now_on, feed.follow(), feed.consume()):
        got = {update.session.user_id: update for update in updates.take(len(USERS))}
        assert {user: update.cursor for user, update in got.items()} == cursors
        assert {user: update.partition for user, update in got.items()} == partitions
        updates.leave()
    for user in USERS:
        session_id = f"sess_of_{user}"
        assert feed.live_ids(user) == [session_id]
        assert feed.get(session_id) == feed.get(session_id, user) == feed.state(session_id)
        assert feed.is_live(session_id)
        assert feed.is_live(session_id, user)
        assert [update.cursor for update in feed.history(session_id)] == [cursors[user]]
    assert feed.get("sess_unknown") is None
    assert not feed.is_live("sess_unknown")


def test_following_partitions_goes_on_from_the_position_in_each(own_redis: EmbeddedRedis, open_feed: OpenFeed) -> None:
    feed = open_feed(own_redis.url, partitions=PARTITIONS)
    with run_relay(own_redis.url, partitions=PARTITIONS) as relay:
        for user in USERS:
            relay.take(clerk_event(session_id=f"sess_of_{user}", user_id=user), f"msg_{user}")
    positions = dict.fromkeys(range(PARTITIONS), "0-0")
    seen: list[str] = []
    for _ in range(4):  # each is a life of a program
        updates = feed.follow(positions)
        for update in updates.take(10):
            assert update.position is not None
            positions[update.partition] = update.position
            seen.append(update.session.user_id)
        updates.leave()
    assert sorted(seen) == sorted(USERS)
    with pytest.raises(ValueError, match="number: cursor"):
        feed.follow(positions[0])


def test_an_error_in_one_partition_ends_them_all(cluster: Cluster, nodes: list[Any], open_feed: OpenFeed) -> None:
    nodes[cluster.owner("{clerk:3}")].set("{clerk:3}:events", "not a stream")
    feed = open_feed(cluster.url, partitions=PARTITIONS)
    for updates in (feed.follow("0-0"), feed.consume()):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            updates.next()


@pytest.mark.parametrize("how", ["close", "leave"])
def test_a_feed_on_a_cluster_leaves_no_thread_and_no_connection(
    cluster: Cluster, nodes: list[Any], open_feed: OpenFeed, how: str
) -> None:
    def connections() -> int:
        return sum(len(client.client_list(_type="normal")) for client in nodes)

    before = connections()
    feed = open_feed(cluster.url, partitions=PARTITIONS)
    with run_relay(cluster.url, partitions=PARTITIONS) as relay:
        relay.take(clerk_event(), "msg_1")
    threads = set(threading.enumerate())
    updates = feed.follow("0-0")
    assert updates.next().session.user_id == "user_1"
    if how == "leave":
        updates.leave()
    else:
        waiting = updates.begin()
        feed.close()
        with pytest.raises(EndedError):
            waiting.result(30)

    eventually(lambda: not {each for each in threading.enumerate() if each.name == "session-feed"} - threads)
    eventually(lambda: connections() == before)


def test_a_failover_in_the_midst_of_the_snapshots(
    cluster: Cluster, nodes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SCANNED", 4)
    monkeypatch.setattr(stream, "BATCH", 4)
    options: dict[str, Any] = {"on_reconnect": Reconnects(monkeypatch)}
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(run_relay(cluster.url, redis_timeout=20))
        feeds_ = [stack.enter_context(feeds(kind))(cluster.url) for kind in KINDS.values()]
        for number in range(40):
            relay.take(clerk_event(session_id=f"sess_{number}"), f"msg_{number}")
        followed = [(feed.follow(**options), Revisions()) for feed in feeds_]
        for updates, seen in followed:
            seen.note(updates.take(15))
        consumed = feeds_[0].consume(after="0-0", **options)
        shared = consumed.take(20)
        assert [feed.state().revision for feed in feeds_] == [1, 1]

        fail_over(cluster, "{clerk}")
        for number in range(45):
            event = clerk_event(session_id=f"sess_{number}", updated_at=NOW_MS)
            relay.take(event, f"msg_later_{number}")

        assert [feed.state().revision for feed in feeds_] == [2, 2]
        for updates, seen in followed:
            while seen.last != {f"sess_{number}": 2 if number < 40 else 1 for number in range(45)}:
                seen.note(updates.take(1))
        while len({update.cursor for update in shared}) < 40 + 45:
            shared += consumed.take(1)


class Revisions:
    """What a program knows that follows: nothing may be left out on the way."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}

    def note(self, updates: list[SessionUpdate]) -> None:
        for update in updates:
            assert update.revision is not None
            before = self.last.get(update.session.id, 0)
            assert before == 0 if update.is_snapshot else update.revision == before + 1
            self.last[update.session.id] = update.revision


def fail_over(cluster: Cluster, key: str) -> None:
    """Ask for a failover, until there is one: nodes give it up when it takes too long."""
    successor = cluster.replica(cluster.owner(key))
    with client_of(successor.url) as client:
        for _ in range(4):
            client.execute_command("CLUSTER", "FAILOVER")
            with contextlib.suppress(AssertionError):
                eventually(lambda: cluster.holder(key) == successor.port, within=15)
                return
    raise AssertionError("no failover")


def test_with_partitions_readiness_asks_for_the_dead_letters_too(cluster: Cluster, nodes: list[Any]) -> None:
    # A prefix whose dead letters are on a shard without partitions.
    prefix = next(
        f"{{{letter}}}"
        for letter in string.ascii_lowercase
        if cluster.owner(letter) not in {cluster.owner(f"{letter}:{number}") for number in range(2)}
    )
    shard = nodes[cluster.owner(prefix)]
    shard.config_set("maxmemory", "1")
    try:
        with (
            run_relay(cluster.url, partitions=2, redis_key_prefix=prefix) as relay,
            pytest.raises(StoreUnavailableError),
        ):
            relay.call(relay.store.probe).result(timeout=30)
    finally:
        shard.config_set("maxmemory", "0")


def test_connections_of_several_slots_are_closed_side_by_side(
    cluster: Cluster, nodes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_at_once = threading.Barrier(PARTITIONS + 1, timeout=10)
    close = Pipeline.close

    def close_together(pipeline: Pipeline) -> None:
        all_at_once.wait()
        close(pipeline)

    monkeypatch.setattr(Pipeline, "close", close_together)
    Relay(cluster.url, partitions=PARTITIONS).close()


def test_partitions_of_one_server_share_a_connection(own_redis: EmbeddedRedis, own_client: Any) -> None:
    with run_relay(own_redis.url, partitions=PARTITIONS) as relay:
        for user in USERS:
            relay.take(clerk_event(session_id=f"sess_of_{user}", user_id=user), f"msg_{user}")
        assert len(own_client.client_list()) == 2
