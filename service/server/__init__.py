"""What `serve` adds to the application: worker processes, limits of HTTP, the bridge from ASGI to Flask."""

from service.server.processes import application, serve

__all__ = ["application", "serve"]
