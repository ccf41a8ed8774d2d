"""What is there to deploy from (app.json, Dockerfile, compose.yaml, docs/deploy.md) fits the service."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from clerk_session_feed import SessionFeed
from support.clock import eventually
from support.constants import ROOT
from support.events import clerk_event
from support.network import unused_port
from support.onlookers import our_client
from support.redis_clients import client_of
from support.relay import make_settings, run_relay
from support.services import ServiceProcess

from service.cli.check import run_checks
from service.dev.embedded import EmbeddedRedis
from service.workers.expiry import ExpiryWorker

DOCS: Final = (ROOT / "docs" / "deploy.md").read_text()
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
PLAN: Final = 20


def test_the_images_health_is_that_of_the_service(service: ServiceProcess) -> None:
    (command,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    _, *arguments = json.loads(command)

    def status(port: int) -> int:
        environment = os.environ | {"PORT": str(port)}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL, timeout=60, check=False
        ).returncode

    with unused_port() as port:
        assert (status(service.port), status(port)) == (0, 1)


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


def test_the_expiry_worker_takes_as_many_connections_as_is_said(connections: tuple[str, Callable[[], int]]) -> None:
    url, count = connections
    with run_relay(url) as relay:
        relay.take(clerk_event(), "msg_1")
    eventually(lambda: count() == 0)
    with contextlib.closing(ExpiryWorker(make_settings(url))) as worker:
        assert worker.run_once()[0] == 1

        assert count() == said("session-relay expire")
