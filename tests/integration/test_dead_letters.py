"""Dead letters and their commands, as a user types them: docs/contract.md, sections 5 and 8."""

import concurrent.futures
import json
import os
import signal
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support import cli
from support.children import finished
from support.constants import DAY_MS, DEAD_LETTERS_KEY, EVENTS_KEY, RELAY, ROOT
from support.events import clerk_event
from support.network import free_port
from support.redis_clients import client_of, contents, subscribed
from support.redis_servers import scripted_redis, start_durable_redis
from support.relay import run_relay
from support.services import run_service

from service.dev.embedded import EmbeddedRedis
from service.store import dead_letters
from service.store.dead_letters import DeadLetters

NOW_MS = int(time.time() * 1000)


@pytest.fixture(autouse=True)
def _in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any .env."""
    monkeypatch.chdir(tmp_path)


Command = Callable[..., Result]


def run(redis_url: str, *arguments: str | bytes, **settings: str) -> Result:
    return cli.run("dead-letters", *arguments, environment={"REDIS_URL": redis_url, **settings})


@pytest.fixture
def command(any_redis: EmbeddedRedis, any_client: Any) -> Command:
    return lambda *arguments, **settings: run(any_redis.url, *arguments, **settings)


def relay(redis_url: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "REDIS_URL": redis_url} | settings
    return finished([*RELAY, "dead-letters", *arguments], Path.cwd(), environment)


def put(client: Any, message_id: str, event: object, *, received_at: int = NOW_MS, **fields: Any) -> str:
    """Store a dead letter as an older version of the relay would have, which did not know what this one knows."""
    body = event if isinstance(event, str) else json.dumps(event)
    dead_letter = {
        "id": message_id,
        "received_at": received_at,
        "reason": "invalid_status",
        "detail": "data.status: missing",
        "body": body,
    } | fields
    stored = json.dumps(dead_letter)
    client.hset(DEAD_LETTERS_KEY, message_id, stored)
    return stored


def event(session_id: str = "sess_1", status: str | None = "active", **data: Any) -> dict[str, Any]:
    return clerk_event(
        status,
        type_=None if status == "active" else "session.ended",
        session_id=session_id,
        **{"updated_at": NOW_MS, "expire_at": NOW_MS + DAY_MS} | data,
    )


def unreadable(session_id: str = "sess_1") -> dict[str, Any]:
    return event(session_id, "on holiday")


def stored_dead_letters(client: Any) -> Any:
    return client.hgetall(DEAD_LETTERS_KEY)


# What is stored


def test_a_letter_of_the_service_is_one_that_the_commands_read(any_redis: EmbeddedRedis, any_client: Any) -> None:
    body = unreadable()
    with run_relay(any_redis.url, now_ms=NOW_MS) as relay:
        relay.take(body, "msg_1")
    stored = any_client.hget(DEAD_LETTERS_KEY, "msg_1")
    dead_letter = dead_letters.DeadLetter.read("msg_1", stored.encode())
    assert dead_letter is not None
    assert dead_letter.model_dump() == json.loads(stored)
    assert json.loads(dead_letter.body) == body


def test_two_workers_together_keep_no_more_letters_than_may_be(own_redis: EmbeddedRedis, own_client: Any) -> None:
    with run_service(own_redis.url, WEB_CONCURRENCY="2", DEAD_LETTER_MAX="5") as service:

        def deliver(number: int) -> str:
            answer = service.deliver(unreadable(), f"msg_{number}").json()
            return str(answer.get("outcome") or answer["code"])

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            first = list(pool.map(deliver, range(80)))
            again = list(pool.map(deliver, range(80)))
    assert own_client.hlen(DEAD_LETTERS_KEY) == 5
    assert (first.count("dead_lettered"), first.count("dead_letters_full")) == (5, 75)
    assert again == first
    kept = {f"msg_{number}" for number, said in enumerate(first) if said == "dead_lettered"}
    assert set(stored_dead_letters(own_client)) == kept


# list


def test_list_shows_a_line_for_each_letter_in_the_order_received(command: Command, any_client: Any) -> None:
    put(any_client, "msg_2", unreadable(), received_at=1_795_422_762_000)
    put(any_client, "msg_1", "{}", received_at=1_795_422_763_000, reason="invalid_data", detail="data: missing")
    result = command("list")
    assert (result.exit_code, result.stderr) == (0, "")
    size = len(json.dumps(unreadable()))
    assert result.stdout.splitlines() == [
        f"2026-11-23 08:32:42 UTC  msg_2  invalid_status  {size:,} bytes  data.status: missing",
        "2026-11-23 08:32:43 UTC  msg_1  invalid_data  2 bytes  data: missing",
    ]


def test_list_as_json_is_an_object_per_letter_without_the_body(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", '{"name":"Sunniva Åsmundsdóttir"}', received_at=1)
    put(any_client, "msg_2", "{}", received_at=2)
    result = command("list", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    said = [json.loads(line) for line in result.stdout.splitlines()]
    about = {"reason": "invalid_status", "detail": "data.status: missing"}
    assert said == [
        {"id": "msg_1", "received_at": 1, **about, "body_bytes": 34},
        {"id": "msg_2", "received_at": 2, **about, "body_bytes": 2},
    ]


def test_list_of_an_empty_store_says_so(command: Command) -> None:
    result = command("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no dead letters" in result.stderr


def test_list_of_an_empty_store_as_json_is_nothing(command: Command) -> None:
    result = command("list", "--json")
    assert (result.exit_code, result.output) == (0, "")


def test_list_never_shows_a_body(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", '{"name":"Sunniva"}')
    put(any_client, "msg_2", "Sunniva", detail=["Sunniva"])
    any_client.hset(DEAD_LETTERS_KEY, "msg_3", "Sunniva")
    for option in ([], ["--json"]):
        result = command("list", *option)
        assert len(result.stdout.splitlines()) == 3
        assert "Sunniva" not in result.output


def test_list_lets_nothing_steer_the_terminal(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", "{}", detail="\x1b[31m\nforged")
    any_client.hset(DEAD_LETTERS_KEY, "\x1b[2Jid\u009b", "\x1b")
    for option in ([], ["--json"]):
        result = command("list", *option)
        assert len(result.stdout.splitlines()) == 2
        assert all(line.isprintable() for line in result.stdout.splitlines())


# show


def test_show_shows_all_of_a_dead_letter(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", {"type": "session.ended", "data": {"name": "Åse"}}, received_at=1_795_422_762_000)
    result = command("show", "msg_1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "id           msg_1",
        "received_at  2026-11-23 08:32:42 UTC  (1795422762000)",
        "reason       invalid_status",
        "detail       data.status: missing",
        "",
        "{",
        '  "type": "session.ended",',
        '  "data": {',
        '    "name": "Åse"',
        "  }",
        "}",
    ]


def test_show_as_json_is_the_letter_as_it_is_stored(command: Command, any_client: Any) -> None:
    stored = put(any_client, "msg_1", '{"a": 1.50, "a":\n2}')
    result = command("show", "msg_1", "--json")
    assert (result.exit_code, result.stdout) == (0, stored + "\n")


@pytest.mark.parametrize(
    "body",
    ["[" * 50_000 + "]" * 50_000, '{"digits": ' + "9" * 5000 + "}", "no JSON", ""],
    ids=["deep", "digits", "no JSON", "empty"],
)
def test_show_shows_as_it_is_what_can_not_be_indented(body: str, command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", body)
    result = command("show", "msg_1")
    assert result.exit_code == 0
    assert result.stdout.endswith(f"\n\n{body}\n")


@pytest.mark.parametrize(
    "body", [r'{"name": "\u001b[31m\u009b\ud800\u2028"}', "\x1b[31m\x9b\x00\r", '{"\u202e": "\x7f"}']
)
def test_show_lets_nothing_steer_the_terminal(body: str, command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", body)
    result = command("show", "msg_1")
    assert result.exit_code == 0
    assert all(line.isprintable() for line in result.stdout.split("\n"))


def test_show_shows_what_is_not_a_dead_letter(command: Command, any_client: Any) -> None:
    any_client.hset(DEAD_LETTERS_KEY, "msg_1", b"left here by \x1b somebody \xff")
    result = command("show", "msg_1")
    assert (result.exit_code, result.stdout) == (0, "left here by \\x1b somebody \\xff\n")


def test_show_of_a_letter_that_is_not_there_is_a_failure(command: Command) -> None:
    result = command("show", "msg_1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "msg_1" in result.stderr


# replay


def test_replay_moves_what_works_into_the_state(command: Command, any_client: Any) -> None:
    ended = event(status="ended", updated_at=NOW_MS + 1000)
    put(any_client, "msg_3", event("sess_2"), received_at=NOW_MS + 3)
    put(any_client, "msg_1", ended, received_at=NOW_MS + 1)
    put(any_client, "msg_2", event(), received_at=NOW_MS + 2)
    with subscribed(any_client, "clerk:sessions") as subscriber:
        result = command("replay")
        published = [json.loads(data) for _, data in subscriber.rest()]
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "applied     msg_1  sess_1",
        "stale       msg_2  sess_1",
        "applied     msg_3  sess_2",
        "3 replayed and removed, 0 kept.",
    ]
    assert [message["event"]["id"] for message in published] == ["msg_1", "msg_3"]
    assert any_client.hget("{clerk}:session:sess_1", "status") == "ended"
    assert stored_dead_letters(any_client) == {}


def test_replay_of_a_message_taken_before_only_drops_the_dead_letter(
    command: Command, any_redis: EmbeddedRedis, any_client: Any
) -> None:
    with run_relay(any_redis.url, now_ms=NOW_MS) as relay:
        relay.take(event(), "msg_1")
    before = contents(any_client)
    put(any_client, "msg_1", event(status="ended"))
    result = command("replay")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "duplicate   msg_1  sess_1")
    assert contents(any_client) == before


def test_replay_moves_what_is_no_session_event(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", {"type": "user.updated"})
    result = command("replay")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "ignored     msg_1")
    assert contents(any_client) == {}


def test_replay_keeps_what_still_can_not_be_read_as_it_was_written(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", unreadable())
    put(any_client, "msg_2", "no JSON")
    before = contents(any_client)
    result = command("replay")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "kept        msg_1  invalid_status",
        "kept        msg_2  The body is not JSON.",
        "0 replayed and removed, 2 kept.",
    ]
    assert contents(any_client) == before


def test_replay_of_some_leaves_the_others_alone(command: Command, any_client: Any) -> None:
    for number in (1, 2, 3):
        put(any_client, f"msg_{number}", event(f"sess_{number}"))
    result = command("replay", "msg_3", "msg_1", "msg_3")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:-1] == ["applied     msg_3  sess_3", "applied     msg_1  sess_1"]
    assert set(stored_dead_letters(any_client)) == {"msg_2"}


def test_replay_names_those_that_are_not_there(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", event())
    result = command("replay", "msg_2", "msg_1")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "missing     msg_2  It is not stored.",
        "applied     msg_1  sess_1",
        "1 replayed and removed, 0 kept.",
    ]


def test_replay_of_an_empty_store_is_a_success(command: Command) -> None:
    result = command("replay")
    assert (result.exit_code, result.output) == (0, "0 replayed and removed, 0 kept.\n")


def test_replay_goes_by_the_time_of_now(command: Command, any_redis: EmbeddedRedis, any_client: Any) -> None:
    with run_relay(any_redis.url, now_ms=NOW_MS - 2 * DAY_MS) as relay:
        assert relay.take(event(), "msg_1").reason == "invalid_updated_at"
    assert command("replay").exit_code == 0
    assert any_client.hget("{clerk}:session:sess_1", "live") == "1"


def test_replay_of_a_full_store_works(command: Command, any_redis: EmbeddedRedis, any_client: Any) -> None:
    put(any_client, "msg_1", unreadable())
    put(any_client, "msg_2", event())
    result = command("replay", DEAD_LETTER_MAX="2")
    assert result.stdout.splitlines()[0] == "kept        msg_1  invalid_status"
    assert set(stored_dead_letters(any_client)) == {"msg_1"}
    result = command("replay", DEAD_LETTER_MAX="0")
    assert result.stdout.splitlines()[0] == "kept        msg_1  invalid_status"


def test_replay_brings_no_dead_letter_back_that_was_dropped_meanwhile(
    command: Command, any_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = DeadLetters.get

    def get_and_drop(stored: DeadLetters, message_id: str) -> Any:
        found = get(stored, message_id)
        assert stored.drop(message_id)
        return found

    monkeypatch.setattr(DeadLetters, "get", get_and_drop)
    put(any_client, "msg_1", unreadable())
    command("replay")
    assert stored_dead_letters(any_client) == {}


def test_what_another_replay_took_first_is_no_failure(
    command: Command, any_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    summaries = DeadLetters.summaries

    def summaries_of_what_goes_away(stored: DeadLetters) -> Any:
        found = summaries(stored)
        stored.drop_all()
        return found

    monkeypatch.setattr(DeadLetters, "summaries", summaries_of_what_goes_away)
    put(any_client, "msg_1", event())
    result = command("replay")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "missing     msg_1  It is not stored.")


def test_replay_publishes_what_the_settings_say(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", event())
    settings = {"OMIT_FIELDS": "latest_activity.city client_id tasks", "PUBLISH_HTTP_REQUEST": "true"}
    with subscribed(any_client, "clerk:sessions") as subscriber:
        assert command("replay", **settings).exit_code == 0
        ((_, published),) = subscriber.rest()
    ((_, entry),) = any_client.xrange(EVENTS_KEY)
    for message in (published, any_client.hget("{clerk}:session:sess_1", "state"), entry["message"]):
        assert json.loads(message)["event"]["http_request"] == event()["event_attributes"]["http_request"]
        assert json.loads(message)["session"]["client_id"] is None
        assert json.loads(message)["session"]["tasks"] == []
        assert json.loads(message)["session"]["latest_activity"]["city"] is None
        assert json.loads(message)["session"]["latest_activity"]["country"] == "NO"


def test_a_letter_leaves_only_once_enough_replicas_have_its_state(own_redis: EmbeddedRedis, own_client: Any) -> None:
    put(own_client, "msg_1", event())
    refused = run(own_redis.url, "replay", REDIS_MIN_REPLICAS="1")
    assert refused.exit_code == 1
    assert "\nkept        msg_1  0 of 1 replicas confirmed" in f"\n{refused.stdout}"
    assert set(stored_dead_letters(own_client)) == {"msg_1"}
    again = run(own_redis.url, "replay")
    assert (again.exit_code, again.stdout.splitlines()[0]) == (0, "duplicate   msg_1  sess_1")


def test_nothing_is_lost_when_redis_goes_away_between_state_and_drop(
    start_redis: Callable[..., EmbeddedRedis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    server = start_durable_redis(start_redis, tmp_path / "redis", port)
    with client_of(server.url) as client:
        for number in (1, 2, 3):
            put(client, f"msg_{number}", event(f"sess_{number}"), received_at=number)
    drop = DeadLetters.drop

    def drop_at_the_wrong_time(stored: DeadLetters, message_id: str) -> bool:
        if message_id == "msg_2":
            assert server.process is not None
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
        return drop(stored, message_id)

    with monkeypatch.context() as patched:
        patched.setattr(DeadLetters, "drop", drop_at_the_wrong_time)
        cut = run(server.url, "replay")
    assert cut.exit_code == 1
    assert cut.stdout.splitlines() == ["applied     msg_1  sess_1", "1 replayed and removed, 2 kept."]
    (line,) = cut.stderr.splitlines()
    assert line.startswith("Redis: ")

    server = start_durable_redis(start_redis, tmp_path / "redis", port)
    again = run(server.url, "replay")
    assert again.exit_code == 0
    assert again.stdout.splitlines()[:-1] == ["duplicate   msg_2  sess_2", "applied     msg_3  sess_3"]
    with client_of(server.url) as client:
        assert stored_dead_letters(client) == {}
        entries = [fields["session_id"] for _, fields in client.xrange(EVENTS_KEY)]
    assert entries == ["sess_1", "sess_2", "sess_3"]


def test_a_letter_that_redis_does_not_take_stops_no_other(own_redis: EmbeddedRedis, own_client: Any) -> None:
    own_client.set("{clerk}:session:sess_1", "no hash")
    put(own_client, "msg_1", event("sess_1"), received_at=1)
    put(own_client, "msg_2", event("sess_2"), received_at=2)
    done = relay(own_redis.url, "replay")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "kept        msg_1  Redis did not take it (WRONGTYPE).",
        "applied     msg_2  sess_2",
        "1 replayed and removed, 1 kept.",
    ]


def test_a_large_box_takes_little_memory(own_redis: EmbeddedRedis, own_client: Any) -> None:
    for number in range(200):
        put(own_client, f"msg_{number}", "x" * 1_048_576)

    tracemalloc.start()
    try:
        assert run(own_redis.url, "replay").exit_code == 1
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100 * 2**20
    assert own_client.hlen(DEAD_LETTERS_KEY) == 200


# drop


def test_drop_throws_away_what_is_named(command: Command, any_client: Any) -> None:
    for number in (1, 2, 3):
        put(any_client, f"msg_{number}", unreadable())
    result = command("drop", "msg_1", "msg_3", "msg_1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "2 dropped.\n", "")
    assert set(stored_dead_letters(any_client)) == {"msg_2"}


def test_drop_names_those_that_are_not_there(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", unreadable())
    result = command("drop", "msg_2\x1b", "msg_1")
    assert (result.exit_code, result.stdout) == (1, "1 dropped.\n")
    assert result.stderr == "There is no dead letter msg_2\\x1b.\n"
    assert stored_dead_letters(any_client) == {}


def test_drop_all_throws_all_away(command: Command, any_client: Any) -> None:
    for number in (1, 2, 3):
        put(any_client, f"msg_{number}", unreadable())
    result = command("drop", "--all")
    assert (result.exit_code, result.output) == (0, "3 dropped.\n")
    assert stored_dead_letters(any_client) == {}


@pytest.mark.parametrize("arguments", [[], ["--all", "msg_1"]])
def test_drop_throws_nothing_away_unless_it_is_clear_what(
    arguments: list[str], command: Command, any_client: Any
) -> None:
    put(any_client, "msg_1", unreadable())
    assert command("drop", *arguments).exit_code == 2
    assert set(stored_dead_letters(any_client)) == {"msg_1"}


# What is not a dead letter


NO_LETTERS: dict[bytes, bytes] = {
    b"msg_text": b"not JSON",
    b"msg_bytes": b"\xff\xfe",
    b"msg_list": b"[]",
    b"msg_empty": b"",
    b"msg_deep": b"[" * 100_000,
    b"msg_of_another": json.dumps(
        {"id": "msg_x", "received_at": 1, "reason": "", "detail": "", "body": json.dumps(event())}
    ).encode(),
    b"msg_surrogate": rb'{"id":"msg_surrogate","received_at":1,"reason":"","detail":"","body":"\ud800"}',
    b"msg_time": b'{"id":"msg_time","received_at":"1","reason":"","detail":"","body":""}',
    b"no id": b'{"id":"no id","received_at":1,"reason":"","detail":"","body":"{}"}',
    b"\xff": b"{}",
    b"": b"{}",
}


@pytest.fixture
def _not_dead_letters(any_client: Any) -> None:
    any_client.hset(DEAD_LETTERS_KEY, mapping=NO_LETTERS)
    put(any_client, "msg_1", event())


@pytest.mark.usefixtures("_not_dead_letters")
def test_what_is_not_a_dead_letter_does_not_stop_list(command: Command) -> None:
    for option in ([], ["--json"]):
        result = command("list", *option)
        assert result.exit_code == 0
        assert len(result.stdout.splitlines()) == len(NO_LETTERS) + 1


@pytest.mark.usefixtures("_not_dead_letters")
def test_what_is_not_a_dead_letter_does_not_stop_replay_and_stays(command: Command, any_client: Any) -> None:
    result = command("replay")
    assert result.exit_code == 1
    assert "applied     msg_1  sess_1" in result.stdout
    assert result.stdout.count("It was not stored by the relay.") == len(NO_LETTERS)
    assert any_client.hlen(DEAD_LETTERS_KEY) == len(NO_LETTERS)
    assert any_client.exists("{clerk}:session:sess_1")


@pytest.mark.usefixtures("_not_dead_letters")
def test_what_is_not_a_dead_letter_can_be_dropped_by_its_name(command: Command, any_client: Any) -> None:
    result = command("drop", *NO_LETTERS)
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(stored_dead_letters(any_client)) == {"msg_1"}


@pytest.mark.parametrize("received_at", [-1, 0, 10**15, 10**30])
def test_a_letter_of_any_time_is_shown(received_at: int, command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", "{}", received_at=received_at)
    assert command("list").exit_code == 0
    assert f"({received_at})" in command("show", "msg_1").stdout


# All of them


ALL = [["list"], ["show", "msg_1"], ["replay"], ["replay", "msg_1"], ["drop", "msg_1"], ["drop", "--all"]]


@pytest.mark.parametrize("arguments", ALL)
def test_redis_away_is_told_in_one_line(arguments: list[str]) -> None:
    result = run("unix://relay:hunter-two@/nonexistent/redis.sock", *arguments)
    assert result.exit_code == 1
    assert result.stdout in {"", "0 replayed and removed, 1 kept.\n"}
    (line,) = result.stderr.splitlines()
    assert line.startswith("Redis: ")
    assert "hunter" not in result.output


@pytest.mark.parametrize("arguments", [["list"], ["drop", "msg_1"]])
def test_what_redis_says_is_told_without_the_password_that_it_quotes(arguments: list[str]) -> None:
    refusal = b"-ERR unknown command 'AUTH', with args beginning with: 'relay' 'hunter-two' "
    with scripted_redis(lambda _: refusal) as server:
        result = run(server.url.replace("//", "//relay:hunter-two@"), *arguments)
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, line.startswith("Redis: unknown command 'AUTH': ")) == (1, True)
    assert "hunter" not in result.output


@pytest.mark.parametrize("arguments", [["list"], ["show", "msg_1"], ["replay"], ["drop", "msg_1"]])
def test_letters_of_another_prefix_are_others(arguments: list[str], command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", event())
    before = contents(any_client)
    command(*arguments, REDIS_KEY_PREFIX="{other}")
    assert contents(any_client) == before


def test_working_off_letters_needs_no_secret_of_clerk(command: Command, any_client: Any) -> None:
    put(any_client, "msg_1", event())
    assert command("replay", CLERK_WEBHOOK_SIGNING_SECRET="").exit_code == 0
