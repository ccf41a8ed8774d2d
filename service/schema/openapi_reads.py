"""The endpoints that READ_TOKEN switches on, as OpenAPI 3.1."""

from typing import Final, get_args

from clerk_session_feed.models import Cursor, Id, SessionMessage, StreamMessage

from service.app.reads.limits import DEFAULT_LIMIT, DEFAULT_SECONDS, LARGEST_LIMIT, LONGEST_SECONDS
from service.errors import (
    InvalidParameterError,
    NotFoundError,
    StoreUnavailableError,
    TooManyStreamsError,
    UnauthorizedError,
)
from service.models import Reason
from service.schema.json_schema import Schema, schema
from service.schema.json_schema import schemas as schemas_of
from service.schema.openapi_parts import SCHEMAS, object_of, problems, response
from service.store.listing import WANTED

SECURITY_SCHEMES: Final[Schema] = {
    "readToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "READ_TOKEN, or one of them. If it is not set, all that needs it is a 404.",
    },
    "eventsToken": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "What `POST /events/token` made: it shows the events of one user or one session, for minutes.",
    },
}
_NO_STORE: Final = {"Cache-Control": {"required": True, "schema": {"const": "no-store"}}}
_VALIDATED: Final = {
    **_NO_STORE,
    "ETag": {
        "required": True,
        "description": "Of the bytes of the body; send it as If-None-Match.",
        "schema": {"type": "string", "pattern": '^"[0-9a-f]{32}"$'},
    },
}
_ALWAYS: Final = (UnauthorizedError, NotFoundError)
"""Without READ_TOKEN in the settings, all of it is a 404."""
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_NULL: Final[Schema] = {"type": "null"}


def paths() -> Schema:
    """Return the endpoints by path."""
    session = {"$ref": f"{SCHEMAS}SessionMessage"}
    return {
        "/sessions": _get(
            "listSessions",
            "List sessions, a page at a time",
            _page("sessions", session),
            [_STATUS, _query("user", "Only this user's.", schema(Id)), _AFTER, _LIMIT],
            description="Open ones come in the order in which they run out, from the index of those that have an end. "
            "Others come the latest first, from the stream, as far back as it goes. A page may be short, or empty, and "
            "still have a `next`.",
        ),
        "/users/{user_id}/sessions": _get(
            "listSessionsOfUser",
            "List the sessions of a user",
            _page("sessions", session),
            [_path("user_id"), _STATUS, _AFTER, _LIMIT],
        ),
        "/sessions/{session_id}": _get(
            "getSession",
            "Return the state of a session",
            session,
            [_path("session_id")],
            description="The message that was published last; but `live` is as of now.",
        ),
        "/sessions/{session_id}/history": _get(
            "getHistory",
            "Return what the stream still has of a session, the oldest first, stale events too",
            _page("events", {"$ref": f"{SCHEMAS}HistoryMessage"}),
            [_path("session_id"), _AFTER, _LIMIT],
        ),
        "/dead-letters": _get(
            "listDeadLetters",
            "List dead letters without their bodies, about `limit` at a time",
            _page("dead_letters", {"$ref": f"{SCHEMAS}DeadLetter"}),
            [_AFTER, _LIMIT],
        ),
        "/stats": _get("getStats", "Return how much there is", {"$ref": f"{SCHEMAS}Stats"}, []),
        "/events": {"get": _events()},
        "/events/token": {"post": _token()},
    }


