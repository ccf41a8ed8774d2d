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

if TYPE_CHECKING:
    from redis import RedisError

    from clerk_session_feed.feed import AsyncSessionFeed, SessionFeed
    from clerk_session_feed.mirror import AsyncAskingMirror, AsyncMirror, Mirror
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


# redis-py and pydantic take a while to load. A program that needs only key names does not load them, and neither does
# pytest, which loads the plugin of this package wherever it is installed.
_FEED, _MIRROR = "clerk_session_feed.feed", "clerk_session_feed.mirror"
_MODELS, _UPDATES = "clerk_session_feed.models", "clerk_session_feed.updates"
_ON_FIRST_USE = {
    "AsyncAskingMirror": _MIRROR,
    "AsyncMirror": _MIRROR,
    "AsyncSessionFeed": _FEED,
    "Event": _MODELS,
    "EventWithRequest": _MODELS,
    "HttpRequest": _MODELS,
    "LiveStatus": _MODELS,
    "Mirror": _MIRROR,
    "RedisError": "redis",
    "Session": _MODELS,
    "SessionActivity": _MODELS,
    "SessionFeed": _FEED,
    "SessionTask": _MODELS,
    "SessionUpdate": _UPDATES,
    "Status": _MODELS,
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
