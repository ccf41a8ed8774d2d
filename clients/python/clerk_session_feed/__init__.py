"""The state of Clerk's sessions, as clerk-session-relay keeps it in Redis: to be read, and to be followed."""

import importlib
from typing import TYPE_CHECKING, Any

from clerk_session_feed.errors import (
    ConfigurationError,
    CursorLostError,
    FeedClosedError,
    FeedError,
    MirrorTooOldError,
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
    from clerk_session_feed.mirror import AsyncAskingMirror, AsyncMirror, Mirror

__all__ = [
    "AsyncAskingMirror",
    "AsyncMirror",
    "AsyncSessionFeed",
    "ConfigurationError",
    "CursorLostError",
    "Event",
    "EventWithRequest",
    "FeedClosedError",
    "FeedError",
    "HttpRequest",
    "LiveStatus",
    "Mirror",
    "MirrorTooOldError",
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
_FEED, _MIRROR = "clerk_session_feed.feed", "clerk_session_feed.mirror"
_ON_FIRST_USE = {
    "AsyncAskingMirror": _MIRROR,
    "AsyncMirror": _MIRROR,
    "AsyncSessionFeed": _FEED,
    "Mirror": _MIRROR,
    "RedisError": "redis",
    "SessionFeed": _FEED,
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
