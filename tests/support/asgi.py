"""The server's side of ASGI, without a server."""

import asyncio
from typing import Any


class Client:
    """The server's side of ASGI: hands over messages, and collects what is sent."""

    def __init__(self, *messages: dict[str, Any], then_hang: bool = False) -> None:
        self._messages = list(messages)
        self._then_hang = then_hang
        self.received = 0
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        if not self._messages:
            assert self._then_hang, "receives more than there is"
            await asyncio.sleep(3600)
        self.received += 1
        return self._messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


def scope(path: str = "/echo", *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "server": ("127.0.0.1", 8000),
    }


def chunk(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}
