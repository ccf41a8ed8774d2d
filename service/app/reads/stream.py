"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) as the body of a response."""

from typing import Final

import orjson

from service.store.hub import Hub
from service.store.subscription import Notice, Subscription

RETRY_MS: Final = 2_000
"""Milliseconds after which a browser whose stream broke off connects again."""
NEVER_MS: Final = 86_400_000
"""Milliseconds likewise after an end, for pages that don't close the stream then."""


class EventStream:
    """What a reader is told, as bytes: for a server with an event loop, and for one with threads."""

    def __init__(self, hub: Hub, reader: Subscription) -> None:
        self._hub = hub
        self._reader = reader
        self._has_begun = False

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> bytes:
        """Return what is to be sent next, as soon as there is something. On the hub's loop."""
        if not self._has_begun:
            self._has_begun = True
            return b"retry: %d\n\n" % RETRY_MS
        notices = await self._reader.get()
        if not notices:
            raise StopAsyncIteration
        return b"".join(map(encode, notices))

    def __iter__(self) -> "EventStream":
        return self

    def __next__(self) -> bytes:
        """Return what is to be sent next. This blocks the thread until there is something."""
        try:
            return self._hub.wait(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the stream. From any thread."""
        self._hub.leave(self._reader)


def encode(notice: Notice) -> bytes:
    """Return a notice as it is sent. What has no data is no event for a browser; an id is remembered all the same."""
    match notice.kind:
        case "heartbeat":
            return b": heartbeat\n\n"
        case "position":
            return b"id: %b\n\n" % notice.position.encode()
        case "applied":
            return b"id: %b\nevent: session\ndata: %b\n\n" % (notice.position.encode(), _line(notice.message))
        case "resync":
            said = orjson.dumps(dict(notice.said))
            return b"id: %b\nevent: resync\ndata: %b\n\n" % (notice.position.encode(), said)
        case "end":
            return b"retry: %d\nevent: end\ndata: %b\n\n" % (NEVER_MS, orjson.dumps(dict(notice.said)))


def _line(message: bytes) -> bytes:
    """Return JSON on one line: another program may have written it on several."""
    return b" ".join(message.splitlines()) if b"\n" in message or b"\r" in message else message
