"""What the tests check with the contract for machines: every message that they see, and answers.

The validator is third-party: https://github.com/Stranger6667/jsonschema (Rust).
"""

import functools
import json
import re
from typing import Any, Final

import jsonschema_rs
from clerk_session_feed import lenient_json

from service.schema import asyncapi, json_schema, openapi

ASYNCAPI: Final = asyncapi.document()
OPENAPI: Final = openapi.document()


def component(document: dict[str, Any], of: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Return a validator of a schema that lies in a document and refers to others there."""
    return jsonschema_rs.Draft202012Validator({"components": document["components"], **of})


PUBLISHED: Final = jsonschema_rs.Draft202012Validator(json_schema.document())
STREAMED: Final = component(ASYNCAPI, {"$ref": "#/components/schemas/StreamMessage"})
ENTRY: Final = component(ASYNCAPI, {"$ref": "#/components/schemas/StreamEntry"})


def faults(validator: jsonschema_rs.Draft202012Validator, value: object) -> list[str]:
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in validator.iter_errors(value)]


def faults_published(message: str) -> list[str]:
    return faults(PUBLISHED, _loads(message))


def _loads(message: str) -> Any:
    try:
        return json.loads(message)
    except RecursionError:
        # An actor may be nested deeper than Python's parser and a validator go; the schema looks at `sub` only.
        content = lenient_json.loads(message.encode())
        content["session"]["actor"] = {"sub": content["session"]["actor"]["sub"]}
        return content


def faults_in_stream(fields: dict[str, str]) -> list[str]:
    return faults(ENTRY, fields) + faults(STREAMED, _loads(fields["message"]))


def faults_stored(client: Any) -> list[str]:
    """Check every state and every entry of a stream, whatever their prefix. client: one that speaks text."""
    found = []
    for key in client.scan_iter("*:session:*", _type="hash"):
        found += [f"{key}: {fault}" for fault in faults_published(client.hget(key, "state") or "null")]
    for key in client.scan_iter("*:events", _type="stream"):
        for cursor, fields in client.xrange(key):
            found += [f"{key} {cursor}: {fault}" for fault in faults_in_stream(fields)]
    return found


def response_faults(method: str, path: str, status: int, headers: Any, body: bytes) -> list[str]:
    """Check an answer against the OpenAPI document. headers: with a `get`, by names in lower case."""
    # What is asked in another way than any operation is, is answered as the webhook's own operation says.
    operations = _operations(path)
    operation = operations.get(method.lower(), OPENAPI["paths"]["/webhooks/clerk"]["post"])
    described = operation["responses"].get(str(status))
    if described is None:
        return [f"{status} is not described"]
    found = [
        f"{name}: {value}"
        for name, header in described.get("headers", {}).items()
        if not _responses_of(json.dumps(header["schema"])).is_valid(value := headers.get(name.lower()))
    ]
    if "content" not in described:
        return found + [f"a body of {len(body)} bytes"] * bool(body)
    [(media_type, content)] = described["content"].items()
    sent_type = headers.get("content-type", "").partition(";")[0]
    found += [] if sent_type == media_type else [f"{sent_type}, not {media_type}"]
    if media_type.endswith("json"):
        found += faults(_responses_of(json.dumps(content["schema"])), json.loads(body))
    return found


def _operations(path: str) -> dict[str, Any]:
    for template, operations in OPENAPI["paths"].items():
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)), path):
            return dict(operations)
    return {}


@functools.cache
def _responses_of(schema: str) -> jsonschema_rs.Draft202012Validator:
    return component(OPENAPI, json.loads(schema))
