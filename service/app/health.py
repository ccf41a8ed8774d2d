"""The endpoints that platforms and Prometheus ask: /healthz, /readyz and /metrics."""

import hmac
import time
from typing import Any

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import StoreUnavailableError, UnauthorizedError
from service.store.sessions import SessionStore
from service.telemetry import metrics


def create_health(store: SessionStore, metrics_token: str) -> Blueprint:
    """Return the endpoints as a blueprint.

    Args:
        store: is asked whether Redis is there.
        metrics_token: the Bearer token that /metrics requires; none if empty.
    """
    health = Blueprint("health", __name__)

    @health.get("/healthz", provide_automatic_options=False)
    def healthz() -> dict[str, Any]:
        return {"status": "ok"}

    @health.get("/readyz", provide_automatic_options=False)
    def readyz() -> dict[str, Any]:
        store.probe()
        return {"status": "ok"}

    @health.get("/metrics", provide_automatic_options=False)
    def scrape() -> Response:
        sent = request.headers.get("authorization", "").encode("latin-1")  # the bytes of the header
        if metrics_token and not hmac.compare_digest(sent, f"Bearer {metrics_token}".encode()):
            raise UnauthorizedError("Send METRICS_TOKEN as a Bearer token.")
        metrics.warn_if_not_shared(request.is_multiprocess)
        try:
            dead_letters, first_expiry_ms = store.backlog()
        except StoreUnavailableError:
            text = metrics.render()
        else:
            lag = max(0.0, time.time() - first_expiry_ms / 1000)
            text = metrics.render(dead_letters, lag)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    return health
