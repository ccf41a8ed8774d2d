"""Fixtures for pytest: docs/testing.md.

pytest loads this wherever the package is installed. So it imports the feeds where a fixture is used, and not before.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from clerk_session_feed.testing import AsyncMemorySessionFeed, MemorySessionFeed


@pytest.fixture
def session_feed() -> "Iterator[MemorySessionFeed]":
    """A SessionFeed without Redis, in which the test lets sessions begin and end; closed in the end."""
    from clerk_session_feed.testing import MemorySessionFeed  # noqa: PLC0415

    with MemorySessionFeed() as feed:
        yield feed


@pytest.fixture
def async_session_feed() -> "Iterator[AsyncMemorySessionFeed]":
    """An AsyncSessionFeed without Redis; loops that wait for more end after the test."""
    from clerk_session_feed.testing import AsyncMemorySessionFeed  # noqa: PLC0415

    feed = AsyncMemorySessionFeed()
    yield feed
    feed.finish()  # it can be closed in an event loop only
