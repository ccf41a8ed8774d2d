"""The contract for machines: what it accepts and refuses, and that it is what it says it is."""

import copy
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]
import jsonschema_rs
import openapi_spec_validator
import pytest
from clerk_session_feed.models import STATUSES
from clerk_session_feed.updates import published
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.clerks_own import examples, needs_clerks_own
from support.constants import NO_REDIS, PAYLOADS, ROOT
from support.events import ABSENT, EVENT_PATHS, event
from support.parsing import try_change
from support.relay import make_settings
from support.schemas import ASYNCAPI, ENTRY, OPENAPI, PUBLISHED, STREAMED, faults, response_faults
from support.strategies import json_values, patient

from service import errors
from service.app import responses
from service.app.factory import create_app
from service.cli import main
from service.models import OMITTABLE_FIELDS, SessionChange, omit
from service.schema import json_schema

DOCUMENTS: Final = {
    "json-schema": "session-message.schema.json",
    "asyncapi": "asyncapi.json",
    "openapi": "openapi.json",
}
COMMITTED: Final = ROOT / "docs" / "schema"
MESSAGE_SCHEMA: Final = json_schema.document()
PYTHONS: Final = jsonschema.Draft202012Validator(MESSAGE_SCHEMA)
"""Another validator: that of Python, whose regular expressions differ."""


# The documents


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_command_prints_what_is_committed(name: str) -> None:
    printed = CliRunner().invoke(main, ["schema", name], catch_exceptions=False).output

    assert printed == (COMMITTED / DOCUMENTS[name]).read_text(), "docs/schema is stale: run `make schemas`"


def test_the_command_prints_the_json_schema_unless_told_otherwise() -> None:
    printed = CliRunner().invoke(main, ["schema"], catch_exceptions=False).output

    assert json.loads(printed)["$id"] == "urn:clerk-session-relay:session-message:1"


def test_make_schemas_writes_each_document_where_it_belongs() -> None:
    makefile = (ROOT / "Makefile").read_text()

    written = dict(re.findall(r"session-relay schema (\S+) > docs/schema/(\S+)", makefile))

    assert written == DOCUMENTS
    assert {path.name for path in COMMITTED.iterdir()} == set(DOCUMENTS.values())


def test_the_json_schema_is_one() -> None:
    assert MESSAGE_SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(MESSAGE_SCHEMA)
    jsonschema_rs.meta.validate(MESSAGE_SCHEMA)


def test_ajv_takes_the_json_schema_in_its_strict_mode() -> None:
    """It demands `type` beside `properties`: https://ajv.js.org/strict-mode.html#strict-types."""

    def untyped(node: Any) -> Iterator[Any]:
        match node:
            case {"properties": dict()} if node.get("type") != "object":
                yield node
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from untyped(value)

    assert list(untyped(MESSAGE_SCHEMA)) == []


def test_the_openapi_document_is_one() -> None:
    openapi_spec_validator.validate(OPENAPI, cls=openapi_spec_validator.OpenAPIV31SpecValidator)


@pytest.fixture(scope="module")
def asyncapi_schema() -> jsonschema_rs.Draft7Validator:
    """AsyncAPI's own schema of its documents: https://github.com/asyncapi/spec-json-schemas."""
    path = Path(sys.prefix) / "node/node_modules/@asyncapi/specs/schemas/3.0.0.json"
    if not path.exists():
        reason = "there is no AsyncAPI schema: `make test` installs it, where there is npm"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return jsonschema_rs.Draft7Validator(json.loads(path.read_bytes()))


def test_the_asyncapi_document_is_one(asyncapi_schema: jsonschema_rs.Draft7Validator) -> None:
    assert [error.message for error in asyncapi_schema.iter_errors(ASYNCAPI)] == []


@pytest.mark.parametrize(
    "harm",
    [
        lambda document: document["channels"]["events"].update(address=17),
        lambda document: document["operations"]["followEvents"].update(action="listen"),
        lambda document: document["components"]["schemas"]["Event"].update(type="thing"),
        lambda document: document["servers"]["redis"].pop("protocol"),
    ],
)
def test_asyncapis_schema_would_notice(
    asyncapi_schema: jsonschema_rs.Draft7Validator, harm: Callable[[Any], object]
) -> None:
    document = copy.deepcopy(ASYNCAPI)
    harm(document)

    assert not asyncapi_schema.is_valid(document)


