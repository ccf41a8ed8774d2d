"""A request as WSGI has it (https://peps.python.org/pep-3333/), out of one as ASGI has it."""

import io
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from service.answers import DEFER, Pending
from service.errors import RelayError
from service.signature import HEADERS

Message = MutableMapping[str, Any]


class Body(io.BytesIO):
    """A request's body. If it did not arrive whole, whoever reads it is told why."""

    size = 0
    """Bytes that arrived; they may be more than are kept."""
    held = 0
    is_whole = False
    """Nothing of it is left to be received."""
    fault: RelayError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.fault is not None:
            raise self.fault
        return super().read(size)


class ResponseStart:
    """What the WSGI application says with `start_response`, in ASGI's terms."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def start(self, status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], object]:
        self.status = int(status.partition(" ")[0])
        self.headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        return lambda _: None


def _path(scope: Message) -> bytes:
    """Return the path decoded, but for slashes: encoded, they separate nothing."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    if b"%" not in raw_path:
        return raw_path
    return unquote_to_bytes(re.sub(rb"%2f", b"%252F", raw_path, flags=re.IGNORECASE))


def build(scope: Message, body: Body, defer: Callable[[Pending[Any]], None]) -> dict[str, Any]:
    """Build what PEP 3333 asks for."""
    host, port = scope.get("server") or ("", None)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": _path(scope).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or ""),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        DEFER: defer,
    }
    for raw_name, raw_value in scope["headers"]:
        key = _KEYS.get(raw_name) or _key(raw_name)
        if key:
            value = raw_value.decode("latin-1")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def _key(raw_name: bytes) -> str:
    """Return the name of a header in an environ; nothing for one that does not belong there."""
    name = raw_name.decode("latin-1")
    # `svix_id` is not `svix-id`, though CGI's names make them one. Hosts and upgrades are nobody's
    # business here, and odd ones would stop Flask's routing.
    if "_" in name or name in {"host", "upgrade"}:
        return ""
    key = name.upper().replace("-", "_")
    return key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"


_KEYS: Final = {
    name.encode(): _key(name.encode())
    for name in (*HEADERS, "accept", "content-length", "content-type", "user-agent")
}
"""Of the headers that deliveries have."""
