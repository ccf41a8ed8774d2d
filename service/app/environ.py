"""A request as WSGI has it (https://peps.python.org/pep-3333/), out of one as ASGI has it."""

import io
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from service.errors import RelayError

Message = MutableMapping[str, Any]


class Body(io.BytesIO):
    """A request's body. If it did not arrive whole, whoever reads it is told why."""

    size = 0
    """Bytes that arrived; they may be more than are kept."""
    buffered = 0
    """Bytes of it that count towards what all bodies may take."""
    fault: RelayError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes; raise RelayError if the body did not arrive whole, or is too large."""
        if self.fault is not None:
            raise self.fault
        return super().read(size)


def path_of(scope: Message) -> bytes:
    """Return the path decoded, but for slashes: encoded, they separate nothing."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    if b"%" not in raw_path:
        return raw_path
    return unquote_to_bytes(re.sub(rb"%2f", b"%252F", raw_path, flags=re.IGNORECASE))


def headers_of(scope: Message) -> dict[str, str]:
    """Return the headers by their names in lower case, decoded as Latin-1; repeated ones as a list."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if "_" not in name:  # `svix_id` is not `svix-id`, though CGI's names make them one
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def build(scope: Message, path: bytes, headers: dict[str, str], body: Body) -> dict[str, Any]:
    """Build what PEP 3333 asks for."""
    host, port = scope.get("server") or ("", None)
    client = scope.get("client") or ("", None)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or ""),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1] or ""),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,  # with several workers, PROMETHEUS_MULTIPROC_DIR is set
        "wsgi.run_once": False,
    }
    for name, value in headers.items():
        environ[KEYS.get(name) or _key(name)] = value
    return environ


def _key(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"


KEYS: Final = {
    name: _key(name)
    for name in (
        *("svix-id", "svix-timestamp", "svix-signature", "host", "connection"),
        *("webhook-id", "webhook-timestamp", "webhook-signature", "content-encoding", "transfer-encoding"),
        *("accept", "accept-encoding", "content-length", "content-type", "user-agent"),
    )
}
"""Of the headers that deliveries have, in an environ."""
