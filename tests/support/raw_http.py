"""HTTP below what a client library allows."""

import contextlib
import http.client
import io
import json
import socket
from collections.abc import Iterator, Sequence

from service.dev import simulator
from support.clock import in_time
from support.events import IGNORED
from support.signing import signed


class RawResponse:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def code(self) -> str | None:
        """The problem's code, or None if the body is no problem: HTTP's parser refuses in plain text."""
        is_problem = self.body and self.headers.get("content-type") == "application/problem+json"
        return json.loads(self.body)["code"] if is_problem else None


class RawConnection:
    """A connection that sends exactly the bytes it is given."""

    def __init__(self, port: int, timeout: float = 15) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._raw = self.socket.makefile("rb", buffering=0)
        self._received = _Received(self._raw)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def response(self, method: str = "POST") -> RawResponse:
        reader = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]  # it asks for `makefile` alone
        try:
            reader.begin()
            headers = {name.lower(): value for name, value in reader.getheaders()}
            return RawResponse(reader.status, headers, reader.read())
        finally:
            reader.close()

    def makefile(self, _mode: str) -> "_Received":
        return self._received

    def close(self) -> None:
        self._raw.close()
        self.socket.close()


class _Received(io.BufferedReader):
    """What a connection received. Each response closes it, but may have read a part of the next one, too."""

    def close(self) -> None:
        """Do nothing: the next response reads on."""


@contextlib.contextmanager
def raw_connection(port: int) -> Iterator[RawConnection]:
    connection = RawConnection(port)
    try:
        yield connection
    finally:
        connection.close()


Pairs = list[tuple[bytes, bytes]]


def pairs(headers: dict[str, str]) -> Pairs:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def with_length(headers: dict[str, str], body: bytes) -> dict[str, str]:
    return headers | {"content-length": str(len(body))}


def genuine(body: bytes = IGNORED, family: str = "svix") -> Pairs:
    return pairs(with_length(signed(body, family=family), body))


def request_head(
    headers: Sequence[tuple[bytes, bytes]] | dict[str, str],
    *,
    method: bytes = b"POST",
    target: bytes = b"/webhooks/clerk",
) -> bytes:
    pairs = (
        [(name.encode(), value.encode()) for name, value in headers.items()]
        if isinstance(headers, dict)
        else list(headers)
    )
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: relay.example"]
    lines += [name + b": " + value for name, value in pairs]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def exchange(port: int, request: bytes, method: str = "POST") -> RawResponse:
    with raw_connection(port) as connection:
        connection.send(request)
        return connection.response(method)


def conversation(port: int, requests: bytes, *, then_end: bool = False) -> list[RawResponse]:
    """Send all at once, and return the answers that come until the server closes the connection.

    then_end: tell the server that nothing more will come.
    """
    with raw_connection(port) as connection:
        with contextlib.suppress(OSError):  # it may be closed before all is sent
            connection.send(requests)
            if then_end:
                connection.socket.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.socket.recv(65_536):
                received += data
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", 0))
        answers.append(RawResponse(int(first.split()[1]), headers, rest[:size]))
        received = rest[size:]
    return answers


def assert_a_good_delivery_passes(port: int) -> None:
    """Within a second, over a connection of its own."""
    body = simulator.encode(simulator.sample(session_id="sess_good", user_id="user_good"))
    with in_time(1):
        answer = exchange(port, request_head(genuine(body)) + body)
    assert (answer.status, json.loads(answer.body)["outcome"]) == (200, "applied")
