"""/healthz, /readyz and /metrics."""

import hmac
import time
from typing import TYPE_CHECKING, Final

from flask import Blueprint

from service import answers, metrics
from service.answers import Answer, Pending
from service.errors import RelayError, StoreUnavailableError, UnauthorizedError
from service.store import Backlog, SessionStore

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

READY_SECONDS: Final = 0.5
"""A health check's answer comes within a second, whatever Redis does."""


def create_health(store: SessionStore, metrics_token: str) -> Blueprint:
    health = Blueprint("health", __name__)

    @health.get("/healthz", provide_automatic_options=False)
    def healthz(_: "WSGIEnvironment") -> Answer:
        return answers.json({"status": "ok"})

    @health.get("/readyz", provide_automatic_options=False)
    def readyz(_: "WSGIEnvironment") -> Pending[bool]:
        return Pending(store.probe(), _ready, READY_SECONDS)

    @health.get("/metrics", provide_automatic_options=False)
    def scrape(environ: "WSGIEnvironment") -> Answer | Pending[Backlog]:
        sent = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")  # the bytes of the header
        if metrics_token and not hmac.compare_digest(sent, f"Bearer {metrics_token}".encode()):
            raise UnauthorizedError("Send METRICS_TOKEN as a Bearer token.")
        try:
            return Pending(store.backlog(), _metrics, READY_SECONDS)
        except StoreUnavailableError as error:
            return _metrics(error)

    return health


def _metrics(result: Backlog | RelayError) -> Answer:
    if isinstance(result, RelayError):
        text = metrics.render()
    else:
        lag = max(0.0, time.time() - result.first_expiry_ms / 1000)
        text = metrics.render(result.dead_letters, lag)
    return Answer(200, text, metrics.CONTENT_TYPE)


def _ready(result: bool | RelayError) -> Answer:
    if isinstance(result, RelayError):
        return answers.problem(result)
    return answers.json({"status": "ok"})
