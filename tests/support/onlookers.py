"""Those who look on while the service is under load: a subscriber, and who asks for its health."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.clock import eventually
from support.redis_clients import client_of

OURS: Final = "session-relay-test"
"""The name of our own connections to Redis, which are not counted."""
CHANNEL: Final = "clerk:sessions"


def our_client(url: str, **options: Any) -> contextlib.AbstractContextManager[Any]:
    return client_of(url, client_name=OURS, retry=Retry(NoBackoff(), 0), socket_timeout=30, **options)


class Subscriber:
    """Collects all that is published; whenever its connection is lost, it makes a new one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ending = threading.Event()
        self._end_seen = threading.Event()
        self.listening = threading.Event()
        self.connections = 0
        self.messages: list[tuple[str, dict[str, Any]]] = []
        """With the channel first, in the order in which they came."""

    def run(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(redis.RedisError), our_client(self._url) as client:
                self._listen(client.pubsub(ignore_subscribe_messages=True))
            self._ending.wait(0.01)

    def _listen(self, pubsub: Any) -> None:
        pubsub.psubscribe(f"{CHANNEL}*", OURS)
        pubsub.ping()
        self.connections += 1
        while not self._ending.is_set():
            message = pubsub.get_message(timeout=0.02)
            if message is None:
                continue
            if message["type"] == "pong":
                self.listening.set()
            elif message["channel"] == OURS:
                self._end_seen.set()
            else:
                self.messages.append((message["channel"], json.loads(message["data"])))

    def await_all_until_now(self, client: Any) -> None:
        self._end_seen.clear()
        eventually(lambda: client.publish(OURS, "") or None)
        assert self._end_seen.wait(timeout=10)

    def end(self) -> None:
        self._ending.set()


class Watch:
    """Asks one path for health, again and again, over a new connection each time, so of any worker."""

    def __init__(self, path: str, port: Callable[[], int]) -> None:
        self.path = path
        self._port = port
        self._ending = threading.Event()
        self._asking = threading.Lock()
        self.answers: list[tuple[int | None, float, float]] = []
        """Statuses (None: no answer), seconds, and when the answer was there."""

    def run(self) -> None:
        while not self._ending.wait(0.05):
            with self._asking:
                began = time.monotonic()
                status = self._ask()
                ended = time.monotonic()
                self.answers.append((status, ended - began, ended))

    def _ask(self) -> int | None:
        """By socket: the fewer steps, the less this measures the threads of the sender instead."""
        try:
            with socket.create_connection(("127.0.0.1", self._port()), timeout=15) as connection:
                connection.sendall(f"GET {self.path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
                version, _, rest = connection.recv(4096).partition(b" ")
        except OSError:
            return None
        return int(rest[:3]) if version == b"HTTP/1.1" else None

    def pause(self) -> None:
        self._asking.acquire()

    def go_on(self) -> None:
        self._asking.release()

    def end(self) -> None:
        self._ending.set()
