"""`create_app()`: an ordinary Flask application that receives the webhook."""

from service.app.factory import RelayFlask, create_app
from service.app.webhook import WEBHOOK_PATH

__all__ = ["WEBHOOK_PATH", "RelayFlask", "create_app"]