def refs(node: Any) -> Iterator[str]:
    match node:
        case dict():
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from refs(value)
        case list():
            for value in node:
                yield from refs(value)


def lookup(document: Any, ref: str) -> Any:
    for name in ref.removeprefix("#/").split("/"):
        document = document[name]
    return document


@pytest.mark.parametrize("document", [ASYNCAPI, OPENAPI, MESSAGE_SCHEMA], ids=["asyncapi", "openapi", "json-schema"])
def test_every_reference_leads_somewhere_and_every_schema_is_used(document: Any) -> None:
    used = set(refs(document))
    schemas = document.get("components", document).get("schemas", document.get("$defs"))

    assert all(lookup(document, ref) for ref in used)
    assert {ref.rpartition("/")[2] for ref in used} >= set(schemas)


def test_the_stream_and_the_channels_have_the_contracts_addresses_and_parameters() -> None:
    channels = ASYNCAPI["channels"].values()

    assert {channel["address"] for channel in channels} == {
        "clerk:sessions",
        "clerk:sessions:user:{userId}",
        "{clerk}:events",
    }
    for channel in channels:
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel.get("parameters", {}))
        assert channel["bindings"] == {"redis": {}}


def test_each_channel_is_received_from_and_its_messages_are_its_own() -> None:
    operations = ASYNCAPI["operations"].values()

    assert {operation["channel"]["$ref"] for operation in operations} == {
        f"#/channels/{name}" for name in ASYNCAPI["channels"]
    }
    for operation in operations:
        assert operation["action"] == "receive"
        assert all(ref.startswith(operation["channel"]["$ref"]) for ref in refs(operation["messages"]))


def test_the_examples_are_valid() -> None:
    messages = ASYNCAPI["components"]["messages"]
    [message] = messages["sessionMessage"]["examples"]
    [entry] = messages["streamEntry"]["examples"]
    envelope = OPENAPI["components"]["schemas"]["Envelope"]

    assert [message["payload"]] == MESSAGE_SCHEMA["examples"]
    assert faults(PUBLISHED, message["payload"]) == []
    assert faults(ENTRY, entry["payload"]) == []
    assert faults(STREAMED, json.loads(entry["payload"]["message"])) == []
    assert isinstance(try_change(envelope["examples"][0]), SessionChange)


# Messages


def message_of(made: SessionChange, omitted: frozenset[str] = frozenset()) -> Any:
    """Return the message of a session's first event, as the store and its script write it."""
    return {
        "schema_version": 1,
        "cursor": "1795422761000-0",
        "revision": 1,
        "previous_status": None,
        **json_schema.json_of({"event": made.event, "session": omit(made.session, omitted)}),
    }


def message(values: dict[str, Any] | None = None) -> Any:
    """Return the example with values set by dotted path; ABSENT removes one."""
    made = copy.deepcopy(MESSAGE_SCHEMA["examples"][0])
    made["session"]["actor"] = {"sub": "user_1", "more": [1]}
    made["session"]["tasks"] = [{"key": "choose-organization"}]
    made["event"]["http_request"] = {"client_ip": "192.0.2.7", "user_agent": "Mozilla/5.0"}
    for path, value in (values or {}).items():
        *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
        target = made
        for name in parents:
            target = target[name]
        if value is ABSENT:
            del target[last]
        else:
            target[last] = value
    return made


def accepts(value: Any) -> bool:
    """Both validators agree, or the test fails."""
    is_valid = PUBLISHED.is_valid(value)
    assert PYTHONS.is_valid(value) == is_valid
    return is_valid


