"""An application as a user would build it on ours, with Sentry and with defects that can be asked for."""

import os
from typing import Any

import pytest
import sentry_sdk
from flask import request

from service.app.factory import RelayFlask, create_app
from service.clerk import ordinary
from service.ingest import Ingest
from service.models import Delivery, DeliveryInfo

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

    read, parse = Ingest._read, ordinary.read

    def raising_read(self: Ingest, delivery: Delivery, info: DeliveryInfo) -> Any:
        if request.headers.get(MARK) == "ingest":
            raise ZeroDivisionError
        return read(self, delivery, info)

    def raising_parse(body: bytes) -> Any:
        event = parse(body)
        if request.headers.get(MARK) == "parsing":
            raise ZeroDivisionError
        return event

    patch = pytest.MonkeyPatch()
    patch.setattr(Ingest, "_read", raising_read)
    patch.setattr(ordinary, "read", raising_parse)
    return app
