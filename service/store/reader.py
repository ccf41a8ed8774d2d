"""What a process needs to read for others: questions to Redis, and one follower of the stream for all."""

import asyncio

from service.config import StoreSettings
from service.store.hub import Hub
from service.store.queries import Queries


class Reader:
    """Reads for HTTP and for the console; connects when it is first used.

    Attributes:
        queries: asks.
        hub: follows.
    """

    def __init__(self, settings: StoreSettings) -> None:
        """Connect to nothing yet."""
        self.queries = Queries(settings)
        self.hub = Hub(settings, self.queries)

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Talk to Redis on this loop, instead of on one in a thread."""
        self.queries.bind_loop(loop)
        self.hub.bind_loop(loop)

    def close(self) -> None:
        """End all streams, then disconnect. Not in the thread of the loop."""
        self.hub.close()
        self.queries.close()