SYNTHETIC: Final = {
    "event.source": "synthetic",
    "event.type": "session.expired",
    "event.id": "exp_sess_2xample_1796027500000",
    "event.http_request": None,
    "session.status": "expired",
}
FROM_API: Final = {
    "event.source": "clerk-api",
    "event.type": "session.removed",
    "event.id": f"api_{'0' * 32}",
    "event.http_request": None,
    "session.status": "removed",
}
ORDERED: Final = {
    "event.source": "relay",
    "event.type": "session.revoked",
    "event.id": f"rev_{'f' * 32}",
    "event.http_request": None,
    "session.status": "revoked",
}
DELETED: Final = {"event.type": "user.deleted", "event.http_request": None, "session.status": "removed"}
BANNED: Final = {"event.type": "user.updated", "event.http_request": None, "session.status": "revoked"}
LEGAL: Final[dict[str, dict[str, Any]]] = {
    "as it is": {},
    "first": {"revision": 1, "previous_status": None},
    "live": {"event.type": "session.created", "session.status": "active", "session.live": True},
    "active, but past its end": {"event.type": "session.created", "session.status": "active"},
    "a type of tomorrow": {"event.type": "session.updated", "session.status": "pending"},
    "the shortest type": {"event.type": "session."},
    "the longest type": {"event.type": f"session.{'x' * 120}"},
    "a type of several lines": {"event.type": "session.\n"},
    "ended, says the type; revoked, the status": {"session.status": "revoked"},
    "back from an expiry": {"previous_status": "expired", "event.type": "session.x", "session.status": "active"},
    "synthetic": SYNTHETIC,
    "synthetic, of the longest id": SYNTHETIC | {"event.id": f"exp_{'s' * 128}_{10**14}"},
    "gone from Clerk": FROM_API,
    "from the API, never seen": FROM_API
    | {"event.type": "session.created", "session.status": "active", "revision": 1, "previous_status": None},
    "back from what was only gone": {
        "previous_status": "removed",
        "event.type": "session.x",
        "session.status": "active",
    },
    "ordered at the relay": ORDERED,
    "of a user who was deleted": DELETED,
    "of a user who was banned": BANNED,
    "expired, says Clerk": {"event.type": "session.expired", "session.status": "expired"},
    "without the request": {"event.http_request": ABSENT},
    "no request": {"event.http_request": None},
    "longest ids": {f"session.{name}": "-" * 128 for name in ("id", "user_id", "client_id")},
    "times at their ends": {"session.expire_at": 0, "session.abandon_at": 10**14},
    "an activity of nothing": {
        f"session.latest_activity.{name}": None for name in message()["session"]["latest_activity"]
    },
    "texts of 1,024 characters": {
        "session.latest_activity.city": "🌍" * 1024,
        "session.tasks.0.key": "",
        "event.http_request.user_agent": "a" * 1024,
    },
    "a great cursor": {"cursor": f"{2**64 - 1}-{2**64 - 1}"},
    "a great revision": {"revision": 10**9},
    "an actor of anything": {"session.actor": {"sub": "", "n": [10**30, 1e300, None, {"\n": True}]}},
}


@pytest.mark.parametrize("values", LEGAL.values(), ids=LEGAL)
def test_it_accepts(values: dict[str, Any]) -> None:
    assert accepts(message(values))


@pytest.mark.parametrize("values", LEGAL.values(), ids=LEGAL)
def test_readers_take_what_it_accepts(values: dict[str, Any]) -> None:
    sent = message(values)

    update = published(json.dumps(sent).encode())

    assert (update.event.id, update.session.status) == (sent["event"]["id"], sent["session"]["status"])


