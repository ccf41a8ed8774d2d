"""GET /events, which tells of what is applied as it comes; and POST /events/token, which makes tokens for browsers."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

import orjson
from clerk_session_feed.updates import now_ms
from flask import Blueprint, Response, request

from service.app.reads.access import ReadAccess
from service.app.reads.limits import DEFAULT_SECONDS, LONGEST_SECONDS, MAX_STREAMS
from service.app.reads.parameters import optional_id
from service.app.reads.stream import EventStream
from service.app.reads.tokens import EventTokens, Grant, is_id
from service.errors import InvalidParameterError, TooManyStreamsError, UnauthorizedError
from service.store import positions
from service.store.reader import Reader
from service.store.subscription import Scope
from service.waiting import STREAMS

MAX_TOKEN_REQUEST: Final = 4_096
"""Bytes of a request for a token."""
_ANY_ORIGIN: Final = {"Access-Control-Allow-Origin": "*"}
"""For requests with a token in their address: they carry no cookie, so a foreign page gains nothing by them."""


class EventTokenError(UnauthorizedError):
    """The token in the address is none, or has expired."""

    headers = MappingProxyType({**UnauthorizedError.headers, **_ANY_ORIGIN})


def add_events(reads: Blueprint, access: ReadAccess, reader: Reader, read_tokens: Sequence[str]) -> None:
    """Add the endpoints to the blueprint."""
    tokens = EventTokens(read_tokens)

    @reads.get("/events", provide_automatic_options=False)
    def get_events() -> Response:
        token = request.args.get("token")
        if token is None:
            access.require()
            scope = Scope(user_id=optional_id("user"))
        else:
            scope = _scope_of(tokens.read(token))
        after, is_lost = _after(len(reader.queries.partitions))
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        headers |= {} if token is None else _ANY_ORIGIN
        if request.method == "HEAD":
            return Response(iter(()), headers=headers)
        if reader.hub.count >= MAX_STREAMS:
            raise TooManyStreamsError(f"This process has {MAX_STREAMS} streams already.")
        stream = EventStream(reader.hub, reader.hub.subscribe(scope, after, is_lost=is_lost))
        if (streams := request.environ.get(STREAMS)) is not None:
            streams.append(stream)  # the server sends it, when Flask is done with the request
            return Response(iter(()), headers=headers)
        return Response(stream, headers=headers, direct_passthrough=True)

    @reads.post("/events/token", provide_automatic_options=False)
    def make_token() -> Response:
        access.require()
        grant = _asked_for(request.stream.read(MAX_TOKEN_REQUEST + 1))
        body = orjson.dumps({"token": tokens.make(grant), "expires_at": grant.expires_at_ms})
        return Response(body, content_type="application/json", headers={"Cache-Control": "no-store"})


def _scope_of(grant: Grant | None) -> Scope:
    if grant is None:
        raise EventTokenError("The token is none, or has expired: get another one.")
    if "user" in request.args:
        raise InvalidParameterError("user: the token says whose events are shown.")
    return Scope(grant.user_id, grant.session_id, max(0.0, grant.expires_at_ms - now_ms()) / 1000)


def _after(partitions: int) -> tuple[list[str] | None, bool]:
    """Return the cursor of each partition behind which the stream begins; and whether those are lost.

    A browser that connects again has the same address, `after` in it included, and says in the header how far it is.
    """
    header = request.headers.get("last-event-id")
    name, text = ("Last-Event-ID", header) if header else ("after", request.args.get("after"))
    if not text:
        return None, False
    try:
        cursors = positions.read(text, partitions)
    except ValueError:
        raise InvalidParameterError(f"{name}: an id that an event had, 0-0, or a time in milliseconds.") from None
    return cursors, cursors is None


def _asked_for(body: bytes) -> Grant:
    try:
        asked: Any = orjson.loads(body) if len(body) <= MAX_TOKEN_REQUEST else None
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise InvalidParameterError("Send a JSON object with user_id or session_id, and seconds if you like.")
    user_id, session_id = asked.get("user_id"), asked.get("session_id")
    if (user_id is None) == (session_id is None) or not is_id(user_id if session_id is None else session_id):
        raise InvalidParameterError("user_id, session_id: one of them is needed, and is an id.")
    seconds = asked.get("seconds", DEFAULT_SECONDS)
    if type(seconds) is not int or not 1 <= seconds <= LONGEST_SECONDS:
        raise InvalidParameterError(f"seconds: a number from 1 to {LONGEST_SECONDS}.")
    return Grant(user_id, session_id, now_ms() + 1000 * seconds)
