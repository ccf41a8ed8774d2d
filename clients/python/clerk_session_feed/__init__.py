"""The state of Clerk's sessions, as clerk-session-relay keeps it in Redis: to be read, and to be followed."""

from redis import RedisError

from clerk_session_feed.errors import (
    ConfigurationError,
    CursorLostError,
    FeedClosedError,
    FeedError,
    UnreadableMessageError,
)
from clerk_session_feed.feed import AsyncSessionFeed, SessionFeed
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
