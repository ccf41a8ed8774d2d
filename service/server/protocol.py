"""Uvicorn's HTTP, with bounds to what it leaves open. tests/system/test_http_protocol.py has a test for each.

It stands on uvicorn's parser callbacks and protocol methods (`HttpToolsProtocol`, pinned in pyproject.toml).
"""

import asyncio
import re
from asyncio import BaseTransport
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES: Final = 64 * 1024
"""Bytes of a head, or of what is around chunks, after which nothing more is read."""
PIPELINED: Final = 16
"""Requests that may wait on a connection for the response to one before them."""
UNREAD_SECONDS: Final = 10
"""Seconds a client may leave its response unread before the connection is aborted."""
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)

BODY_IS_WHOLE: Final = "session_relay.body_is_whole"
"""A key of a request's scope: its body is here already, so there is nothing to wait for."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _is_head = True
    """A head is being received, or waited for."""
    _head_bytes = 0
    """Of the request that is being received: of all but its body, so what is around chunks as well."""
    _is_refused = False
    """Nothing more is read."""
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Give a connection some time until its first head is there."""
        super().connection_made(transport)  # type: ignore[arg-type]  # of a stream
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """Read, up to the bounds.

        Not by uvicorn's method, which stops the timer at a head's first byte, and warns of each upgrade.
        """
        if self._is_refused:
            return
        if self._is_head and not self._head_bytes:
            data = _without_upgrade(data)
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse()
        except httptools.HttpParserUpgrade:
            pass  # it is not taken up
        if self._head_bytes > HEAD_BYTES and not self._is_refused:
            if self._is_head:
                self._refuse(_TOO_LARGE)
            self._is_refused = True  # chunks or trailers without an end: it is answered when its time is over

    def on_body(self, body: bytes) -> None:
        """Count what is no body."""
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. A trailer is none: what was signed came before it."""
        if self._is_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request, unless too many wait."""
        if len(self.pipeline) >= PIPELINED:
            raise ValueError
        self._is_head = False
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        super().on_headers_complete()
        self.cycle.send = _OneWrite(self.cycle)  # type: ignore[method-assign]  # its task begins later
        if self.parser.should_upgrade():  # its head came in pieces
            self.cycle.keep_alive, self._is_refused = False, True

    def on_message_complete(self) -> None:
        """Expect the next head."""
        super().on_message_complete()
        self.scope[BODY_IS_WHOLE] = True  # type: ignore[typeddict-unknown-key]  # ASGI lets a server add its own
        self._is_head, self._head_bytes = True, 0

    def on_response_complete(self) -> None:
        """End a connection whose request was not read to its end."""
        if not self.pipeline and self.cycle.more_body:  # nobody will read the rest of it
            self.transport.close()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Abort a connection whose client does not read."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Leave a connection alone whose client reads."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        super().connection_lost(exc)

    def _refuse(self, response: bytes | None = None) -> None:
        """Refuse what can't be read, and close; after the responses to what came before it, without one."""
        self._is_refused = True
        if self.pipeline or (
            self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        ):
            self.cycle.keep_alive = False
        elif response is None:
            self.send_400_response("This is no request in HTTP/1.1.")
        else:
            self.transport.write(response)
            self.transport.close()


class _OneWrite:
    """The `send` of a request; it writes a response that comes whole with one system call, not two."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._start: Any = None

    async def __call__(self, message: Any) -> None:
        """Take a message as ASGI has it; what is not as simple as a delivery's response, uvicorn sends."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        cycle, start, self._start = self._cycle, self._start, None
        if start is None:  # more of a streamed response
            await cycle.send(message)
            return
        del (
            cycle.send
        )  # uvicorn's from now on; and what refers to itself would wait for the garbage collector
        names = [name for name, _ in start["headers"]]
        if message.get("more_body") or cycle.scope["method"] == "HEAD" or not _SIMPLE.issuperset(names):
            await cycle.send(start)
            await cycle.send(message)
            return
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        lines = [STATUS_LINE[start["status"]]]
        for name, value in (*cycle.default_headers, *start["headers"]):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n", message["body"])
        cycle.transport.write(b"".join(lines))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


_SIMPLE: Final = {b"content-type", b"content-length", b"allow", b"retry-after", b"www-authenticate"}


def _without_upgrade(data: bytes) -> bytes:
    """The parser would take what follows the head for another protocol, and lose a body."""
    end = data.find(b"\r\n\r\n") + 2
    head = data[: end if end > 1 else None]
    return _UPGRADE.sub(b"", head) + data[len(head) :] if b"\r\nupgrade:" in head.lower() else data
