"""Redis servers: real ones that tests may stop and kill, and one that says what a test tells it to."""

import contextlib
import signal
import socketserver
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from service.dev.embedded import EmbeddedRedis, run_server
from service.errors import StartError
from support.clock import eventually
from support.network import free_port, serving
from support.redis_clients import client_of


@contextlib.contextmanager
def redis_server(binary: str, *options: str, port: int | None = None) -> Iterator[EmbeddedRedis]:
    """Run a redis-server; tried again if someone else took the free port first."""
    with contextlib.ExitStack() as stack:
        for attempt in range(3):
            with contextlib.suppress(StartError):
                server = stack.enter_context(run_server(binary, options, port))
                break
            if attempt == 2:
                server = stack.enter_context(run_server(binary, options, port))
        yield server


def takes_tls(binary: str) -> bool:
    """Tell whether it knows the options of TLS; Redis 6.2 knows them only if it was built with it."""
    # It reads one option after the other, and ends at the first that it does not take.
    said = subprocess.run([binary, "--tls-port", "0", "--port", "none"], capture_output=True, text=True, check=False)
    return "'tls-port " not in said.stdout + said.stderr


def start_durable_redis(start_redis: Callable[..., EmbeddedRedis], directory: Path, port: int) -> EmbeddedRedis:
    """Start a Redis that keeps in this directory what it is told, and has read what is there."""
    directory.mkdir(exist_ok=True)
    server = start_redis("--dir", str(directory), "--appendonly", "yes", "--appendfsync", "always", port=port)
    with client_of(server.url) as client:

        def has_loaded() -> bool:
            with contextlib.suppress(redis.BusyLoadingError):
                return bool(client.ping())
            return False

        eventually(has_loaded)
    return server


class DurableRedis:
    """A redis-server that can be killed and started again, on the same port and with the same data."""

    def __init__(self, binary: str, directory: Path) -> None:
        self._binary = binary
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.pid = 0

    def start(self, *options: str) -> None:
        """Return when it has read all of its data."""
        durable = ("--dir", str(self._directory), "--appendonly", "yes", "--appendfsync", "always", *options)
        server = self._stack.enter_context(redis_server(self._binary, *durable, port=self.port))
        assert server.process is not None
        self.pid = server.process.pid

    def kill(self) -> None:
        """By SIGKILL."""
        self._stack.close()


@contextlib.contextmanager
def durable_redis(binary: str, directory: Path) -> Iterator[DurableRedis]:
    server = DurableRedis(binary, directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[None]:
    """Keep the process from doing anything: connections open, but nothing answers."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


class _Script(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, ScriptedRedis)
        with contextlib.suppress(ConnectionError, ValueError):
            while count := self.rfile.readline():
                words = []
                for _ in range(int(count[1:])):
                    size = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(size))
                    self.rfile.read(2)
                server.commands.append(words)
                reply = server.reply(words)
                if reply is None:
                    return
                self.wfile.write(reply + b"\r\n")


class ScriptedRedis(socketserver.ThreadingTCPServer):
    """A Redis that says what a test tells it to, in RESP; it hangs up where it is told to say None."""

    daemon_threads = True

    def __init__(self, reply: Callable[[list[bytes]], bytes | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Script)
        self.reply = reply
        self.commands: list[list[bytes]] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_address[1]}/0"


@contextlib.contextmanager
def scripted_redis(reply: Callable[[list[bytes]], bytes | None]) -> Iterator[ScriptedRedis]:
    with ScriptedRedis(reply) as server, serving(server):
        yield server
