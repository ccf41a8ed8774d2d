"""The modules that a delivery passes on its way from the socket to the script, in this order."""

import asyncio
import functools
import json
import sys
from types import FrameType
from typing import Any

import pytest
from support.events import clerk_event
from support.relay import make_settings
from support.signing import signed
from uvicorn import Config
from uvicorn.server import ServerState

from service.app import create_app
from service.dev.embedded import EmbeddedRedis
from service.server.bridge import FlaskBridge
from service.server.protocol import Protocol

AFTER_FLASK = [
    "app.webhook",
    "clerk.signature",
    "ingest",
    "clerk.events",
    "clerk.normalize",
    "store.sessions",
    "store.pipeline",
]
HELPERS = {
    "app.environ",
    "app.responses",
    "clerk.fields",
    "clerk.ordinary",
    "clerk_session_feed",
    "config",
    "errors",
    "models",
    "store.partitions",
    "store.scripts",
    "telemetry",
    "waiting",
}
"""Packages and modules that are called by those on the way, and hand the delivery on to nobody."""


class Way:
    """The modules of the service in which a function was called, each at its first call."""

    def __init__(self) -> None:
        self.modules: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        module = str(frame.f_globals.get("__name__")).removeprefix("service.")
        is_helper = any(f"{module}.".startswith(f"{helper}.") for helper in HELPERS)
        is_ours = str(frame.f_globals.get("__package__")).partition(".")[0] == "service"
        if event == "call" and is_ours and not is_helper and module not in self.modules:
            self.modules.append(module)


async def deliver(url: str, *, fast_lane: bool) -> tuple[list[str], bytes]:
    """Send one delivery to a server in this thread; return its way, and the response."""
    app = create_app(make_settings(url, serve_fast_lane=fast_lane))
    loop = asyncio.get_running_loop()
    app.store.bind_loop(loop)
    config = Config(FlaskBridge(app), lifespan="off", log_config=None)
    config.load()
    protocol: Any = functools.partial(Protocol, config=config, server_state=ServerState(), app_state={})
    body = json.dumps(clerk_event()).encode()
    headers = {"host": "relay", "connection": "close", "content-length": len(body), **signed(body)}
    lines = ["POST /webhooks/clerk HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    way = Way()
    async with await loop.create_server(protocol, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        sys.setprofile(way)
        try:
            writer.write("\r\n".join(lines).encode() + body)
            response = await reader.read()
        finally:
            sys.setprofile(None)
            writer.close()
    await asyncio.to_thread(app.store.close)
    return way.modules, response


@pytest.mark.parametrize("fast_lane", [True, False])
def test_a_delivery_passes_ten_modules_from_socket_to_script(any_redis: EmbeddedRedis, fast_lane: bool) -> None:
    modules, response = asyncio.run(deliver(any_redis.url, fast_lane=fast_lane))

    assert response.startswith(b"HTTP/1.1 200 ")
    if not fast_lane:
        modules.remove("app.fast_lane")  # the bridge asks it, and it says no
    modules.remove("store.layout")  # it asks each new connection
    flask = "app.fast_lane" if fast_lane else "app.factory"
    assert modules == ["server.protocol", "server.bridge", flask, *AFTER_FLASK]
    assert len(modules) == 10