ILLEGAL: Final[dict[str, dict[str, Any]]] = {
    "another version": {"schema_version": 2},
    "no version": {"schema_version": None},
    "live, but ended": {"session.live": True},
    "live, but pending": {"event.type": "session.x", "session.status": "pending", "session.live": True},
    "first, with one before it": {"revision": 1},
    "second, with none before it": {"previous_status": None},
    "revision 0": {"revision": 0, "previous_status": None},
    "stale": {"revision": None, "previous_status": None},
    "ended, says the type; active, the status": {"session.status": "active"},
    "revoked, says the type; pending, the status": {"event.type": "session.revoked", "session.status": "pending"},
    "back from the dead": {"previous_status": "ended", "event.type": "session.x", "session.status": "active"},
    "a user's event": {"event.type": "user.created"},
    "a type that only ends well": {"event.type": "x.session.ended"},
    "a type too long": {"event.type": f"session.{'x' * 121}"},
    "a source unknown": {"event.source": "of tomorrow"},
    "from the API, of a Svix id": FROM_API | {"event.id": "msg_1"},
    "from the API, of an id too short": FROM_API | {"event.id": f"api_{'0' * 31}"},
    "from the API, with a request": FROM_API | {"event.http_request": {"client_ip": "192.0.2.7", "user_agent": None}},
    "ordered, of another id": ORDERED | {"event.id": f"api_{'f' * 32}"},
    "ordered, of another type": ORDERED | {"event.type": "session.ended"},
    "ordered, but ended": ORDERED | {"session.status": "ended"},
    "of a user who was deleted, but revoked": DELETED | {"session.status": "revoked"},
    "of a user who was banned, but active": BANNED | {"session.status": "active"},
    "of a user, but not told by Clerk": BANNED | {"event.source": "relay", "event.id": f"rev_{'f' * 32}"},
    "a user's event, with a request": DELETED | {"event.http_request": {"client_ip": None, "user_agent": None}},
    "a user's event of a longer name": DELETED | {"event.type": "user.deleted\n"},
    "synthetic, but ended": {"event.source": "synthetic"},
    "synthetic, of another type": SYNTHETIC | {"event.type": "session.ended"},
    "synthetic, of another status": SYNTHETIC | {"session.status": "abandoned"},
    "synthetic, of a Svix id": SYNTHETIC | {"event.id": "msg_1"},
    "synthetic, of what was over": SYNTHETIC | {"previous_status": "expired"},
    "synthetic, of what was never seen": SYNTHETIC | {"revision": 1, "previous_status": None},
    "synthetic, with a request": SYNTHETIC | {"event.http_request": {"client_ip": "192.0.2.7", "user_agent": None}},
    "synthetic, without a time": SYNTHETIC | {"event.id": "exp_sess_2xample_"},
    "Clerk's, of an id too long": {"event.id": f"exp_{'s' * 128}_1"},
    "an actor without sub": {"session.actor": {"iss": "x"}},
    "an actor whose sub is no text": {"session.actor": {"sub": 1}},
    "another object": {"session.object": "client"},
    "tasks that are no list": {"session.tasks": None},
    "a text too long": {"session.latest_activity.city": "🌍" * 1025},
    **{
        f"cursor {cursor!r}": {"cursor": cursor}
        for cursor in ("", "1", "1-", "-1", "1-0-0", "01-0", "1-0\n", " 1-0", "a-0", "1-٣", f"{10**20}-0", None, 1)
    },
    **{
        f"{name} {value!r:.20}": {name: value}
        for name in ("event.id", "event.instance_id", "session.id", "session.user_id", "session.client_id")
        for value in ("", "a b", "é", "a\n", "a" * 129, 17)
    },
    **{
        f"{name} {value!r}": {name: value}
        for name in ("event.occurred_at", "session.expire_at", "session.updated_at", "session.created_at")
        for value in (-1, 1.5, 10**14 + 1, "1795422761000", True, "2026-01-01T00:00:00Z")
    },
    **{
        f"{name} {value!r}": {name: value}
        for name in ("session.status", "previous_status")
        for value in ("unknown", "Ended", "", "ended\n", 1)
    },
}


@pytest.mark.parametrize("values", ILLEGAL.values(), ids=[ascii(name) for name in ILLEGAL])
def test_it_refuses(values: dict[str, Any]) -> None:
    assert not accepts(message(values))


