"""The commands as a user types them, with what they print and their exit status: docs/contract.md, section 8."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis
from clerk_session_feed import SessionFeed, SessionUpdate
from clerk_session_feed.models import Session
from click.testing import Result
from support.children import Program, finished, started
from support.cli import Environment, run
from support.clock import eventually
from support.constants import EVENTS_KEY, HOUR_MS, NO_REDIS, RELAY, ROOT, SECRET
from support.documents import REDIS
from support.events import clerk_event
from support.network import free_port, unused_port
from support.redis_clients import Subscriber, client_of, subscribed
from support.redis_servers import start_durable_redis
from support.relay import run_relay
from support.services import ServiceProcess

from service.cli.live import LiveSessions
from service.config import RedisSettings, load
from service.dev import simulator
from service.dev.embedded import EmbeddedRedis


def event(type_: str = "session.created", **data: Any) -> dict[str, Any]:
    """Return the body of a delivery that happens now, with these values in its `data`."""
    body = simulator.sample(type_)
    body["data"] |= data
    return body


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any .env."""
    monkeypatch.chdir(tmp_path)


def relay(
    *arguments: str, cwd: Path, environment: dict[str, str] | None = None, anew: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, to its end; anew: by a new interpreter."""
    settings = os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {})
    return finished([*RELAY, *arguments], cwd, settings, anew=anew)


# The command itself


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = relay("--help", cwd=tmp_path, anew=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m service" in done.stdout


def test_it_is_installed_as_session_relay() -> None:
    program = shutil.which("session-relay", path=str(Path(RELAY[0]).parent))
    if program is None:
        pytest.skip("the project is not installed in this environment")
    done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["Usage:", "session-relay"])


# serve


def test_serve_names_every_missing_setting_in_a_line_of_its_own(tmp_path: Path) -> None:
    done = relay("serve", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert sorted(line.partition(":")[0] for line in done.stderr.splitlines()) == [
        "CLERK_WEBHOOK_SIGNING_SECRET",
        "REDIS_URL",
    ]


@pytest.mark.parametrize(
    ("host", "why"), [("127.0.0.1", "Address already in use"), ("192.0.2.1", "Cannot assign requested address")]
)
def test_serve_tells_of_a_place_that_it_can_not_have_in_one_line(tmp_path: Path, host: str, why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {"CLERK_WEBHOOK_SIGNING_SECRET": SECRET, "REDIS_URL": NO_REDIS, "HOST": host}
        done = relay("serve", cwd=tmp_path, environment=environment | {"PORT": str(port)})
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"HOST, PORT: can't listen on {host} port {port}: {why}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Program]:
    """`python -m service serve`, with no Redis, settings in .env, and a PORT of the environment."""
    port = free_port()
    (tmp_path / ".env").write_text(
        f"CLERK_WEBHOOK_SIGNING_SECRET={SECRET}\nREDIS_URL={NO_REDIS}\nHOST=127.0.0.1\nPORT=1\n"
    )
    with started([*RELAY, "serve"], tmp_path, {"PORT": str(port)}, anew=True) as program:

        def answers() -> bool:
            assert program.process.poll() is None, program.stderr
            try:
                return httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
            except httpx.TransportError:
                return False

        eventually(answers, within=30)
        yield program


def test_serve_reads_dotenv_and_the_environment_wins(served: Program) -> None:
    assert served.process.poll() is None  # it answered on the environment's port, with the rest of .env


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_well_when_it_is_told_to(served: Program, number: int) -> None:
    assert served.stop(number) == 0
    assert served.stdout == ""
    assert "Traceback" not in served.stderr


def test_serve_logs_json_only(served: Program) -> None:
    served.stop()
    assert all(json.loads(line)["level"] for line in served.stderr.splitlines())


# send


SIGNING: Environment = {"CLERK_WEBHOOK_SIGNING_SECRET": SECRET}


@pytest.fixture
def published(any_client: Any) -> Iterator[Subscriber]:
    with subscribed(any_client, "clerk:sessions") as subscriber:
        yield subscriber


def rows(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


def send(service: ServiceProcess, *arguments: str, stdin: bytes | None = None) -> Result:
    return run("send", *arguments, environment={**SIGNING, "PORT": str(service.port)}, stdin=stdin)


def messages(subscriber: Subscriber) -> list[Any]:
    return [json.loads(data) for _, data in subscriber.rest()]


def test_send_without_a_type_creates_a_session(service: ServiceProcess, published: Subscriber) -> None:
    result = send(service)
    assert result.exit_code == 0
    (message,) = messages(published)
    assert (message["event"]["type"], message["session"]["status"]) == ("session.created", "active")
    assert rows(result) == [["200", "applied", "session.created", message["event"]["id"], message["session"]["id"]]]


@pytest.mark.parametrize(
    ("type_", "status"),
    [
        ("session.created", "active"),
        ("session.pending", "pending"),
        ("session.ended", "ended"),
        ("session.removed", "removed"),
        ("session.revoked", "revoked"),
        ("session.updated", "active"),  # Clerk sends no such event yet
    ],
)
def test_send_sends_each_type(type_: str, status: str, service: ServiceProcess, published: Subscriber) -> None:
    assert send(service, type_, "--any-type").exit_code == 0
    (message,) = messages(published)
    assert (message["event"]["type"], message["session"]["status"]) == (type_, status)


def test_send_of_several_types_is_the_life_of_one_session(service: ServiceProcess, published: Subscriber) -> None:
    assert send(service, "session.pending", "session.created", "session.revoked").exit_code == 0
    life = messages(published)
    assert [message["session"]["status"] for message in life] == ["pending", "active", "revoked"]
    assert [message["revision"] for message in life] == [1, 2, 3]
    assert len({(message["session"]["id"], message["session"]["user_id"]) for message in life}) == 1


@pytest.mark.parametrize("type_", ["user.updated", "organizationMembership.created", "sms.created"])
def test_send_of_another_type_is_ignored_by_the_relay(
    type_: str, service: ServiceProcess, published: Subscriber
) -> None:
    result = send(service, type_)
    assert result.exit_code == 0
    assert rows(result)[0][:3] == ["200", "ignored", type_]
    assert messages(published) == []


def test_a_file_is_accepted_by_the_relay(service: ServiceProcess, published: Subscriber, tmp_path: Path) -> None:
    body = event("session.ended")
    (tmp_path / "event.json").write_text(json.dumps(body, indent=2))
    result = send(service, "event.json")
    assert result.exit_code == 0
    (message,) = messages(published)
    assert message["session"]["id"] == body["data"]["id"]
    assert rows(result)[0][2] == "event.json"


def test_count_makes_a_new_session_each_time(service: ServiceProcess, published: Subscriber) -> None:
    result = send(service, "session.created", "session.ended", "--count", "5")
    assert result.exit_code == 0
    sent = messages(published)
    *lines, sums = result.stdout.splitlines()
    assert len(sent) == len(lines) == 10
    assert len({message["session"]["id"] for message in sent}) == 5
    assert sums == "10 sent: 10 got 200 applied"


def test_duplicate_sends_each_delivery_twice(service: ServiceProcess, published: Subscriber) -> None:
    result = send(service, "session.created", "session.ended", "--duplicate")
    assert result.exit_code == 0
    assert [row[1] for row in rows(result)] == ["applied", "duplicate", "applied", "duplicate"]
    assert len(messages(published)) == 2


def test_shuffle_ends_in_the_same_state(service: ServiceProcess, published: Subscriber, any_client: Any) -> None:
    types = ["session.pending", "session.created", "session.revoked"]
    result = send(service, *types, "--count", "10", "--duplicate", "--shuffle")
    assert result.exit_code == 0
    assert len(rows(result)) == 60 + 1
    statuses = [any_client.hget(key, "status") for key in any_client.scan_iter("{clerk}:session:*")]
    assert statuses == ["revoked"] * 10


def test_forge_is_refused_and_that_is_a_success(service: ServiceProcess, published: Subscriber) -> None:
    result = send(service, "session.revoked", "--forge")
    assert result.exit_code == 0
    assert rows(result)[0][:3] == ["400", "invalid_signature", "session.revoked"]
    assert messages(published) == []


def test_a_delivery_that_is_refused_is_a_failure(service: ServiceProcess) -> None:
    result = send(service, "-", stdin=b"nonsense")
    assert result.exit_code == 1
    assert rows(result)[0][:2] == ["400", "malformed_event"]


def test_one_delivery_that_is_refused_does_not_stop_the_others(service: ServiceProcess) -> None:
    result = send(service, "session.created", "-", "session.ended", stdin=b"nonsense")
    assert result.exit_code == 1
    assert [row[0] for row in rows(result)] == ["200", "400", "200"]


def test_a_dead_letter_is_no_failure(service: ServiceProcess) -> None:
    result = send(service, "--set", "data.status=asleep")
    assert result.exit_code == 0
    assert rows(result)[0][:2] == ["202", "dead_lettered"]


def test_url_says_where_to(service: ServiceProcess) -> None:
    url = f"http://127.0.0.1:{service.port}/webhooks/clerk"
    result = run("send", "--url", url, environment={**SIGNING, "PORT": "1"})
    assert (result.exit_code, rows(result)[0][:2]) == (0, ["200", "applied"])


def test_a_url_of_another_place_tells_so(service: ServiceProcess) -> None:
    url = f"http://127.0.0.1:{service.port}/webhooks/clark"
    result = run("send", "--url", url, environment=SIGNING)
    assert (result.exit_code, rows(result)[0][:2]) == (1, ["404", "not_found"])


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/", "http://127.0.0.1:port/", "http://[::1", ""])
def test_a_url_that_is_none_is_told_in_one_line(url: str) -> None:
    result = run("send", "--url", url, environment={**SIGNING, "PORT": "1"})
    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output


def test_send_says_clearly_that_nothing_listens() -> None:
    result = run("send", environment={**SIGNING, "PORT": "1"})
    assert result.exit_code == 1
    assert "no response" in result.output
    assert "refused" in result.output


def test_send_signs_with_the_first_of_several_secrets(service: ServiceProcess) -> None:
    secrets = f"{SECRET},{simulator.new_secret()}"
    result = run("send", environment={"CLERK_WEBHOOK_SIGNING_SECRET": secrets, "PORT": str(service.port)})
    assert result.exit_code == 0


def test_send_never_shows_the_secret(service: ServiceProcess) -> None:
    assert SECRET.removeprefix("whsec_")[:12] not in send(service, "session.created").output


def test_a_misspelt_type_reaches_nobody(service: ServiceProcess, published: Subscriber) -> None:
    assert send(service, "session.created", "session.revokd").exit_code == 1
    assert messages(published) == []


# Completion


def test_bash_completes_the_types_of_events() -> None:
    """With the script that the README puts into ~/.bashrc."""
    folder = str(Path(RELAY[0]).parent)
    if shutil.which("bash") is None or shutil.which("session-relay", path=folder) is None:
        pytest.skip("there is no bash, or the project is not installed in this environment")
    script = """
        compopt() { :; }  # bash has it only while a key is pressed
        eval "$(_SESSION_RELAY_COMPLETE=bash_source session-relay)"
        COMP_WORDS=(session-relay send session.re) COMP_CWORD=2
        _session_relay_completion session-relay
        echo "${COMPREPLY[@]}"
    """
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["session.removed", "session.revoked"], "")


# tail


Tail = Callable[..., Program]


@pytest.fixture
def tail(any_redis: EmbeddedRedis, tmp_path: Path) -> Iterator[Tail]:
    """Start `tail`, in processes of their own: it ends only when it is told to."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, redis_url=any_redis.url: stack.enter_context(
            started([*RELAY, "tail", *arguments], tmp_path, {"REDIS_URL": redis_url})
        )


