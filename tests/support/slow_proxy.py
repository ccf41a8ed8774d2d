"""Stands between a program and Redis, as far away as another continent."""

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

from support.network import serving


class _Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        proxy = self.server
        assert isinstance(proxy, _SlowProxy)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", proxy.redis_port)) as upstream:
            threading.Thread(target=_pass, args=(upstream, self.request, 0.0), daemon=True).start()
            _pass(self.request, upstream, proxy.seconds)


def _pass(source: socket.socket, target: socket.socket, seconds: float) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            time.sleep(seconds)
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


class _SlowProxy(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, redis_port: int, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.redis_port, self.seconds = redis_port, seconds


@contextlib.contextmanager
def slow_proxy(redis_port: int, seconds: float) -> Iterator[str]:
    """Return the URL of a Redis whose every round trip takes so many seconds more."""
    with _SlowProxy(redis_port, seconds) as proxy, serving(proxy):
        yield f"redis://127.0.0.1:{proxy.server_address[1]}/0"
