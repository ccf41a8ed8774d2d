"""Uvicorn's HTTP protocol with limits for what it leaves unlimited; tests/system/test_protocol.py tests each.

A long module: what it decides of a request, and how it responds, depend on the state of one connection.

It overrides parser callbacks and protocol methods of uvicorn's `HttpToolsProtocol`: pyproject.toml pins it.
"""

import abc
import asyncio
import math
import re
import socket
import sys
from asyncio import BaseTransport
from collections.abc import Callable
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES: Final = 64 * 1024
"""Bytes of a request without its body (head, chunk sizes, trailers) after which nothing more is read."""
PIPELINED: Final = 16
"""Requests that may wait on a connection for an earlier response."""
UNREAD_SECONDS: Final = 10
"""Seconds a client may leave its response unread before the connection is aborted."""
WAITED_SECONDS: Final = 0.25
"""Seconds that a request may have waited unnoticed: so many since the last response, after which its client sent it."""
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)

ARRIVED_AT: Final = "session_relay.arrived_at"
"""The key of a scope with the time at which the head arrived, in seconds of the loop's clock."""
BODY_IS_WHOLE: Final = "session_relay.body_is_whole"
"""The key of a scope that says that the body has arrived already."""

END_STREAM: Final = "session_relay.end_stream"
"""The key of a scope with what ends its response, if that is a stream without an end of its own."""


RawHeaders = list[tuple[bytes, bytes]]
"""Names in lower case, and values."""


class DirectApplication(abc.ABC):
    """An ASGI application that also takes requests which arrived whole, without ASGI: see `Protocol`."""

    direct_path: bytes
    """The path of the requests that it takes, by POST."""
    direct_bytes: int
    """Bytes of the largest body that it takes so."""

    @abc.abstractmethod
    def is_direct(self) -> bool:
        """Tell whether it takes such a request now; else it wants it by ASGI."""

    @abc.abstractmethod
    def take(
        self, headers: RawHeaders, body: bytes, arrived_at: float, respond: Callable[[int, RawHeaders, bytes], None]
    ) -> None:
        """Process a request; return at once, and respond when it is processed. This raises nothing.

        Args:
            headers: of the request.
            body: all of it.
            arrived_at: when the head arrived, in seconds of the loop's clock.
            respond: sends a status, headers and a body; to be called once.
        """


