"""Answers: JSON, problems (RFC 9457), and those that wait for Redis."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import orjson
import structlog

from service.errors import RelayError, StoreUnavailableError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger(__name__)

T = TypeVar("T")

ANSWER_SECONDS: Final = 4.5
"""Within which the sender gets an answer, whatever Redis and the sender itself do; the contract says 5."""

DEFER: Final = "session_relay.defer"
"""WSGI environ key: a server that can wait without a thread puts a `Callable[[Pending], None]` there."""


class Answer:
    """A WSGI application that answers; werkzeug's Response does the same, at thirty times the cost."""

    def __init__(
        self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status_code = status
        self.body = body
        self.headers = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response(_STATUS_LINES[self.status_code], [*self.headers.items()])
        return () if environ["REQUEST_METHOD"] == "HEAD" else (self.body,)


_STATUS_LINES: Final = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


def json(body: object, status: int = 200) -> Answer:
    return Answer(status, orjson.dumps(body), "application/json")


def problem(error: RelayError) -> Answer:
    """Write an error as problem details (https://www.rfc-editor.org/rfc/rfc9457)."""
    body = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "code": error.code,
    }
    return Answer(error.status, orjson.dumps(body), "application/problem+json", error.headers)


class Pending(Generic[T]):
    """An answer that is made once a future is done.

    A plain WSGI server's thread waits for it; a server that sets DEFER is handed it instead, waits for
    `future` in its own way, for `timeout` seconds at most, and then sends what `settled()` returns.
    """

    def __init__(self, future: Future[T], answer: Callable[[T | RelayError], Answer], timeout: float) -> None:
        """future: of concurrent.futures or, with a server that sets DEFER, of its event loop."""
        self.future = future
        self.timeout = timeout
        self._answer = answer

    def settled(self) -> Answer:
        """Answer with what the future has now; if that is nothing, give up on it."""
        self.future.cancel()
        try:
            return self._answer(self._result())
        except Exception:
            log.exception("answer_failed")
            return self._answer(RelayError("This is a defect of the service; its log says more."))

    def _result(self) -> T | RelayError:
        if self.future.cancelled() or not self.future.done():
            return StoreUnavailableError("Redis did not answer in time.")
        error = self.future.exception()
        if error is None:
            return self.future.result()
        if isinstance(error, RelayError):
            return error
        raise error

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        defer: Any = environ.get(DEFER)
        if defer is not None:
            defer(self)
            return ()
        wait([self.future], self.timeout)
        return self.settled()(environ, start_response)
