"""HTTP for `service.dev.fake_clerk`: a server on 127.0.0.1, a record of its requests, and faults on demand."""

import abc
import bisect
import contextlib
import email.utils
import json
import math
import random
import secrets
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable
from http.client import responses
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

_ERRORS: Final = range(400, 600)
_FAULTS: Final = (500, 502, 503, 504)


class ApiError(Exception):
    """A response other than 200, in Clerk's shape."""

    def __init__(self, status: int, code: str, message: str, **meta: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "errors": [{"message": message, "long_message": message, "code": code, "meta": meta}],
            "clerk_trace_id": secrets.token_hex(16),
        }


class Request(NamedTuple):
    """A request that was answered."""

    at: float
    """When it arrived, by `time.monotonic()`, in seconds."""
    method: str
    target: str
    """Path and query, as they were sent."""
    status: int


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class RateLimit(NamedTuple):
    """So many requests in any window of so many seconds."""

    requests: int
    seconds: float

    def wait(self, taken: deque[float], now: float) -> float:
        """Return for how many seconds a request has to wait, after those taken; 0 takes it."""
        while taken and taken[0] <= now - self.seconds:
            taken.popleft()
        if len(taken) >= self.requests:
            return taken[0] + self.seconds - now
        taken.append(now)
        return 0


class FaultyServer(abc.ABC):
    """Answers over HTTP while its `with` lasts. The attributes may be changed at any time.

    What `on_request` or `answer` raises is answered with 500, and raised again at the end of the `with`.
    """

    def __init__(
        self,
        *,
        secret_key: str,
        rate_limit: tuple[int, float] | None,
        latency: float,
        errors: float,
        on_request: Callable[[str, str, dict[str, str]], object] | None,
        clock: Callable[[], float],
        seed: int,
    ) -> None:
        self.secret_key = secret_key
        self.rate_limit = rate_limit
        self.latency = latency
        self.errors = errors
        self.on_request = on_request
        self.clock = clock
        self.requests: list[Request] = []
        """What was answered, in the order of the answers."""
        self._random = random.Random(seed)  # noqa: S311  # which answers fail is no secret
        self._lock = threading.RLock()
        self._taken: deque[float] = deque()
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """What CLERK_API_URL is set to."""
        if self._server is None:
            raise RuntimeError("There is a URL only inside the `with` of the stand-in.")
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def most_in_window(self, seconds: float) -> int:
        """Return how many requests arrived in that window of so many seconds in which most did, refused ones too."""
        times = sorted(request.at for request in list(self.requests))
        return max((bisect.bisect_left(times, at + seconds) - first for first, at in enumerate(times)), default=0)

    @abc.abstractmethod
    def answer(self, method: str, path: str, query: dict[str, str]) -> Any:
        """Return the body of a response with status 200, or raise an ApiError."""

    def respond(self, method: str, target: str, authorization: str | None) -> Response:
        """Answer a request for a path and query, with its header `Authorization`."""
        arrived_at = time.monotonic()
        headers = {"Content-Type": "application/json"}
        self._stopping.wait(self.latency / 2)
        try:
            status, body = 200, self._checked_answer(method, target, authorization, arrived_at, headers)
        except ApiError as error:
            status, body = error.status, error.body
        except Exception as error:  # noqa: BLE001  # it is the test's, which gets it at the end of the `with`
            self._failure = self._failure or error
            status, body = 500, ApiError(500, "internal_clerk_error", repr(error)).body
        content = json.dumps(body, separators=(",", ":")).encode()
        headers["Content-Length"] = str(len(content))
        headers["Date"] = email.utils.formatdate(self.clock(), usegmt=True)
        self.requests.append(Request(arrived_at, method, target, status))
        self._stopping.wait(self.latency / 2)
        return Response(status, headers, content)

    def _checked_answer(
        self, method: str, target: str, authorization: str | None, now: float, headers: dict[str, str]
    ) -> Any:
        parts = urlsplit(target)
        # The first of several values counts, as Clerk says of `order_by`.
        query = dict(reversed(parse_qsl(parts.query, keep_blank_values=True)))
        chosen = self.on_request(method, parts.path, query) if self.on_request is not None else None
        forced = chosen if isinstance(chosen, int) and chosen in _ERRORS else None
        if authorization != f"Bearer {self.secret_key}":
            raise ApiError(401, "clerk_key_invalid", "This is not the secret key of the instance.")
        with self._lock:
            wait = RateLimit(*self.rate_limit).wait(self._taken, now) if self.rate_limit is not None else 0
            if forced is None and not wait and self._random.random() < self.errors:
                forced = self._random.choice(_FAULTS)
        if wait or forced == 429:  # noqa: PLR2004
            headers["Retry-After"] = str(max(1, math.ceil(wait)))
            raise ApiError(429, "too_many_requests", "Too many requests, retry later.")
        if forced is not None:
            raise ApiError(forced, "internal_clerk_error", "A fault that the test asked for.")
        return self.answer(method, parts.path, query)

    def __enter__(self) -> Self:
        self._stopping.clear()
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fake-clerk", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._failure is not None and error is None:
            raise self._failure


class _Server(socketserver.ThreadingTCPServer):  # not HTTPServer, which asks the DNS for this machine's name
    request_queue_size = 128

    def __init__(self, owner: FaultyServer) -> None:
        self.owner = owner
        self.connections: set[Any] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is no error here."""

    def stop(self) -> None:
        self.shutdown()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)
        self.server_close()  # waits for the threads of the connections


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _respond(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, body = self.server.owner.respond(self.command, self.path, self.headers.get("Authorization"))
        lines = [f"HTTP/1.1 {status} {responses.get(status, '')}", *(f"{name}: {headers[name]}" for name in headers)]
        # In one piece: the body of a second one would wait for the first one's acknowledgement.
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _respond  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing: `requests` has it."""