class Protocol(HttpToolsProtocol):
    """Serves one connection.

    A delivery that arrives whole is handed to a DirectApplication at once. That saves a task, an ASGI scope and
    uvicorn's RequestResponseCycle, which are a quarter of its way through Python. Until it is known to be whole, it
    is `_held`; if it is not whole when the data at hand is parsed, or is not as simple, it goes uvicorn's way.
    """

    _direct: DirectApplication | None = None
    _held: list[bytes] | None = None
    """The pieces of the body of a request that may be whole soon; None if there is no such request."""
    _whole: "_DirectRequest | None" = None
    """A request that is to be processed when the data at hand is parsed."""
    _responded_at = -math.inf
    """When the last response was sent, in seconds of the loop's clock."""
    _is_pipelined = False
    """Whether its client sends requests before it has the responses to those before."""
    arrived_at = 0.0
    """When the head of the present request arrived, in seconds of the loop's clock."""
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
        if isinstance(self.app, DirectApplication):
            self._direct = self.app
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
            self._release()
            self._refuse()
        except httptools.HttpParserUpgrade:
            pass  # upgrades are ignored
        self._release()
        self._take()
        if self._head_bytes > HEAD_BYTES and not self._is_refused:
            if self._is_head:
                self._refuse(_TOO_LARGE)
            self._is_refused = True  # chunks or trailers without an end; the body's timeout ends the request

    def on_body(self, body: bytes) -> None:
        """Take the body out of the count."""
        self._head_bytes -= len(body)
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, but no trailer: what was signed came before it."""
        if self._is_head:  # as uvicorn does, without another call for each header
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Start a request, unless too many wait."""
        if len(self.pipeline) >= PIPELINED:
            raise ValueError
        self._is_head = False
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self.arrived_at = self.loop.time()
        self._is_pipelined |= not self._is_idle()
        if self._is_pipelined or self.arrived_at - self._responded_at > WAITED_SECONDS:
            # By the kernel's clock: the request may have waited for a process that was busy, or not yet started.
            self.arrived_at -= _seconds_since_data(self.transport)
        if self._may_be_direct():
            self._held = []
        else:
            self._start()

    def _may_be_direct(self) -> bool:
        app = self._direct
        return (
            app is not None
            and self.url == app.direct_path
            and self.parser.get_method() == b"POST"
            and not self.parser.should_upgrade()
            and not self.expect_100_continue
            and self._is_idle()
            and not self.flow.write_paused
            and app.is_direct()
        )

    def _is_idle(self) -> bool:
        """Tell whether no request before this one awaits its response."""
        return self.cycle is None or self.cycle.response_complete

    def _start(self) -> None:
        """Start a request by ASGI."""
        self.scope[ARRIVED_AT] = self.arrived_at  # type: ignore[typeddict-unknown-key]  # ASGI allows own keys
        super().on_headers_complete()
        self.cycle.send = _OneWrite(self.cycle)  # type: ignore[method-assign]  # its task starts later
        if self.parser.should_upgrade():  # the head came in pieces, so `_without_upgrade` missed it
            self.cycle.keep_alive, self._is_refused = False, True

    def _release(self) -> None:
        """Start a request by ASGI that was held."""
        if self._held is not None:
            pieces, self._held = self._held, None
            self._start()
            super().on_body(b"".join(pieces))

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._is_head, self._head_bytes = True, 0
        if self._held is not None:
            body = b"".join(self._held)
            if self._direct is not None and len(body) <= self._direct.direct_bytes:
                self._held = None
                self._whole = self.cycle = _DirectRequest(self, body)  # type: ignore[assignment]  # as far as it is used
                return
            self._release()
        super().on_message_complete()
        self.scope[BODY_IS_WHOLE] = True  # type: ignore[typeddict-unknown-key]  # ASGI allows own keys

    def _take(self) -> None:
        """Process a request that is whole. Not earlier: what the parser says of the data behind it comes first."""
        if self._whole is not None and self._direct is not None:
            request, self._whole = self._whole, None
            self._direct.take(request.headers, request.body, request.arrived_at, request.respond)

    def on_response_complete(self) -> None:
        """Close the connection if the request was not read to its end."""
        if not self.pipeline and self.cycle.more_body:  # nobody will read the rest
            self.transport.close()
        self._responded_at = self.loop.time()
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
        if isinstance(self.cycle, RequestResponseCycle) and (end := self.cycle.scope.get(END_STREAM)):
            end()  # type: ignore[operator]  # ASGI allows own keys

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


class _DirectRequest:
    """A request without ASGI. It is where uvicorn has a RequestResponseCycle, with what the protocol uses of that."""

    more_body = False
    response_complete = False
    disconnected = False
    message_event = asyncio.Event()
    """Nobody waits for it."""

    def __init__(self, protocol: Protocol, body: bytes) -> None:
        self._protocol = protocol
        self.headers, self.body = protocol.headers, body
        self.arrived_at = protocol.arrived_at
        self.keep_alive = protocol.parser.get_http_version() != "1.0" and protocol.parser.should_keep_alive()

    def respond(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send the response, and go on with the next request."""
        self.response_complete = True
        protocol, transport = self._protocol, self._protocol.transport
        if transport.is_closing():  # `disconnected` is only set for the last request of a connection
            return
        transport.write(_to_bytes(status, protocol.server_state.default_headers + headers, body, self.keep_alive))
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()


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
        if cycle.transport.is_closing():
            cycle.disconnected = True  # uvicorn sets it only for the last request of a connection
            return
        headers = [*cycle.default_headers, *start["headers"]]
        cycle.transport.write(_to_bytes(start["status"], headers, message["body"], cycle.keep_alive))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


_SIMPLE: Final = {b"content-type", b"content-length", b"allow", b"retry-after", b"www-authenticate", b"cache-control"}


def _to_bytes(status: int, headers: RawHeaders, body: bytes, keep_alive: bool) -> bytes:
    """Return a response as it is sent."""
    lines = [STATUS_LINE[status]]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines += (b"\r\n" if keep_alive else b"connection: close\r\n\r\n", body)
    return b"".join(lines)


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
    """Remove a head's Upgrade header, for which the parser would drop the body.

    One that is spelled in an unusual way is left: then the body is refused, as if the head had come in pieces.
    """
    end = data.find(b"\r\n\r\n") + 2
    head_bytes = end if end > 1 else len(data)
    if data.find(b"pgrade:", 0, head_bytes) < 0:
        return data
    return _UPGRADE.sub(b"", data[:head_bytes]) + data[head_bytes:]
