"""A number of PARTITIONS that does not fit the data: what writes refuses to start, or to write."""

import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from clerk_session_feed.errors import ConfigurationError
from clerk_session_feed.keys import Keys, partition_of
from click.testing import Result
from support.cli import run
from support.clock import eventually
from support.constants import NO_REDIS, NOW_MS
from support.events import clerk_event, user_event
from support.network import free_port
from support.partitions import take_some
from support.redis_clients import client_of, contents
from support.relay import Relay, make_settings, run_relay
from support.topologies import cluster_of

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError
from service.store import forget, revokes
from service.store.layout import PartitionsError
from service.store.partitions import refuse_other_partitions
from service.store.scanning import indexed_sessions, stored_sessions
from service.workers.repartition import repartition

MARK = "{clerk}:partitions"
NUMBERS = [(1, 8), (8, 1), (2, 4), (4, 2), (3, 5)]
COMMANDS = {
    "expire": ["expire"],
    "expire --once": ["expire", "--once"],
    "reconcile": ["reconcile"],
    "reconcile --every": ["reconcile", "--every", "1"],
    "revoke": ["revoke", "--local", "sess_1"],
    "revoke at Clerk": ["revoke", "--user", "user_1"],
    "forget": ["forget", "user_1"],
    "dead-letters replay": ["dead-letters", "replay"],
    "serve": ["serve", "--port", str(free_port())],
}


def command(name: str, redis_url: str, partitions: int) -> Result:
    secrets = {"CLERK_SECRET_KEY": "sk_test_1", "CLERK_WEBHOOK_SIGNING_SECRET": "whsec_" + "a" * 32}
    settings = {"REDIS_URL": redis_url, "PARTITIONS": str(partitions), "CLERK_API_URL": "http://127.0.0.1:9"}
    return run(*COMMANDS[name], environment=secrets | settings)


@pytest.mark.parametrize(("was", "is_"), NUMBERS)
def test_the_start_is_refused(relay_redis: EmbeddedRedis, client: Any, was: int, is_: int) -> None:
    take_some(relay_redis.url, was)

    refuse_other_partitions(make_settings(relay_redis.url, partitions=was))
    with pytest.raises(ConfigurationError, match=f"^PARTITIONS={is_}[, ].*session-relay repartition.* --to {is_}`"):
        refuse_other_partitions(make_settings(relay_redis.url, partitions=is_))


@pytest.mark.parametrize(("was", "is_"), NUMBERS)
def test_data_of_a_version_that_marked_nothing_tells_its_number_by_its_streams(
    relay_redis: EmbeddedRedis, client: Any, was: int, is_: int
) -> None:
    take_some(relay_redis.url, was)
    client.delete(MARK)

    with pytest.raises(ConfigurationError, match=f"^PARTITIONS={is_} does not fit the data in "):
        refuse_other_partitions(make_settings(relay_redis.url, partitions=is_))
    refuse_other_partitions(make_settings(relay_redis.url, partitions=was))


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_writes_does_not_start(real_redis: EmbeddedRedis, lasting_client: Any, name: str) -> None:
    client = lasting_client(real_redis)
    client.flushall()
    take_some(real_redis.url, 1)
    before = contents(client)

    result = command(name, real_redis.url, 8)

    assert result.exit_code == 2
    assert re.fullmatch(
        r"PARTITIONS=8 does not fit the data in \{clerk\}:events: set PARTITIONS=1, or .*\n", result.stderr
    )
    assert result.stdout == ""
    assert contents(client) == before


def test_a_start_without_redis_is_not_refused() -> None:
    refuse_other_partitions(make_settings(NO_REDIS, partitions=8))


def test_nobody_is_revived_by_another_number(relay_redis: EmbeddedRedis, client: Any) -> None:
    with run_relay(relay_redis.url) as relay:
        relay.take(clerk_event("revoked"), "msg_revoked")
    before = contents(client)

    with run_relay(relay_redis.url, partitions=8) as other:
        for event in (clerk_event(updated_at=NOW_MS - 5000), user_event(), {"type": "session.unreadable"}):
            with pytest.raises(PartitionsError, match=r"^PARTITIONS=8 .*PARTITIONS=1.*repartition --to 8`\.$"):
                other.take(event, "msg_late")

    assert contents(client) == before