def paths(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Return each place below a node with what is there; of an actor, only itself."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield f"{at}{name}", value
        if name != "actor":
            yield from paths(value, f"{at}{name}.")


EVERY: Final = dict(paths(message()))
OBJECTS: Final = ["", *(f"{path}." for path, value in EVERY.items() if isinstance(value, dict))]


@pytest.mark.parametrize("path", [path for path in EVERY if not path[-1].isdigit() and path != "event.http_request"])
def test_it_refuses_a_message_without(path: str) -> None:
    assert not accepts(message({path: ABSENT}))


@pytest.mark.parametrize("at", [at for at in OBJECTS if at != "session.actor."])
def test_it_refuses_a_key_more_in(at: str) -> None:
    assert not accepts(message({f"{at}user": None}))


@pytest.mark.parametrize("path", EVERY)
def test_it_refuses_any_other_type(path: str) -> None:
    was = EVERY[path]
    others = [value for value in ("text\x00", 17.5, -1, True, [None], {"x": 1}) if type(value) is not type(was)]

    assert [value for value in others if accepts(message({path: value}))] == []


# Whatever comes in


@patient
@given(
    st.sampled_from(sorted(path.stem for path in PAYLOADS.glob("session.*"))),
    st.dictionaries(st.sampled_from(EVENT_PATHS), json_values | st.just(ABSENT), max_size=4),
    st.text(max_size=120).map("session.".__add__),
    st.booleans(),
    st.frozensets(st.sampled_from(sorted(OMITTABLE_FIELDS)), max_size=5),
)
def test_it_accepts_what_is_published_of_any_event_under_any_settings(
    sample: str, values: dict[str, Any], type_: str, with_request: bool, omitted: frozenset[str]
) -> None:
    longest_first = {path: values[path] for path in sorted(values, key=len, reverse=True)}
    present = [path for path in longest_first if path in dict(paths(event(sample=sample)))]
    body = event({path: values[path] for path in present}, sample)
    if "type" in values:
        body["type"] = type_

    made = try_change(body, publish_http_request=with_request)

    if isinstance(made, SessionChange):
        assert faults(PUBLISHED, message_of(made, omitted)) == []


@needs_clerks_own
@pytest.mark.parametrize("with_request", [False, True])
@pytest.mark.parametrize("omitted", [frozenset(), OMITTABLE_FIELDS], ids=["whole", "omitted"])
def test_it_accepts_what_is_published_of_clerks_own_examples(with_request: bool, omitted: frozenset[str]) -> None:
    bodies = examples().values()
    assert len(bodies) == 5
    for body in bodies:
        made = try_change(body, publish_http_request=with_request)
        assert isinstance(made, SessionChange)
        assert faults(PUBLISHED, message_of(made, omitted)) == []


def texts_unlike(pattern: str) -> st.SearchStrategy[Any]:
    return st.text().filter(lambda text: not re.fullmatch(pattern, text))


ID_NAMES: Final = ["id", "user_id", "client_id", "last_active_organization_id", "instance_id"]
CHOICES: Final = {*("previous_status", "session.status", "session.object", "event.source")}
odd_times = st.integers(max_value=-1) | st.integers(min_value=10**14 + 1) | st.floats(0.1, 0.9)
odd_texts = st.text(min_size=1025, max_size=1030) | st.integers()


def odd_values(path: str) -> st.SearchStrategy[Any]:
    """Return what can never be there, whatever is in the rest of the message; null may be there."""
    match path.split("."):
        case ["session" | "event", name] if name in ID_NAMES:
            return texts_unlike("[A-Za-z0-9_-]{1,128}") | st.integers()
        case [_, name] if name.endswith("_at"):
            return odd_times | st.text() | st.booleans()
        case ["cursor"]:
            return texts_unlike("[0-9]+-[0-9]+") | st.none()
        case ["revision"]:
            return st.integers(max_value=1) | st.text() | st.none()
        case ["schema_version"]:
            return st.integers(min_value=2) | st.text() | st.none()
        case ["event", "type"]:
            return texts_unlike(r"(?s)session\..*|user\.(deleted|updated)") | st.none()
        case _ if path in CHOICES:
            return (
                texts_unlike("|".join([*STATUSES, "session", "clerk", "synthetic", "clerk-api", "relay"]))
                | st.booleans()
            )
        case [*_, "live" | "is_mobile"]:
            return st.integers() | st.text()
    return odd_texts


@patient
@given(st.data())
def test_it_refuses_any_odd_value(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for path, was in EVERY.items() if not isinstance(was, dict | list)]))
    legal = [values for values in LEGAL.values() if not any(f"{path}.".startswith(f"{changed}.") for changed in values)]
    values = data.draw(st.sampled_from(legal))

    assert PUBLISHED.is_valid(message(values))
    assert not PUBLISHED.is_valid(message(values | {path: data.draw(odd_values(path))}))


