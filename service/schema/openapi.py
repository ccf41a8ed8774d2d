"""The contract for machines: the HTTP side as OpenAPI 3.1. Outcomes and problems are those of the code.

A long module, since most of it is the document.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, get_args, get_type_hints

from clerk_session_feed.models import ID, SCHEMA_VERSION, Cursor, Id, Revision

from service import errors
from service.clerk.events import MAX_TYPE
from service.clerk.signature import TIMESTAMP, TOLERANCE_SECONDS
from service.errors import RelayError, StoreUnavailableError, UnauthorizedError
from service.models import Outcome, Reason
from service.schema.json_schema import EXAMPLE, Schema, schema

_SCHEMAS: Final = "#/components/schemas/"


def document() -> Schema:
    every = list(_errors(RelayError))
    refused = [error for error in every if error is not UnauthorizedError]
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
                    "requestBody": {"required": True, "content": _content({"$ref": f"{_SCHEMAS}Envelope"})},
                    "responses": _outcomes() | _problems(refused),
                }
            },
            "/healthz": _get("healthz", "Tell whether the process lives", {"200": _ok()}),
            "/readyz": _get(
                "readyz",
                "Tell whether Redis would take a write now",
                {"200": _ok()} | _problems([StoreUnavailableError]),
            ),
            "/metrics": _get(
                "metrics",
                "Counters and histograms for Prometheus",
                {
                    "200": {
                        "description": "Prometheus' text format",
                        "content": _content({"type": "string"}, "text/plain"),
                    }
                }
                | _problems([UnauthorizedError]),
                security=[{}, {"metricsToken": []}],
            ),
        },
        "components": {
            "schemas": {
                "Envelope": _ENVELOPE,
                **{f"Outcome_{name}": _outcome(Outcome(name)) for name in _OUTCOMES},
                **{f"Problem_{error.code}": _problem(error) for error in every},
            },
            "securitySchemes": {
                "svix": _signature("svix"),
                "standardWebhooks": _signature("webhook"),
                "metricsToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "METRICS_TOKEN; nothing is needed if that is not set.",
                },
            },
        },
    }


def _get(name: str, summary: str, responses: Schema, security: Sequence[Schema] = ()) -> Schema:
    operation = {"operationId": name, "summary": summary, "security": [*security], "responses": responses}
    return {"get": operation}


# The request

_ENVELOPE: Final[Schema] = {
    "description": "An event as Clerk sends it. If its type begins with `session.`, `data` is read, "
    "leniently; one of another type is ignored.",
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"type": "string", "description": f"Of a session event, up to {MAX_TYPE} characters."},
        "timestamp": {"description": "When it happened: Unix milliseconds, or seconds."},
        "instance_id": {},
        "event_attributes": {},
        "data": {"description": "The session, with `id`, `user_id` and `status`."},
    },
    "examples": [
        {
            "object": "event",
            "type": EXAMPLE.event.type,
            "timestamp": EXAMPLE.event.occurred_at,
            "instance_id": EXAMPLE.event.instance_id,
            "data": {
                "object": "session",
                "id": EXAMPLE.session.id,
                "user_id": EXAMPLE.session.user_id,
                "status": EXAMPLE.session.status,
                "updated_at": EXAMPLE.session.updated_at,
            },
        }
    ],
}


def _signature_headers(family: str) -> list[Schema]:
    described = {
        "id": ("The message: the same for every retry.", {"type": "string", "pattern": f"^{ID.pattern}$"}),
        "timestamp": (
            f"Unix seconds, at most {TOLERANCE_SECONDS} away from now.",
            {"type": "string", "pattern": f"^{TIMESTAMP.pattern}$"},
        ),
        "signature": (
            "Entries between spaces; one at least is `v1,` and the base64 of an HMAC-SHA256.",
            {"type": "string"},
        ),
    }
    return [
        {
            "name": f"{family}-{name}",
            "in": "header",
            "description": f"{description} One family of headers is needed; svix- counts if both are there.",
            "schema": schema,
        }
        for name, (description, schema) in described.items()
    ]


def _signature(family: str) -> Schema:
    return {
        "type": "apiKey",
        "in": "header",
        "name": f"{family}-signature",
        "description": f"Over {family}-id, {family}-timestamp and the raw body: https://www.standardwebhooks.com",
    }


# The answers

_OUTCOMES: Final = get_args(get_type_hints(Outcome)["outcome"])
_MEANINGS: Final = {
    "applied": "It is the session's state now.",
    "duplicate": "This message was taken before; cursor and revision are those of the first time.",
    "stale": "It is older than the state held.",
    "ignored": "It is not about a session.",
    "dead_lettered": "It can't be read, and is kept as a dead letter.",
}


def _outcome(outcome: Outcome) -> Schema:
    revision = schema(Revision)
    known = {
        "outcome": {"const": outcome.outcome},
        "session_id": schema(Id),
        "cursor": schema(Cursor),
        "revision": {
            "applied": revision,
            "stale": {"type": "null"},
        }.get(outcome.outcome, {"anyOf": [revision, {"type": "null"}]}),
        "reason": {"enum": list(get_args(Reason))},
    }
    return _object({name: known[name] for name in outcome.body()}) | {
        "description": _MEANINGS[outcome.outcome]
    }


def _outcomes() -> Schema:
    names: dict[int, list[str]] = {}
    for name in _OUTCOMES:
        names.setdefault(Outcome(name).status, []).append(name)
    return {
        str(status): {
            "description": f"Genuine: {', '.join(of_status)}",
            "content": _content(_one_of(f"Outcome_{name}" for name in of_status)),
        }
        for status, of_status in names.items()
    }


def _problem(error: type[RelayError]) -> Schema:
    return _object(
        {
            "type": {"const": "about:blank"},
            "title": {"const": error.title},
            "status": {"const": error.status},
            "detail": {"type": "string"},
            "code": {"const": error.code},
        }
    )


def _problems(refusals: Iterable[type[RelayError]]) -> Schema:
    """Return the answers of these errors, by status."""
    of_status: dict[int, list[type[RelayError]]] = {}
    for error in sorted(refusals, key=lambda error: error.status):
        of_status.setdefault(error.status, []).append(error)
    return {
        str(status): {
            "description": "; ".join(error.title for error in of_one),
            "content": _content(
                _one_of(f"Problem_{error.code}" for error in of_one), "application/problem+json"
            ),
        }
        | _headers(of_one)
        for status, of_one in of_status.items()
    }


def _headers(kinds: Iterable[type[RelayError]]) -> Schema:
    """Return those that the answers of all these errors have."""
    (headers,) = [dict(pairs) for pairs in {tuple(error.headers.items()) for error in kinds}]
    described = {name: {"required": True, "schema": {"const": value}} for name, value in headers.items()}
    return {"headers": described} if described else {}


def _errors(kind: type[RelayError]) -> Iterator[type[RelayError]]:
    """Return the errors that have a code of their own."""
    for error in kind.__subclasses__():
        if error.__module__ == errors.__name__ and "code" in vars(error):
            yield error
        yield from _errors(error)


def _ok() -> Schema:
    return {"description": "Yes", "content": _content(_object({"status": {"const": "ok"}}))}


def _object(properties: Schema) -> Schema:
    return {
        "type": "object",
        "required": [*properties],
        "properties": properties,
        "additionalProperties": False,
    }


def _one_of(names: Iterable[str]) -> Schema:
    refs = [{"$ref": f"{_SCHEMAS}{name}"} for name in names]
    return refs[0] if len(refs) == 1 else {"oneOf": refs}


def _content(schema: Schema, media_type: str = "application/json") -> Schema:
    return {media_type: {"schema": schema}}
