"""Translates a request from ASGI (https://asgi.readthedocs.io) to WSGI (https://peps.python.org/pep-3333)."""

import functools
import io
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from service.errors import RelayError

Message = MutableMapping[str, Any]
"""A scope or an event of ASGI."""


class Body(io.BytesIO):
    """A request's body. If it did not arrive whole, reading it raises the reason."""

    size = 0
    """Bytes that arrived. Of a body that is too large, not all are kept."""
    buffered = 0
    """Bytes that count towards the limit for all bodies together."""
    fault: RelayError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes.

        Raises:
            RelayError: The body did not arrive whole, or it is too large.
        """
        if self.fault is not None:
            raise self.fault
        return super().read(size)


def decode_path(scope: Message) -> bytes:
    """Return the path, percent-decoded except for `%2F`: an encoded slash separates nothing."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    if b"%" not in raw_path:
        return raw_path
    return unquote_to_bytes(re.sub(rb"%2f", b"%252F", raw_path, flags=re.IGNORECASE))


def decode_headers(raw_headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers by lower-case name, decoded as Latin-1; repeated ones joined by commas."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw_headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if "_" not in name:  # WSGI can't tell `svix_id` from `svix-id`
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def build_environ(scope: Message, path: bytes, headers: dict[str, str], body: Body) -> dict[str, Any]:
    """Return the WSGI environ of a request whose path and headers are decoded."""
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
        environ[environ_key(name)] = value
    return environ


@functools.lru_cache(256)
def environ_key(name: str) -> str:
    """Return the key under which the environ has a header."""
    key = name.upper().replace("-", "_")
    return key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
