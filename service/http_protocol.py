"""Uvicorn's HTTP, with bounds to what it leaves open, and the answers that the contract has."""

import asyncio
import re
from asyncio import BaseTransport
from typing import Any, Final

import httptools
from uvicorn.protocols.http import httptools_impl

from service.answers import problem
from service.errors import BadRequestError

HEAD_BYTES: Final = 64 * 1024
"""About how much of a head is read before it is refused."""
PIPELINED: Final = 16
"""Requests that may wait for the answer to one before them, on a connection."""
UNREAD_SECONDS: Final = 10
"""For a client that has not read what it was answered, before its connection is given up."""
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?= \S+ HTTP/1\.[01]\r\n)")
"""https://www.rfc-editor.org/rfc/rfc9110#section-9.1: any token is one."""
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class Cycle(httptools_impl.RequestResponseCycle):
    """A request and its answer. Head and body of that go out in one write, not in two."""

    _start: Any = None

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected or self.transport.is_closing():
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
    """Of the request that is being received: of all but its body, so what is around chunks as well."""
    _is_first = False
    """The head that is being received began with the data at hand."""
    _unknown_method = ""
    _is_refused = False
    """Nothing more is read."""
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # of a stream
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        # Not uvicorn's, which stops the timer at a head's first byte: it runs until the head is there.
        if self._is_refused:
            return
        if self._is_head:
            self._is_first = not self._head_bytes
            if self._is_first:
                data = _without_upgrade(data)
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError:
            self._take_unknown_method(data)
        except httptools.HttpParserError:
            self._refuse()
        except httptools.HttpParserUpgrade:
            pass  # it is not taken up
        if self._head_bytes > HEAD_BYTES and not self._is_refused:
            if self._is_head:
                self._refuse(_TOO_LARGE)
            self._is_refused = True  # chunks or trailers without an end: it is answered when its time is over

    def on_body(self, body: bytes) -> None:
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head:  # a trailer is no header: what was signed came before
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            raise ValueError
        self._is_head = False
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        if self._unknown_method:
            self.scope["method"], self._unknown_method = self._unknown_method, ""
        if self.parser.should_upgrade():  # its head came in pieces
            self.cycle.keep_alive, self._is_refused = False, True

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_head, self._head_bytes, self._is_first = True, 0, False

    def on_response_complete(self) -> None:
        if not self.pipeline and self.cycle.more_body:  # nobody will read the rest of it
            self.transport.close()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_unread()
        super().connection_lost(exc)

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _take_unknown_method(self, data: bytes) -> None:
        """Let the application refuse a method that the parser does not know."""
        method = _METHOD.match(data) if self._is_first else None
        if method is None or self._unknown_method:
            self._refuse()
            return
        self._unknown_method = method[0].decode()
        self._head_bytes = 0
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"GET" + data[method.end() :])

    def _refuse(self, answer: bytes | None = None) -> None:
        """Answer what can't be read, and close; after the answers to what came before it, without one."""
        self._is_refused = True
        if self.pipeline or (
            self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        ):
            self.cycle.keep_alive = False
            return
        self.transport.write(answer or _NO_HTTP)
        self.transport.close()


def _bad_request() -> bytes:
    refusal = problem(BadRequestError("This is no request in HTTP/1.1."))
    head = [b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"]
    head += [f"{name}: {value}\r\n".encode() for name, value in refusal.headers.items()]
    return b"".join([*head, b"\r\n", refusal.body])


_NO_HTTP: Final = _bad_request()


def _without_upgrade(data: bytes) -> bytes:
    """The parser would take what follows the head for another protocol, and lose a body."""
    end = data.find(b"\r\n\r\n") + 2
    head = data[: end if end > 1 else None]
    return _UPGRADE.sub(b"", head) + data[len(head) :] if b"\r\nupgrade:" in head.lower() else data