def schemas() -> Schema:
    """Return the components that the endpoints refer to."""
    made = schemas_of(SessionMessage, StreamMessage, at=SCHEMAS)
    history = made.pop("StreamMessage")
    history["properties"] |= {"cursor": schema(Cursor)}
    unknown = {"anyOf": [schema(Cursor), _NULL]}
    stream = object_of({"partition": _COUNT, "length": _COUNT, "first": unknown, "last": unknown})
    described = {"type": ["string", "null"]}
    counts = ("open_sessions", "sessions_to_expire", "dead_letters", "pending_revokes")
    return {
        **made,
        "HistoryMessage": history
        | {"title": "HistoryMessage", "description": "A message; that of a stale event has no revision."},
        "DeadLetter": object_of(
            {
                "id": {"type": "string"},
                "received_at": {"type": ["integer", "null"], "description": "Unix milliseconds."},
                "reason": {"anyOf": [{"enum": list(get_args(Reason))}, _NULL]},
                "detail": described,
                "body_bytes": {"type": ["integer", "null"], "description": "Of all that is stored of it, about."},
            }
        ),
        "Stats": object_of(
            dict.fromkeys(counts, _COUNT)
            | {
                "reconciled_at": {"type": ["integer", "null"], "description": "Unix milliseconds."},
                "streams": {"type": "array", "items": stream},
            }
        ),
    }


def _get(name: str, summary: str, of: Schema, parameters: list[Schema], description: str = "") -> Schema:
    ok = response("200", "Yes", of)
    ok["200"]["headers"] = _VALIDATED
    unchanged = {"304": {"description": "It is what If-None-Match names", "headers": _VALIDATED}}
    refused = [InvalidParameterError] if parameters else []
    operation = {
        "operationId": name,
        "summary": summary,
        **({"description": description} if description else {}),
        "security": [{"readToken": []}],
        "parameters": parameters,
        "responses": ok | unchanged | problems([*refused, *_ALWAYS, StoreUnavailableError]),
    }
    return {"get": operation}


def _events() -> Schema:
    position = {"type": "string", "maxLength": 65_536}
    stream = response("200", _EVENTS, {"type": "string"}, "text/event-stream")
    stream["200"]["headers"] = _NO_STORE
    return {
        "operationId": "followEvents",
        "summary": "Follow what is applied, as server-sent events",
        "security": [{"readToken": []}, {"eventsToken": []}],
        "parameters": [
            _query("user", "Only events of this user's sessions. Not with a token in the address.", schema(Id)),
            _query("after", "Begin behind this id; or behind a time, in Unix milliseconds.", position),
            {"name": "Last-Event-ID", "in": "header", "description": "The same; it wins.", "schema": position},
        ],
        "responses": stream | problems([InvalidParameterError, *_ALWAYS, TooManyStreamsError]),
    }


_EVENTS: Final = (
    "`event: session` with a message as `data` and its position as `id`; `event: resync`, if something between the "
    "reader's position and that `id` is gone; `event: end` with the reason, behind which nothing comes; and comments "
    "when nothing else comes for 15 s."
)


def _token() -> Schema:
    asked = {
        "type": "object",
        "properties": {
            "user_id": schema(Id),
            "session_id": schema(Id),
            "seconds": {"type": "integer", "minimum": 1, "maximum": LONGEST_SECONDS, "default": DEFAULT_SECONDS},
        },
        "oneOf": [{"required": ["user_id"]}, {"required": ["session_id"]}],
    }
    told = object_of({"token": {"type": "string"}, "expires_at": {"type": "integer", "description": "Unix ms."}})
    ok = response("200", "A token", told)
    ok["200"]["headers"] = _NO_STORE
    return {
        "operationId": "makeEventsToken",
        "summary": "Make a token with which a browser can follow the events of one user or one session",
        "security": [{"readToken": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": ok | problems([InvalidParameterError, *_ALWAYS]),
    }


def _page(name: str, item: Schema) -> Schema:
    following = {"type": ["string", "null"], "description": "`after` of the next page; null: this is the last one."}
    return object_of({name: {"type": "array", "items": item}, "next": following})


def _query(name: str, description: str, of: Schema) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": of}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema(Id)}


_AFTER: Final = _query("after", "The `next` of the page before.", {"type": "string"})
_LIMIT: Final = _query(
    "limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": LARGEST_LIMIT, "default": DEFAULT_LIMIT}
)
_STATUS: Final = _query(
    "status",
    "`live`, `pending` or `ended`: each session is one of them. Or a status. `ended` also has those that expired, were "
    "revoked and so on.",
    {"enum": list(WANTED), "default": "live"},
)
