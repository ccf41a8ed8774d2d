"""What goes back over HTTP, before any framework makes a response of it."""

import http.client
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import orjson

from service.errors import RelayError
from service.models import Outcome

ANSWER_SECONDS: Final = 4.5
"""Seconds within which a sender gets its response, whatever Redis and the sender do; the contract says 5."""


class Reply(NamedTuple):
    """Status, body and headers of a response."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = MappingProxyType({})
    """Besides Content-Type and Content-Length."""


def json(body: object, status: int = 200) -> Reply:
    """Return a body as JSON."""
    return Reply(status, orjson.dumps(body), "application/json")


def problem(status: int, code: str, title: str, detail: str, headers: Mapping[str, str]) -> Reply:
    """Return problem details (https://www.rfc-editor.org/rfc/rfc9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    return Reply(status, orjson.dumps(body), "application/problem+json", headers)


def of(result: Outcome | RelayError) -> Reply:
    """Return what a sender gets for its delivery."""
    if isinstance(result, RelayError):
        return problem(result.status, result.code, result.title, str(result), result.headers)
    return json(result.body(), result.status)


def of_http_status(status: int, detail: str | None, headers: Mapping[str, str]) -> Reply:
    """Return the problem for a status that none of our own errors has."""
    title = http.client.responses.get(status, "Error")
    code = title.lower().replace(" ", "_").replace("-", "_")
    return problem(status, code, title, detail or title, headers)
