"""Answers: JSON, problems (RFC 9457), and those that wait for Redis."""

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, wait
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import orjson
import structlog
from flask import Response

from service.errors import RelayError, StoreUnavailableError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger(__name__)

T = TypeVar("T")

ANSWER_SECONDS: Final = 4.5
"""Within which the sender gets an answer, whatever Redis and the sender itself do; the contract says 5."""

DEFER: Final = "session_relay.defer"
"""WSGI environ key: a server that can wait without a thread puts a `Callable[[Pending], None]` there."""


def json(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, content_type="application/json")


def problem(error: RelayError) -> Response:
    """Write an error as problem details (https://www.rfc-editor.org/rfc/rfc9457)."""
    body = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "code": error.code,
    }
    return Response(orjson.dumps(body), error.status, error.headers, content_type="application/problem+json")


class Pending(Response, Generic[T]):
    """An answer that is made once a future is done.

    A plain WSGI server's thread waits for it; a server that sets DEFER is handed it instead, waits for
    `future` in its own way, for `timeout` seconds at most, and then sends what `settled()` returns.
    """

    def __init__(
        self, future: Future[T], answer: Callable[[T | RelayError], Response], timeout: float
    ) -> None:
        super().__init__()
        self.future = future
        self.timeout = timeout
        self._answer = answer

    def settled(self) -> Response:
        """Answer with what the future has now; if that is nothing, give up on it."""
        self.future.cancel()
        try:
            return self._answer(self.future.result(timeout=0))
        except RelayError as error:
            return self._answer(error)
        except (TimeoutError, CancelledError):
            return self._answer(StoreUnavailableError("Redis did not answer in time."))
        except Exception:
            log.exception("answer_failed")
            return self._answer(RelayError("This is a defect of the service; its log says more."))

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        defer: Any = environ.get(DEFER)
        if defer is not None:
            defer(self)
            return ()
        wait([self.future], self.timeout)
        return self.settled()(environ, start_response)
