"""Stands between a consumer and Redis, and refuses for a while, in the words of a provider."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

from support.network import serving


class _Passing(socketserver.StreamRequestHandler):
    """One connection: commands are refused, or passed on to Redis."""

    def handle(self) -> None:
        proxy = self.server
        assert isinstance(proxy, RefusingProxy)
        proxy.connections.append(self.request)
        with contextlib.suppress(OSError, ValueError):
            if proxy.at_connect and proxy.takes_one():
                self.wfile.write(proxy.refusal)
                return
            with socket.create_connection(("127.0.0.1", proxy.redis_port)) as upstream:
                threading.Thread(target=self._pass_replies, args=(upstream,), daemon=True).start()
                try:
                    while (command := self._read_command()) is not None:
                        if not proxy.at_connect and proxy.takes_one():
                            self.wfile.write(proxy.refusal)
                        else:
                            upstream.sendall(command)
                finally:
                    _hang_up(upstream)

    def _read_command(self) -> bytes | None:
        if not (head := self.rfile.readline()):
            return None
        parts = [head]
        for _ in range(int(head[1:])):
            parts.append(self.rfile.readline())
            parts.append(self.rfile.read(int(parts[-1][1:]) + 2))
        return b"".join(parts)

    def _pass_replies(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while reply := upstream.recv(65536):
                self.request.sendall(reply)
        _hang_up(self.request)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class RefusingProxy(socketserver.ThreadingTCPServer):
    """Stands between a consumer and Redis.

    Attributes:
        url: Where it listens.
        before: How many commands pass before it refuses.
        left: How many commands it still refuses; or connections, with at_connect. Negative once others got through.
    """

    daemon_threads = True

    def __init__(self, redis_port: int, refusal: str, *, at_connect: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.redis_port = redis_port
        self.refusal = f"-{refusal}\r\n".encode()
        self.at_connect = at_connect
        self.url = f"redis://127.0.0.1:{self.server_address[1]}/0"
        self.before = self.left = 0
        self.connections: list[socket.socket] = []
        self._lock = threading.Lock()

    def cut_and_refuse(self, count: int) -> None:
        """Hang up on everybody, and refuse that often when they come again."""
        self.left = count
        for connection in self.connections:
            _hang_up(connection)

    def takes_one(self) -> bool:
        """Tell whether to refuse now."""
        with self._lock:
            if self.before > 0:
                self.before -= 1
                return False
            self.left -= 1
            return self.left >= 0


@contextlib.contextmanager
def refusing_proxy(redis_port: int, refusal: str, *, at_connect: bool = False) -> Iterator[RefusingProxy]:
    with RefusingProxy(redis_port, refusal, at_connect=at_connect) as proxy, serving(proxy):
        yield proxy
