"""Faults of production, one function each: it does the harm, waits until the sender felt it, and mends it."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import redis

from support.clock import eventually
from support.cutting_proxy import cutting_proxy
from support.load import WORKERS, Load, await_connections, redis_connections, relay_service, sockets_of
from support.network import unused_port
from support.onlookers import our_client
from support.svix_sender import CONCURRENCY

Fault = Callable[[Load], None]
LOADING_MICROSECONDS: Final = 2_000_000
"""How long a Redis loads, whatever it holds: the delay that it can be told is for each key."""


@dataclasses.dataclass(frozen=True, slots=True)
class Strength:
    hang_seconds: float
    failures: int
    """Attempts that have to fail before the harm is mended."""
    times: int
    """For what is over at once."""
    restarts: int


SHORT: Final = Strength(hang_seconds=2.5, failures=20, times=5, restarts=2)
LONG: Final = Strength(hang_seconds=10, failures=300, times=20, restarts=3)


class Faults:
    def __init__(self, strength: Strength) -> None:
        self._strength = strength

    def all(self) -> list[Fault]:
        return [
            self.redis_is_killed,
            self.redis_hangs,
            self.redis_is_loading,
            self.redis_is_read_only,
            self.redis_is_out_of_memory,
            self.redis_wants_a_password,
            self.redis_is_busy,
            self.redis_forgets_its_scripts,
            self.redis_drops_connections,
            self.redis_drops_idle_connections,
            self.redis_loses_memory_scripts_and_connections,
            self.replies_are_cut_off,
            self.replies_are_cut_off_and_redis_killed,
            self.service_is_restarted,
            self.service_is_stopped_while_redis_hangs,
            *self.of_workers,
        ]

    @property
    def of_workers(self) -> list[Fault]:
        return [self.worker_is_killed, self.worker_dies_and_redis_while_it_hangs]

    # Redis

    def redis_is_killed(self, load: Load) -> None:
        load.redis.kill()
        self._await_failures(load, "ConnectionError")
        load.redis.start()

    def redis_hangs(self, load: Load) -> None:
        with _stopped(load.redis.pid):
            load.begin_part(of=1)
            time.sleep(self._strength.hang_seconds)

    def redis_is_loading(self, load: Load) -> None:
        elsewhere = load.redis.url.removesuffix("/0") + "/1"
        with our_client(elsewhere) as client:

            def await_rewritten() -> None:
                eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])

            # Each key takes its time to load; and only every 2 MB of the older kind of file, a snapshot, does Redis
            # say that it is loading. What can't be compressed, is that long there, too.
            client.mset({f"filler:{number}": os.urandom(10_000) for number in range(1000)})
            client.config_set("auto-aof-rewrite-percentage", 0)  # until it is killed
            await_rewritten()
            client.bgrewriteaof()
            await_rewritten()
            keys = sum(database["keys"] for database in client.info("keyspace").values())
        load.redis.kill()
        before = load.sender.failures("BusyLoadingError")
        load.begin_part(of=1)
        load.redis.start("--key-load-delay", str(LOADING_MICROSECONDS // keys))
        assert load.sender.failures("BusyLoadingError") > before
        with our_client(elsewhere) as client:
            client.flushdb()

    def redis_is_read_only(self, load: Load) -> None:
        with our_client(load.redis.url) as client, unused_port() as port:
            client.replicaof("127.0.0.1", port)
            try:
                self._await_failures(load, "ReadOnlyError")
            finally:
                client.replicaof("NO", "ONE")

    def redis_is_out_of_memory(self, load: Load) -> None:
        with our_client(load.redis.url) as client, _configured(client, "maxmemory", "1", "0"):
            self._await_failures(load, "OutOfMemoryError")

    def redis_wants_a_password(self, load: Load) -> None:
        with our_client(load.redis.url) as client, _configured(client, "requirepass", "x" * 20, ""):
            _drop_connections(client)
            self._await_failures(load, "AuthenticationError")

    def redis_is_busy(self, load: Load) -> None:
        with _endless_script(load.redis.url):
            self._await_failures(load, "BUSY")

    def redis_forgets_its_scripts(self, load: Load) -> None:
        with our_client(load.redis.url) as client:
            for _ in range(self._strength.times):
                load.release_part(self._strength.times)
                client.script_flush()

    def redis_drops_connections(self, load: Load) -> None:
        with our_client(load.redis.url) as client:
            for _ in range(self._strength.times):
                load.release_part(self._strength.times)
                _drop_connections(client)
                client.client_kill_filter(_type="pubsub")

    def redis_drops_idle_connections(self, load: Load) -> None:
        """The one that costs no delivery another attempt: a connection found closed is replaced first."""
        load.sender.await_idle()
        failures = load.sender.failures()
        with load.unwatched(), our_client(load.redis.url) as client, _configured(client, "timeout", "1", "0"):
            eventually(lambda: not redis_connections(client))
        load.begin_part(of=1)
        load.sender.await_idle()
        assert load.sender.failures() == failures

    # The way to Redis

    def replies_are_cut_off(self, load: Load) -> None:
        before = load.service
        with cutting_proxy(load.redis.port) as proxy, relay_service(proxy.url) as behind:
            load.move_to(behind)
            for _ in range(self._strength.times):
                proxy.cut_next_reply()
                load.release_part(self._strength.times)
                eventually(lambda: not proxy.will_cut)
            load.sender.await_idle()
            load.move_to(before)

    # The service

    def worker_is_killed(self, load: Load) -> None:
        with _stopped(load.redis.pid):
            self._kill_worker(load)
        eventually(lambda: len(load.workers()) == WORKERS)
        await_connections(load.redis, load.service)  # the next fault may kill the other one: one has to serve by then

    def service_is_restarted(self, load: Load) -> None:
        """Some times in a row, as a platform does it: the next one is there before the last one goes."""
        before = load.service
        with contextlib.ExitStack() as stack:
            load.move_to(stack.enter_context(relay_service(load.redis.url)))
            for left in reversed(range(self._strength.restarts)):
                successor = stack.enter_context(relay_service(load.redis.url)) if left else before
                with _stopped(load.redis.pid):
                    _await_mid_request(load, of=5)
                    load.service.process.terminate()
                _await_end(load)
                load.move_to(successor)

    # In combination

    def worker_dies_and_redis_while_it_hangs(self, load: Load) -> None:
        with _stopped(load.redis.pid):
            self._kill_worker(load)
            self._await_failures(load)
            load.redis.kill()
        load.redis.start()

    def redis_loses_memory_scripts_and_connections(self, load: Load) -> None:
        with our_client(load.redis.url) as client, _configured(client, "maxmemory", "1", "0"):
            self._await_failures(load, "OutOfMemoryError")
            client.script_flush()
            _drop_connections(client)
            self._await_failures(load)
        load.redis.kill()
        load.redis.start()

    def service_is_stopped_while_redis_hangs(self, load: Load) -> None:
        before = load.service
        with relay_service(load.redis.url) as going:
            load.move_to(going)
            with _stopped(load.redis.pid):
                _await_mid_request(load, of=1)
                going.process.terminate()
                _await_end(load)
            load.move_to(before)

    def replies_are_cut_off_and_redis_killed(self, load: Load) -> None:
        before = load.service
        with cutting_proxy(load.redis.port) as proxy, relay_service(proxy.url) as behind:
            load.move_to(behind)
            for _ in range(3):
                proxy.cut_next_reply()
                load.release_part(6)
                eventually(lambda: not proxy.will_cut)
                load.redis.kill()
                self._await_failures(load, of=6)
                load.redis.start()
            load.sender.await_idle()
            load.move_to(before)

    def _await_failures(self, load: Load, kind: str = "", of: int = 2) -> None:
        enough = load.sender.failures(kind) + self._strength.failures
        load.begin_part(of)
        eventually(lambda: load.sender.failures(kind) >= enough)

    def _kill_worker(self, load: Load) -> None:
        """Kill the one that has most to do, while Redis is stopped."""
        _await_mid_request(load, of=1)
        load.killed_workers += 1
        before = load.sender.unanswered
        os.kill(max(load.workers(), key=sockets_of), signal.SIGKILL)
        eventually(lambda: load.sender.unanswered > before)


def _await_mid_request(load: Load, of: int) -> None:
    """Send one of so many parts, and wait until that is in the hands of the workers; Redis has to be stopped."""
    sent = load.begin_part(of)
    eventually(lambda: load.sender.waiting(0.3) >= min(sent, CONCURRENCY) * 3 // 4)


def _await_end(load: Load) -> None:
    """Wait until the service has ended, and the sender met a closed door."""
    began = time.monotonic()
    assert load.service.process.wait(timeout=25) == 0
    assert time.monotonic() - began < 20
    refused = load.sender.refused
    load.begin_part(of=20)
    eventually(lambda: load.sender.refused > refused)


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _configured(client: Any, name: str, value: str, afterwards: str) -> Iterator[None]:
    client.config_set(name, value)
    try:
        yield
    finally:
        client.config_set(name, afterwards)


@contextlib.contextmanager
def _endless_script(url: str) -> Iterator[None]:
    with our_client(url) as client, our_client(url) as killer:
        killer.config_set("lua-time-limit", "50")

        def run() -> None:
            with contextlib.suppress(redis.ResponseError):  # "Script killed by user"
                client.eval("while true do end", 0)

        def is_killed() -> bool:
            with contextlib.suppress(redis.ResponseError):  # it has not begun, or not run for long enough
                return bool(killer.script_kill())
            return False

        def is_busy() -> bool:
            try:
                killer.ping()
            except redis.ResponseError:
                return True
            return False

        thread = threading.Thread(target=run)
        thread.start()
        try:
            eventually(is_busy)
            yield
        finally:
            eventually(is_killed)
            thread.join()


def _drop_connections(client: Any) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
