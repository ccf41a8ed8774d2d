"""The application that `dev` serves while it sends samples. A module of its own: it runs in the server's process."""

from service.app import RelayFlask
from service.app import create_app as create_relay


def create_app() -> RelayFlask:
    """Return the relay's application, to which one forged sample is no reason for advice."""
    app = create_relay()
    app.access_log.expected["invalid_signature"] = 1
    return app
