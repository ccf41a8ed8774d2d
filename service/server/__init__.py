"""What `serve` adds to the application: worker processes, limits of HTTP, the bridge from ASGI to Flask."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return `application` or `serve`, without loading them for `probe`, which runs every few seconds."""
    if name not in {"application", "serve"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from service.server import processes  # noqa: PLC0415

    return getattr(processes, name)
