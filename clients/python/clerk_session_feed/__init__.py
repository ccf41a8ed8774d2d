"""What the relay's Redis holds of Clerk's sessions: read a state, and follow what happens without missing anything."""

from clerk_session_feed.errors import (
    ConfigurationError,
    CursorLostError,
    FeedClosedError,
    FeedError,
    UnreadableMessageError,
)
from clerk_session_feed.feed import AsyncSessionFeed, RedisError, SessionFeed
from clerk_session_feed.models import (
    Event,
    EventWithRequest,
    HttpRequest,
    Session,
    SessionActivity,
    SessionTask,
    Status,
)
from clerk_session_feed.updates import SessionUpdate

__all__ = [
    "AsyncSessionFeed",
    "ConfigurationError",
    "CursorLostError",
    "Event",
    "EventWithRequest",
    "FeedClosedError",
    "FeedError",
    "HttpRequest",
    "RedisError",
    "Session",
    "SessionActivity",
    "SessionFeed",
    "SessionTask",
    "SessionUpdate",
    "Status",
    "UnreadableMessageError",
]
