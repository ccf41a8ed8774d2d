"""What `serve` adds to the application: worker processes, limits of HTTP, the bridge from ASGI to Flask."""
