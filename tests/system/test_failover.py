"""A primary dies under load, and another takes its place: 503 in between, no restart, nothing lost."""

import collections
import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from support.clock import eventually
from support.lives import Message, demanded, lives
from support.redis_clients import client_of
from support.services import run_service
from support.svix_sender import SvixSender
from support.topologies import cluster_of, kill, run_sentinels

from service.dev.embedded import EmbeddedRedis

StartRedis = Callable[..., EmbeddedRedis]
DELIVERIES, SESSIONS = 400, 80


@contextlib.contextmanager
def sentinels(binary: str, start_redis: StartRedis) -> Iterator[tuple[str, EmbeddedRedis, Any]]:
    with run_sentinels(binary, start_redis) as group:
        victim = group.servers[0]
        yield group.url, victim, lambda: [p] if (p := group.primary()) not in {None, victim} else []


@contextlib.contextmanager
def cluster(binary: str, _: StartRedis) -> Iterator[tuple[str, EmbeddedRedis, Any]]:
    # Two replicas each: one takes over, and one is left to confirm.
    with cluster_of(binary, replicas=2) as nodes:
        victim = nodes.primary(nodes.owner("{clerk}"))
        yield nodes.url, victim, lambda: [nodes.primary(shard) for shard in range(3)]


def entries(servers: Sequence[EmbeddedRedis]) -> Iterator[tuple[str, str]]:
    """Yield the session's and the message's id of all that is in the streams."""
    for server in servers:
        with client_of(server.url) as client:
            for stream in client.scan_iter("*:events"):
                for _, fields in client.xrange(stream):
                    yield fields["session_id"], json.loads(fields["message"])["event"]["id"]


def statuses(servers: Sequence[EmbeddedRedis]) -> dict[str, str]:
    held = {}
    for server in servers:
        with client_of(server.url) as client:
            for key in client.scan_iter("*:session:*"):
                held[key.rpartition(":")[2]] = client.hget(key, "status")
    return held


def of_one_user_each(messages: list[Message]) -> list[Message]:
    """Leave out the sessions that change their user: with partitions, they would stay behind."""
    users = collections.defaultdict(set)
    for message in messages:
        users[message.session_id].add(message.session["user_id"])
    return [message for message in messages if len(users[message.session_id]) == 1]


# Partitions are several of what one partition has one of: they get the harder of the two on a cluster.
@pytest.mark.parametrize(
    ("topology", "partitions", "harm"),
    [
        pytest.param(sentinels, 1, signal.SIGKILL, id="sentinel-dies"),
        pytest.param(sentinels, 1, signal.SIGSTOP, id="sentinel-hangs"),
        pytest.param(cluster, 1, signal.SIGKILL, id="cluster-dies"),
        pytest.param(cluster, 6, signal.SIGSTOP, id="cluster with partitions-hangs"),
    ],
)
def test_a_primary_that_is_lost_under_load_costs_503s_and_nothing_else(
    redis_binary: str, start_redis: StartRedis, topology: Any, partitions: int, harm: signal.Signals
) -> None:
    messages = lives(DELIVERIES, SESSIONS, seed=3, now_ms=time.time_ns() // 1_000_000)
    if partitions > 1:
        messages = of_one_user_each(messages)
    settings = {"WEB_CONCURRENCY": "2", "REDIS_MIN_REPLICAS": "1", "PARTITIONS": str(partitions)}
    with contextlib.ExitStack() as stack:
        url, victim, primaries = stack.enter_context(topology(redis_binary, start_redis))
        service = stack.enter_context(run_service(url, **settings, STREAM_MAXLEN="100000"))
        sender = SvixSender(messages, service.port, seed=3)
        with sender.running():
            sender.release(len(messages) // 2)
            sender.await_acknowledged(len(messages) // 8)
            assert victim.process is not None
            victim.process.send_signal(harm)
            before = sender.failures()
            eventually(lambda: sender.failures() > before, within=30)
            sender.release(len(messages))
            sender.await_idle()
        kill(victim)
        servers = eventually(primaries)
        sent = collections.Counter((message.session_id, message.id) for message in messages)
        assert collections.Counter(entries(servers)) == sent
        assert statuses(servers) == {id_: message.status for id_, message in demanded(messages).items()}

    said = collections.Counter(attempt.said for attempt in sender.attempts)
    print(dict(said), "slowest:", max(attempt.seconds for attempt in sender.attempts))
    assert {attempt.status for attempt in sender.attempts} == {200, 503}
    assert max(attempt.seconds for attempt in sender.attempts) < 5
