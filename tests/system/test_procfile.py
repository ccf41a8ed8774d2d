"""The Procfile, as a platform runs it through a deploy: the new release starts while the old one serves, then
every process of the old one gets SIGTERM (https://devcenter.heroku.com/articles/dyno-shutdown-behavior)."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import httpx
from support.children import Program, started
from support.clock import eventually
from support.constants import EVENTS_KEY, ROOT, SECRET
from support.events import sample_body
from support.network import free_port
from support.onlookers import our_client
from support.raw_http import exchange, request_head
from support.services import Endpoint
from support.signing import signed

from service.dev.embedded import EmbeddedRedis

KILL_SECONDS: Final = 30
HONCHO: Final = (
    sys.executable,
    "-c",
    # By itself, it kills what is left 5 s after the first process ended.
    f"import honcho.command, honcho.manager; honcho.manager.KILL_WAIT = {KILL_SECONDS}; honcho.command.main()",
)
WORKERS: Final = 2
CONNECTIONS: Final = WORKERS + 2
"""Of one release, as docs/deploy.md has it: one for each web worker, two for the expiry worker."""
LONG_AGO_MS: Final = 1_700_000_000_000


def release(redis_url: str, port: int, directory: Path) -> AbstractContextManager[Program]:
    return started(
        [*HONCHO, "start", "--no-colour", "--procfile", ROOT / "Procfile"],
        directory,
        {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
            "REDIS_URL": redis_url,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "WEB_CONCURRENCY": str(WORKERS),
            "STREAM_MAXLEN": "1000000",
            "REDIS_TIMEOUT": "10",  # a busy machine is no failure of a delivery
        },
    )


def await_start(program: Program) -> None:
    program.wait_for("Application startup complete.")
    program.wait_for("expiry_started")


class Senders:
    """Deliver as fast as they are answered, to the newest release as soon as an older one refuses."""

    def __init__(self, port: int) -> None:
        self.ports = [port]
        self.acknowledged: list[tuple[int, str]] = []
        """By which port, and the session."""
        self._ending = threading.Event()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        with ThreadPoolExecutor(4) as threads:
            senders = [threads.submit(self._send, name) for name in "abcd"]
            try:
                yield
            finally:
                self._ending.set()
                for sender in senders:
                    sender.result(timeout=30)

    def _send(self, name: str) -> None:
        for port in self.ports:  # grows meanwhile
            with Endpoint(port).http as client:
                while self._deliver(client, port, f"sess_{name}_{len(self.acknowledged)}"):
                    if self._ending.wait(0.005):
                        return

    def _deliver(self, client: httpx.Client, port: int, session_id: str) -> bool:
        """Return False if nobody is there to take it."""
        # It runs out at once, so the expiry worker has something to do.
        body = sample_body(session_id, **{"data.expire_at": LONG_AGO_MS})
        headers = signed(body)
        while True:
            try:
                answer = client.post("/webhooks/clerk", content=body, headers=headers)
            except httpx.ConnectError:
                return False
            except httpx.TransportError:
                continue  # Closed before an answer: had it been taken, it is a duplicate now.
            assert (answer.status_code, answer.json()["outcome"]) == (200, "applied")
            self.acknowledged.append((port, session_id))
            return True

    def await_some(self) -> None:
        """Wait until the newest release has taken some."""

        def count() -> int:
            return [port for port, _ in self.acknowledged].count(self.ports[-1])

        before = count()
        eventually(lambda: count() > before + 100, within=30)


def test_a_deploy_fails_no_delivery_keeps_to_its_connections_and_ends_in_time(
    start_redis: Callable[..., EmbeddedRedis], tmp_path: Path
) -> None:
    # One is for us. One more than that, however briefly, and a delivery would get 503.
    server = start_redis("--maxclients", str(2 * CONNECTIONS + 1))
    senders = Senders(free_port())

    with our_client(server.url) as client:

        def await_connections(count: int) -> None:
            def are_there() -> bool:
                # Any of the web workers answers, and connects if it has not yet. On a busy machine, 503 is an answer.
                probe = request_head({"connection": "close"}, method=b"GET", target=b"/readyz")
                exchange(senders.ports[-1], probe, "GET")
                return len(client.client_list()) == count + 1

            eventually(are_there, within=30)

        with contextlib.ExitStack() as stack:
            old = stack.enter_context(release(server.url, senders.ports[0], tmp_path))
            await_start(old)
            stack.enter_context(senders.sending())
            senders.await_some()
            await_connections(CONNECTIONS)
            next_port = free_port()
            new = stack.enter_context(release(server.url, next_port, tmp_path))
            await_start(new)
            senders.ports.append(next_port)
            await_connections(2 * CONNECTIONS)

            old.process.terminate()
            old.end(within=KILL_SECONDS)

            senders.await_some()
            await_connections(CONNECTIONS)

        taken = {entry["session_id"] for _, entry in client.xrange(EVENTS_KEY)}

    assert taken == {session_id for _, session_id in senders.acknowledged}
    for program in (old, new):
        # Not by exit statuses: those are of the shells around, which SIGTERM ends as well.
        said = set(re.findall("shutdown complete|expiry_stopping|SIGKILL|Traceback|_failed", program.stdout))
        assert said == {"shutdown complete", "expiry_stopping"}
