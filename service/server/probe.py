"""`python -m service.server.probe`: whether `serve` responds on this machine. The image's health check.

It imports next to nothing, since it runs every ten seconds. Settings are read as `config` reads them.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Final

TIMEOUT_SECONDS: Final = 2
_LOOPBACK: Final = {"": ("127.0.0.1",), "0.0.0.0": ("127.0.0.1",), "::": ("::1", "127.0.0.1")}  # noqa: S104
"""What to ask where HOST is every address of the machine."""


def main() -> int:
    """Return the exit status: 0 if /healthz responds with 200 where HOST and PORT say, else 1."""
    settings = _settings()
    host, port = settings.get("HOST", "").removeprefix("[").removesuffix("]"), settings.get("PORT") or "8000"
    fault = ""
    for address in _LOOPBACK.get(host, (host,)):
        try:
            status = _status(address, port)
        except (OSError, ValueError) as error:
            fault = fault or f"{address} port {port}: {error}"
            continue
        if status == b"200":
            return 0
        fault = f"{address} port {port}: /healthz responds with {status.decode('latin-1')!a}"
    sys.stderr.write(f"{fault}\n")
    return 1


def _settings() -> dict[str, str]:
    in_file: dict[str, str | None] = {}
    if Path(".env").is_file():
        from dotenv import dotenv_values  # noqa: PLC0415  # most images have no such file

        in_file = dotenv_values(".env", encoding="utf-8-sig")
    return {name.upper(): value for name, value in [*in_file.items(), *os.environ.items()] if value}


def _status(host: str, port: str) -> bytes:
    """Return the status of /healthz, as HTTP/1.1 writes it; empty if the response is no HTTP."""
    with socket.create_connection((host, int(port)), TIMEOUT_SECONDS) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as response:
            return (*response.readline(1000).split(), b"", b"")[1]


if __name__ == "__main__":
    sys.exit(main())
