"""What `serve` adds around the application: processes, the limits of HTTP, the bridge from ASGI to Flask."""

from service.server.processes import application, serve

__all__ = ["application", "serve"]
