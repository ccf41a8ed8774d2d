"""The Flask application: routes and answers. A webhook comes in here; follow it into `ingest`."""

import time
from typing import TYPE_CHECKING

import structlog
from flask import Flask, Request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect
from werkzeug.wsgi import get_content_length

from service import answers, metrics
from service.answers import Answer, Pending
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
from service.ingest import Ingest, Trace
from service.journal import Journal
from service.light_flask import LightFlask
from service.log import configure as configure_logs
from service.signature import HEADERS, Verifier
from service.store import SessionStore

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None, store: SessionStore | None = None) -> Flask:
    """Return the WSGI application; without arguments, as the environment says.

    Raises ConfigurationError.
    """
    if settings is None:
        settings = load(Settings)
        configure_logs(settings)
    store = store or SessionStore(settings)
    store.report_to(metrics.observe_round_trip, metrics.count_redis_error)
    verifier = Verifier(settings.secrets)
    ingest = Ingest(store, publish_http_request=settings.publish_http_request)
    journal = Journal()

    app = LightFlask(__name__, on_error=lambda error: answers.problem(_problem(error)))
    app.extensions["session_store"] = store
    app.extensions["journal"] = journal
    app.register_blueprint(create_health(store, settings.metrics_token.get_secret_value()))

    @app.post("/webhooks/clerk", provide_automatic_options=False)
    def receive(environ: "WSGIEnvironment") -> Answer | Pending[Outcome]:
        started = time.perf_counter()
        trace = Trace()

        def answer(result: Outcome | RelayError) -> Answer:
            journal.note(trace, started, result)
            if isinstance(result, RelayError):
                return answers.problem(result)
            return answers.json(result.body(), result.status)

        try:
            body = _read_body(environ, settings.max_body_bytes)
            delivery = verifier.verify({name: environ.get(key) for name, key in _SIGNATURE_KEYS}, body)
            trace.message_id = delivery.id
            return Pending(ingest(delivery, trace), answer, answers.ANSWER_SECONDS)
        except Exception as error:  # noqa: BLE001  # what goes wrong here is a delivery's outcome, too
            return answer(_problem(error))

    return app


_SIGNATURE_KEYS = [(name, f"HTTP_{name.upper().replace('-', '_')}") for name in HEADERS]


def _read_body(environ: "WSGIEnvironment", at_most: int) -> bytes:
    """Return the raw bytes, whatever the content type says.

    Not werkzeug's MAX_CONTENT_LENGTH: it cuts a chunked body without a word.
    """
    encodings = environ.get("HTTP_CONTENT_ENCODING", "").lower().split(",")
    if {encoding.strip(" \t") for encoding in encodings} - {"", "identity"}:
        raise UnsupportedEncodingError("Send the body as it is, without a Content-Encoding.")
    if environ.get("HTTP_TRANSFER_ENCODING", "chunked").strip().lower() != "chunked":
        raise UnsupportedEncodingError("Send the body as it is, or chunked.")
    too_large = BodyTooLargeError(f"The body is larger than {at_most} bytes.")
    if (get_content_length(environ) or 0) > at_most:
        raise too_large
    # A server that ends the stream itself needs none of werkzeug's care for it.
    stream = environ["wsgi.input"] if environ.get("wsgi.input_terminated") else Request(environ).stream
    body: bytes = stream.read(at_most + 1)
    while len(body) <= at_most and (chunk := stream.read(at_most + 1 - len(body))):
        body += chunk
    if len(body) > at_most:
        raise too_large
    return body


def _problem(error: Exception) -> RelayError:
    match error:
        case RelayError():
            return error
        case NotFound() | RequestRedirect():
            return NotFoundError("Webhooks go to /webhooks/clerk.")
        case MethodNotAllowed():
            return MethodNotAllowedError(error.valid_methods or ())
        case HTTPException():
            return BadRequestError(error.name)
    log.error("request_failed", exc_info=error)
    return RelayError("This is a defect of the service; its log says more.")
