"""The endpoints that platforms and Prometheus ask: /healthz, /readyz and /metrics."""

import hmac
import re
import time
from typing import Any, Final, get_args

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import StoreUnavailableError, UnauthorizedError
from service.store.partitions import Backlog
from service.store.sessions import SessionStore
from service.telemetry import metrics
from service.telemetry.metrics import Reconciled, Stored
from service.workers.report import Drift

_DRIFT: Final = {f"drift_{kind}": kind for kind in get_args(Drift)}
_RECONCILE_FIELDS: Final = ("last_success_at", "state_as_of", *_DRIFT)
"""What `service.workers.runs` records."""


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
            stored = _stored(store.backlog(_RECONCILE_FIELDS))
        except StoreUnavailableError:
            stored = None
        text = metrics.render(stored)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    return health


def _stored(backlog: Backlog) -> Stored:
    now = time.time()
    return Stored(
        dead_letters=backlog.dead_letters,
        expiry_lag=max(0.0, now - backlog.first_expiry_ms / 1000),
        pending_revokes=backlog.pending_revokes,
        reconciled=_reconciled(backlog.reconcile, now),
    )


def _reconciled(values: list[bytes | None], now: float) -> Reconciled | None:
    """Return what `reconcile` recorded; None if it has recorded nothing yet."""
    fields = zip(_RECONCILE_FIELDS, values, strict=True)
    recorded = {name: int(value) for name, value in fields if value and re.fullmatch(rb"[0-9]{1,15}", value)}
    if not recorded:
        return None
    success_ms, as_of_ms = recorded.get("last_success_at"), recorded.get("state_as_of")
    return Reconciled(
        drift={kind: recorded.get(name, 0) for name, kind in _DRIFT.items()},
        last_success_at=None if success_ms is None else success_ms / 1000,
        state_age=None if as_of_ms is None else max(0.0, now - as_of_ms / 1000),
    )
