"""The Flask application: routes and answers. A webhook comes in here; follow it into `ingest`."""

import time

import structlog
from flask import Flask, Request, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from service import answers, metrics
from service.config import Settings, load
from service.contract import Outcome
from service.errors import (
    BadRequestError,
    BodyTooLargeError,
    MethodNotAllowedError,
    NotFoundError,
    RelayError,
    UnsupportedEncodingError,
)
from service.health import create_health
from service.ingest import Ingest
from service.log import configure as configure_logs
from service.signature import Verifier
from service.store import SessionStore

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None, store: SessionStore | None = None) -> Flask:
    """Return the WSGI application; without arguments, as the environment says.

    Raises ConfigurationError.
    """
    if settings is None:
        settings = load(Settings)
        configure_logs(settings)
    store = store or SessionStore(settings)
    verifier = Verifier(settings.secrets)
    ingest = Ingest(
        store,
        publish_http_request=settings.publish_http_request,
        count_nulled=lambda field, times: metrics.NULLED_FIELDS.labels(field).inc(times),
    )

    app = Flask(__name__, static_folder=None)
    app.extensions["session_store"] = store
    app.url_map.merge_slashes = False  # a redirect is a failure to the sender, so there is none
    app.register_blueprint(create_health(store, settings.metrics_token.get_secret_value()))
    app.register_error_handler(RelayError, _refuse)
    app.register_error_handler(HTTPException, _refuse_http)
    app.register_error_handler(Exception, _refuse_defect)

    @app.before_request
    def take_the_request_line_as_it_is() -> None:
        # werkzeug's routing drops leading slashes, and takes `post` for POST.
        if request.environ["PATH_INFO"].startswith("//"):
            raise NotFound
        if request.url_rule and request.environ["REQUEST_METHOD"] != request.method:
            raise MethodNotAllowed(request.url_rule.methods)

    @app.post("/webhooks/clerk", provide_automatic_options=False)
    def receive() -> Response:
        g.report = report = _Report()
        body = _read_body(request, settings.max_body_bytes)
        delivery = verifier.verify(request.headers, body)  # type: ignore[arg-type]  # has the `get` of a Mapping
        report.message_id = delivery.id
        return answers.Pending(ingest(delivery), report.answer, answers.ANSWER_SECONDS)

    return app


def _read_body(request: Request, at_most: int) -> bytes:
    """Return the raw bytes, whatever the content type says.

    Not werkzeug's MAX_CONTENT_LENGTH: it cuts a chunked body without a word.
    """
    encodings = request.headers.get("Content-Encoding", "").lower().split(",")
    if {encoding.strip(" \t") for encoding in encodings} - {"", "identity"}:
        raise UnsupportedEncodingError("Send the body as it is, without a Content-Encoding.")
    if request.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
        raise UnsupportedEncodingError("Send the body as it is, or chunked.")
    too_large = BodyTooLargeError(f"The body is larger than {at_most} bytes.")
    if (request.content_length or 0) > at_most:
        raise too_large
    body = bytearray()
    while chunk := request.stream.read(at_most + 1 - len(body)):
        body += chunk
        if len(body) > at_most:
            raise too_large
    return bytes(body)


class _Report:
    """One delivery's line in the log, and its place in the metrics."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.message_id: str | None = None

    def answer(self, result: Outcome | RelayError) -> Response:
        if isinstance(result, RelayError):
            self.record("failed" if result.status >= 500 else "rejected", result.code)  # noqa: PLR2004
            return answers.problem(result)
        self.record(result.outcome, result.reason, result.session_id)
        return answers.json(result.body(), result.status)

    def record(self, outcome: str, reason: str | None = None, session_id: str | None = None) -> None:
        duration = time.perf_counter() - self._started
        metrics.DELIVERIES.labels(outcome, reason or "").inc()
        metrics.DURATION.observe(duration)
        (log.warning if outcome in {"failed", "dead_lettered"} or reason == "other_body" else log.info)(
            "delivery",
            outcome=outcome,
            reason=reason,
            message_id=self.message_id,
            session_id=session_id,
            duration_ms=round(duration * 1000, 3),
        )


def _refuse(error: RelayError) -> Response:
    report: _Report | None = g.get("report")
    return report.answer(error) if report else answers.problem(error)


def _refuse_http(error: HTTPException) -> Response:
    match error:
        case NotFound() | RequestRedirect():
            return _refuse(NotFoundError("Webhooks go to /webhooks/clerk."))
        case MethodNotAllowed():
            response = _refuse(MethodNotAllowedError(f"Use {', '.join(error.valid_methods or ())}."))
            response.headers["Allow"] = ", ".join(error.valid_methods or ())
            return response
        case _:
            return _refuse(BadRequestError(error.name))


def _refuse_defect(error: Exception) -> Response:
    log.error("request_failed", exc_info=error)
    return _refuse(RelayError("This is a defect of the service; its log says more."))
