"""Where a conformance scenario has its Redis, and what can be done to that: clients/conformance/README.md."""

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import redis

from service.dev.embedded import EmbeddedRedis
from support.clock import eventually
from support.network import unused_port
from support.redis_clients import client_of
from support.redis_servers import DurableRedis, durable_redis, redis_server
from support.refusing_proxy import RefusingProxy, refusing_proxy
from support.topologies import MASTER, Cluster, Sentinels, cluster_of, kill, run_sentinels

Address = dict[str, Any]
"""The object `server` of a driver's `open`."""


class Place:
    """A single server that nobody may harm, with what all kinds have in common.

    Attributes:
        url: For the relay.
    """

    def __init__(self, url: str, stack: contextlib.ExitStack) -> None:
        self.url = url
        self._stack = stack
        self._proxies: dict[str, RefusingProxy] = {}

    def address(self, driver: str) -> Address:
        """Return where a driver finds it."""
        proxy = self._proxies.get(driver)
        port = proxy.server_address[1] if proxy else _port(self.url)
        url = proxy.url if proxy else self.url
        return {"kind": "standalone", "url": url, "hosts": [["127.0.0.1", port]]}

    def client(self, key: str) -> Any:
        """Return a client of the server that has a key, for the rest of the scenario."""
        return self._stack.enter_context(client_of(self.url))

    def refuse(self, drivers: list[str], words: str, count: int, *, at_connect: bool) -> None:
        """Let each driver's next commands, or connections, be refused; cut those that it has."""
        with client_of(self.url) as client:
            subscribed = {each["id"] for each in client.client_list("pubsub")}
            for name in drivers:
                if name not in self._proxies:
                    proxy = refusing_proxy(_port(self.url), words, at_connect=at_connect)
                    self._proxies[name] = self._stack.enter_context(proxy)
                self._proxies[name].cut_and_refuse(count)
            eventually(lambda: not subscribed & {each["id"] for each in client.client_list("pubsub")})

    def subscribed(self, channels: list[str]) -> int:
        """Return how many subscriptions Redis has."""
        with client_of(self.url) as client:
            return sum(count for _, count in client.pubsub_numsub(*channels))

    def waiting(self, channels: list[str]) -> int:
        """Return how many wait at Redis, for entries or for what is published."""
        with client_of(self.url) as client:
            return int(client.info("clients")["blocked_clients"]) + self.subscribed(channels)

    def cut(self) -> None:
        """End all connections."""
        with client_of(self.url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
            client.client_kill_filter(_type="pubsub", skipme=True)

    def demote(self) -> None:
        """Make it a replica."""
        port = self._stack.enter_context(unused_port())
        with client_of(self.url) as client:
            client.replicaof("127.0.0.1", port)

    def promote(self) -> None:
        """Make it a primary again."""
        with client_of(self.url) as client:
            client.replicaof("NO", "ONE")


class OwnPlace(Place):
    """A single server of the scenario's own, which keeps its data."""

    def __init__(self, server: DurableRedis, stack: contextlib.ExitStack) -> None:
        super().__init__(server.url, stack)
        self._server = server

    def kill(self) -> None:
        """By SIGKILL."""
        self._server.kill()

    def start(self, *options: str) -> None:
        """Return when it has read its data."""
        self._server.start(*options)

    def freeze(self) -> None:
        """Let it do nothing, with its connections open."""
        os.kill(self._server.pid, signal.SIGSTOP)
        self._stack.callback(self._thaw)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self._server.pid, signal.SIGCONT)

    def _thaw(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.thaw()


class SentinelPlace(Place):
    """A primary with two replicas, and three sentinels."""

    def __init__(self, group: Sentinels, stack: contextlib.ExitStack) -> None:
        super().__init__(group.url, stack)
        self._group = group

    def address(self, driver: str) -> Address:
        hosts = [["127.0.0.1", port] for port in self._group.ports]
        return {"kind": "sentinel", "url": self.url, "hosts": hosts, "master": MASTER}

    def client(self, key: str) -> Any:
        return self._stack.enter_context(client_of(self._primary().url))

    def _primary(self) -> EmbeddedRedis:
        primary = eventually(self._group.primary)
        assert primary is not None
        return primary

    def subscribed(self, channels: list[str]) -> int:
        return Place(self._primary().url, self._stack).subscribed(channels)

    def waiting(self, channels: list[str]) -> int:
        return Place(self._primary().url, self._stack).waiting(channels)

    def failover(self) -> None:
        """Kill the primary, and return when another one has taken its place."""
        victim = self._primary()
        kill(victim)
        eventually(lambda: self._group.primary() not in {None, victim})


class ClusterPlace(Place):
    """Three primaries with a replica each."""

    def __init__(self, cluster: Cluster, stack: contextlib.ExitStack) -> None:
        super().__init__(cluster.url, stack)
        self._cluster = cluster

    def address(self, driver: str) -> Address:
        hosts = [["127.0.0.1", node.port] for node, *_ in self._cluster.shards]
        return {"kind": "cluster", "url": self.url, "hosts": hosts}

    def _holder(self, key: str) -> EmbeddedRedis:
        port = eventually(partial(self._cluster.holder, key))
        return next(node for shard in self._cluster.shards for node in shard if node.port == port)

    def client(self, key: str) -> Any:
        return self._stack.enter_context(client_of(self._holder(key).url))

    def subscribed(self, channels: list[str]) -> int:
        nodes = itertools.chain(*self._cluster.shards)
        return sum(Place(node.url, self._stack).subscribed(channels) for node in nodes)

    def failover(self) -> None:
        """Let each replica take its primary's place, without losing anything."""
        for number in range(len(self._cluster.shards)):
            before = self._cluster.primary(number)
            with client_of(self._cluster.replica(number).url) as client:
                first_key = next(
                    f"{{{each}}}" for each in range(100_000) if self._cluster.owner(f"{{{each}}}") == number
                )

                def has_moved(first_key: str = first_key, before: EmbeddedRedis = before, client: Any = client) -> bool:
                    if self._cluster.holder(first_key) not in {None, before.port}:
                        return True
                    with contextlib.suppress(redis.RedisError):  # one runs already, or it is none any more
                        client.execute_command("CLUSTER", "FAILOVER")
                    return False

                eventually(has_moved)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


@contextlib.contextmanager
def place(kind: str, shared: EmbeddedRedis, binary: str, directory: Path) -> Iterator[Any]:
    """Yield the place that a scenario names."""
    with contextlib.ExitStack() as stack:
        if kind == "shared":
            with client_of(shared.url) as client:
                client.flushall()
                yield Place(shared.url, stack)
                client.flushall()
        elif kind == "own":
            yield OwnPlace(stack.enter_context(durable_redis(binary, directory)), stack)
        elif kind == "sentinel":

            def start(*options: str, **named: Any) -> EmbeddedRedis:
                return stack.enter_context(redis_server(binary, *options, **named))

            yield SentinelPlace(stack.enter_context(run_sentinels(binary, start)), stack)
        else:
            yield ClusterPlace(stack.enter_context(cluster_of(binary)), stack)
