"""What servers pass in a WSGI environ."""

import io
import json
from typing import Any

import pytest
from support.constants import NO_REDIS
from support.events import IGNORED
from support.relay import make_settings
from support.signing import signed
from werkzeug.test import create_environ, run_wsgi_app

from service.app.factory import create_app
from service.app.webhook import WEBHOOK_PATH


def chunked_environ(body: bytes, **more: Any) -> dict[str, Any]:
    """Return what a server passes that neither reads chunks itself nor says where the body ends."""
    environ = create_environ(WEBHOOK_PATH, method="POST", headers=signed(body) | {"transfer-encoding": "chunked"})
    environ.pop("CONTENT_LENGTH", None)
    return environ | {"wsgi.input": io.BytesIO(body)} | more


@pytest.mark.parametrize("terminated", [False, True])
def test_chunks_that_the_server_leaves_unread_need_a_length(terminated: bool) -> None:
    app = create_app(make_settings(NO_REDIS))
    environ = chunked_environ(IGNORED, **({"wsgi.input_terminated": True} if terminated else {}))

    body, status, headers = run_wsgi_app(app, environ, buffered=True)

    answer = json.loads(b"".join(body))
    if terminated:
        assert (status, answer) == ("200 OK", {"outcome": "ignored"})
    else:
        assert (int(status[:3]), answer["code"]) == (411, "length_required")
        assert headers["Content-Type"] == "application/problem+json"