@pytest.fixture
def tail_to_the_end(any_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return what `tail` prints in this process until it has shown all there is, where Ctrl-C hits it."""
    follow = SessionFeed.follow

    def follow_to_the_end(feed: SessionFeed, after: Any, **options: Any) -> Iterator[SessionUpdate]:
        with client_of(any_redis.url) as client:
            ((last, _),) = client.xrevrange(EVENTS_KEY, count=1)
        for update in follow(feed, after, **options):
            yield update
            if update.cursor == last:
                raise KeyboardInterrupt

    monkeypatch.setattr(SessionFeed, "follow", follow_to_the_end)

    def tail(*arguments: str) -> list[str]:
        result = run("tail", *arguments, environment={"REDIS_URL": any_redis.url})
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout.splitlines()

    return tail


def deliver(service: ServiceProcess, body: dict[str, Any]) -> Any:
    answer = service.deliver(body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def channel_messages(service: ServiceProcess, client: Any, *bodies: dict[str, Any]) -> list[str]:
    """Deliver these, and return what was published."""
    with subscribed(client, "clerk:sessions") as subscriber:
        for body in bodies:
            deliver(service, body)
        return [data for _, data in subscriber.rest()]


Lines = Callable[..., list[str]]


def test_tail_from_start_shows_what_is_there(service: ServiceProcess, tail_to_the_end: Lines) -> None:
    answers = [deliver(service, event(type_)) for type_ in ("session.created", "session.revoked")]
    first, second = tail_to_the_end("--from", "start")
    assert "session.created" in first
    assert "active (live)" in first
    assert answers[0]["session_id"] in first
    assert "session.revoked" in second
    assert "revoked (not live)" in second


def test_tail_shows_what_comes_later(service: ServiceProcess, tail: Tail) -> None:
    first = deliver(service, event())
    program = tail("--from", "start")
    program.wait_for(first["session_id"])
    second = deliver(service, event())
    program.wait_for(second["session_id"])


def test_tail_from_now_shows_only_what_comes_later(service: ServiceProcess, tail: Tail) -> None:
    before = deliver(service, event())
    program = tail()

    def something_is_shown() -> bool:
        deliver(service, event())
        return bool(program.stdout)

    eventually(something_is_shown, within=30)
    assert before["session_id"] not in program.stdout


def test_tail_from_a_cursor_shows_only_what_is_after_it(service: ServiceProcess, tail_to_the_end: Lines) -> None:
    answers = [deliver(service, event()) for _ in range(3)]
    (line,) = tail_to_the_end("--from", answers[1]["cursor"])
    assert answers[2]["session_id"] in line


def test_tail_shows_what_a_session_was_before(service: ServiceProcess, tail_to_the_end: Lines) -> None:
    created = event()
    deliver(service, created)
    deliver(service, event("session.ended", id=created["data"]["id"]))
    assert "active → ended" in tail_to_the_end("--from", "start")[1]


@pytest.mark.parametrize("cursor", ["18446744073709551616-0", "0-18446744073709551616"])
def test_tail_refuses_a_cursor_too_large_for_redis(cursor: str, any_redis: EmbeddedRedis) -> None:
    result = run("tail", "--from", cursor, environment={"REDIS_URL": any_redis.url})
    assert result.exit_code in {1, 2}
    assert len(result.stderr.splitlines()) <= 4


def redis_time_ms(client: Any) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


@pytest.mark.parametrize("sequence", ["", "-0", "-7"])
def test_tail_refuses_to_begin_in_the_future(sequence: str, service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    deliver(service, event())
    with client_of(any_redis.url) as client:
        cursor = f"{redis_time_ms(client) + HOUR_MS}{sequence}"
    result = run("tail", "--from", cursor, environment={"REDIS_URL": any_redis.url})
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"'--from': {cursor} is in the future: by Redis' clock, it is 20" in result.stderr
    assert "UTC" in result.stderr


def test_tail_of_partitions_refuses_to_begin_in_the_future(any_redis: EmbeddedRedis, any_client: Any) -> None:
    environment = {"REDIS_URL": any_redis.url, "PARTITIONS": "2", "REDIS_KEY_PREFIX": "{parts}"}
    result = run("tail", "--from", f"{redis_time_ms(any_client) + HOUR_MS}-0", environment=environment)
    assert result.exit_code == 2
    assert "in the future" in result.stderr


def test_tail_begins_at_any_entry_of_a_redis_whose_clock_was_put_back(
    any_redis: EmbeddedRedis, any_client: Any, tmp_path: Path
) -> None:
    ahead = redis_time_ms(any_client) + HOUR_MS
    any_client.xadd(EVENTS_KEY, {"outcome": "none"}, id=f"{ahead}-0")  # so are those that follow
    with run_relay(any_redis.url) as relay:
        first, _ = (relay.take(clerk_event(session_id=f"sess_{number}"), f"msg_{number}") for number in (1, 2))
    any_client.xdel(EVENTS_KEY, f"{ahead}-0")
    assert int(str(first.cursor).partition("-")[0]) >= ahead
    with started([*RELAY, "tail", "--from", str(first.cursor)], tmp_path, {"REDIS_URL": any_redis.url}) as program:
        program.wait_for("sess_2")
        assert "sess_1 " not in program.stdout


def test_tail_begins_at_any_time_that_has_passed(service: ServiceProcess, tail: Tail, any_client: Any) -> None:
    answer = deliver(service, event())
    any_client.xtrim(EVENTS_KEY, 0, approximate=False)
    program = tail("--from", str(redis_time_ms(any_client)))
    later = deliver(service, event())
    program.wait_for(later["session_id"])
    assert answer["session_id"] not in program.stdout


def test_tail_of_a_user_shows_only_that_user(service: ServiceProcess, tail_to_the_end: Lines) -> None:
    deliver(service, event(user_id="user_1"))
    wanted = deliver(service, event(user_id="user_2"))
    deliver(service, event(user_id="user_22"))
    last = deliver(service, event(user_id="user_2"))
    lines = tail_to_the_end("--from", "start", "--user", "user_2")
    assert [line.split()[-2] for line in lines] == [wanted["session_id"], last["session_id"]]


def late_event(service: ServiceProcess) -> tuple[Any, Any]:
    """Deliver a session's end, then its beginning, then another session; return the last two answers."""
    ended = event("session.ended")
    deliver(service, ended)
    late = deliver(service, event("session.created", id=ended["data"]["id"]))
    assert late["outcome"] == "stale"
    return late, deliver(service, event())


def test_tail_leaves_out_events_that_came_too_late(service: ServiceProcess, tail_to_the_end: Lines) -> None:
    _, last = late_event(service)
    lines = tail_to_the_end("--from", "start")
    assert len(lines) == 2
    assert last["session_id"] in lines[1]


def test_tail_shows_events_that_came_too_late_if_asked(service: ServiceProcess, tail_to_the_end: Lines) -> None:
    late_event(service)
    assert "active (stale)" in tail_to_the_end("--from", "start", "--stale")[1]


def test_tail_as_json_is_what_was_published(service: ServiceProcess, any_client: Any, tail_to_the_end: Lines) -> None:
    created = event(latest_activity={"city": "Tromsø", "browser_name": 'a "b" \\ \x1b[31m'})
    published = channel_messages(service, any_client, created, event("session.ended", id=created["data"]["id"]))
    assert tail_to_the_end("--from", "start", "--json") == published
    assert any_client.hget(f"{{clerk}}:session:{created['data']['id']}", "state") == published[1]


def test_tail_as_json_of_a_late_event_has_its_cursor(service: ServiceProcess, tail_to_the_end: Lines) -> None:
    late, _ = late_event(service)
    message = json.loads(tail_to_the_end("--from", "start", "--stale", "--json")[1])
    assert (message["cursor"], message["revision"], message["previous_status"]) == (late["cursor"], None, None)


def test_tail_says_what_it_missed_and_goes_on(service: ServiceProcess, any_client: Any, tail: Tail) -> None:
    gone = deliver(service, event())
    last = deliver(service, event())
    any_client.xtrim(EVENTS_KEY, 1, approximate=False)
    program = tail("--from", gone["cursor"])
    program.wait_for(gone["cursor"], stream="stderr")
    program.wait_for(last["session_id"])


@pytest.mark.parametrize("start", ["0-0", "1-0"])
def test_tail_of_partitions_begins_at_any_time(start: str, any_redis: EmbeddedRedis, tmp_path: Path) -> None:
    with run_relay(any_redis.url, partitions=2, redis_key_prefix="{parts}") as relay:
        for user in ("user_1", "user_2"):
            relay.take(clerk_event(session_id=f"sess_of_{user}", user_id=user), f"msg_{start}_{user}")
    environment = {"REDIS_URL": any_redis.url, "PARTITIONS": "2", "REDIS_KEY_PREFIX": "{parts}"}
    with started([*RELAY, "tail", "--from", start], tmp_path, environment) as program:
        for user in ("user_1", "user_2"):
            program.wait_for(f"sess_of_{user}")


def test_tail_ends_well_on_ctrl_c(service: ServiceProcess, tail: Tail) -> None:
    answer = deliver(service, event())
    program = tail("--from", "start")
    program.wait_for(answer["session_id"])
    assert program.interrupt() == 0
    assert program.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["tail", "--from", "9999999999999-0"],
        ["session", "sess_1"],
        ["sessions"],
        ["sessions", "user_1"],
        ["check"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "msg_1"],
        ["dead-letters", "replay"],
        ["dead-letters", "drop", "msg_1"],
        ["dead-letters", "drop", "--all"],
    ],
)
def test_ctrl_c_meets_no_code_of_redis(
    arguments: list[str], any_redis: EmbeddedRedis, any_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In hiredis, KeyboardInterrupt ends the process by SIGSEGV; Python raises it in the main thread only."""
    threads = set()
    send_packed = redis.Connection.send_packed_command

    def send(connection: redis.Connection, *arguments: Any, **options: Any) -> None:
        threads.add(threading.current_thread())
        send_packed(connection, *arguments, **options)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(redis.Connection, "send_packed_command", send)
    read(any_redis, *arguments, CLERK_WEBHOOK_SIGNING_SECRET=SECRET)
    assert threads
    assert threading.main_thread() not in threads


def test_tail_that_a_shell_started_in_the_background_ends_on_ctrl_c(
    service: ServiceProcess, any_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """With job control off, as in scripts, a shell lets it ignore SIGINT."""
    answer = deliver(service, event())
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *RELAY, "tail", "--from", "start"]
    with started(command, tmp_path, {"REDIS_URL": any_redis.url}) as program:
        program.wait_for(answer["session_id"])
        assert program.interrupt() == 0


def test_tail_ends_without_a_word_when_its_reader_has_enough(
    service: ServiceProcess, any_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """As `session-relay tail | head -n 1` does."""
    deliver(service, event())
    with subprocess.Popen(
        [*RELAY, "tail", "--from", "start", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "REDIS_URL": any_redis.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()

            def has_ended() -> bool:
                deliver(service, event())
                return process.poll() is not None

            eventually(has_ended)
            assert process.stderr.read() == b""
        finally:
            process.kill()


def take(redis_url: str, *numbers: int) -> list[str]:
    """Have these sessions created; return the cursors."""
    with run_relay(redis_url) as relay:
        outcomes = [relay.take(clerk_event(session_id=f"sess_{number}"), f"msg_{number}") for number in numbers]
    assert all(outcome.outcome == "applied" for outcome in outcomes)
    return [str(outcome.cursor) for outcome in outcomes]


def test_tail_goes_on_where_it_was_when_redis_is_back(
    start_redis: Callable[..., EmbeddedRedis], tail: Tail, tmp_path: Path
) -> None:
    directory = tmp_path / "redis"
    port = free_port()
    first = start_durable_redis(start_redis, directory, port)
    cursors = take(first.url, 1, 2, 3)
    program = tail("--from", "start", "--json", redis_url=first.url)
    program.wait_for("sess_3")

    assert first.process is not None
    first.process.kill()
    program.wait_for("trying again", stream="stderr")
    second = start_durable_redis(start_redis, directory, port)
    cursors += take(second.url, 4, 5)
    program.wait_for("sess_5")
    cursors += take(second.url, 6)
    program.wait_for("sess_6")

    assert [json.loads(line)["cursor"] for line in program.lines()] == cursors
    assert program.process.poll() is None
    assert "Traceback" not in program.stderr


# session


def read(redis: EmbeddedRedis, *arguments: str, **environment: str) -> Result:
    return run(*arguments, environment={"REDIS_URL": redis.url} | environment)


def show_session(redis: EmbeddedRedis, session_id: str, columns: int = 1000) -> str:
    """Return what a process of its own prints: a terminal's width is looked at when it starts."""
    environment = {"REDIS_URL": redis.url, "COLUMNS": str(columns)}
    done = relay("session", session_id, cwd=Path.cwd(), environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_session_shows_every_field_of_a_session(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    body = event(tasks=[{"key": "choose-organization"}])
    answer = deliver(service, body)
    lines = show_session(any_redis, answer["session_id"]).splitlines()
    shown = dict(re.findall(r"^(last event|\S+) +(.*?) *$", "\n".join(lines), re.MULTILINE))
    data = body["data"]
    assert list(shown) == [*[field.name for field in dataclasses.fields(Session)], "revision", "cursor", "last event"]
    assert (shown["id"], shown["user_id"]) == (answer["session_id"], data["user_id"])
    assert (shown["status"], shown["live"], shown["actor"]) == ("active", "true", "null")
    assert str(data["expire_at"]) in shown["expire_at"]
    assert json.loads(shown["latest_activity"]) == data["latest_activity"]
    assert json.loads(shown["tasks"]) == [{"key": "choose-organization"}]
    assert (shown["revision"], shown["cursor"]) == ("1", answer["cursor"])
    assert shown["last event"].startswith("session.created  msg_")


def test_session_as_json_is_what_was_published(
    service: ServiceProcess, any_client: Any, any_redis: EmbeddedRedis
) -> None:
    body = event()
    (published,) = channel_messages(service, any_client, body)
    result = read(any_redis, "session", body["data"]["id"], "--json")
    assert (result.exit_code, result.stdout) == (0, f'{{"state":{published},"history":[{published}]}}\n')


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_session_that_is_not_held_is_a_failure(options: list[str], any_redis: EmbeddedRedis) -> None:
    result = read(any_redis, "session", "sess_nobody", *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "sess_nobody" in result.stderr


def test_session_that_ended_is_shown_as_it_ended(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    answer = deliver(service, event("session.revoked"))
    result = read(any_redis, "session", answer["session_id"])
    assert "revoked" in result.stdout
    assert not re.search(r"^live +true", result.stdout, re.MULTILINE)


def test_session_folds_nothing_that_another_program_reads(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    answer = deliver(service, event())
    shown = show_session(any_redis, answer["session_id"], columns=40)
    assert re.search(f"^id +{answer['session_id']}$", shown, re.MULTILINE)
    assert re.search('^latest_activity .*"browser_name".*"ip_address".*"country"', shown, re.MULTILINE)


@pytest.fixture
def run_out(any_redis: EmbeddedRedis, any_client: Any) -> dict[str, Any]:
    """A session that was live when it was published, and has run out since: two hours in no time."""
    now_ms = time.time_ns() // 1_000_000
    then_ms = now_ms - 2 * HOUR_MS
    body = simulator.sample(now_ms=then_ms)
    data: dict[str, Any] = body["data"]
    data["expire_at"] = now_ms - 1000
    with run_relay(any_redis.url, now_ms=then_ms) as relay:
        assert relay.take(body, "msg_1").outcome == "applied"
    assert any_client.hget(f"{{clerk}}:session:{data['id']}", "live") == "1"
    return data


def test_session_that_has_run_out_is_not_shown_as_live(run_out: dict[str, Any], any_redis: EmbeddedRedis) -> None:
    result = read(any_redis, "session", run_out["id"])
    assert re.search(r"^live +false", result.stdout, re.MULTILINE)


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202e[bold]Oslo[/bold]"


def test_session_lets_no_name_steer_the_terminal(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    activity = {"id": "sess_activity_1", "city": HOSTILE, "browser_name": HOSTILE}
    body = event(latest_activity=activity, actor={"sub": HOSTILE}, tasks=[{"key": HOSTILE}])
    shown = show_session(any_redis, deliver(service, body)["session_id"])
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("[bold]Oslo[/bold]") == 4


def test_tail_lets_no_type_steer_the_terminal(service: ServiceProcess, tail_to_the_end: Lines) -> None:
    deliver(service, event() | {"type": f"session.{HOSTILE}"})
    (line,) = tail_to_the_end("--from", "start")
    assert line.isprintable()


def life_of_one(service: ServiceProcess) -> tuple[str, list[Any]]:
    """Deliver a session's beginning, its end, and late news of it; return its id and the answers."""
    created = event()
    session_id = created["data"]["id"]
    bodies = [created, event("session.ended", id=session_id), event("session.pending", id=session_id)]
    return session_id, [deliver(service, body) for body in bodies]


def test_session_shows_its_history(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    session_id, _ = life_of_one(service)
    deliver(service, event())
    _, history = show_session(any_redis, session_id).split("\n\n")
    head, *lines = history.splitlines()
    assert head == "revision"
    assert [line.split()[0] for line in lines] == ["1", "2", "-"]
    assert "active → ended (not live)" in lines[1]


def test_session_as_json_is_its_state_and_its_history(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    session_id, answers = life_of_one(service)
    document = json.loads(read(any_redis, "session", session_id, "--json").stdout)
    assert list(document) == ["state", "history"]
    assert (document["state"]["cursor"], document["state"]["session"]["status"]) == (answers[1]["cursor"], "ended")
    assert [(message["cursor"], message["revision"]) for message in document["history"]] == [
        (answer["cursor"], answer["revision"]) for answer in answers
    ]


def test_session_as_json_of_which_the_stream_has_nothing_is_its_state(
    service: ServiceProcess, any_client: Any, any_redis: EmbeddedRedis
) -> None:
    session_id, answers = life_of_one(service)
    any_client.xtrim(EVENTS_KEY, 0, approximate=False)
    document = json.loads(read(any_redis, "session", session_id, "--json").stdout)
    assert (document["state"]["cursor"], document["history"]) == (answers[1]["cursor"], [])


def test_session_as_json_of_which_only_the_stream_is_left_is_its_history(
    service: ServiceProcess, any_client: Any, any_redis: EmbeddedRedis
) -> None:
    session_id, answers = life_of_one(service)
    any_client.delete(f"{{clerk}}:session:{session_id}")
    document = json.loads(read(any_redis, "session", session_id, "--json").stdout)
    assert (document["state"], len(document["history"])) == (None, len(answers))


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_session_that_the_stream_has_nothing_of_is_shown_as_it_is_held(
    service: ServiceProcess, any_client: Any, any_redis: EmbeddedRedis, options: list[str]
) -> None:
    session_id, answers = life_of_one(service)
    any_client.xtrim(EVENTS_KEY, 0, approximate=False)
    result = read(any_redis, "session", session_id, *options)
    assert result.exit_code == 0
    assert answers[1]["cursor"] in result.stdout
    assert answers[0]["cursor"] not in result.stdout


# sessions


def test_sessions_shows_the_live_ones_of_a_user(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    live = [deliver(service, event(user_id="user_1"))["session_id"] for _ in range(2)]
    ended = event(user_id="user_1")
    deliver(service, ended)
    deliver(service, event("session.ended", id=ended["data"]["id"], user_id="user_1"))
    deliver(service, event("session.pending", user_id="user_1"))
    deliver(service, event(user_id="user_2"))
    result = read(any_redis, "sessions", "user_1")
    assert result.exit_code == 0
    assert {line.split()[-2] for line in result.stdout.splitlines()} == set(live)


def test_sessions_as_json_are_what_was_published(
    service: ServiceProcess, any_client: Any, any_redis: EmbeddedRedis
) -> None:
    published = channel_messages(service, any_client, event(user_id="user_1"), event(user_id="user_1", expire_at=None))
    result = read(any_redis, "sessions", "user_1", "--json")
    (line,) = result.stdout.splitlines()
    document = json.loads(line)
    assert sorted(map(json.dumps, document.pop("sessions"))) == sorted(
        json.dumps(json.loads(each)) for each in published
    )
    assert (result.exit_code, document) == (0, {"count": 2, "next": None})


def test_sessions_of_a_user_who_has_none_says_so(any_redis: EmbeddedRedis) -> None:
    result = read(any_redis, "sessions", "user_nobody")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "user_nobody" in result.stderr


NONE: Final = '{"count":0,"sessions":[],"next":null}\n'


@pytest.mark.parametrize("user", [[], ["user_nobody"]])
def test_sessions_as_json_where_there_are_none_are_an_empty_list(user: list[str], any_redis: EmbeddedRedis) -> None:
    result = read(any_redis, "sessions", *user, "--json", REDIS_KEY_PREFIX="{empty}")
    assert (result.exit_code, result.output) == (0, NONE)


def test_sessions_leaves_out_one_that_has_run_out(run_out: dict[str, Any], any_redis: EmbeddedRedis) -> None:
    result = read(any_redis, "sessions", run_out["user_id"], "--json")
    assert (result.exit_code, result.stdout) == (0, NONE)


def test_sessions_of_another_prefix_are_others(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    deliver(service, event(user_id="user_1"))
    result = read(any_redis, "sessions", "user_1", "--json", REDIS_KEY_PREFIX="{other}")
    assert (result.exit_code, result.stdout) == (0, NONE)


# sessions, without a user


def test_sessions_without_a_user_are_all_that_are_live(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    live = {deliver(service, event())["session_id"] for _ in range(3)}
    live.add(deliver(service, event(expire_at=None))["session_id"])
    for other in ("session.pending", "session.ended"):
        deliver(service, event(other))
    result = read(any_redis, "sessions")
    *lines, count = result.stdout.splitlines()
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[-2] for line in lines] == sorted(live)
    assert count == "4 sessions are live, 4 shown."


def test_all_sessions_leave_out_one_that_has_run_out(run_out: dict[str, Any], any_redis: EmbeddedRedis) -> None:
    assert read(any_redis, "sessions").stdout == "0 sessions are live, 0 shown.\n"


def test_all_sessions_are_listed_page_by_page(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    live = sorted(deliver(service, event())["session_id"] for _ in range(5))
    seen, options = [], ["--limit", "2"]
    while True:
        *lines, count = read(any_redis, "sessions", *options).stdout.splitlines()
        page = [line.split()[-2] for line in lines]
        seen.append(page)
        assert count.startswith(f"5 sessions are live, {len(page)} shown.")
        if "The next ones: " not in count:
            break
        options = ["--limit", "2", *count.rpartition(": ")[2].split()]
    assert seen == [live[:2], live[2:4], live[4:]]


@pytest.mark.parametrize(
    ("field", "value", "count"),
    [
        ("_expire_at", "tomorrow", "2 sessions are live, 2 shown."),
        ("_expire_at", "1e12", "2 sessions are live, 2 shown."),
        ("state", "{", "3 sessions are live, 2 shown."),
        ("state", '{"schema_version":1}', "3 sessions are live, 2 shown."),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_session_that_can_not_be_read_is_named_and_the_others_are_listed(
    field: str, value: str, count: str, options: list[str], own_redis: EmbeddedRedis, own_client: Any
) -> None:
    ids = ["sess_1", "sess_2", "sess_3"]
    with run_relay(own_redis.url) as relay:
        for id_ in ids:
            relay.take(clerk_event(session_id=id_, expire_at=None), f"msg_{id_}")
    key = "{clerk}:session:sess_2"
    own_client.hset(key, field, value)
    result = read(own_redis, "sessions", *options)
    assert result.exit_code == 1
    assert [id_ for id_ in ids if id_ in result.stdout] == [ids[0], ids[2]]
    if options:
        document = json.loads(result.stdout)
        counts = f"{document['count']} sessions are live, {len(document['sessions'])} shown."
    else:
        *_, counts = result.stdout.splitlines()
    assert counts == count
    (fault,) = result.stderr.splitlines()
    assert fault.startswith(f"{key}: ")


def test_a_page_that_is_just_full_is_the_last_one(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    deliver(service, event())
    assert read(any_redis, "sessions", "--limit", "1").stdout.splitlines()[-1] == "1 session is live, 1 shown."


def test_all_sessions_as_json_are_what_was_published(
    service: ServiceProcess, any_client: Any, any_redis: EmbeddedRedis
) -> None:
    published = channel_messages(service, any_client, event(), event())
    result = read(any_redis, "sessions", "--json")
    (line,) = result.stdout.splitlines()
    document = json.loads(line)
    in_order = sorted((json.loads(each) for each in published), key=lambda each: str(each["session"]["id"]))
    assert document == {"count": 2, "sessions": in_order, "next": None}
    assert result.stderr == ""


def test_all_sessions_as_json_tell_what_comes_next(service: ServiceProcess, any_redis: EmbeddedRedis) -> None:
    first, second, third = sorted(deliver(service, event())["session_id"] for _ in range(3))
    page = json.loads(read(any_redis, "sessions", "--json", "--limit", "2").stdout)
    assert (page["count"], [each["session"]["id"] for each in page["sessions"]]) == (3, [first, second])
    page = json.loads(read(any_redis, "sessions", "--json", "--limit", "2", "--after", page["next"]).stdout)
    assert ([each["session"]["id"] for each in page["sessions"]], page["next"]) == ([third], None)


def test_all_sessions_of_partitions_are_listed_in_one_order(any_redis: EmbeddedRedis, any_client: Any) -> None:
    settings: dict[str, Any] = {"partitions": 3, "redis_key_prefix": "{parts}"}
    with run_relay(any_redis.url, **settings) as relay:
        for number in range(9):
            body = clerk_event(session_id=f"sess_{number}", user_id=f"user_{number}", expire_at=None)
            relay.take(body, f"msg_{number}")
    result = read(any_redis, "sessions", "--limit", "7", PARTITIONS="3", REDIS_KEY_PREFIX="{parts}")
    *lines, count = result.stdout.splitlines()
    assert [line.split()[-2] for line in lines] == [f"sess_{number}" for number in range(7)]
    assert count == "9 sessions are live, 7 shown. The next ones: --after sess_6"


@pytest.mark.parametrize("arguments", [["sessions"], ["sessions", "user_1"], ["session", "sess_1"], ["tail"]])
def test_another_number_of_partitions_than_the_datas_is_told(
    arguments: list[str], any_redis: EmbeddedRedis, any_client: Any
) -> None:
    with run_relay(any_redis.url, partitions=3) as relay:
        relay.take(clerk_event(session_id="sess_1", expire_at=None), "msg_1")
    result = read(any_redis, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "PARTITIONS" in result.stderr


def test_more_sessions_than_one_scan_returns_are_counted_once_each(any_redis: EmbeddedRedis, any_client: Any) -> None:
    """While the hash table of Redis shrinks, SCAN returns some keys twice."""
    with any_client.pipeline(transaction=False) as pipe:
        for number in range(3000):
            key = f"{{clerk}}:session:sess_{number:04}"
            pipe.hset(key, mapping={"live": "01"[number < 1234], "_expire_at": "", "state": "{}"})
            pipe.expire(key, 600)
        pipe.execute()
    with contextlib.closing(LiveSessions(load(RedisSettings, redis_url=any_redis.url))) as live:
        page = live.page("sess_0099", 2)
        assert ([id_ for id_, _ in page], live.count) == (["sess_0100", "sess_0101"], 1234)
    any_client.flushall()


# All that read


@pytest.mark.parametrize("arguments", [["session", "sess_1"], ["sessions"], ["sessions", "user_1"], ["tail"]])
def test_redis_away_is_told_in_one_line(arguments: list[str]) -> None:
    result = run(*arguments, environment={"REDIS_URL": "unix://relay:hunter-two@/nonexistent/redis.sock"})
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Redis: ")
    assert line.endswith(": correct the path in REDIS_URL")
    assert "hunter" not in line


@pytest.mark.parametrize("arguments", [["session", "sess_1"], ["sessions"], ["sessions", "user_1"], ["tail"]])
def test_a_redis_that_refuses_connections_is_told_with_what_to_do(arguments: list[str]) -> None:
    with unused_port() as port:
        result = run(*arguments, environment={"REDIS_URL": f"redis://127.0.0.1:{port}"})
    (line,) = result.stderr.splitlines()
    assert line.startswith("Redis: ")
    assert "see that it runs where REDIS_URL says" in line


def test_reading_needs_no_more_rights_than_the_docs_give_a_reader(own_redis: EmbeddedRedis, own_client: Any) -> None:
    (rights,) = re.findall(r"^ACL SETUSER reader on >password (.*)$", REDIS.read_text(), re.MULTILINE)
    own_client.execute_command("ACL", "SETUSER", "reader", "on", ">password", *rights.split())
    with run_relay(own_redis.url) as relay:
        relay.take(clerk_event(session_id="sess_1", expire_at=None), "msg_1")
    url = own_redis.url.replace("//", "//reader:password@")
    for arguments in (["session", "sess_1"], ["sessions"], ["sessions", "user_1"]):
        result = run(*arguments, environment={"REDIS_URL": url})
        assert (result.exit_code, result.stderr) == (0, "")
        assert "sess_1" in result.stdout
    future = run("tail", "--from", str(time.time_ns() // 1_000_000 + HOUR_MS), environment={"REDIS_URL": url})
    assert "is in the future" in future.stderr  # by this machine's clock, for TIME is a right


def test_reading_needs_no_secret_of_clerk(any_redis: EmbeddedRedis) -> None:
    assert read(any_redis, "sessions", "user_nobody", CLERK_WEBHOOK_SIGNING_SECRET="").exit_code == 0
