"""/healthz, /readyz and /metrics."""

import hmac
import time
from typing import Any

from flask import Blueprint, Response, request

from service.errors import StoreUnavailableError, UnauthorizedError
from service.store.sessions import SessionStore
from service.telemetry import metrics


def create_health(store: SessionStore, metrics_token: str) -> Blueprint:
    """Return the routes that platforms and Prometheus ask."""
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
            backlog = store.backlog()
        except StoreUnavailableError:
            text = metrics.render()
        else:
            lag = max(0.0, time.time() - backlog.first_expiry_ms / 1000)
            text = metrics.render(backlog.dead_letters, lag)
        return Response(text, content_type=metrics.CONTENT_TYPE)

    return health
