"""Responses with JSON: not to be stored, and told apart by a digest of their bytes."""

import hashlib
from collections.abc import Sequence

import orjson
from flask import Response, request


def answer(body: bytes) -> Response:
    """Return JSON; or 304 without it, if it is what the client has already (`If-None-Match`)."""
    # https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3
    etag = hashlib.blake2b(body, digest_size=16).hexdigest()
    response = Response(body, content_type="application/json")
    if request.if_none_match.contains_weak(etag):
        response = Response(status=304)
        del response.headers["Content-Type"]
    response.set_etag(etag)
    response.headers["Cache-Control"] = "no-store"
    return response


def page(name: str, items: Sequence[bytes], following: str | None) -> bytes:
    """Return a page of a list as JSON: the items, each JSON, under this name, and where the next page begins."""
    return b'{"%b":[%b],"next":%b}' % (name.encode(), b",".join(items), orjson.dumps(following))
