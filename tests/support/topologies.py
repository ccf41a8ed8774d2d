"""Several Redis servers that make one: a primary with replicas and sentinels, and a cluster."""

import contextlib
import itertools
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis
from redis.crc import key_slot

from service.dev.embedded import EmbeddedRedis
from support.clock import eventually
from support.network import free_port
from support.redis_clients import client_of
from support.redis_servers import redis_server

StartRedis = Callable[..., EmbeddedRedis]

MASTER: Final = "relay"
SLOTS: Final = 16_384


def kill(server: EmbeddedRedis) -> None:
    assert server.process is not None
    server.process.kill()
    server.process.wait()


# Sentinel


@dataclass(frozen=True, slots=True)
class Sentinels:
    ports: tuple[int, ...]
    servers: tuple[EmbeddedRedis, ...]
    """The primary, as it is at first, and two replicas."""

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/{MASTER}/0"

    def primary(self) -> EmbeddedRedis | None:
        """Return who it is now; None if the sentinels do not agree."""
        named = {self._named_by(port) for port in self.ports}
        (port,) = named if len(named) == 1 else (None,)
        return next((server for server in self.servers if server.port == port), None)

    def _named_by(self, port: int) -> int:
        with redis.Redis(port=port, protocol=2) as sentinel:
            address: Any = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
            return int(address[1])


@contextlib.contextmanager
def run_sentinels(binary: str, start_redis: StartRedis) -> Iterator[Sentinels]:
    """Run a primary, two replicas and three sentinels that take over within seconds."""
    primary = start_redis("--repl-diskless-sync-delay", "0")
    replicaof = ("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
    servers = (primary, start_redis(*replicaof), start_redis(*replicaof))
    for replica in servers[1:]:
        await_sync(replica)
    with contextlib.ExitStack() as stack:
        ports = tuple(stack.enter_context(run_sentinel(binary, primary.port)) for _ in range(3))
        for port in ports:
            with redis.Redis(port=port, protocol=2) as sentinel:
                # Each has to know the others and both replicas, or there is no failover.
                eventually(partial(_knows_all, sentinel), within=30)
        yield Sentinels(ports, servers)


def _knows_all(sentinel: Any) -> bool:
    state = sentinel.sentinel_master(MASTER)
    return (state["num-other-sentinels"], state["num-slaves"]) == (2, 2)


@contextlib.contextmanager
def run_sentinel(binary: str, primary_port: int, *more: str, quorum: int = 2) -> Iterator[int]:
    """Run a sentinel, and return its port. more: lines of its configuration."""
    with tempfile.TemporaryDirectory(prefix="session-relay-sentinel-") as directory:
        port = free_port()
        config, log = Path(directory) / "sentinel.conf", Path(directory) / "sentinel.log"
        lines = [
            *("bind 127.0.0.1", f"port {port}", f"dir {directory}", f"logfile {log}"),
            f"sentinel monitor {MASTER} 127.0.0.1 {primary_port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER} 1000",
            f"sentinel failover-timeout {MASTER} 5000",
            *(line.format(port=port) for line in more),
        ]
        config.write_text("\n".join(lines))
        with subprocess.Popen([binary, str(config), "--sentinel"], start_new_session=True) as process:
            try:
                eventually(lambda: log.exists() and "+monitor" in log.read_text())
                yield port
            finally:
                process.kill()


def await_sync(replica: EmbeddedRedis) -> None:
    with client_of(replica.url) as client:
        eventually(lambda: client.info("replication")["master_link_status"] == "up", within=30)


# Cluster


@dataclass(frozen=True, slots=True)
class Cluster:
    """Shards of a primary and its replicas; which node of a shard is the primary may change."""

    shards: tuple[tuple[EmbeddedRedis, ...], ...]

    @property
    def url(self) -> str:
        """Names one node of each shard."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node, *_ in self.shards)}"

    def owner(self, key: str) -> int:
        """Return the index of the shard that has the key's slot."""
        return key_slot(key.encode()) * len(self.shards) // SLOTS

    def primary(self, shard: int) -> EmbeddedRedis:
        return next(node for node in self.shards[shard] if _role(node) == "master")

    def replica(self, shard: int) -> EmbeddedRedis:
        return next(node for node in self.shards[shard] if _role(node) == "slave")

    def holder(self, key: str) -> int | None:
        """Return the port of the primary that has the key's slot, once all that run agree."""
        slot = key_slot(key.encode())
        named = set()
        for node in itertools.chain(*self.shards):
            if _role(node) is not None:
                with client_of(node.url) as client:
                    ranges: Any = client.execute_command("CLUSTER", "SLOTS")
                    named |= {int(owner[1]) for first, last, owner, *_ in ranges if first <= slot <= last}
        return named.pop() if len(named) == 1 else None


def _role(node: EmbeddedRedis) -> str | None:
    """Return `master` or `slave`; None if it does not run."""
    assert node.process is not None
    if node.process.poll() is not None:
        return None
    with client_of(node.url) as client:
        return str(client.info("replication")["role"])


@contextlib.contextmanager
def cluster_of(binary: str, replicas: int = 1) -> Iterator[Cluster]:
    """Run three primaries with a third of the slots each, and so many replicas of each."""
    with contextlib.ExitStack() as stack:
        shards = tuple(tuple(stack.enter_context(_cluster_node(binary)) for _ in range(1 + replicas)) for _ in range(3))
        nodes = tuple(itertools.chain(*shards))
        client = {node: stack.enter_context(client_of(node.url)) for node in nodes}
        for number, (primary, *_) in enumerate(shards):
            slots = range(-(-SLOTS * number // 3), -(-SLOTS * (number + 1) // 3))
            client[primary].execute_command("CLUSTER", "ADDSLOTS", *slots)
            client[primary].execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for asked in client.values():  # each told of each: gossip would take its time
            for node in nodes:
                asked.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for asked in client.values():
            eventually(partial(_knows, asked, len(nodes)), within=30)
        for primary, *followers in shards:
            name = client[primary].execute_command("CLUSTER", "MYID")
            for follower in followers:
                client[follower].execute_command("CLUSTER", "REPLICATE", name)
        for asked in client.values():
            eventually(partial(_is_complete, asked, len(nodes)), within=30)
        for follower in itertools.chain(*(followers for _, *followers in shards)):
            await_sync(follower)
        yield Cluster(shards)


def _knows(client: Any, count: int) -> bool:
    nodes = client.cluster("NODES")
    return len(nodes) == count and not any("handshake" in node["flags"] for node in nodes.values())


def _is_complete(client: Any, count: int) -> bool:
    ranges = client.execute_command("CLUSTER", "SLOTS")
    is_ok = client.cluster("INFO")["cluster_state"] == "ok"
    return is_ok and sum(len(nodes) for _, _, *nodes in ranges) == count


def _cluster_node(binary: str) -> contextlib.AbstractContextManager[EmbeddedRedis]:
    return redis_server(
        binary,
        *("--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0"),
        *("--repl-ping-replica-period", "1"),  # a replica counts once it has been sent anything
        port=free_node_port(),
    )


def free_node_port() -> int:
    """Return a port that is free together with the one 10,000 above, on which nodes talk to each other."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 10_000))
            return port