def test_what_is_mended_needs_no_restart(relay_redis: EmbeddedRedis, client: Any) -> None:
    take_some(relay_redis.url, 1)
    with run_relay(relay_redis.url, partitions=8) as relay:
        for _ in range(2):
            with pytest.raises(PartitionsError):
                relay.take(clerk_event(), "msg_1")

        client.flushall()

        assert relay.take(clerk_event(), "msg_1").outcome == "applied"


def test_of_two_deployments_that_begin_at_once_one_is_refused(relay_redis: EmbeddedRedis, client: Any) -> None:
    with run_relay(relay_redis.url, partitions=3) as three, run_relay(relay_redis.url, partitions=5) as five:
        three.call(three.store.probe).result(timeout=30)
        with pytest.raises(PartitionsError):
            five.call(five.store.probe).result(timeout=30)
        assert three.take(clerk_event(), "msg_1").outcome == "applied"


def test_one_partition_is_not_marked(relay_redis: EmbeddedRedis, client: Any) -> None:
    take_some(relay_redis.url, 1)

    assert not client.exists(MARK)


def test_a_mark_lasts_from_the_last_connection_on(relay_redis: EmbeddedRedis, client: Any) -> None:
    take_some(relay_redis.url, 3)
    client.pexpire(MARK, 1_000_000)
    take_some(relay_redis.url, 3)

    assert client.hgetall(MARK) == {"partitions": "3"}
    assert client.pttl(MARK) > 399 * 86_400_000


def test_who_only_reads_marks_nothing(relay_redis: EmbeddedRedis, client: Any) -> None:
    settings = {"REDIS_URL": relay_redis.url, "PARTITIONS": "3"}
    assert run("revoke", "--pending", environment=settings).exit_code == 0

    assert contents(client) == {}


def test_a_connected_relay_notices_a_mark_without_a_further_command(own_redis: EmbeddedRedis, own_client: Any) -> None:
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event(), "msg_1")
        own_client.hset(MARK, "partitions", "8")
        calls = own_client.info("commandstats").get("cmdstat_evalsha", {}).get("calls")
        with pytest.raises(PartitionsError, match="the data has 8"):
            relay.take(clerk_event(updated_at=NOW_MS), "msg_2")
        after = own_client.info("commandstats")
        assert after["cmdstat_evalsha"]["calls"] == calls + 1
        with pytest.raises(PartitionsError, match="the data has 8"):
            relay.take(user_event(), "msg_3")


def test_on_a_cluster_the_mark_counts_for_every_slot(redis_binary: str) -> None:
    with cluster_of(redis_binary, replicas=0) as cluster:
        take_some(cluster.url, 4)

        refuse_other_partitions(make_settings(cluster.url, partitions=4))
        for number in (1, 2, 3, 8):
            with pytest.raises(ConfigurationError, match=f"^PARTITIONS={number}, but the data has 4"):
                refuse_other_partitions(make_settings(cluster.url, partitions=number))
            with run_relay(cluster.url, partitions=number) as relay, pytest.raises(PartitionsError):
                relay.take(clerk_event(), "msg_other")


def test_rights_that_end_at_one_partition_are_enough_for_it(own_redis: EmbeddedRedis, own_client: Any) -> None:
    """The users that docs/redis.md described before there were marks."""
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">password", "~{clerk}:*", "allchannels", "+@all")
    url = own_redis.url.replace("//", "//relay:password@")
    with run_relay(url) as relay:
        assert relay.take(clerk_event(), "msg_1").outcome == "applied"

    assert own_client.acl_log() == []


def test_a_user_with_all_rights_looks_for_streams_of_a_greater_number(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    take_some(own_redis.url, 8)
    own_client.delete(MARK)
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">password", "~*", "allchannels", "+@all")
    url = own_redis.url.replace("//", "//relay:password@")

    with run_relay(url) as relay, pytest.raises(PartitionsError, match=r"^PARTITIONS=1 does not fit the data in "):
        relay.take(clerk_event(), "msg_1")


