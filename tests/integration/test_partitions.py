"""A number of PARTITIONS that does not fit the data: what writes refuses to start, or to write."""

import re
from typing import Any

import pytest
from clerk_session_feed.errors import ConfigurationError
from click.testing import Result
from support.cli import run
from support.constants import NO_REDIS, NOW_MS
from support.events import clerk_event, user_event
from support.network import free_port
from support.redis_clients import contents
from support.relay import make_settings, run_relay
from support.topologies import cluster_of

from service.dev.embedded import EmbeddedRedis
from service.store.layout import PartitionsError
from service.store.partitions import refuse_other_partitions

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


def take_some(redis_url: str, partitions: int) -> None:
    with run_relay(redis_url, partitions=partitions) as relay:
        for number in range(20):
            relay.take(clerk_event(session_id=f"sess_{number}", user_id=f"user_{number}"), f"msg_{number}")
        relay.take({"type": "session.unreadable"}, "msg_unreadable")


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
