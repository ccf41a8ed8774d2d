"""Clients that look into Redis: what it stores, what it publishes, what it is asked."""

import contextlib
from collections.abc import Iterator
from typing import Any

import redis

from support import schemas


@contextlib.contextmanager
def client_of(redis_url: str, **options: Any) -> Iterator[Any]:
    """Return a client that speaks text. Typed Any: redis-py's replies are unions of everything."""
    # No CLIENT SETINFO, which tests of what is said would meet from Redis 7.2 on.
    defaults = {"decode_responses": True, "protocol": 2, "driver_info": None}
    with redis.Redis.from_url(redis_url, **defaults | options) as client:
        yield client


@contextlib.contextmanager
def emptied(redis_url: str) -> Iterator[Any]:
    """Return a client of a Redis that is empty at first and again afterwards, as nobody looks at what is left."""
    with client_of(redis_url) as client:
        client.flushall()
        try:
            yield client
        finally:
            client.flushall()


def counts_entries(client: Any) -> bool:
    """Tell whether this Redis counts what a stream ever got, as all do from 7.0 on."""
    return int(client.info("server")["redis_version"].partition(".")[0]) >= 7


def contents(client: Any) -> dict[str, Any]:
    """Return all that Redis stores, and which keys have a TTL; an empty stream holds nothing."""
    read = {
        "hash": client.hgetall,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        "stream": client.xrange,
        "string": client.get,
    }
    stored = {key: (read[client.type(key)](key), client.pttl(key) >= 0) for key in client.scan_iter("*")}
    return {key: value for key, value in stored.items() if value[0]}


def assert_sessions_and_users_expire(client: Any) -> None:
    for pattern in ("*:session:*", "*:user:*"):
        for key in client.scan_iter(pattern):
            assert client.ttl(key) != -1, f"{key} stays for ever"


def assert_messages_keep_to_the_schema(client: Any) -> None:
    """Those that Redis stores, that is; Subscriber looks at what is published."""
    assert schemas.faults_stored(client) == []


class Subscriber:
    """Collects what is published, all of which keeps to the schema."""

    def __init__(self, client: Any, *channels: str) -> None:
        self._pubsub = client.pubsub(ignore_subscribe_messages=False)
        self._pubsub.subscribe(*channels)
        for _ in channels:
            assert self._pubsub.get_message(timeout=10)["type"] == "subscribe"

    def next(self, within: float = 10.0) -> tuple[str, str]:
        """Return the next message, with its channel first."""
        message = self._pubsub.get_message(timeout=within)
        assert message is not None, "nothing was published"
        return self._checked(message)

    def rest(self) -> list[tuple[str, str]]:
        """Return what has arrived until now: everything that Redis published before it answers a ping."""
        self._pubsub.ping("end")
        messages = []
        while (message := self._pubsub.get_message(timeout=10))["type"] != "pong":
            messages.append(self._checked(message))
        return messages

    def _checked(self, message: dict[str, str]) -> tuple[str, str]:
        assert schemas.faults_published(message["data"]) == []
        return message["channel"], message["data"]

    def close(self) -> None:
        self._pubsub.close()


@contextlib.contextmanager
def subscribed(client: Any, *channels: str) -> Iterator[Subscriber]:
    subscriber = Subscriber(client, *channels)
    try:
        yield subscriber
    finally:
        subscriber.close()


@contextlib.contextmanager
def monitored(client: Any) -> Iterator[list[str]]:
    """Collect the commands of all other clients, but for those of scripts; filled in on leaving."""
    commands: list[str] = []
    with client.monitor() as monitor:
        yield commands
        client.echo("end-of-monitoring")
        while "end-of-monitoring" not in (said := monitor.next_command())["command"]:
            if said["client_type"] != "lua":
                commands.append(said["command"])
