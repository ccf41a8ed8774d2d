"""The application that `dev` serves. A module of its own: it runs in the server's process."""

import os
import time

from service.app import RelayFlask
from service.app import create_app as create_relay
from service.dev import TRIAL_PATH
from service.telemetry.access_log import ADVICE_SECONDS


def create_app() -> RelayFlask:
    """Return the relay's application, with a path that only this run of `dev` knows.

    GET tells that this is the server which `dev` started. Advice about signatures is given only after a DELETE,
    or a minute, because one of the samples is forged.
    """
    app = create_relay()
    next_advice = app.access_log.next_advice
    next_advice["invalid_signature"] = time.monotonic() + ADVICE_SECONDS
    path = os.environ[TRIAL_PATH]

    @app.get(path)
    def tell() -> tuple[str, int]:
        return "", 204

    @app.delete(path)
    def advise() -> tuple[str, int]:
        next_advice.pop("invalid_signature", None)
        return "", 204

    return app
