"""Parts of which the OpenAPI document is made: responses, problems, objects."""

import itertools
from collections.abc import Iterable
from operator import attrgetter
from typing import Final

from service.errors import RelayError
from service.schema.json_schema import Schema

SCHEMAS: Final = "#/components/schemas/"


def problems(refusals: Iterable[type[RelayError]]) -> Schema:
    """Return the responses of these errors, by status."""
    responses: Schema = {}
    by_status = attrgetter("status")
    for status, group in itertools.groupby(sorted(refusals, key=by_status), key=by_status):
        kinds = list(group)
        titles = "; ".join(error.title for error in kinds)
        schema = one_of(f"Problem_{error.code}" for error in kinds)
        made = response(str(status), titles, schema, "application/problem+json")
        (headers,) = {tuple(error.headers.items()) for error in kinds}  # all errors of one status have the same
        if headers:
            described = {name: {"required": True, "schema": {"const": value}} for name, value in headers}
            made[str(status)]["headers"] = described
        responses |= made
    return responses


def response(status: str, description: str, schema: Schema, media_type: str = "application/json") -> Schema:
    """Return one response, by its status."""
    return {status: {"description": description, "content": {media_type: {"schema": schema}}}}


def object_of(properties: Schema) -> Schema:
    """Return the schema of an object that has all of these properties, and no others."""
    return {"type": "object", "required": [*properties], "properties": properties, "additionalProperties": False}


def one_of(names: Iterable[str]) -> Schema:
    """Return the schema of what is one of these components."""
    refs = [{"$ref": f"{SCHEMAS}{name}"} for name in names]
    return refs[0] if len(refs) == 1 else {"oneOf": refs}
