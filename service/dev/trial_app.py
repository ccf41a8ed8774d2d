"""The application that `dev` serves while it sends samples. A module of its own: it runs in the server's process."""

import time

from service.app import RelayFlask
from service.app import create_app as create_relay
from service.telemetry.access_log import ADVICE_SECONDS


def create_app() -> RelayFlask:
    """Return the relay's application. It gives no advice about signatures yet: one of the samples is forged."""
    app = create_relay()
    app.access_log.next_advice["invalid_signature"] = time.monotonic() + ADVICE_SECONDS
    return app
