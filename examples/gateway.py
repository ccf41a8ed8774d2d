"""A WebSocket gateway that closes a session's sockets as soon as the session ends.

    REDIS_URL=redis://… PORT=8765 python gateway.py
    python -m websockets "ws://127.0.0.1:8765/?session_id=sess_…"

It needs `websockets` and clerk-session-feed. It sends back what a client sends, and refuses a session that is
not live. If `session-relay expire` runs, it also closes the sockets of sessions that expire.
"""

import asyncio
import os
import signal
import sys
from collections import defaultdict
from urllib.parse import parse_qs, urlsplit

from clerk_session_feed import AsyncSessionFeed, ConfigurationError, CursorLostError, FeedError, RedisError
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.protocol import State

NOT_LIVE = 4401
"""For browsers: scripts see the code that closes a socket, but not the status of a refused handshake."""


def session_of(socket: ServerConnection) -> str:
    # This trusts the client. A real gateway verifies Clerk's token HERE, and takes its `sid`, as api.py does. Then
    # it may let in a session whose `status` is `unknown`, for as long as the token is valid.
    path = socket.request.path if socket.request else ""
    return parse_qs(urlsplit(path).query).get("session_id", [""])[0]


class Gateway:
    def __init__(self, feed: AsyncSessionFeed, tasks: asyncio.TaskGroup) -> None:
        self._feed = feed
        self._tasks = tasks
        self._sockets: defaultdict[str, set[ServerConnection]] = defaultdict(set)

    async def serve(self, socket: ServerConnection) -> None:
        session_id = session_of(socket)
        # First list the socket, then check the session. If the session ends before the check, the check
        # refuses it. If it ends later, `watch` finds the socket listed. In the other order, an end in between
        # would be noticed by neither.
        self._sockets[session_id].add(socket)
        try:
            if not await self._feed.is_live(session_id):
                await socket.close(NOT_LIVE, "the session is not live")
            async for message in socket:
                if socket.state is not State.OPEN:
                    break  # the session has ended
                await socket.send(message)
        except ConnectionClosed:
            pass
        except RedisError:
            await socket.close(CloseCode.TRY_AGAIN_LATER, "it is unknown whether the session is live")
        finally:
            self._sockets[session_id].discard(socket)
            if not self._sockets[session_id]:
                del self._sockets[session_id]

    async def watch(self, after: dict[int, str]) -> None:
        while True:
            try:
                async for update in self._feed.follow(after):
                    if not update.is_live:
                        self._drop(update.session.id)
            except CursorLostError:  # entries were trimmed before they were read
                after = await self._feed.now()
                for session_id in list(self._sockets):
                    if not await self._feed.is_live(session_id):
                        self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        for socket in self._sockets.get(session_id, ()):
            # In a task of its own: a client that does not respond must not delay the others.
            self._tasks.create_task(socket.close(NOT_LIVE, "the session has ended"))


async def main(port: int) -> None:
    # If `watch` fails, the group stops the server, which would no longer notice the end of a session.
    async with AsyncSessionFeed.from_env() as feed, asyncio.TaskGroup() as tasks:
        gateway = Gateway(feed, tasks)
        watching = tasks.create_task(gateway.watch(await feed.now()))
        async with serve(gateway.serve, "127.0.0.1", port) as server:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, server.close)
            print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/?session_id=sess_…", flush=True)
            await server.wait_closed()
        watching.cancel()


if __name__ == "__main__":
    port = os.environ.get("PORT", "8765")
    if not port.isdecimal() or int(port) not in range(65_536):
        sys.exit("PORT: is not the number of a port")
    fault = None
    try:
        asyncio.run(main(int(port)))
    except* (ConfigurationError, FeedError, OSError, RedisError) as faults:  # of the task group, too
        fault = str(faults.exceptions[0])
    except* KeyboardInterrupt:  # before the server was there
        pass
    sys.exit(fault)
