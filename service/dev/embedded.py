"""A Redis for `dev` and the tests: on 127.0.0.1 and a free port; its data goes when it ends."""

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.lock import Lock
from redis.retry import Retry

from service.errors import StartError
from service.server.system import temporary_directory

START_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A Redis that runs."""

    name: str
    """For people: `redis-server` and its path, or the stand-in."""
    port: int
    process: subprocess.Popen[bytes] | None = None
    """None for the stand-in, which runs in this process."""

    @property
    def url(self) -> str:
        """Where it is, for REDIS_URL."""
        return f"redis://127.0.0.1:{self.port}/0"


def run() -> contextlib.AbstractContextManager[EmbeddedRedis]:
    """Run the redis-server on PATH or, where there is none, fakeredis' TCP server.

    Raises:
        StartError: Neither is there, or it does not start.
        ConfigurationError: There is no place for a temporary directory, which redis-server needs.
    """
    binary = shutil.which("redis-server")
    return run_server(binary) if binary else run_stand_in()


@contextlib.contextmanager
def run_server(binary: str, options: Sequence[str] = (), port: int | None = None) -> Iterator[EmbeddedRedis]:
    """Run a redis-server with these words on its command line, like `--maxmemory`, `1mb`.

    Raises:
        StartError: It does not start.
        ConfigurationError: There is no place for a temporary directory.
    """
    why = "redis-server needs one: set REDIS_URL to another Redis"
    with temporary_directory("session-relay-redis-", why) as directory:
        chosen = port or _free_port()
        command = [binary, "--bind", "127.0.0.1", "--port", str(chosen), "--dir", directory]
        command += ["--save", "", "--appendonly", "no", "--logfile", "redis.log", *options]
        # In a session of its own, so that Ctrl-C does not end it before those who use it.
        with subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL) as process:  # noqa: S603
            try:
                _await_start(process, chosen, Path(directory) / "redis.log")
                yield EmbeddedRedis(f"redis-server ({binary})", chosen, process)
            finally:
                process.kill()  # there is nothing to save


@contextlib.contextmanager
def run_stand_in() -> Iterator[EmbeddedRedis]:
    """Run fakeredis' TCP server, the in-memory stand-in, in threads of this process.

    Raises:
        StartError: fakeredis, or lupa, which runs Lua for it, is not installed.
    """
    try:
        import lupa  # type: ignore[import-untyped]  # noqa: F401, PLC0415  # fakeredis needs it for Lua
        from fakeredis import TcpFakeServer  # noqa: PLC0415  # of the `dev` extra
    except ImportError:
        raise StartError(
            "There is no Redis here. Install redis-server, or the stand-in: "
            "pip install 'clerk-session-relay[dev]', or set REDIS_URL."
        ) from None
    server = TcpFakeServer(("127.0.0.1", 0))
    server.daemon_threads = True
    # It writes a transaction's replies one by one, and each would wait for the client's delayed acknowledgement, 40 ms.
    # https://docs.python.org/3/library/socketserver.html#socketserver.StreamRequestHandler
    handler: Any = server.RequestHandlerClass
    server.RequestHandlerClass = type("Handler", (handler,), {"disable_nagle_algorithm": True})
    thread = threading.Thread(target=server.serve_forever, name="fakeredis", daemon=True)
    thread.start()
    try:
        with redis.Redis(port=server.server_address[1]) as client:
            # It closes a connection that names a script it does not have. `reconcile` has a lock of redis-py's.
            for script in (Lock.LUA_EXTEND_SCRIPT, Lock.LUA_RELEASE_SCRIPT):
                client.script_load(script)
        yield EmbeddedRedis("fakeredis, an in-memory stand-in", server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _await_start(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=1) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):
                # The process id tells it from another server that took the port.
                if client.info("server")["process_id"] == process.pid:
                    client.ping()  # refused while it loads, where INFO is not
                    return
            time.sleep(0.01)
    said = log.read_text(errors="replace") if log.exists() else ""
    raise StartError(f"redis-server did not start:\n{said}")
