"""Stands between the service, or a consumer, and Redis, and cuts connections after a command, before its reply."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

from support.network import serving


class _Passing(socketserver.BaseRequestHandler):
    """One connection to Redis."""

    def handle(self) -> None:
        proxy = self.server
        assert isinstance(proxy, CuttingProxy)
        self._has_asked = False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", proxy.redis_port)) as upstream:
            answering = threading.Thread(target=self._pass_replies, args=(proxy, upstream), daemon=True)
            answering.start()
            while request := self.request.recv(65536):
                self._has_asked = self._has_asked or proxy.after in request
                upstream.sendall(request)
            _hang_up(upstream)
            answering.join()

    def _pass_replies(self, proxy: "CuttingProxy", upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while reply := upstream.recv(65536):
                # Redis has done what it was told, since it replied.
                if self._has_asked and proxy.will_cut:
                    self.request.sendall(reply[: proxy.cut(len(reply))])
                    break
                self._has_asked = False
                self.request.sendall(reply)
        _hang_up(self.request)
        _hang_up(upstream)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class CuttingProxy(socketserver.ThreadingTCPServer):
    """Stands between the service, or a consumer, and Redis. after: after which command it cuts."""

    daemon_threads = True

    def __init__(self, redis_port: int, after: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.after = after
        self.redis_port = redis_port
        self.url = f"redis://127.0.0.1:{self.server_address[1]}/0"
        self.will_cut = False
        self._cuts = 0

    def cut_next_reply(self) -> None:
        """Cut the connection on which the command was sent next, after Redis got it, before its reply is back."""
        self.will_cut = True

    def cut(self, size: int) -> int:
        """Return how much of a reply of that size still passes: of every other one, a half."""
        self.will_cut = False
        self._cuts += 1
        return size // 2 if self._cuts % 2 else 0


@contextlib.contextmanager
def cutting_proxy(redis_port: int, after: bytes = b"EVALSHA") -> Iterator[CuttingProxy]:
    with CuttingProxy(redis_port, after) as proxy, serving(proxy):
        yield proxy
