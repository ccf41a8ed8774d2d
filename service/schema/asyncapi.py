"""Channels and stream as AsyncAPI 3.0.

It is written for a consumer: `receive` is what the consumer's program does.
"""

import dataclasses
from typing import Any, Final, Literal

import orjson
from clerk_session_feed.keys import Keys
from clerk_session_feed.models import SCHEMA_VERSION, Id, SessionMessage, StreamMessage
from pydantic import Json

from service.schema.json_schema import EXAMPLE, Schema, json_of, schemas

_SCHEMAS: Final = "#/components/schemas/"
# https://github.com/asyncapi/bindings/tree/master/redis: it defines no field yet.
_BINDINGS: Final[Schema] = {"redis": {}}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamEntry:
    """The fields of a stream's entry, each a string. The entry's id is the cursor."""

    outcome: Literal["applied", "stale"]
    """`stale`: it came too late to change anything, and its message has no revision."""
    session_id: Id
    user_id: Id
    message: Json[StreamMessage]


def document() -> Schema:
    """Return the AsyncAPI document of what a consumer gets from Redis."""
    keys = Keys()
    user_id = {"description": "Clerk's id of the user.", "location": "$message.payload#/session/user_id"}
    prefix = {
        "description": "REDIS_KEY_PREFIX, braces included. With PARTITIONS, each has a "
        "stream of its own: {clerk:0}, {clerk:1} and so on.",
        "default": keys.prefix,
        "examples": [keys.prefix, *(part.prefix for part in keys.split(2))],
    }
    session, message = EXAMPLE.session, orjson.dumps(json_of(EXAMPLE) | {"cursor": None}).decode()
    entry = {"outcome": "applied", "session_id": session.id, "user_id": session.user_id, "message": message}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "clerk-session-relay: the feed of Clerk sessions",
            "version": str(SCHEMA_VERSION),
            "description": "What a consumer gets from Redis: every change of a session, at once by pub/sub, and "
            "without a gap from the stream. Names are those that REDIS_CHANNEL and REDIS_KEY_PREFIX have by default.",
            "license": {"name": "MIT"},
        },
        "servers": {
            "redis": _server("redis", "The Redis of the relay's REDIS_URL."),
            "rediss": _server("rediss", "The same, over TLS."),
        },
        "channels": {
            "sessions": _channel("sessionMessage", keys.channel, "Pub/sub: every applied message"),
            "userSessions": _channel(
                "sessionMessage",
                keys.user_channel("{userId}"),
                "Pub/sub: the applied messages of one user",
                parameters={"userId": user_id},
            ),
            "events": _channel(
                "streamEntry",
                keys.events,
                "Stream: every session event, applied or stale, once, in the order taken",
                description="Read it with XREAD after the last cursor seen, or with XREADGROUP. "
                "About the last STREAM_MAXLEN entries are kept.",
                parameters={"clerk": prefix},  # an address can't have braces that are not a parameter's
            ),
        },
        "operations": {
            "followSessions": _receive("sessions", "sessionMessage", "SUBSCRIBE"),
            "followUserSessions": _receive("userSessions", "sessionMessage", "SUBSCRIBE"),
            "followEvents": _receive("events", "streamEntry", "XREAD or XREADGROUP"),
        },
        "components": {
            "messages": {
                "sessionMessage": _message(
                    SessionMessage,
                    "What a session is, and what made it so",
                    json_of(EXAMPLE),
                    contentType="application/json",
                ),
                "streamEntry": _message(StreamEntry, "An entry of the stream", entry),
            },
            "schemas": schemas(SessionMessage, StreamMessage, StreamEntry, at=_SCHEMAS),
        },
    }


def _server(protocol: str, description: str) -> Schema:
    return {
        "host": "{host}:{port}",
        "protocol": protocol,
        "description": description,
        "variables": {"host": {"default": "localhost"}, "port": {"default": "6379"}},
        "bindings": _BINDINGS,
    }


def _channel(message: str, address: str, title: str, **more: Any) -> Schema:
    messages = {message: {"$ref": f"#/components/messages/{message}"}}
    return {"address": address, "title": title, **more, "messages": messages, "bindings": _BINDINGS}


def _receive(channel: str, message: str, command: str) -> Schema:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": command,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
        "bindings": _BINDINGS,
    }


def _message(model: type, title: str, example: Any, **more: Any) -> Schema:
    return {
        "name": model.__name__,
        "title": title,
        **more,
        "payload": {"$ref": f"{_SCHEMAS}{model.__name__}"},
        "examples": [{"name": "ended", "payload": example}],
        "bindings": _BINDINGS,
    }
