"""An application as a user would build it on ours, with Sentry and with defects that can be asked for."""

import os
from typing import Any

import sentry_sdk
from flask import request

from service import clerk, ingest
from service.app import RelayFlask, create_app

MARK = "x-raise-in"
"""A header that says where the defect is."""


def with_sentry() -> RelayFlask:
    sentry_sdk.init(os.environ["SENTRY_SINK"], traces_sample_rate=1.0, send_default_pii=True)
    return with_defects()


def with_defects() -> RelayFlask:
    app = create_app()

    @app.route("/fails")
    def fails() -> str:
        raise ZeroDivisionError

    @app.before_request
    def hook() -> None:
        if request.headers.get(MARK) == "hook":
            raise ZeroDivisionError

    normalize, model_validate = ingest.normalize, clerk.SessionEvent.model_validate

    def raising_normalize(event: Any, **named: Any) -> Any:
        if request.headers.get(MARK) == "ingest":
            raise ZeroDivisionError
        return normalize(event, **named)

    def raising_validate(envelope: Any, **named: Any) -> Any:
        if request.headers.get(MARK) == "parsing":
            raise ZeroDivisionError
        return model_validate(envelope, **named)

    ingest.normalize = raising_normalize
    clerk.SessionEvent.model_validate = raising_validate  # type: ignore[method-assign]
    return app
