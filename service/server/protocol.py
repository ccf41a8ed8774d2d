"""Uvicorn's HTTP protocol with limits for what it leaves unlimited; tests/system/test_protocol.py tests each.

It overrides parser callbacks and protocol methods of uvicorn's `HttpToolsProtocol`: pyproject.toml pins it.
"""

import asyncio
import re
import socket
import sys
from asyncio import BaseTransport
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES: Final = 64 * 1024
"""Bytes of a request without its body (head, chunk sizes, trailers) after which nothing more is read."""
PIPELINED: Final = 16
"""Requests that may wait on a connection for an earlier response."""
UNREAD_SECONDS: Final = 10
"""Seconds a client may leave its response unread before the connection is aborted."""
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)

ARRIVED_AT: Final = "session_relay.arrived_at"
"""The key of a scope with the time at which the head arrived, in seconds of the loop's clock."""
BODY_IS_WHOLE: Final = "session_relay.body_is_whole"
"""The key of a scope that says that the body has arrived already."""

END_STREAM: Final = "session_relay.end_stream"
"""The key of a scope with what ends its response, if that is a stream without an end of its own."""


class Protocol(HttpToolsProtocol):
    """Serves one connection."""

    _is_head = True
    """Whether a head is being received, or awaited."""
    _head_bytes = 0
    """Bytes received of the present request, except for its body."""
    _is_refused = False
    """Whether what arrives is dropped."""
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Limit the time until the first head is complete."""
        super().connection_made(transport)  # type: ignore[arg-type]  # of a stream
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        """Parse what arrives, within the limits.

        Replaces uvicorn's method, which stops the timer at a head's first byte and warns of each upgrade.
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
            pass  # upgrades are ignored
        if self._head_bytes > HEAD_BYTES and not self._is_refused:
            if self._is_head:
                self._refuse(_TOO_LARGE)
            self._is_refused = True  # chunks or trailers without an end; the body's timeout ends the request

    def on_body(self, body: bytes) -> None:
        """Take the body out of the count."""
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, but no trailer: what was signed came before it."""
        if self._is_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start a request, unless too many wait."""
        if len(self.pipeline) >= PIPELINED:
            raise ValueError
        self._is_head = False
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        # By the kernel's clock: the request may have waited for a process that was busy, or not yet started.
        arrived_at = self.loop.time() - _seconds_since_data(self.transport)
        self.scope[ARRIVED_AT] = arrived_at  # type: ignore[typeddict-unknown-key]  # ASGI allows own keys
        super().on_headers_complete()
        self.cycle.send = _OneWrite(self.cycle)  # type: ignore[method-assign]  # its task starts later
        if self.parser.should_upgrade():  # the head came in pieces, so `_without_upgrade` missed it
            self.cycle.keep_alive, self._is_refused = False, True

    def on_message_complete(self) -> None:
        """Expect the next head."""
        super().on_message_complete()
        self.scope[BODY_IS_WHOLE] = True  # type: ignore[typeddict-unknown-key]  # ASGI allows own keys
        self._is_head, self._head_bytes = True, 0

    def on_response_complete(self) -> None:
        """Close the connection if the request was not read to its end."""
        if not self.pipeline and self.cycle.more_body:  # nobody will read the rest
            self.transport.close()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Abort the connection soon, unless the client reads."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Keep the connection: its client reads."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def shutdown(self) -> None:
        """Let the connection end, after the response under way; end that if it would go on for ever."""
        super().shutdown()
        end: Any = None if self.cycle is None else self.cycle.scope.get(END_STREAM)
        if end is not None:
            end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        super().connection_lost(exc)

    def _refuse(self, response: bytes | None = None) -> None:
        """Refuse what can't be parsed, and close. If earlier requests await responses, send only those."""
        self._is_refused = True
        if self.pipeline or (self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete):
            self.cycle.keep_alive = False
        elif response is None:
            self.send_400_response("This is no request in HTTP/1.1.")
        else:
            self.transport.write(response)
            self.transport.close()


class _OneWrite:
    """The `send` of a request, which writes a response with one system call, not two."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._start: Any = None

    async def __call__(self, message: Any) -> None:
        """Send an ASGI message; leave responses that are not as simple as a delivery's to uvicorn."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        cycle, start, self._start = self._cycle, self._start, None
        if start is None:  # more of a streamed response
            await cycle.send(message)
            return
        del cycle.send  # back to uvicorn's; also breaks the cycle of references
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


_LAST_DATA_RECV: Final = slice(52, 56)
"""Where the kernel's `struct tcp_info` has `tcpi_last_data_recv`, in milliseconds (include/uapi/linux/tcp.h)."""


def _seconds_since_data(transport: asyncio.Transport) -> float:
    """Return how long ago the last bytes arrived; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0.0
    try:
        own: socket.socket = transport.get_extra_info("socket")
        info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECV.stop)
    except OSError:  # no TCP socket
        return 0.0
    return int.from_bytes(info[_LAST_DATA_RECV], sys.byteorder) / 1000


def _without_upgrade(data: bytes) -> bytes:
    """Remove a head's Upgrade header, for which the parser would drop the body."""
    end = data.find(b"\r\n\r\n") + 2
    head = data[: end if end > 1 else None]
    return _UPGRADE.sub(b"", head) + data[len(head) :] if b"\r\nupgrade:" in head.lower() else data
