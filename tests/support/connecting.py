"""What comes of a REDIS_URL: for the service, and for a program with an event loop."""

import asyncio
import gc
import warnings
from typing import Any

import redis
from clerk_session_feed.connections import connect_async

from service.errors import StoreUnavailableError
from support.events import clerk_event
from support.relay import run_relay


def outcome_of_a_delivery(redis_url: str, **settings: Any) -> str:
    """Return what a fresh store makes of one delivery, as the sender would see it."""
    with run_relay(redis_url, **settings) as relay:
        try:
            return relay.take(clerk_event(), "msg_1").outcome
        except StoreUnavailableError as error:
            return error.code


def asked_in_a_loop(redis_url: str, **options: Any) -> str:
    """Return what a client for asyncio gets from there, over two connections and as a subscriber; or the error."""

    async def ask() -> str:
        async with connect_async(redis_url, "{clerk}:x", timeout=10, **options) as client:
            for _ in range(2):
                assert await client.get("{clerk}:x") is None
                await client.connection_pool.disconnect()
            async with client.pubsub() as pubsub:
                await pubsub.subscribe("clerk:sessions")
                message: Any = await pubsub.get_message(timeout=10)
                return str(message["type"])

    try:
        return asyncio.run(ask())
    except redis.RedisError as error:
        return type(error).__name__
    finally:
        with warnings.catch_warnings():
            # asyncio closes a TLS connection in the background, and the loop has ended before that.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
