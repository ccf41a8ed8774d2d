"""Stands between the service and Redis as a proxy that spreads commands over several servers does.

SCRIPT LOAD does not reach the server that runs the scripts.
"""

import contextlib
import socket
import socketserver
from collections.abc import Iterator
from typing import Any

from hiredis import Reader, pack_command

from support.network import serving


class _Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        proxy = self.server
        assert isinstance(proxy, ScriptlessProxy)
        commands, replies = Reader(), Reader()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", proxy.redis_port)) as upstream:
            while request := self.request.recv(65536):
                commands.feed(request)
                while (words := commands.gets()) is not False:
                    proxy.commands.append(words)
                    self.request.sendall(self._reply(proxy, words, upstream, replies))

    def _reply(self, proxy: "ScriptlessProxy", words: list[Any], upstream: socket.socket, replies: Any) -> bytes:
        """Return what Redis replies, one command at a time."""
        if words[0] in proxy.refused:
            return proxy.refused[words[0]]
        if words[0] == b"SCRIPT":
            return proxy.script_load
        if words[0] == b"EVALSHA" and not proxy.knows_scripts:
            return b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
        upstream.sendall(pack_command(tuple(words)))
        reply = b""
        while replies.gets() is False:
            if not (more := upstream.recv(65536)):
                raise ConnectionError
            reply += more
            replies.feed(more)
        return reply


class ScriptlessProxy(socketserver.ThreadingTCPServer):
    """Does not let SCRIPT LOAD through."""

    daemon_threads = True

    def __init__(self, redis_port: int, script_load: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.redis_port = redis_port
        self.script_load = script_load
        self.knows_scripts = True
        """False: Not even those that were run."""
        self.refused: dict[bytes, bytes] = {}
        """Its reply to other commands that it does not let through, by their first word, in RESP."""
        self.commands: list[list[bytes]] = []
        self.url = f"redis://127.0.0.1:{self.server_address[1]}/0"


@contextlib.contextmanager
def scriptless_proxy(redis_port: int, script_load: bytes) -> Iterator[ScriptlessProxy]:
    """Run it; `script_load` is its reply to SCRIPT LOAD, in RESP."""
    with ScriptlessProxy(redis_port, script_load) as proxy, serving(proxy):
        yield proxy
