"""The published message as JSON Schema 2020-12.

Fields and their descriptions come from `clerk_session_feed.models`; the rules between fields are here. The
schema is strict, and consumers are lenient: it tells what this version publishes, and nothing more.
"""

from typing import Annotated, Any, Final

import orjson
from clerk_session_feed.models import OPEN_STATUSES, SCHEMA_VERSION, STATUSES, ExpiryId, Id, SessionMessage
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

Schema = dict[str, Any]

EXAMPLE: Final = TypeAdapter(SessionMessage).validate_json("""
{"schema_version": 1, "cursor": "1795422761000-0", "revision": 2, "previous_status": "active",
 "event": {"id": "msg_2xample", "type": "session.ended", "occurred_at": 1795422761000, "instance_id": "ins_2xample",
  "source": "clerk"},
 "session": {"object": "session", "id": "sess_2xample", "user_id": "user_2xample", "client_id": "client_2xample",
  "actor": null, "status": "ended", "live": false, "last_active_organization_id": null,
  "last_active_at": 1795422700000,
  "latest_activity": {"object": "session_activity", "id": "sess_activity_2xample", "device_type": "desktop",
   "is_mobile": false, "browser_name": "Chrome", "browser_version": "128.0", "ip_address": "192.0.2.7", "city": "Oslo",
   "country": "NO"},
  "expire_at": 1796027500000, "abandon_at": 1798014700000, "updated_at": 1795422760950, "created_at": 1795422700000,
  "tasks": []}}
""")


def document() -> Schema:
    """Return the JSON Schema of a message as it is published, and stored as a session's state."""
    definitions = schemas(SessionMessage, at="#/$defs/")
    message = definitions.pop(SessionMessage.__name__)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:clerk-session-relay:session-message:{SCHEMA_VERSION}",
        **message,
        "examples": [json_of(EXAMPLE)],
        "$defs": definitions,
    }


def schemas(*models: type, at: str) -> dict[str, Schema]:
    """Return the schemas of these dataclasses and of those in their fields, by name.

    They refer to each other by where they will be `at` in the document, like `#/$defs/`.
    """
    every: Any = tuple[models]  # type: ignore[valid-type]  # they are known at run time only
    adapter = TypeAdapter(every, config=_STRICT)
    made = adapter.json_schema(ref_template=f"{at}{{model}}", schema_generator=_Generator)["$defs"]
    for name, rules in _rules().items():
        if name in made:
            made[name]["allOf"] = rules
    return dict(made)


def schema(annotation: Any) -> Schema:
    """Return the schema of a type that is not a dataclass."""
    return TypeAdapter[Any](annotation).json_schema(schema_generator=_Generator)


def json_of(model: object) -> Any:
    """Return a dataclass as its JSON is read."""
    return orjson.loads(orjson.dumps(model))


# The dataclasses have no configuration of their own, so each takes this one.
_STRICT: Final = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Generator(GenerateJsonSchema):
    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        made = super().str_schema(schema)
        if made.get("pattern", "").endswith("$"):
            # In Python, also for validators written in it, `$` matches before a last line feed, too.
            made["not"] = {"pattern": r"\n"}
        return made

    # No field is left out of a message, so each is required, and none has a default.

    def field_is_required(self, *_: object, **__: object) -> bool:
        return True

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, _: object) -> bool:
        return False


def _rules() -> dict[str, list[Schema]]:
    """Return the rules between the fields of a model, by its name."""
    over = sorted(STATUSES - OPEN_STATUSES)
    is_over = _has(session=_has(status={"enum": over}))
    message = [
        _rule(
            "An end that Clerk reports outweighs a status that is open.",
            _has(event=_has(type={"enum": ["session.ended", "session.removed", "session.revoked"]})),
            is_over,
        ),
        _rule(
            "A session that is over never comes back. Two ends are not certain: that it expired, which the relay may "
            "have found itself; and `removed`, if all that is known is that Clerk's API no longer has the session.",
            _has(previous_status={"enum": [status for status in over if status not in {"expired", "removed"}]}),
            is_over,
        ),
        _rule(
            "What the relay finds itself are expiries of open sessions, and nothing else.",
            _has(event=_has(source={"const": "synthetic"})),
            _has(
                previous_status={"enum": sorted(OPEN_STATUSES)},
                event=_has(type={"const": "session.expired"}, id=schema(ExpiryId), http_request=_NULL),
                session=_has(status={"const": "expired"}),
            ),
            _has(event=_has(id=schema(Id))),
        ),
        _rule(
            "What is read from Clerk's Backend API has an id that the relay makes.",
            _has(event=_has(source={"const": "clerk-api"})),
            _has(event=_has(id=_id("api"), http_request=_NULL)),
        ),
        _rule(
            "What is ordered at the relay is that a session ends.",
            _has(event=_has(source={"const": "relay"})),
            _has(
                event=_has(type={"const": "session.revoked"}, id=_id("rev"), http_request=_NULL),
                session=_has(status={"const": "revoked"}),
            ),
        ),
        *(
            _rule(
                f"A user who is {what} has no open sessions.",
                _has(event=_has(type={"const": type_})),
                _has(event=_has(source={"const": "clerk"}, http_request=_NULL), session=_has(status={"const": status})),
            )
            for what, type_, status in (("deleted", "user.deleted", "removed"), ("banned", "user.updated", "revoked"))
        ),
    ]
    live = _rule("Only what is active is live.", _has(live={"const": True}), _has(status={"const": "active"}))
    first = "The first state has none before it, each later one has."
    none, one = _has(previous_status=_NULL), _has(previous_status={"type": "string"})
    return {
        "Session": [live],
        "SessionMessage": [_rule(first, _has(revision={"const": 1}), none, one), *message],
        "StreamMessage": [_rule(first, _has(revision={"enum": [1, None]}), none, one), *message],
    }


_NULL: Final[Schema] = {"type": "null"}


def _id(prefix: str) -> Schema:
    """Return the schema of an id that the relay makes of a digest."""
    return schema(Annotated[str, Field(pattern=f"^{prefix}_[0-9a-f]{{32}}$")])


def _has(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}  # the type, for Ajv's strict mode


def _rule(comment: str, if_: Schema, then: Schema, else_: Schema | None = None) -> Schema:
    made = {"$comment": comment, "if": if_, "then": then}
    return made if else_ is None else made | {"else": else_}
