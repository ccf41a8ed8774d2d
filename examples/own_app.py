"""The relay with a hook, a route and middleware of your own: only Svix' addresses, or a header, may deliver.

    DELIVERY_KEY=… session-relay serve --app own_app:create_own_app

in this file's folder, with the relay's settings. Everyone else gets 403, which Svix tries again later.
"""

import hmac
import os

from flask import abort, request
from werkzeug.middleware.proxy_fix import ProxyFix

from service.app.factory import RelayFlask, create_app
from service.app.webhook import WEBHOOK_PATH

# Those of the US, but for the IPv6 network 2600:1f24:64:8000::/56: https://docs.svix.com/receiving/source-ips
SVIX = {"44.228.126.217", "50.112.21.217", "52.24.126.164", "54.148.139.208"}


def create_own_app() -> RelayFlask:
    app = create_app()
    key = os.environ.get("DELIVERY_KEY", "").encode()
    # One proxy in front, as on Heroku. Without one, leave this out: anybody could write X-Forwarded-For.
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]

    @app.before_request
    def allow_known_senders_only() -> None:
        sent = request.headers.get("X-Delivery-Key", "").encode()
        known = request.remote_addr in SVIX or (key and hmac.compare_digest(sent, key))
        if request.path == WEBHOOK_PATH and not known:
            abort(403, "Unknown sender.")

    @app.get("/release")
    def release() -> dict[str, str | None]:
        return {"commit": os.environ.get("SOURCE_VERSION")}

    return app
