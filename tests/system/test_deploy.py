"""What is there to deploy from (app.json, Dockerfile, compose.yaml, docs/deploy.md) fits the service."""

import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from clerk_session_feed import SessionFeed
from clerk_session_feed.errors import ConfigurationError
from support.children import started
from support.clock import eventually
from support.constants import NO_REDIS, RELAY, ROOT, SECRET, SERVE
from support.events import clerk_event
from support.network import serving, unused_port
from support.onlookers import our_client
from support.redis_clients import client_of
from support.relay import make_settings, run_relay
from support.services import ServiceProcess, run_service

from service.cli.check import run_checks
from service.dev.embedded import EmbeddedRedis
from service.server.system import listen

DOCS: Final = (ROOT / "docs" / "deploy.md").read_text()
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
PLAN: Final = 20


def health(directory: Path, **environment: str) -> tuple[int, str]:
    """Run the image's health check in a directory; return its exit status, and what it says."""
    (command,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    _, *arguments = json.loads(command)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def everywhere(any_redis: EmbeddedRedis) -> Iterator[ServiceProcess]:
    """A service that listens on every address, of IPv6 and IPv4."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    with run_service(any_redis.url, HOST="::") as service:
        yield service


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_service_that_listens_on_all_addresses_of_ipv6_takes_ipv4_too(
    address: str, everywhere: ServiceProcess
) -> None:
    response = httpx.get(str(httpx.URL(scheme="http", host=address, port=everywhere.port, path="/healthz")))

    assert response.status_code == 200


@pytest.mark.parametrize("host", ["::", "[::]", "0.0.0.0", "", "127.0.0.1", "::1", "[::1]", "localhost"])
def test_the_images_health_is_that_of_the_service(host: str, everywhere: ServiceProcess, tmp_path: Path) -> None:
    assert health(tmp_path, HOST=host, PORT=str(everywhere.port)) == (0, "")


def test_the_images_health_is_asked_where_the_file_of_settings_says(everywhere: ServiceProcess, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"HOST='::1'\nPORT={everywhere.port}\n")

    assert health(tmp_path) == (0, "")


def test_the_images_health_is_asked_at_the_one_address_of_the_service(service: ServiceProcess, tmp_path: Path) -> None:
    port = str(service.port)

    assert health(tmp_path, HOST="127.0.0.1", PORT=port) == (0, "")
    status, said = health(tmp_path, HOST="::1", PORT=port)
    assert (status, said.partition(": ")[0]) == (1, f"::1 port {port}")


def test_a_service_that_is_away_is_not_healthy(tmp_path: Path) -> None:
    with unused_port() as port:
        status, said = health(tmp_path, HOST="::", PORT=str(port))

    assert status == 1
    assert "refused" in said
    assert len(said.splitlines()) == 1


def test_another_program_at_the_port_is_not_healthy(tmp_path: Path) -> None:
    class NotFound(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), NotFound) as server, serving(server):
        status, said = health(tmp_path, PORT=str(server.server_address[1]))

    assert status == 1
    assert "/healthz responds with '404'" in said


# Where `serve` listens


def resolved(*addresses: str) -> Callable[..., list[Any]]:
    """Return a getaddrinfo that finds these addresses."""

    def find(_: str, port: int, **__: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [(family, None, 0, "", (address, port)) for family, address in zip(families, addresses, strict=True)]

    return find


def test_a_name_with_several_addresses_is_listened_for_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolved("127.0.0.1", "127.0.0.2", "127.0.0.1"))
    sockets = listen("name", 0)

    names = [each.getsockname() for each in sockets]
    for each in sockets:
        each.close()

    assert [name for name, _ in names] == ["127.0.0.1", "127.0.0.2"]
    assert len({port for _, port in names}) == 1


def test_an_address_of_another_machine_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolved("203.0.113.1", "127.0.0.1"))
    (only,) = listen("name", 0)
    with only:
        assert only.getsockname()[0] == "127.0.0.1"


def test_no_address_of_this_machine_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolved("203.0.113.1", "203.0.113.2"))
    with pytest.raises(ConfigurationError, match=r"^HOST, PORT: can't listen on name port 0: .*; set PORT to a free"):
        listen("name", 0)


# What it runs in


def test_one_process_needs_no_directory_that_can_be_written(any_redis: EmbeddedRedis) -> None:
    with run_service(any_redis.url, PROMETHEUS_MULTIPROC_DIR="/dev/null/metrics") as service:
        assert service.http.get("/metrics").status_code == 200


READ_ONLY: Final = """
mount -o remount,bind,ro / && mount -t tmpfs none /tmp && mount -o remount,ro /tmp || exit 77
for place in /var/tmp /usr/tmp /dev/shm /run; do
    mountpoint -q $place && { mount -o remount,ro $place || mount -o remount,bind,ro $place || exit 77; }
done
cd /
touch /tmp/file /var/tmp/file 2>/dev/null && exit 77
[ -x "$1" ] || exit 77  # this checkout lies below /tmp, which is empty now
exec "$@"
"""
"""A root without a directory that can be written, in a mount namespace of its own; 77 where that is not possible."""


def test_a_read_only_root_without_tmp_is_one_line() -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare")
    done = subprocess.run(
        [unshare, "--mount", "--map-root-user", "sh", "-c", READ_ONLY, "sh", *SERVE],
        env={
            **{name: value for name, value in os.environ.items() if name not in {"TMPDIR", "TEMP", "TMP"}},
            "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
            "REDIS_URL": NO_REDIS,
            "WEB_CONCURRENCY": "2",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77 or "unshare: " in done.stderr:
        pytest.skip("needs the right to mount")

    *_, last = done.stderr.splitlines()
    assert done.returncode == 2
    assert last.startswith("TMPDIR: no directory can be made for temporary files (")
    assert "Traceback" not in done.stderr


# Connections to Redis


def rows(title: str) -> list[list[str]]:
    table = DOCS.partition(f"| {title} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("row", rows("`WEB_CONCURRENCY`"), ids=str)
def test_what_is_said_of_the_smallest_plan_is_what_check_says(
    row: list[str], start_redis: Callable[..., EmbeddedRedis]
) -> None:
    workers, running, deploy, left = map(int, row)
    server = start_redis("--appendonly", "yes", "--maxclients", str(deploy))
    settings = make_settings(server.url, web_concurrency=workers)
    fits = list(run_checks(settings))
    with client_of(server.url) as client:
        client.config_set("maxclients", deploy - 1)
        does_not = [finding.text for finding in run_checks(settings) if finding.level == "warning"]

    assert left == PLAN - deploy
    assert f": {running} needed" in "".join(finding.text for finding in fits)
    assert not [finding for finding in fits if finding.level != "ok"]
    assert "during a deploy twice that" in "".join(does_not)


def said(what: str) -> int:
    """Return the number that the docs say of something."""
    (cell,) = [cell for names, cell in rows("what") if f"`{what}`" in names]
    return int(re.findall(r"\d+", cell)[-1 if "then" in cell else 0])


@pytest.fixture
def connections(start_redis: Callable[..., EmbeddedRedis]) -> Iterator[tuple[str, Callable[[], int]]]:
    """Return a Redis of its own, and what counts the connections to it, but for ours."""
    server = start_redis()
    with our_client(server.url) as client:
        yield server.url, lambda: len(client.client_list()) - 1


@pytest.mark.parametrize("name", ["follow()", "consume()", "subscribe()", "tail"])
def test_a_consumer_takes_as_many_connections_as_is_said(name: str, connections: tuple[str, Callable[[], int]]) -> None:
    url, count = connections
    with ThreadPoolExecutor(1) as threads, SessionFeed.from_url(url) as feed:
        updates: dict[str, Callable[[], Iterator[Any]]] = {
            "follow()": feed.follow,
            "consume()": lambda: feed.consume("group", "name"),
            "subscribe()": feed.subscribe,
            "tail": lambda: feed.follow(feed.now()),
        }
        documented = said("session-relay tail" if name == "tail" else f"feed.{name}")
        loop = updates[name]()
        first = threads.submit(next, loop)
        eventually(lambda: count() == documented)
        with run_relay(url) as relay:
            relay.take(clerk_event(), "msg_1")

        assert first.result(timeout=30).session.id == "sess_1"
        eventually(lambda: count() == documented)


def test_short_reads_take_no_more_connections_than_is_said(connections: tuple[str, Callable[[], int]]) -> None:
    url, count = connections
    with SessionFeed.from_url(url) as feed, ThreadPoolExecutor(16) as threads:
        list(threads.map(feed.is_live, [f"sess_{number}" for number in range(500)]))

        assert 1 <= count() <= 8
    assert "up to 8 for a feed" in DOCS


def test_the_expiry_worker_takes_as_many_connections_as_is_said(
    connections: tuple[str, Callable[[], int]], tmp_path: Path
) -> None:
    url, count = connections
    with run_relay(url) as relay:
        relay.take(clerk_event(), "msg_1")
    with started([*RELAY, "expire"], tmp_path, {"REDIS_URL": url}) as worker:
        worker.wait_for("sessions_expired", stream="stderr")

        eventually(lambda: count() == said("session-relay expire"))