@pytest.mark.parametrize("kept", ["expiry", "revokes"])
def test_data_without_a_stream_tells_its_number_by_its_sets(relay_redis: EmbeddedRedis, client: Any, kept: str) -> None:
    take_some(relay_redis.url, 1)
    with run_relay(relay_redis.url) as relay:
        revokes.add(relay.store.partitions[0], ["sess_1"], NOW_MS)
    client.delete(*{*client.scan_iter("*")} - {f"{{clerk}}:{kept}"})

    with run_relay(relay_redis.url, partitions=8) as relay, pytest.raises(PartitionsError):
        relay.take(clerk_event(), "msg_1")


def test_on_a_cluster_what_can_not_be_asked_is_refused(redis_binary: str) -> None:
    with cluster_of(redis_binary, replicas=0) as cluster:
        for node in cluster.shards:
            with client_of(node[0].url) as client:
                client.config_set("cluster-require-full-coverage", "no")
        with run_relay(cluster.url) as relay:
            relay.take(clerk_event("revoked"), "msg_revoked")
        whole = cluster.owner("{clerk}:partitions")
        user = next(
            f"user_{n}"
            for n in range(99)
            if cluster.owner(Keys().split(8)[partition_of(f"user_{n}", 8)].events) != whole
        )
        process = cluster.shards[whole][0].process
        assert process is not None
        with run_relay(cluster.url, partitions=8) as relay:
            process.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(StoreUnavailableError):
                    relay.take(clerk_event(user_id=user), "msg_1")
            finally:
                process.send_signal(signal.SIGCONT)
            eventually(lambda: refused(relay, user), within=30)


def refused(relay: Relay, user_id: str) -> bool:
    try:
        relay.take(clerk_event(user_id=user_id), "msg_1")
    except StoreUnavailableError as error:
        return isinstance(error, PartitionsError)
    raise AssertionError("It was taken.")


def test_data_that_was_replaced_under_a_connection_is_noticed_by_readyz(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event("revoked"), "msg_revoked")
        stream = own_client.dump("{clerk}:events")
    own_client.flushall()
    with run_relay(own_redis.url, partitions=8) as relay:
        relay.take(clerk_event(), "msg_1")
        own_client.flushall()
        own_client.restore("{clerk}:events", 0, stream)

        relay.call(relay.store.probe).result(timeout=30)

        with pytest.raises(PartitionsError, match="set PARTITIONS=1"):
            relay.take(clerk_event(updated_at=NOW_MS), "msg_2")


def test_what_differs_is_logged_once(relay_redis: EmbeddedRedis, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    take_some(relay_redis.url, 1)
    with run_relay(relay_redis.url, partitions=8) as relay:
        for _ in range(3):
            with pytest.raises(PartitionsError):
                relay.take(clerk_event(), "msg_1")

    assert ["partitions_differ" in each.getMessage() for each in caplog.records].count(True) == 1


def test_who_reads_across_a_move_is_told(relay_redis: EmbeddedRedis, client: Any) -> None:
    take_some(relay_redis.url, 1)
    with run_relay(relay_redis.url) as relay:
        partition = relay.store.partitions[0]
        repartition(make_settings(relay_redis.url), 8)
        calls: list[Callable[[], object]] = [
            lambda: relay.store.read(partition, ["sess_1"]),
            lambda: revokes.add(partition, ["sess_1"], NOW_MS),
            lambda: revokes.remove(partition, ["sess_1"]),
            lambda: revokes.pending(partition, 0, 10),
            lambda: [*indexed_sessions(partition, "user_1")],
            lambda: [*stored_sessions(relay.store)],
        ]
        for call in calls:
            with pytest.raises(PartitionsError, match="the data has 8"):
                relay.call(call).result(timeout=30)


@pytest.mark.parametrize("back", [False, True])
def test_a_forget_that_a_move_overtakes_does_not_report_success(
    relay_redis: EmbeddedRedis, client: Any, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    take_some(relay_redis.url, 1)
    settings = make_settings(relay_redis.url)

    def move_meanwhile(*_: object, **__: object) -> list[Any]:
        repartition(settings, 8)
        if back:
            repartition(settings, 1)
        return []

    monkeypatch.setattr(forget, "scan", move_meanwhile)
    with pytest.raises(PartitionsError, match=r"The data was moved meanwhile|the data has 8"):
        forget.forget_user(settings, "user_1")
