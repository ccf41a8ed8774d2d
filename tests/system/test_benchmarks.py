"""The benchmark: its contenders do the work, its figures are what they are called, its deliveries are genuine."""

import asyncio
import contextlib
import importlib
import itertools
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import httpx
import pytest
import redis
from clerk_session_feed.updates import now_ms
from support.constants import SECRET
from support.network import serving
from support.redis_clients import client_of
from support.relay import Relay, run_relay

from benchmarks import builds, compare, deliveries, growth, measure, open_loop, processes
from benchmarks.measure import Store
from benchmarks.processes import Server, VoidError
from service.dev import simulator
from service.dev.embedded import EmbeddedRedis

pytestmark = pytest.mark.real_redis

Post = Callable[[bytes, dict[str, str]], tuple[int, Any]]


# The contenders


def _module(name: str) -> ModuleType:
    pytest.importorskip("fastapi")
    full_name = f"benchmarks.contenders.{name}"
    sys.modules.pop(full_name, None)  # it reads the environment on import
    return importlib.import_module(full_name)


@contextlib.contextmanager
def flask_gunicorn(_: Path) -> Iterator[Post]:
    module = _module("flask_gunicorn")

    def post(body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        answer = module.app.test_client().post("/webhooks/clerk", data=body, headers=headers)
        return answer.status_code, answer.json

    yield post
    module.apply_session.registered_client.close()


@contextlib.contextmanager
def fastapi_uvicorn(_: Path) -> Iterator[Post]:
    module = _module("fastapi_uvicorn")

    async def send(body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        transport = httpx.ASGITransport(module.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
            answer = await client.post("/webhooks/clerk", content=body, headers=headers)
        await module.apply_session.registered_client.aclose()
        return answer.status_code, answer.json()

    yield lambda body, headers: asyncio.run(send(body, headers))


@contextlib.contextmanager
def _program(name: str, folder: Path) -> Iterator[Post]:
    contender = next((each for each in compare.available() if each.name == name), None)
    if contender is None:
        pytest.skip("needs what `make bench` installs")
    environment = {name: os.environ[name] for name in ("CLERK_WEBHOOK_SIGNING_SECRET", "REDIS_URL")}
    with processes.running(contender.command, environment, folder) as server:

        def post(body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
            answer = httpx.post(f"http://127.0.0.1:{server.port}/webhooks/clerk", content=body, headers=headers)
            return answer.status_code, answer.json()

        yield post


fastify = partial(_program, "(c) Fastify, Node")
bun = partial(_program, "(d) Bun")


@pytest.fixture(params=[flask_gunicorn, fastapi_uvicorn, fastify, bun], ids=["flask", "fastapi", "fastify", "bun"])
def contender(
    request: pytest.FixtureRequest, real_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Post]:
    monkeypatch.setenv("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
    monkeypatch.setenv("REDIS_URL", real_redis.url)
    with request.param(tmp_path) as post:
        yield post


def _states(client: Any) -> dict[str, Any]:
    """Return the messages held, but for their cursors; and empty the store."""
    held = {
        key: json.loads(client.hget(key, "state")) | {"cursor": None} for key in client.scan_iter("{clerk}:session:*")
    }
    client.flushall()
    return held


def test_a_contender_writes_what_the_service_writes_and_refuses_what_is_forged(
    contender: Post, real_redis: EmbeddedRedis
) -> None:
    body = simulator.encode(simulator.sample("session.created"))
    headers = simulator.sign(SECRET, body)

    with client_of(real_redis.url) as client, run_relay(real_redis.url, now_ms=now_ms()) as relay:
        client.flushall()
        client.script_flush()
        forged = contender(body + b" ", headers)
        assert (forged[0], client.dbsize()) == (400, 0)

        status, answer = contender(body, headers)
        assert (status, answer["outcome"], answer["revision"]) == (200, "applied", 1)
        written = _states(client)

        relay.take(body, headers["svix-id"])
        assert written == _states(client)


def test_a_contender_whose_program_does_not_run_is_left_out_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(name: str, script: str) -> compare.Contender:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return compare.Contender(name, (str(program),), npm_packages=("bun",))

    (tmp_path / "bun").mkdir()
    good, placeholder = made("good", "echo 1.4.5"), made("placeholder", "exit 1")
    foreign = made("foreign", "")
    Path(foreign.command[0]).write_bytes(b"\x7fELF")
    monkeypatch.setattr(compare, "CONTENDERS", (placeholder, good, foreign))

    assert compare.available(tmp_path) == [good]

    said = capsys.readouterr().err.splitlines()
    assert [line.split(" is left out: ")[0] for line in said] == ["placeholder", "foreign"]


# Builds


def test_a_build_is_that_of_its_revision_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "service.py"
    program.write_text("print('committed')")
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "Procfile").write_text("web: python -m service\n")
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *command], check=True)
    program.write_text("print('changed since')")
    folder = builds.install("HEAD", tmp_path)
    monkeypatch.setattr(builds, "install", partial(builds.install, root=tmp_path))
    (folder / "tree" / "kept").touch()

    this, through_flask, then = compare.builds_against("HEAD")

    output = subprocess.run(
        then.command, env=dict(then.environment), cwd=folder, capture_output=True, text=True, check=True
    )
    assert output.stdout == "committed\n"
    assert (folder / "tree" / "kept").exists()
    assert this.environment == {**through_flask.environment, "SERVE_FAST_LANE": "true"}
    assert folder.name.startswith(then.name)
    with pytest.raises(click.ClickException, match="v9 is no revision"):
        compare.builds_against("v9")


# Figures


@pytest.fixture
def store(real_redis: EmbeddedRedis) -> Iterator[Store]:
    assert real_redis.process is not None
    with redis.Redis.from_url(real_redis.url, protocol=2) as client:
        client.flushall()
        yield Store(client, real_redis.url, real_redis.port, real_redis.process.pid)


@pytest.fixture
def filled(store: Store, real_redis: EmbeddedRedis) -> Iterator[tuple[Store, Relay]]:
    """A store with one session."""
    with run_relay(real_redis.url, now_ms=now_ms()) as relay:
        relay.take(simulator.sample(session_id="sess_1", user_id="user_1"), "msg_1")
        yield store, relay


@pytest.mark.parametrize(
    ("answered", "failed"), [(1, 1), (2, 0), (0, 0)], ids=["some failed", "some are not applied", "as it should be"]
)
def test_a_figure_is_void_unless_all_that_was_answered_is_applied(
    filled: tuple[Store, Relay], monkeypatch: pytest.MonkeyPatch, answered: int, failed: int
) -> None:
    store, relay = filled

    def wrk(*_: Any) -> dict[str, Any]:
        relay.take(simulator.sample(), "msg_2")
        return {"requests": answered or 1, "seconds": 2, "failed": failed, "p50_ms": 1, "p99_ms": 2}

    monkeypatch.setattr(measure, "wrk", wrk)
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0)
    void = pytest.raises(VoidError) if answered else contextlib.nullcontext()

    with void:
        measured = measure.saturate(Server(0, os.getpid()), store, Path(), 2)
        assert (measured.per_second, measured.p99_ms) == (0.5, 2)


def test_sessions_that_fill_the_store_are_like_the_one_they_are_copied_from(filled: tuple[Store, Relay]) -> None:
    store, _ = filled

    growth.fill(store, 2, 4)

    client, name = store.client, "{:027d}".format
    assert store.sessions() == 4
    assert client.zcard("{clerk}:expiry") == 4
    for number in (2, 3, 4):
        copy = {
            field: value.replace(name(number).encode(), b"1")
            for field, value in client.hgetall(f"{{clerk}}:session:sess_{name(number)}").items()
        }
        assert copy == client.hgetall("{clerk}:session:sess_1")
        assert client.zrange(f"{{clerk}}:user:user_{name(number)}:sessions", 0, -1) == [f"sess_{name(number)}".encode()]


# The sender


def test_a_stalled_server_holds_nothing_back_and_is_charged_for_all_that_was_due(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is answered until all have been sent: a sender that waited for answers would wait for ever."""
    count, rate = 5, 50
    all_there = threading.Barrier(count, timeout=10)
    monkeypatch.setattr(open_loop, "WARM_UP", 0)

    class Stalled(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            headers = dict(line.decode().strip().split(": ") for line in itertools.islice(self.rfile, 1, 8))
            self.rfile.readline()
            self.rfile.read(int(headers["content-length"]))
            all_there.wait()
            store.client.publish("clerk:sessions", f'{{"event":{{"id":"{headers["svix-id"]}"}}}}')
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    requests = list(itertools.islice(deliveries.requests(SECRET), count))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stalled) as server, serving(server):
        run = open_loop.send(server.server_address[1], store.port, requests, rate)

    assert len(run.answers) == len(run.receipts) == count
    assert max(run.answers) >= (count - 1) / rate
    assert max(run.receipts) >= (count - 1) / rate
