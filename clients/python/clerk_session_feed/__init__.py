"""Reads the state of Clerk's sessions that clerk-session-relay keeps in Redis, and follows what happens to them."""

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
