"""The service under load: Svix sends, subscribers listen, health is watched, and Redis keeps what it is told."""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from support.children import descendants
from support.clock import Metronome, eventually
from support.constants import PROC
from support.lives import lives
from support.onlookers import OURS, Subscriber, Watch, our_client
from support.redis_servers import DurableRedis
from support.services import ServiceProcess as Service
from support.services import run_service
from support.svix_sender import SvixSender

WORKERS: Final = 2
SETTINGS: Final = {"WEB_CONCURRENCY": str(WORKERS), "STREAM_MAXLEN": "1000000"}


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What the service takes of the machine."""

    redis_connections: int
    sockets: int
    """Of all workers: to Redis, to clients, and those that listen."""
    megabytes: float
    """Of the largest worker."""


class Load:
    def __init__(self, server: DurableRedis, service: Service, sender: SvixSender, subscriber: Subscriber) -> None:
        self.redis = server
        self.service = service
        self.sender = sender
        self.subscriber = subscriber
        self.watches = [Watch(path, lambda: self.service.port) for path in ("/healthz", "/readyz")]
        self.metronome = Metronome()
        self.before = self.usage()
        self.megabytes_before = 0.0
        self.killed_workers = 0
        self.moves = 0
        self._end = self._left = 0

    def suffer(self, fault: Callable[["Load"], None], deliveries: int) -> None:
        """Let a fault happen in the midst of so many deliveries; return when all of them got through.

        Half of them begin before it. The others come after it, if it does not ask for them itself.
        """
        self._end = self.sender.released + deliveries
        half = deliveries // 2
        if not self.megabytes_before:
            self._release(deliveries // 10)
            self.sender.await_idle()
            self.megabytes_before = self.usage().megabytes
        before = len(self.sender.acknowledged)
        self._release(half)
        self.sender.await_acknowledged(before + half // 3)
        self._left = self._end - self.sender.released
        fault(self)
        self._release(deliveries)
        self.sender.await_idle()

    def _release(self, count: int) -> int:
        count = min(count, self._end - self.sender.released)
        self.sender.release(count)
        return count

    def begin_part(self, of: int) -> int:
        """Send one of so many parts of the deliveries that are left to the fault; return how many they are."""
        return self._release(self._left // of)

    def release_part(self, of: int) -> None:
        """The same; return when some of it got through. Nothing is awaited of a part that is empty."""
        before = len(self.sender.acknowledged)
        if self.begin_part(of):
            self.sender.await_acknowledged(before + 1)

    def move_to(self, service: Service) -> None:
        """Send to another service from now on."""
        self.service = service
        self.sender.port = service.port
        self.moves += 1

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Leave the service alone: no health checks meanwhile."""
        for watch in self.watches:
            watch.pause()
        try:
            yield
        finally:
            for watch in self.watches:
                watch.go_on()

    def workers(self) -> set[int]:
        """Return the process ids of the service's workers; none without /proc."""
        children = descendants(self.service.process.pid)
        return {pid for pid in children if b"resource_tracker" not in _read(pid, "cmdline")}

    def usage(self) -> Usage:
        with our_client(self.redis.url) as client:
            connections = redis_connections(client)
        pages = [int(_read(pid, "statm").split()[1]) for pid in self.workers()]
        return Usage(
            len(connections),
            sum(map(sockets_of, self.workers())),
            max(pages, default=0) * os.sysconf("SC_PAGE_SIZE") / 1e6,
        )


def redis_connections(client: Any) -> list[dict[str, str]]:
    """Return those of others than us."""
    return [row for row in client.client_list() if row["name"] != OURS]


def await_connections(server: DurableRedis, service: Service) -> None:
    """Wait until all workers have their connection to Redis; one that was lost is made anew when it is needed."""

    def are_there() -> bool:
        for _ in range(2 * WORKERS):  # any of the workers answers
            service.http.get("/readyz", headers={"connection": "close"})
        return len(redis_connections(client)) >= WORKERS

    with our_client(server.url) as client:
        eventually(are_there)


def sockets_of(pid: int) -> int:
    count = 0
    with contextlib.suppress(OSError):  # it may end meanwhile
        for file in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += str(file.readlink()).startswith("socket:")
    return count


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / name).read_bytes()
    return b"0 0"


@contextlib.contextmanager
def under_load(server: DurableRedis, service: Service, deliveries: int, sessions: int, seed: int) -> Iterator[Load]:
    """Empty Redis, and get ready to send; the load itself comes with `suffer`."""
    with our_client(server.url) as client:
        client.flushall()
    await_connections(server, service)
    messages = lives(deliveries, sessions, seed, time.time_ns() // 1_000_000)
    subscriber = Subscriber(server.url)
    sender = SvixSender(messages, service.port, seed=seed)
    load = Load(server, service, sender, subscriber)
    parts: list[Subscriber | Watch | Metronome] = [subscriber, *load.watches, load.metronome]
    threads = [threading.Thread(target=part.run) for part in parts]
    with sender.running():
        for thread in threads:
            thread.start()
        try:
            assert subscriber.listening.wait(timeout=10)
            yield load
            with our_client(server.url) as client:
                subscriber.await_all_until_now(client)
        finally:
            for part in parts:
                part.end()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def relay_service(redis_url: str) -> Iterator[Service]:
    with run_service(redis_url, **SETTINGS) as service:
        yield service
