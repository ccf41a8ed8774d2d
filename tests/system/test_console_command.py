"""`session-relay console`: who gets in, what it changes, and how it ends. docs/console.md."""

import html
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.children import Program, started
from support.consoles import Deliveries
from support.constants import RELAY
from support.redis_clients import client_of
from support.relay import run_relay

from service.dev.embedded import EmbeddedRedis

SECONDS = 15


@pytest.fixture
def deliveries(own_redis: EmbeddedRedis) -> Iterator[Deliveries]:
    with run_relay(own_redis.url) as relay:
        yield Deliveries(relay)


@pytest.fixture
def console(own_redis: EmbeddedRedis, deliveries: Deliveries, tmp_path: Path) -> Iterator[Program]:
    """The command, with REDIS_URL alone."""
    environment = {"REDIS_URL": own_redis.url, "CLERK_WEBHOOK_SIGNING_SECRET": "", "CLERK_SECRET_KEY": ""}
    with started([*RELAY, "console", "--no-open", "--allow-changes"], tmp_path, environment) as program:
        program.wait_for("Ctrl-C stops")
        yield program


def link_of(program: Program) -> str:
    return program.wait_for(r"Sign in: (\S+)")[1]


@pytest.fixture
def browser(console: Program) -> Iterator[httpx.Client]:
    link = httpx.URL(link_of(console))
    with httpx.Client(base_url=link.join("/"), timeout=SECONDS, follow_redirects=True, trust_env=False) as browser:
        assert browser.get(link).status_code == 200
        yield browser


def post(browser: httpx.Client, page: httpx.Response, path: str, **data: str) -> httpx.Response:
    token = re.findall(r'name="form_token" value="([^"]*)"', page.text)[0]
    return browser.post(path, data={"form_token": html.unescape(token), **data})


def test_nobody_gets_in_without_the_link(console: Program) -> None:
    origin = httpx.URL(link_of(console)).join("/")
    with httpx.Client(base_url=origin, timeout=SECONDS, trust_env=False) as stranger:
        response = stranger.get("/console")
        assert response.status_code == 401
        assert "Press Enter in the terminal" in response.text
        assert stranger.get("/console", headers={"Host": "evil.example"}).status_code == 421
        assert stranger.post("/console/sign-in", data={"token": ""}).status_code == 403


def test_it_listens_on_loopback_alone(console: Program) -> None:
    port = httpx.URL(link_of(console)).port
    assert port is not None
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", port))


def test_a_session_is_revoked_here(
    browser: httpx.Client, console: Program, deliveries: Deliveries, own_redis: EmbeddedRedis
) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    asked = post(browser, browser.get("/console/sessions/sess_1"), "/console/sessions/sess_1/revoke")
    assert "Clerk is not told, since CLERK_SECRET_KEY is not set" in asked.text
    done = post(browser, asked, "/console/sessions/sess_1/revoke", confirmed="yes")
    assert "Here: revoked." in done.text
    with client_of(own_redis.url) as client:
        assert client.hget("{clerk}:session:sess_1", "status") in {"revoked", b"revoked"}
    assert "it was revoked here" in browser.get("/console/sessions/sess_1").text
    console.wait_for("console_changed", stream="stderr")


def test_dead_letters_are_replayed_and_dropped(browser: httpx.Client, deliveries: Deliveries) -> None:
    for _ in range(2):
        deliveries.send(id="sess_1", user_id="user_1", status="dormant")
    path = f"/console/dead-letters/{deliveries.last_id}"
    replayed = post(browser, browser.get(path), f"{path}/replay", confirmed="yes")
    assert "It is not replayed: invalid_status" in replayed.text
    dropped = post(browser, browser.get(path), f"{path}/drop", confirmed="yes")
    assert "It is removed." in dropped.text
    assert browser.get(path).status_code == 404
    assert browser.get("/console/dead-letters").text.count("invalid_status") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_while_a_tab_is_open(browser: httpx.Client, console: Program, number: signal.Signals) -> None:
    with browser.stream("GET", "/console/events") as events:
        assert "beat" in next(events.iter_text())
        assert console.stop(number) == 0


def test_a_port_that_is_taken_is_named(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*RELAY, "console", "--no-open", "--port", str(port)]
        with started(command, tmp_path, {"REDIS_URL": own_redis.url}) as program:
            assert program.end() == 2
            assert program.stderr.startswith(f"--port: {port} on 127.0.0.1 can't be used")
