"""Sends at a fixed rate, whatever becomes of it, and follows what is published meanwhile.

Latencies count from the moment at which a request was due, not from when it was sent: a server that stalls
makes the requests behind it late as well, and that is measured (wrk waits for an answer before it asks again,
and so leaves out just these). One thread and `select`, whose timeout is in microseconds: that of epoll and of
asyncio, in milliseconds, would be part of every figure.
"""

import contextlib
import gc
import re
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import hiredis

from benchmarks.processes import VoidError

ANSWER_SECONDS: Final = 10
"""For answers and messages under way when the last request was sent."""
MOST_CONNECTIONS: Final = 900
"""More, and the server does not keep up; `select` takes 1,024 files."""
WARM_UP: Final = 0.5
"""Seconds at the start whose figures are left out: connections are opened."""

_MESSAGE_ID: Final = re.compile(rb"\r\nsvix-id: (\S+)\r\n")
_EVENT_ID: Final = re.compile(rb'"event":\{"id":"([^"]+)"')
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass
class Run:
    sent: int
    answers: list[float] = field(default_factory=list)
    """Seconds from when a request was due to its whole answer; the warm-up's are left out."""
    receipts: list[float] = field(default_factory=list)
    """The same, to the subscriber's receipt of the message that was published."""
    late: list[float] = field(default_factory=list)
    """By how much the sender itself was late."""


def send(port: int, redis_port: int, requests: Sequence[bytes], rate: float, channel: str = "clerk:sessions") -> Run:
    """Send requests at `rate` per second; each has to be answered 200 and published.

    Raises VoidError.
    """
    gc.collect()
    gc.disable()  # its pauses would be in the figures
    try:
        with _subscriber(redis_port, channel) as subscription, contextlib.ExitStack() as connections:
            return _Sender(port, requests, rate, subscription, connections).run()
    finally:
        gc.enable()


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.is_measured = False
        self.answer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def is_answered(self) -> bool:
        """Read what has arrived; tell whether the answer is whole.

        Raises VoidError if it is none of 200, ConnectionError at the connection's end.
        """
        arrived = self.socket.recv(65536)
        if not arrived:
            raise ConnectionError
        self.answer += arrived
        head, separator, body = self.answer.partition(b"\r\n\r\n")
        if not separator:
            return False
        length = _LENGTH.search(head + b"\r\n")
        if length is None or not head.startswith(b"HTTP/1.1 200 "):
            raise VoidError(f"answered {self.answer[:300]!r}")
        return len(body) >= int(length[1])


class _Sender:
    def __init__(
        self,
        port: int,
        requests: Sequence[bytes],
        rate: float,
        subscription: "_Subscription",
        connections: contextlib.ExitStack,
    ) -> None:
        self._port = port
        self._requests = requests
        self._rate = rate
        self._subscription = subscription
        self._connections = connections
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._due_of: dict[bytes, float | None] = {}
        self._run = Run(len(requests))

    def run(self) -> Run:
        started = time.perf_counter() + 0.01
        for number, request in enumerate(self._requests):
            due = started + number / self._rate
            while (left := due - time.perf_counter()) > 0:
                self._wait(left)
            self._send(request, due, is_measured=number >= WARM_UP * self._rate)
        deadline = time.perf_counter() + ANSWER_SECONDS
        while len(self._idle) < len(self._open) or self._due_of:
            if time.perf_counter() > deadline:
                answers = len(self._open) - len(self._idle)
                raise VoidError(f"{answers} answers and {len(self._due_of)} messages did not come")
            self._wait(0.1)
        return self._run

    def _send(self, request: bytes, due: float, *, is_measured: bool) -> None:
        if self._idle:
            connection = self._idle.pop()
        elif len(self._open) < MOST_CONNECTIONS:
            connection = _Connection(self._port)
            self._connections.enter_context(connection.socket)
            self._open.add(connection)
        else:
            raise VoidError(f"it does not keep up with {self._rate} per second")
        message_id = _MESSAGE_ID.search(request, 0, 1000)
        assert message_id is not None  # noqa: S101  # all requests are our own
        self._due_of[message_id[1]] = due if is_measured else None
        connection.due, connection.is_measured, connection.answer = due, is_measured, b""
        connection.socket.sendall(request)
        if is_measured:
            self._run.late.append(time.perf_counter() - due)

    def _wait(self, seconds: float) -> None:
        sources: list[_Subscription | _Connection] = [self._subscription, *self._open]
        for source in select.select(sources, [], [], seconds)[0]:
            now = time.perf_counter()
            if isinstance(source, _Connection):
                self._note_answer(source, now)
            else:
                for message in source.messages():
                    self._note_message(message, now)

    def _note_message(self, message: bytes, now: float) -> None:
        event_id = _EVENT_ID.search(message)
        if event_id is None or event_id[1] not in self._due_of:
            raise VoidError(f"published: {message[:300]!r}")
        due = self._due_of.pop(event_id[1])
        if due is not None:
            self._run.receipts.append(now - due)

    def _note_answer(self, connection: _Connection, now: float) -> None:
        try:
            if not connection.is_answered():
                return
        except ConnectionError:
            if connection not in self._idle:
                raise VoidError("a connection was closed before its answer") from None
            self._idle.remove(connection)
            self._open.remove(connection)
            connection.socket.close()
            return
        self._idle.append(connection)
        if connection.is_measured:
            self._run.answers.append(now - connection.due)


class _Subscription:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = hiredis.Reader()

    def fileno(self) -> int:
        return self._socket.fileno()

    def messages(self) -> Iterator[bytes]:
        """Read what has arrived."""
        self._reader.feed(self._socket.recv(65536))
        while (reply := self._reader.gets()) is not False:
            kind, _, message = reply
            if kind == b"message":
                yield message


@contextlib.contextmanager
def _subscriber(redis_port: int, channel: str) -> Iterator[_Subscription]:
    with socket.create_connection(("127.0.0.1", redis_port)) as connection:
        connection.sendall(f"SUBSCRIBE {channel}\r\n".encode())
        subscription = _Subscription(connection)
        for _ in subscription.messages():
            pass  # it is subscribed once this has been answered
        yield subscription
