"""Server-sent events, read as browsers do it: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self


class Event(NamedTuple):
    type: str
    id: str
    data: Any
    """Read from JSON."""


class EventSource:
    """One stream; what comes is read as it is asked for."""

    def __init__(self, port: int, path: str = "/events", headers: Mapping[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.request(
            "GET", path, headers={name.replace("_", "-"): value for name, value in (headers or {}).items()}
        )
        self.response = self._connection.getresponse()
        self.last_id = ""
        self.comments = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.response.close()
        self._connection.close()

    def begin(self) -> str:
        """Return the id that comes first, without an event."""
        for name, value in self._fields():
            if name == "id":
                self.last_id = value
            if name == "" and self.last_id:
                return self.last_id
        raise EOFError

    def __iter__(self) -> Iterator[Event]:
        """Yield the events until the stream ends."""
        kind, data = "message", ""
        for name, value in self._fields():
            match name:
                case "event":
                    kind = value
                case "data":
                    data += value
                case "id":
                    self.last_id = value
                case "":
                    if data:
                        yield Event(kind, self.last_id, json.loads(data))
                    kind, data = "message", ""

    def take(self, count: int) -> list[Event]:
        events = iter(self)
        return [next(events) for _ in range(count)]

    def _fields(self) -> Iterator[tuple[str, str]]:
        while line := self.response.readline().decode():
            text = line.rstrip("\n")
            if text.startswith(":"):
                self.comments += 1
            else:
                name, _, value = text.partition(":")
                yield name, value.removeprefix(" ")
