"""/healthz, /readyz and /metrics."""

import hmac
from typing import Final

from flask import Blueprint, Response, request

from service import answers, metrics
from service.errors import RelayError, UnauthorizedError
from service.store import SessionStore

READY_SECONDS: Final = 0.5
"""A health check's answer comes within a second, whatever Redis does."""


def create_health(store: SessionStore, metrics_token: str) -> Blueprint:
    health = Blueprint("health", __name__)

    @health.get("/healthz", provide_automatic_options=False)
    def healthz() -> Response:
        return answers.json({"status": "ok"})

    @health.get("/readyz", provide_automatic_options=False)
    def readyz() -> Response:
        return answers.Pending(store.probe(), _ready, READY_SECONDS)

    @health.get("/metrics", provide_automatic_options=False)
    def scrape() -> Response:
        sent = request.headers.get("Authorization", "").encode("latin-1")  # the bytes of the header
        if metrics_token and not hmac.compare_digest(sent, f"Bearer {metrics_token}".encode()):
            raise UnauthorizedError("Send METRICS_TOKEN as a Bearer token.")
        return Response(metrics.render(), content_type=metrics.CONTENT_TYPE)

    return health


def _ready(result: object) -> Response:
    if isinstance(result, RelayError):
        return answers.problem(result)
    return answers.json({"status": "ok"})
