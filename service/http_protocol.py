"""Uvicorn's HTTP, with bounds to what it leaves open, and the answers that the contract has."""

import re
from asyncio import BaseTransport
from typing import Any, Final

import httptools
from uvicorn.protocols.http import httptools_impl

from service.answers import problem
from service.errors import BadRequestError

HEAD_BYTES: Final = 64 * 1024
"""About how much of a head is read before it is refused."""
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)
_NO_HTTP: Final = "This is no request in HTTP/1.1."
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?= \S+ HTTP/1\.[01]\r\n)")
"""https://www.rfc-editor.org/rfc/rfc9110#section-9.1: any token is one."""
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class Cycle(httptools_impl.RequestResponseCycle):
    """A request and its answer. Head and body of that go out in one write, not in two."""

    _start: Any = None

    async def send(self, message: Any) -> None:
        if self._start is None:
            self._start = message
            return
        if self.disconnected:
            return
        start, body = self._start, message["body"]
        lines = [httptools_impl.STATUS_LINE[start["status"]]]
        for name, value in (*self.default_headers, *start["headers"]):
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        if self.scope["method"] != "HEAD":
            lines.append(body)
        self.transport.write(b"".join(lines))
        self.response_started = self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


httptools_impl.RequestResponseCycle = Cycle  # type: ignore[misc]  # what HttpToolsProtocol makes for each request


class Protocol(httptools_impl.HttpToolsProtocol):
    _is_head = True
    """A head is being received, or waited for."""
    _head_bytes = 0
    _unknown_method = ""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # of a stream
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        # Not uvicorn's, which stops the timer at a head's first byte: it runs until the head is there.
        if self._is_head:
            if not self._head_bytes:
                data = _without_upgrade(data)
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError:
            self._take_unknown_method(data)
        except httptools.HttpParserError:
            self.send_400_response(_NO_HTTP)
        except httptools.HttpParserUpgrade:
            pass  # it is not taken up
        if self._is_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        refusal = problem(BadRequestError(msg))
        head = [b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"]
        head += [f"{name}: {value}\r\n".encode() for name, value in refusal.headers.items()]
        self.transport.write(b"".join([*head, b"\r\n", refusal.body]))
        self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head:  # a trailer is no header: what was signed came before
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_head = False
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        if self._unknown_method:
            self.scope["method"], self._unknown_method = self._unknown_method, ""

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_head, self._head_bytes = True, 0

    def on_response_complete(self) -> None:
        if self.cycle.more_body:  # nobody will read the rest of it
            self.transport.close()
        super().on_response_complete()

    def _take_unknown_method(self, data: bytes) -> None:
        """Let the application refuse a method that the parser does not know."""
        method = _METHOD.match(data)
        if method is None or self._unknown_method:
            self.send_400_response(_NO_HTTP)
            return
        self._unknown_method = method[0].decode()
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"GET" + data[method.end() :])


def _without_upgrade(data: bytes) -> bytes:
    """The parser would take what follows the head for another protocol, and lose a body."""
    head, end, body = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + body if b"\r\nupgrade:" in head.lower() else data
