"""A program that uses every method of both feeds, and a module `service` of its own. It prints what they return.

    python consumer.py URL

Redis holds sess_1, which is live, and sess_2, which began and ended.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

import redis
from clerk_session_feed import AsyncSessionFeed, SessionFeed, SessionUpdate

import service  # in the folder from which this is run

FOREIGN = {"flask", "hiredis", "orjson", "pydantic_settings", "structlog", "svix", "uvicorn", "uvloop", "werkzeug"}


def short(update: SessionUpdate | None) -> list[Any] | None:
    return None if update is None else [update.session.id, update.session.status, update.is_live, update.is_snapshot]


def publish(url: str, message: bytes) -> None:
    """Publish as soon as somebody has subscribed."""
    with redis.Redis.from_url(url) as client:
        while client.publish("clerk:sessions", message) == 0:
            time.sleep(0.01)


def use(url: str) -> dict[str, Any]:
    def take(updates: Iterator[SessionUpdate], count: int) -> list[Any]:
        return [short(update) for update in islice(updates, count)]

    with SessionFeed.from_url(url) as feed:
        state = feed.get("sess_1")
        assert state is not None
        threading.Thread(target=publish, args=(url, state.json)).start()
        return {
            "get": [short(state), short(feed.get("sess_3"))],
            "is_live": [feed.is_live("sess_1"), feed.is_live("sess_2")],
            "live_sessions": [short(update) for update in feed.live_sessions("user_1")],
            "history": [short(update) for update in feed.history("sess_2")],
            "now": list(feed.now()),
            "snapshots": sorted(take(feed.follow(), 2)),
            "follow": take(feed.follow("0-0"), 3),
            "consume": take(feed.consume("threads", "name", after="0-0"), 3),
            "subscribe": take(feed.subscribe(), 1),
        }


async def use_async(url: str) -> dict[str, Any]:
    async def take(updates: AsyncIterator[SessionUpdate], count: int) -> list[Any]:
        return [short(await anext(updates)) for _ in range(count)]

    async with AsyncSessionFeed.from_url(url) as feed:
        state = await feed.get("sess_1")
        assert state is not None
        threading.Thread(target=publish, args=(url, state.json)).start()
        return {
            "get": [short(state), short(await feed.get("sess_3"))],
            "is_live": [await feed.is_live("sess_1"), await feed.is_live("sess_2")],
            "live_sessions": [short(update) for update in await feed.live_sessions("user_1")],
            "history": [short(update) for update in await feed.history("sess_2")],
            "now": list(await feed.now()),
            "snapshots": sorted(await take(feed.follow(), 2)),
            "follow": await take(feed.follow("0-0"), 3),
            "consume": await take(feed.consume("asyncio", "name", after="0-0"), 3),
            "subscribe": await take(feed.subscribe(), 1),
        }


if __name__ == "__main__":
    results = {
        "threads": use(sys.argv[1]),
        "asyncio": asyncio.run(use_async(sys.argv[1])),
        "service": service.OWNER,  # type: ignore[attr-defined]  # not ours
        "foreign": sorted(FOREIGN & set(sys.modules)),
    }
    sys.stdout.write(json.dumps(results))
