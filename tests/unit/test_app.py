"""The application without a server and without Redis."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from clerk_session_feed.errors import ConfigurationError
from support.constants import MAX_BODY_BYTES, NO_REDIS
from support.events import IGNORED
from support.relay import make_settings
from support.signing import signed
from werkzeug.test import create_environ, run_wsgi_app

from service.app.factory import create_app


class Endless(io.RawIOBase):
    """A request's body without an end."""

    def __init__(self) -> None:
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        assert self.taken <= 8 * MAX_BODY_BYTES, "reads on, after it is clear that the body is too large"
        return len(buffer)


@pytest.mark.parametrize("chunked", [False, True], ids=["with length", "chunked"])
def test_under_any_server_no_more_is_read_of_a_body_than_may_be(chunked: bool) -> None:
    app = create_app(make_settings(NO_REDIS))
    environ = create_environ("/webhooks/clerk", method="POST", headers=signed(IGNORED))
    environ |= {"wsgi.input": Endless(), "wsgi.input_terminated": True}
    if not chunked:
        environ["CONTENT_LENGTH"] = str(2**40)

    body, status, _ = run_wsgi_app(app, environ)

    assert (status, json.loads(b"".join(body))["code"]) == ("413 REQUEST ENTITY TOO LARGE", "body_too_large")


def test_without_settings_there_is_no_application(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError) as error:
        create_app()

    missing = {fault.split(":")[0] for fault in error.value.faults}
    assert missing == {"CLERK_WEBHOOK_SIGNING_SECRET", "REDIS_URL"}
