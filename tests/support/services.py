"""The service over HTTP: as `session-relay serve`, and under a plain WSGI server."""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from service.app.factory import create_app
from service.config import Settings
from support import schemas
from support.children import Process, start
from support.clock import eventually
from support.constants import ROOT, SECRET, SERVE, TESTS
from support.network import free_port, serving
from support.signing import signed


def _assert_described(response: httpx.Response) -> None:
    """Check an answer against the OpenAPI document."""
    request = response.request
    if request.method != "HEAD":
        body = response.read()
        headers = response.headers
        faults = schemas.response_faults(request.method, request.url.path, response.status_code, headers, body)
        assert faults == [], response.text


class Endpoint:
    """Where the service listens, with a client that posts to it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=15,
            verify=False,  # certificates are of no use here, and reading them takes 40 ms
            event_hooks={"response": [_assert_described]},
        )

    def deliver(
        self, event: object, message_id: str | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Sign as Svix would and post."""
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        return self.post(body, signed(body, message_id) | (headers or {}))

    def post(self, body: bytes | Iterator[bytes], headers: dict[str, str]) -> httpx.Response:
        headers = {"content-type": "application/json"} | headers
        return self.http.post("/webhooks/clerk", content=body, headers=headers)


class _Silent(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def run_plain_wsgi(settings: Settings) -> Iterator[Endpoint]:
    """Run what `create_app` returns under a plain WSGI server with threads, in this process."""
    app = create_app(settings)
    with (
        contextlib.closing(app.store),
        make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent) as server,
        serving(server),
    ):
        endpoint = Endpoint(server.server_port)
        with endpoint.http:
            yield endpoint


class ServiceProcess(Endpoint):
    """`session-relay serve`."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
        super().__init__(port)
        self.process = process
        self._log = log
        self.final_log = ""
        """What the log held when the service was stopped."""

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_text().splitlines()]

    def log_text(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """Stop it as a platform does, and return its exit status."""
        self.process.terminate()
        status = self.process.wait(timeout=25)
        self.final_log = self.log_text()
        return status


@contextlib.contextmanager
def run_service(
    redis_url: str, *, command: Sequence[str] | None = None, **environment: str
) -> Iterator[ServiceProcess]:
    """Run the service on a free port until it answers.

    command: instead of `serve`. environment: settings; see docs/contract.md, section 2.
    """
    with tempfile.TemporaryDirectory(prefix="session-relay-test-") as directory:
        for _ in range(3):  # someone else may take the free port first
            port = int(environment.get("PORT") or free_port())
            log = Path(directory) / "log"
            settings = {
                "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
                "REDIS_URL": redis_url,
                "HOST": "127.0.0.1",
                "PORT": str(port),
                "PYTHONPATH": f"{ROOT}:{TESTS}",
            }
            with log.open("wb") as output:
                process = start(
                    command or SERVE,
                    Path(directory),
                    os.environ | settings | environment,
                    [output.fileno()] * 2,
                    new_session=False,
                )
            service = ServiceProcess(process, port, log)
            workers = int(environment.get("WEB_CONCURRENCY", "1"))
            try:
                if _starts(service, workers):
                    yield service
                    return
            finally:
                service.http.close()
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
                    try:
                        process.wait(timeout=25)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
        raise RuntimeError(f"The service did not start:\n{log.read_text()}")


def _starts(service: ServiceProcess, workers: int) -> bool:
    """Wait until it answers, with all its worker processes; return False if it ends instead."""

    def outcome() -> str:
        if service.process.poll() is not None:
            return "ended"
        try:
            answers = service.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return ""
        return "started" if answers and service.log_text().count("Application startup complete.") >= workers else ""

    return eventually(outcome, within=60) == "started"


def workers_of(main: int) -> set[int]:
    """Return the process ids of the workers of `serve`, which are started as Python starts them anew."""
    listing = Path(f"/proc/{main}/task/{main}/children")
    if not listing.exists():
        pytest.skip("needs /proc to look for processes")
    workers = set()
    for pid in map(int, listing.read_text().split()):
        with contextlib.suppress(OSError):  # it may end meanwhile
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                workers.add(pid)
    return workers


def metric(text: str, name: str, **labels: str) -> float:
    """Return one sample out of Prometheus' text format; 0 if it is not there."""
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match and wanted <= set((match[1] or "").split(",")):
            return float(match[2])
    return 0.0
