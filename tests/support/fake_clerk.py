"""The stand-in for Clerk's Backend API, for tests."""

from collections.abc import Iterator

import httpx
import pytest

from service.dev.fake_clerk import FakeClerk


@pytest.fixture
def fake_clerk() -> Iterator[FakeClerk]:
    """A development instance without users, that answers over HTTP. A test sets its attributes as it needs them."""
    with FakeClerk() as clerk:
        yield clerk


@pytest.fixture
def clerk_api(fake_clerk: FakeClerk) -> Iterator[httpx.Client]:
    """A client of that instance's API, with its key."""
    with api_client(fake_clerk) as client:
        yield client


def api_client(clerk: FakeClerk) -> httpx.Client:
    headers = {"Authorization": f"Bearer {clerk.secret_key}"}
    return httpx.Client(base_url=clerk.url, headers=headers, timeout=30, trust_env=False)
