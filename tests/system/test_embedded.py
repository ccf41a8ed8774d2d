"""The Redis that `dev` and these tests start for themselves."""

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest
from support.network import free_port
from support.redis_clients import client_of, subscribed

from service.dev import embedded
from service.dev.embedded import EmbeddedRedis
from service.errors import StartError
from service.schema import json_schema


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_takes_commands_and_publishes_to_any_client(relay_redis: EmbeddedRedis) -> None:
    with client_of(relay_redis.url) as one, client_of(relay_redis.url) as other:
        one.set("{clerk}:greeting", "hello")
        assert other.get("{clerk}:greeting") == "hello"
        message = json.dumps(json_schema.json_of(json_schema.EXAMPLE))
        with subscribed(other, "clerk:sessions") as subscriber:
            one.publish("clerk:sessions", message)
            assert subscriber.next() == ("clerk:sessions", message)


def test_it_runs_lua(relay_redis: EmbeddedRedis) -> None:
    with client_of(relay_redis.url) as client:
        assert client.eval("return redis.call('PING')['ok'] .. ARGV[1]", 0, "!") == "PONG!"


def test_it_takes_the_redis_server_on_path_if_there_is_one(redis_binary: str) -> None:
    with embedded.run() as server:
        assert server.name == f"redis-server ({redis_binary})"
        assert server.process is not None


def test_it_takes_the_stand_in_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with embedded.run() as server:
        assert "stand-in" in server.name
        assert server.process is None
        with client_of(server.url) as client:
            assert client.ping()


def test_two_servers_share_nothing(redis_binary: str) -> None:
    with embedded.run_server(redis_binary) as one, embedded.run_server(redis_binary) as other:
        assert one.port != other.port
        with client_of(one.url) as client, client_of(other.url) as other_client:
            client.set("x", "1")
            assert other_client.get("x") is None


def test_two_stand_ins_share_nothing() -> None:
    with embedded.run_stand_in() as one, embedded.run_stand_in() as other:
        assert one.port != other.port
        with client_of(one.url) as client, client_of(other.url) as other_client:
            client.set("x", "1")
            assert other_client.get("x") is None


def test_nothing_of_a_server_is_left_behind(redis_binary: str) -> None:
    with embedded.run_server(redis_binary) as server:
        assert server.process is not None
        with client_of(server.url) as client:
            directory = client.config_get("dir")["dir"]
            client.set("x", "1")
        assert listens(server.port)

    assert server.process.poll() is not None
    assert not listens(server.port)
    assert not Path(directory).exists()


def test_nothing_of_a_stand_in_is_left_behind() -> None:
    with embedded.run_stand_in() as server:
        assert listens(server.port)

    assert not listens(server.port)


def test_a_server_ends_with_an_error_too(redis_binary: str) -> None:
    with contextlib.suppress(KeyError), embedded.run_server(redis_binary) as server:
        raise KeyError

    assert server.process is not None
    assert server.process.poll() is not None


def test_ctrl_c_in_the_terminal_is_not_for_the_server(redis_binary: str) -> None:
    """Ctrl-C goes to a process group; the server is in another one, and ends after those who use it."""
    with embedded.run_server(redis_binary) as server:
        assert server.process is not None
        assert os.getpgid(server.process.pid) != os.getpgid(0)


def test_a_server_that_hangs_is_ended_too(redis_binary: str) -> None:
    with embedded.run_server(redis_binary) as server:
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)

    assert server.process.poll() is not None


def test_a_server_that_does_not_start_says_why(redis_binary: str) -> None:
    with pytest.raises(StartError, match="did not start"), embedded.run_server(redis_binary, ["--no-such-option", "1"]):
        pass


def test_it_is_told_nothing_that_older_servers_do_not_know(redis_binary: str, tmp_path: Path) -> None:
    """It starts, and whoever uses it says that its version is too old."""
    older = tmp_path / "redis-server"
    older.write_text(f'#!/bin/sh\ncase "$*" in *set-proc-title*) exit 1;; esac\nexec {redis_binary} "$@"\n')
    older.chmod(0o755)
    with embedded.run_server(str(older)) as server, client_of(server.url) as client:
        assert client.ping()


def test_a_port_can_be_asked_for(redis_binary: str) -> None:
    port = free_port()
    with embedded.run_server(redis_binary, port=port) as server:
        assert server.url == f"redis://127.0.0.1:{port}/0"


def test_a_port_that_is_taken_is_an_error(redis_binary: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(StartError, match="did not start"),
            embedded.run_server(redis_binary, port=taken.getsockname()[1]),
        ):
            pass


def test_a_port_of_another_redis_is_an_error(redis_binary: str) -> None:
    """Not that other one, taken for the one that was started."""
    with (
        embedded.run_server(redis_binary) as other,
        pytest.raises(StartError, match="did not start"),
        embedded.run_server(redis_binary, port=other.port),
    ):
        pass