# Answers


def test_every_route_is_described_and_no_other() -> None:
    app = create_app(make_settings(NO_REDIS, read_token="a-token-to-read-with"))
    app.store.close()

    served = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }

    assert served == {(path, method) for path, methods in OPENAPI["paths"].items() for method in methods}


def test_every_answer_of_the_contract_is_described() -> None:
    """docs/contract.md, section 3. Only a slow sender gets 408, and only some servers send 411."""
    described = {
        status: {ref.rpartition("/")[2] for ref in refs(answer)}
        for status, answer in OPENAPI["paths"]["/webhooks/clerk"]["post"]["responses"].items()
    }

    assert described == {
        "200": {
            *("Outcome_applied", "Outcome_duplicate", "Outcome_stale", "Outcome_ignored"),
            *("Outcome_applied_to_user", "Outcome_duplicate_of_user"),
        },
        "202": {"Outcome_dead_lettered"},
        "400": {
            *("Problem_missing_signature", "Problem_malformed_signature", "Problem_invalid_signature"),
            *("Problem_timestamp_out_of_tolerance", "Problem_malformed_event", "Problem_bad_request"),
        },
        "404": {"Problem_not_found"},
        "405": {"Problem_method_not_allowed"},
        "408": {"Problem_request_timeout"},
        "411": {"Problem_length_required"},
        "413": {"Problem_body_too_large"},
        "415": {"Problem_unsupported_encoding"},
        "503": {"Problem_store_unavailable", "Problem_dead_letters_full"},
    }


def codes(kind: type[errors.RelayError]) -> set[str]:
    return {kind.code, *(code for error in kind.__subclasses__() for code in codes(error))}


def test_every_code_but_that_of_a_defect_is_described() -> None:
    described = {name for name in OPENAPI["components"]["schemas"] if name.startswith("Problem_")}

    assert described == {f"Problem_{code}" for code in codes(errors.RelayError) - {"internal_error"}}


@pytest.mark.parametrize(
    "answer",
    [
        (200, "application/json", {"outcome": "applied", "session_id": "s", "cursor": "1-0", "revision": None}),
        (200, "application/json", {"outcome": "ignored", "session_id": "s"}),
        (200, "application/json", {"outcome": "applied", "sessions": -1}),
        (200, "application/json", {"outcome": "applied", "sessions": 1, "session_id": "s"}),
        (200, "application/json", {"outcome": "duplicate", "sessions": 0}),
        (200, "application/json", {"outcome": "dead_lettered", "reason": "invalid_id"}),
        (200, "text/html", {"outcome": "ignored"}),
        (202, "application/json", {"outcome": "dead_lettered", "reason": "a whim"}),
        (400, "application/problem+json", {"code": "missing_signature"}),
        (500, "application/problem+json", {}),
    ],
)
def test_the_check_of_all_answers_notices(answer: tuple[int, str, Any]) -> None:
    """`Endpoint` does it to all that come by way of its client."""
    status, media_type, body = answer

    assert response_faults("POST", "/webhooks/clerk", status, {"content-type": media_type}, json.dumps(body).encode())


@pytest.mark.parametrize(
    "answer", [{"outcome": "applied", "sessions": 0}, {"outcome": "duplicate"}, {"outcome": "ignored"}]
)
def test_the_answers_that_name_no_session_are_described(answer: dict[str, object]) -> None:
    """docs/contract.md, section 3."""
    headers = {"content-type": "application/json"}

    assert response_faults("POST", "/webhooks/clerk", 200, headers, json.dumps(answer).encode()) == []


def test_the_check_of_all_answers_notices_a_missing_retry_after() -> None:
    problem = responses.for_error(errors.StoreUnavailableError("Redis is away."))
    headers = {name.lower(): value for name, value in problem.headers.items()}
    headers["content-type"] = problem.content_type
    checked = ("POST", "/webhooks/clerk", 503)

    assert response_faults(*checked, headers, problem.body) == []
    del headers["retry-after"]
    assert response_faults(*checked, headers, problem.body) == ["Retry-After: None"]
