"""The HTTP endpoints as OpenAPI 3.1; outcomes and problems are derived from `models` and `errors`."""

import itertools
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from operator import attrgetter
from typing import Final, get_args, get_type_hints

from clerk_session_feed.models import ID, SCHEMA_VERSION, Cursor, Id, Revision

from service import errors
from service.clerk.events import MAX_TYPE
from service.clerk.signature import TIMESTAMP, TOLERANCE_SECONDS
from service.errors import (
    InvalidParameterError,
    RelayError,
    StoreUnavailableError,
    TooManyStreamsError,
    UnauthorizedError,
)
from service.models import Outcome, Reason
from service.schema import openapi_reads as reads
from service.schema.json_schema import EXAMPLE, Schema, json_of, schema
from service.schema.openapi_parts import SCHEMAS, object_of, one_of, problems, response

_OF_READERS: Final = {UnauthorizedError, InvalidParameterError, TooManyStreamsError}
"""Errors that no delivery gets."""
_MEANINGS: Final = {
    "applied": "It is the session's state now.",
    "duplicate": "This message was taken before; cursor and revision are those of the first time.",
    "stale": "It is older than the stored state.",
    "ignored": "It is not about a session, nor about a user whose sessions end.",
    "dead_lettered": "It can't be read, and is kept as a dead letter.",
}


def document() -> Schema:
    """Return the OpenAPI document of the service."""
    with_code = errors.errors_with_code()
    every = [each for each in with_code if each is not RelayError and each.__module__ == errors.__name__]
    refused = [error for error in every if error not in _OF_READERS]
    outcomes = [Outcome(name) for name in get_args(get_type_hints(Outcome)["outcome"])]
    ok = response("200", "Yes", object_of({"status": {"const": "ok"}}))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clerk-session-relay: where Clerk's webhooks go",
            "version": str(SCHEMA_VERSION),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/webhooks/clerk": {
                "post": {
                    "operationId": "receive",
                    "summary": "Take a delivery of Clerk's",
                    "description": "A 2xx other than `ignored` means that Redis has it. "
                    "Any other method is a 405, any other path a 404.",
                    "security": [{"svix": []}, {"standardWebhooks": []}],
                    "parameters": [*_signature_headers("svix"), *_signature_headers("webhook")],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"$ref": f"{SCHEMAS}Envelope"}}},
                    },
                    "responses": _outcomes(outcomes) | problems(refused),
                }
            },
            "/healthz": _get("healthz", "Tell whether the process lives", ok),
            "/readyz": _get(
                "readyz", "Tell whether Redis would take a write now", ok | problems([StoreUnavailableError])
            ),
            "/metrics": _get(
                "metrics",
                "Counters and histograms for Prometheus",
                response("200", "Prometheus' text format", {"type": "string"}, "text/plain")
                | problems([UnauthorizedError]),
                security=[{}, {"metricsToken": []}],
            ),
            **reads.paths(),
        },
        "components": {
            "schemas": {
                "Envelope": _envelope(),
                **{f"Outcome_{outcome.outcome}": _outcome(outcome) for outcome in outcomes},
                **_OUTCOMES_FOR_USERS,
                **{f"Problem_{error.code}": _problem(error) for error in every},
                **reads.schemas(),
            },
            "securitySchemes": {
                "svix": _signature("svix"),
                "standardWebhooks": _signature("webhook"),
                "metricsToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "METRICS_TOKEN; nothing is needed if that is not set.",
                },
                **reads.SECURITY_SCHEMES,
            },
        },
    }


def _get(name: str, summary: str, responses: Schema, security: Sequence[Schema] = ()) -> Schema:
    return {"get": {"operationId": name, "summary": summary, "security": [*security], "responses": responses}}


def _envelope() -> Schema:
    event, session = json_of(EXAMPLE.event), json_of(EXAMPLE.session)
    read = ("object", "id", "user_id", "status", "updated_at")
    example = {"object": "event", "type": event["type"], "timestamp": event["occurred_at"]}
    example |= {"instance_id": event["instance_id"], "data": {name: session[name] for name in read}}
    return {
        "description": "An event as Clerk sends it. If its type begins with `session.`, `data` is read, leniently. "
        "`user.deleted`, and `user.updated` with `banned`, end the user's sessions. Other events are ignored.",
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"type": "string", "description": f"Of a session event, up to {MAX_TYPE} characters."},
            "timestamp": {"description": "When it happened: Unix milliseconds, or seconds."},
            "instance_id": {},
            "event_attributes": {},
            "data": {"description": "The session, with `id`, `user_id` and `status`; or the user, with `id`."},
        },
        "examples": [example],
    }


def _signature_headers(family: str) -> list[Schema]:
    rule = "One family of headers is needed; svix- counts if both are there."
    text = {"type": "string"}
    within = f"Unix seconds, at most {TOLERANCE_SECONDS} away from now."
    entries = "Entries between spaces; one at least is `v1,` and the base64 of an HMAC-SHA256."
    headers = {
        "id": ("The message: the same for every retry.", text | {"pattern": f"^{ID.pattern}$"}),
        "timestamp": (within, text | {"pattern": f"^{TIMESTAMP.pattern}$"}),
        "signature": (entries, text),
    }
    return [
        {"name": f"{family}-{name}", "in": "header", "description": f"{description} {rule}", "schema": schema}
        for name, (description, schema) in headers.items()
    ]


def _signature(family: str) -> Schema:
    return {
        "type": "apiKey",
        "in": "header",
        "name": f"{family}-signature",
        "description": f"Over {family}-id, {family}-timestamp and the raw body: https://www.standardwebhooks.com",
    }


def _outcome(outcome: Outcome) -> Schema:
    revision, null = schema(Revision), {"type": "null"}
    of_session = {
        "session_id": schema(Id),
        "cursor": schema(Cursor),
        "revision": {"applied": revision, "stale": null}.get(outcome.outcome, {"anyOf": [revision, null]}),
    }
    of_others: Schema = {"ignored": {}, "dead_lettered": {"reason": {"enum": list(get_args(Reason))}}}
    said = of_others.get(outcome.outcome, of_session)
    return object_of({"outcome": {"const": outcome.outcome}, **said}) | {"description": _MEANINGS[outcome.outcome]}


def _outcomes(outcomes: Iterable[Outcome]) -> Schema:
    responses: Schema = {}
    for status, group in itertools.groupby(outcomes, key=attrgetter("status")):
        names = [outcome.outcome for outcome in group]
        components = [f"Outcome_{name}" for name in names]
        if status == HTTPStatus.OK:
            components += _OUTCOMES_FOR_USERS
        responses |= response(str(status), f"Genuine: {', '.join(names)}", one_of(components))
    return responses


def _problem(error: type[RelayError]) -> Schema:
    return object_of(
        {
            "type": {"const": "about:blank"},
            "title": {"const": error.title},
            "status": {"const": error.status},
            "detail": {"type": "string"},
            "code": {"const": error.code},
        }
    )


# A user's event may end many sessions, so that the response names none.
_OUTCOMES_FOR_USERS: Final[Schema] = {
    "Outcome_applied_to_user": object_of(
        {"outcome": {"const": "applied"}, "sessions": {"type": "integer", "minimum": 0}}
    )
    | {"description": "The user was deleted or banned; `sessions` open sessions ended by this attempt."},
    "Outcome_duplicate_of_user": object_of({"outcome": {"const": "duplicate"}})
    | {"description": "This message about a user was taken before."},
}
