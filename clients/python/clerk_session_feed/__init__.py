"""The state of Clerk's sessions, as clerk-session-relay keeps it in Redis: to be read, and to be followed."""

import importlib
from typing import TYPE_CHECKING, Any

from clerk_session_feed.errors import (
    ConfigurationError,
    CursorLostError,
    FeedClosedError,
    FeedError,
    PartitionsError,
    UnreadableMessageError,
)
from clerk_session_feed.models import (
    Event,
    EventWithRequest,
    HttpRequest,
    LiveStatus,
    Session,
    SessionActivity,
    SessionTask,
    Status,
)
from clerk_session_feed.updates import SessionUpdate

if TYPE_CHECKING:
    from redis import RedisError

    from clerk_session_feed.feed import AsyncSessionFeed, SessionFeed

__all__ = [
    "AsyncSessionFeed",
    "ConfigurationError",
    "CursorLostError",
    "Event",
    "EventWithRequest",
    "FeedClosedError",
    "FeedError",
    "HttpRequest",
    "LiveStatus",
    "PartitionsError",
    "RedisError",
    "Session",
    "SessionActivity",
    "SessionFeed",
    "SessionTask",
    "SessionUpdate",
    "Status",
    "UnreadableMessageError",
]


# A program that needs only models or key names does not load redis-py, which takes a while.
_FEED = "clerk_session_feed.feed"
_ON_FIRST_USE = {"AsyncSessionFeed": _FEED, "RedisError": "redis", "SessionFeed": _FEED}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
