"""The application that `dev` serves. A module of its own: it runs in the server's process."""

import os
import time

from service.app import RelayFlask
from service.app import create_app as create_relay
from service.app.console import ConsoleBlueprint
from service.dev import CONSOLE_LINK, TRIAL_PATH
from service.telemetry.access_log import ADVICE_SECONDS


def create_app() -> RelayFlask:
    """Return the relay's application, with two paths that only this run of `dev` knows.

    One signs in to the console, once; with several workers, once for each.

    GET of the other tells that this is the server which `dev` started. Advice about signatures is given only after a
    DELETE, or a minute, because one of the samples is forged.
    """
    app = create_relay()
    next_advice = app.access_log.next_advice
    next_advice["invalid_signature"] = time.monotonic() + ADVICE_SECONDS
    console = app.blueprints["console"]
    assert isinstance(console, ConsoleBlueprint)  # noqa: S101  # `dev` has set CONSOLE_TOKEN
    console.gate.links.add(os.environ[CONSOLE_LINK])
    console.hint = "To see something happen, run the first command under “Try” in the terminal of session-relay dev."
    path = os.environ[TRIAL_PATH]

    @app.get(path)
    def tell() -> tuple[str, int]:
        return "", 204

    @app.delete(path)
    def advise() -> tuple[str, int]:
        next_advice.pop("invalid_signature", None)
        return "", 204

    return app
