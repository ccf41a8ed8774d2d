"""HTTP responses as values, before a framework or a server sends them."""

import http.client
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import orjson

from service.errors import RelayError
from service.models import Outcome

RESPONSE_SECONDS: Final = 4.0
"""Seconds from a request's arrival to its response at the latest. docs/contract.md, section 3, promises 5: the rest is
for a machine that is busy, and for the way back."""


class HttpResponse(NamedTuple):
    """A whole response."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = MappingProxyType({})
    """All but Content-Type and Content-Length."""

    def all_headers(self) -> list[tuple[str, str]]:
        """Return the headers as WSGI takes them."""
        length = str(len(self.body))
        return [("Content-Type", self.content_type), ("Content-Length", length), *self.headers.items()]

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers as ASGI takes them."""
        return [(name.lower().encode(), value.encode()) for name, value in self.all_headers()]


def for_outcome(outcome: Outcome) -> HttpResponse:
    """Return what the sender of a delivery gets (docs/contract.md, section 3)."""
    return HttpResponse(outcome.status, orjson.dumps(outcome.body()), "application/json")


def for_error(error: RelayError) -> HttpResponse:
    """Return problem details for an error."""
    return _problem(error.status, error.code, error.title, str(error), error.headers)


def for_status(status: int, detail: str | None, headers: Mapping[str, str]) -> HttpResponse:
    """Return problem details for an HTTP status that no RelayError has."""
    title = http.client.responses.get(status, "Error")
    code = title.lower().replace(" ", "_").replace("-", "_")
    return _problem(status, code, title, detail or title, headers)


def _problem(status: int, code: str, title: str, detail: str, headers: Mapping[str, str]) -> HttpResponse:
    # https://www.rfc-editor.org/rfc/rfc9457
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    # A cache may keep a 404 by itself: https://www.rfc-editor.org/rfc/rfc9110#section-15.1
    return HttpResponse(
        status, orjson.dumps(body), "application/problem+json", {"Cache-Control": "no-store", **headers}
    )
