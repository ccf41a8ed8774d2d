"""The commands as a user types them, before anything connects: options, settings, and what `send` would send."""

import contextlib
import functools
import json
import shlex
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result
from support.cli import Environment, run
from support.clock import eventually
from support.constants import NO_REDIS, SECRET

from service.cli import main
from service.cli.in_thread import in_thread
from service.dev import sender
from service.dev.event_types import EVENT_TYPES
from service.dev.sender import OutgoingDelivery
from service.errors import ClerkError, CommandError, StartError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any .env."""
    monkeypatch.chdir(tmp_path)


def commands() -> list[str]:
    return main.list_commands(click.Context(main))


def test_each_command_of_the_contract_is_there() -> None:
    assert {"serve", "dev", "send", "tail", "sessions", "session", "expire"} <= set(commands())


@pytest.mark.parametrize("command", commands())
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_a_command_is_a_success(command: str, option: str) -> None:
    result = run(command, option)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{command} [OPTIONS]" in result.stdout


def test_the_version_is_told() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.strip().split()[-1][0].isdigit()


def test_an_unknown_command_is_an_error_of_usage() -> None:
    result = run("srve")
    assert result.exit_code == 2
    assert "srve" in result.stderr


def test_what_an_error_quotes_can_not_write_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (CommandError("of \x1b[2J\nins_x"), ClerkError("of \x1b[2J\nins_x")):
        monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=functools.partial(fail, error)))
        result = run("fail")
        assert (result.exit_code, result.stderr) == (1, "of \\x1b[2J\\nins_x\n")


def test_an_error_of_dev_keeps_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    error = StartError("It did not start:\n\x1b[2J")
    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=functools.partial(fail, error)))
    assert run("fail").stderr == "It did not start:\n\\x1b[2J\n"


def fail(error: Exception) -> None:
    raise error


SIGNING: Environment = {"CLERK_WEBHOOK_SIGNING_SECRET": SECRET}


class Recorder:
    """Stands where the network begins: keeps what would be sent, and says 200."""

    url = "http://relay.example/webhooks/clerk"

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.responses: list[httpx.Response | KeyboardInterrupt | None] = []
        """What it says first, in place of 200; None: nothing."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url == self.url
        self.bodies.append(request.content)
        response = self.responses.pop(0) if self.responses else httpx.Response(200, json={"outcome": "ignored"})
        if isinstance(response, KeyboardInterrupt):
            raise response
        if response is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(response.status_code, content=response.content)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    transport = httpx.MockTransport(recorder)
    monkeypatch.setattr(httpx, "Client", functools.partial(httpx.Client, transport=transport))
    return recorder


def record(recorder: Recorder, *arguments: str, stdin: bytes | None = None) -> Result:
    return run("send", *arguments, "--url", recorder.url, environment=SIGNING, stdin=stdin)


BYTES = b'{ "type":"user.created",\r\n\t"data": {"id":"user_1","name":"\xc3\x85se \\ud800"}, "n":1e400}\n\n'


def test_a_file_is_sent_byte_for_byte(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_bytes(BYTES)
    assert record(recorder, "event.json").exit_code == 0
    assert recorder.bodies == [BYTES]


def test_a_file_without_an_ending_is_a_file_too(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "session.created").write_bytes(BYTES)
    assert record(recorder, "session.created").exit_code == 0
    assert recorder.bodies == [BYTES]


def test_standard_input_is_sent_byte_for_byte(recorder: Recorder) -> None:
    assert record(recorder, "-", stdin=BYTES).exit_code == 0
    assert recorder.bodies == [BYTES]


def test_standard_input_is_sent_each_time_of_count(recorder: Recorder) -> None:
    assert record(recorder, "-", "--count", "3", stdin=BYTES).exit_code == 0
    assert recorder.bodies == [BYTES] * 3


def test_types_and_files_are_sent_in_the_order_given(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_bytes(b'{"type":"user.deleted"}')
    assert record(recorder, "session.created", "event.json", "session.ended").exit_code == 0
    assert [json.loads(body)["type"] for body in recorder.bodies] == [
        "session.created",
        "user.deleted",
        "session.ended",
    ]


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("data.client_id=client_2", "client_2"),
        ("data.client_id=null", None),
        ("data.client_id=17", 17),
        ('data.client_id="17"', "17"),
        ('data.client_id={"a": [1, true]}', {"a": [1, True]}),
        ("data.client_id=", ""),
        ("data.client_id=a=b", "a=b"),
        ("data.client_id={not json", "{not json"),
    ],
)
def test_set_takes_json_or_else_text(assignment: str, expected: object, recorder: Recorder) -> None:
    assert record(recorder, "--set", assignment).exit_code == 0
    assert json.loads(recorder.bodies[0])["data"]["client_id"] == expected


def test_set_reaches_into_what_is_nested(recorder: Recorder) -> None:
    assert record(recorder, "--set", "data.latest_activity.city=Ås").exit_code == 0
    activity = json.loads(recorder.bodies[0])["data"]["latest_activity"]
    assert (activity["city"], activity["browser_name"]) == ("Ås", "Firefox")


def test_set_makes_what_is_missing_on_the_way(recorder: Recorder) -> None:
    assert record(recorder, "--set", "data.more.and.more=1").exit_code == 0
    assert json.loads(recorder.bodies[0])["data"]["more"] == {"and": {"more": 1}}


def test_set_can_be_repeated(recorder: Recorder) -> None:
    assert record(recorder, "--set", "data.status=ended", "--set", "timestamp=1").exit_code == 0
    body = json.loads(recorder.bodies[0])
    assert (body["data"]["status"], body["timestamp"]) == ("ended", 1)


def test_set_counts_for_every_delivery(recorder: Recorder) -> None:
    assert record(recorder, "session.created", "session.ended", "--set", "data.id=sess_7").exit_code == 0
    assert [json.loads(body)["data"]["id"] for body in recorder.bodies] == ["sess_7", "sess_7"]


def test_set_changes_a_file(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_bytes(b'{"type": "session.ended", "data": {"id": "sess_1"}}')
    assert record(recorder, "event.json", "--set", "data.id=sess_2").exit_code == 0
    assert json.loads(recorder.bodies[0]) == {"type": "session.ended", "data": {"id": "sess_2"}}


@pytest.mark.parametrize("value", ["1" + 40 * "0", '"\\ud800"', "NaN"])
def test_set_can_send_what_only_a_lenient_reader_takes(value: str, recorder: Recorder) -> None:
    """Such values are in deliveries of the wild, so a test of one's own subscriber wants them, too."""
    assert record(recorder, "--set", f"data.user.public_metadata={value}").exit_code == 0
    assert value.encode() in recorder.bodies[0]


@pytest.mark.parametrize("assignment", ["data.status", "=active", ""])
def test_set_that_is_no_assignment_is_an_error_of_usage(assignment: str) -> None:
    result = run("send", "--set", assignment, environment=SIGNING)
    assert result.exit_code == 2
    assert "path=value" in result.stderr


@pytest.mark.parametrize("what", ["session.created", "event.json"])
def test_set_through_something_that_is_no_object_is_an_error_of_usage(what: str, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_bytes(b'{"data": {"status": "ended"}}')
    result = run("send", what, "--set", "data.status.now=active", environment=SIGNING)
    assert result.exit_code == 2
    assert "data.status.now" in result.stderr


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b"\xff", b""])
def test_set_on_a_file_that_is_no_object_is_an_error_of_usage(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_bytes(body)
    result = run("send", "event.json", "--set", "a=1", environment=SIGNING)
    assert result.exit_code == 2
    assert "event.json" in result.stderr


def test_shuffle_changes_the_order(recorder: Recorder) -> None:
    life = ["session.pending", "session.created", "session.ended"] * 10
    assert record(recorder, *life, "--shuffle").exit_code == 0
    sent = [json.loads(body)["type"] for body in recorder.bodies]
    assert sent != life  # by chance once in 30! / (10!)^3 times
    assert sorted(sent) == sorted(life)


@pytest.mark.parametrize("arguments", [["--rate", "0"], ["--rate", "-1"], ["--count", "0"], ["--count", "x"]])
def test_a_count_or_rate_that_means_nothing_is_an_error_of_usage(arguments: list[str]) -> None:
    result = run("send", *arguments, environment=SIGNING)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_deliveries_are_made_as_they_are_sent(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = sender.one_life

    def watched(types: Sequence[str], values: dict[str, Any]) -> list[OutgoingDelivery]:
        made.append(len(recorder.bodies))
        return make(types, values)

    monkeypatch.setattr(sender, "one_life", watched)

    assert record(recorder, "--count", "3").exit_code == 0

    assert made == [0, 1, 2]


@pytest.mark.parametrize("options", [[], ["--shuffle"], ["--duplicate"], ["--shuffle", "--duplicate"]])
def test_each_delivery_of_many_lives_is_sent_as_often_as_asked(options: list[str], recorder: Recorder) -> None:
    life = ["session.created", "session.ended"]

    assert record(recorder, *life, "--count", "5", *options).exit_code == 0

    copies = 1 + ("--duplicate" in options)
    sent = Counter((event["type"], event["data"]["id"]) for event in map(json.loads, recorder.bodies))
    assert len(sent) == 10
    assert set(sent.values()) == {copies}
    assert len({id_ for _, id_ in sent}) == 5


def test_ctrl_c_before_the_first_response_says_how_many_were_sent(recorder: Recorder) -> None:
    recorder.responses = [KeyboardInterrupt()]

    result = record(recorder, "--count", "100000")

    assert (result.exit_code, result.stdout) == (1, "0 of 100,000 sent: no response\n")


@pytest.mark.parametrize(
    ("arguments", "what_to_do"),
    [
        (["sessions", "sess_X"], "sess_X is a session's id: session-relay session sess_X"),
        (["session", "user_X"], "user_X is a user's id: session-relay sessions user_X"),
        (["sessions", "--after", "user_X"], "user_X is a user's id: session-relay sessions user_X"),
        (["tail", "--user", "sess_X"], "sess_X is a session's id: session-relay session sess_X"),
        (["forget", "sess_X"], "sess_X is a session's id: session-relay session sess_X"),
        (["revoke", "user_X"], "user_X is a user's id: --user user_X"),
        (["revoke", "--user", "sess_X"], "sess_X is a session's id: session-relay session sess_X"),
        (["revoke", "--user", "user_X", "--except", "user_X"], "user_X is a user's id"),
        (["reconcile", "--user", "sess_X"], "sess_X is a session's id: session-relay session sess_X"),
        (["sessions", "not-a-user!"], "not-a-user! is no id: it takes 1 to 128 letters, digits, _ and -."),
        (["session", "a b"], "a b is no id"),
        (["sessions", "--after", "a b"], "a b is no id"),
        (["tail", "--user", "a b"], "a b is no id"),
    ],
)
def test_an_id_of_the_wrong_kind_is_an_error_of_usage_that_says_what_to_do(
    arguments: list[str], what_to_do: str
) -> None:
    result = run(*arguments, environment={"REDIS_URL": NO_REDIS})

    assert (result.exit_code, result.stdout) == (2, "")
    assert what_to_do in result.stderr


def test_forge_that_is_taken_is_a_failure(recorder: Recorder) -> None:
    assert record(recorder, "--forge").exit_code == 1


@pytest.mark.parametrize("name", ["event.json", "./nowhere/event.txt", "/nowhere/session.created"])
def test_what_is_neither_type_nor_file_is_an_error_of_usage(name: str) -> None:
    result = run("send", name, environment={**SIGNING, "PORT": "1"})
    assert result.exit_code == 2
    assert name in result.stderr


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("session.revokd", "session.revoked"),
        ("sesion.ended", "session.ended"),
        ("session.end", "session.ended"),
        ("sessions.created", "session.created"),
        ("Session.Created", "session.created"),
        ("session_pending", "session.pending"),
        ("revoke", "session.revoked"),
        ("user.delete", "user.deleted"),
        ("organization_membership.create", "organizationMembership.created"),
        ("subscriptionItem.past-due", "subscriptionItem.past_due"),
        ("session:created", "session.created"),
        ("sessionCreated", "session.created"),
        ("SESSION_ENDED", "session.ended"),
        ("sessionended", "session.ended"),
        ('"session created"', "session.created"),
        ("'session.removed'", "session.removed"),
        ("ended.session", "session.ended"),
        ("created user", "user.created"),
        ("ended", "session.ended"),
        ("organization.membership.created", "organizationMembership.created"),
        ("created_organization_membership", "organizationMembership.created"),
        ("waitlist-entry.create", "waitlistEntry.created"),
        ("subscription_item.free_trial_end", "subscriptionItem.freeTrialEnding"),
    ],
)
def test_a_misspelt_type_is_not_sent_and_the_one_that_is_meant_is_named(
    name: str, meant: str, recorder: Recorder
) -> None:
    result = record(recorder, "session.created", name)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line == f"Clerk sends no {name}. Did you mean {meant}? (--any-type sends it all the same.)"
    assert recorder.bodies == []


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("session.updated", "session.ended"),
        ("session.expired", "session.revoked"),
        ("user.banned", "user.updated"),
        ("session:expired", "session.ended"),
        ("session_foo", "session.removed"),
        ("session.", "session.ended"),
        ("organization.membership.left", "organizationMembership.deleted"),
        ("permission.granted", "permission.updated"),
        ("subscriptionItem.expired", "subscriptionItem.canceled"),
    ],
)
def test_a_type_that_clerk_does_not_send_is_not_sent_and_those_that_it_sends_are_named(
    name: str, instead: str, recorder: Recorder
) -> None:
    result = record(recorder, name)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Clerk sends no {name}. Its {instead.partition('.')[0]} events: ")
    assert instead in line
    assert recorder.bodies == []


@pytest.mark.parametrize("name", ["event.txt", "invoice.paid", "event-2.yaml", "foo", "nonsense"])
def test_what_is_like_no_type_and_is_no_file_is_said_to_be_neither(name: str, recorder: Recorder) -> None:
    result = record(recorder, name)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name}: neither an event type that Clerk sends, like session.created, nor a file.")
    assert recorder.bodies == []


@pytest.mark.parametrize(
    "name",
    [
        "session.updated",
        "sesion.ended",
        "session.ended2",
        "session-ended",
        "økt.slutt",
        "v2",
        "7",
        "invoice.paid/partly",
        "event.json",
        "session created",
        "a" * 300,
        "",
    ],
)
def test_any_type_is_sent_on_request(name: str, recorder: Recorder) -> None:
    assert record(recorder, "--any-type", name).exit_code == 0
    assert json.loads(recorder.bodies[0])["type"] == name


def test_a_file_is_still_a_file_where_any_type_is_sent(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "event.txt").write_bytes(BYTES)
    assert record(recorder, "--any-type", "event.txt", "-", stdin=b"{}").exit_code == 0
    assert recorder.bodies == [BYTES, b"{}"]


def test_every_type_of_clerk_is_sent(recorder: Recorder) -> None:
    assert record(recorder, *EVENT_TYPES).exit_code == 0
    assert [json.loads(body)["type"] for body in recorder.bodies] == list(EVENT_TYPES)


def test_a_file_may_have_any_type_in_it(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_bytes(b'{"type":"sesion.ended"}')
    assert record(recorder, "event.json").exit_code == 0
    assert recorder.bodies == [b'{"type":"sesion.ended"}']


# The sums of `send`

APPLIED = httpx.Response(200, json={"outcome": "applied"})
UNAVAILABLE = httpx.Response(503, json={"code": "store_unavailable"})


def test_send_with_a_count_sums_up_the_responses(recorder: Recorder) -> None:
    recorder.responses = [APPLIED, UNAVAILABLE, APPLIED, None, APPLIED]
    result = record(recorder, "--count", "5")
    assert result.exit_code == 1
    *lines, sums = result.stdout.splitlines()
    assert len(lines) == 5
    assert sums == "5 sent: 3 got 200 applied, 1 got 503 store_unavailable, 1 got no response"


@pytest.mark.parametrize("body", [[1], {"outcome": ["applied"]}, {"code": {}}, {"detail": 1}])
def test_the_sums_tell_what_is_no_response_of_the_relay_by_its_status(body: object, recorder: Recorder) -> None:
    recorder.responses = [httpx.Response(404, json=body)] * 2
    assert record(recorder, "--count", "2").stdout.splitlines()[-1] == "2 sent: 2 got 404"


def test_the_responses_of_a_life_are_in_columns(recorder: Recorder) -> None:
    lines = record(recorder, "session.created", "session.ended", "session.pending").stdout.splitlines()
    assert len({line.index("msg_") for line in lines}) == 1


def test_send_without_a_count_needs_no_sums(recorder: Recorder) -> None:
    assert len(record(recorder, "session.created", "session.ended").stdout.splitlines()) == 2


def test_send_that_is_interrupted_sums_up_what_it_sent(recorder: Recorder) -> None:
    recorder.responses = [APPLIED, KeyboardInterrupt()]
    result = record(recorder, "--count", "1200", "--duplicate")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "1 of 2,400 sent: 1 got 200 applied"


def test_send_as_json_is_one_document(recorder: Recorder) -> None:
    recorder.responses = [APPLIED, UNAVAILABLE, None]
    result = record(recorder, "--count", "3", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["sent"], document["failed"]) == (3, 2)
    assert document["sums"] == [
        {"status": 200, "outcome": "applied", "code": None, "count": 1},
        {"status": 503, "outcome": None, "code": "store_unavailable", "count": 1},
        {"status": None, "outcome": None, "code": None, "count": 1},
    ]
    assert [response["status"] for response in document["responses"]] == [200, 503, None]
    first, _, last = document["responses"]
    assert (first["type"], first["response"]) == ("session.created", {"outcome": "applied"})
    assert first["message_id"].startswith("msg_")
    assert "no response" in last["response"]["detail"]


def test_of_forged_deliveries_those_fail_that_are_taken(recorder: Recorder) -> None:
    recorder.responses = [httpx.Response(400, json={"code": "invalid_signature"}), APPLIED]
    document = json.loads(record(recorder, "--forge", "--count", "2", "--json").stdout)
    assert (document["sent"], document["failed"]) == (2, 1)


def test_send_needs_a_secret() -> None:
    result = run("send")
    assert result.exit_code == 2
    assert result.stderr.startswith("CLERK_WEBHOOK_SIGNING_SECRET: ")


@pytest.mark.parametrize("cursor", ["", "never", "1795422761000-", "-1", "1-2-3", "$", "-", "+"])
def test_tail_refuses_what_is_no_cursor(cursor: str) -> None:
    result = run("tail", "--from", cursor, environment={"REDIS_URL": NO_REDIS})
    assert result.exit_code == 2
    assert "--from" in result.stderr


@pytest.mark.parametrize("arguments", [["--limit", "5"], ["--after", "sess_1"]])
def test_sessions_of_a_user_have_no_pages(arguments: list[str]) -> None:
    result = run("sessions", "user_1", *arguments, environment={"REDIS_URL": NO_REDIS})
    assert result.exit_code == 2
    assert "USER_ID" in result.stderr


def test_ctrl_c_is_noticed_although_it_does_not_wake_the_main_thread() -> None:
    """As in the moment in which that begins to wait. Here, the other thread gets the signal."""
    stopped, seen = threading.Event(), []

    def work() -> None:
        eventually(lambda: sys._current_frames()[threading.main_thread().ident or 0].f_code.co_name == "wait")
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        seen.append(stopped.wait(60))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), in_thread(stopped.set) as call:
            call(int)  # the thread has started
            call(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [True]


# Completion, as a shell asks for it


def complete(*words: str) -> list[str]:
    """Return what is offered for the last of these words."""
    asked = {"COMP_WORDS": shlex.join(["session-relay", *words]), "COMP_CWORD": str(len(words))}
    return printed_for_completion({"_SESSION_RELAY_COMPLETE": "bash_complete", **asked}).split()


def printed_for_completion(environment: Environment) -> str:
    return CliRunner().invoke(main, [], prog_name="session-relay", env=environment).stdout


def test_completion_knows_the_commands() -> None:
    assert {f"plain,{name}" for name in commands()} == set(complete(""))


@pytest.mark.parametrize("words", [["send"], ["send", "--duplicate", "session.created"]])
def test_completion_of_send_knows_the_types_of_events(words: list[str]) -> None:
    expected = ["file,user.", "plain,user.created", "plain,user.updated", "plain,user.deleted"]
    assert complete(*words, "user.") == expected


def test_bash_keeps_the_types_beside_files() -> None:
    """What click has bash do about files removes all that came before."""
    kinds = [line.partition(",")[0] for line in complete("send", "")]
    assert kinds == ["file", *["plain"] * len(EVENT_TYPES)]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str) -> None:
    assert "_SESSION_RELAY_COMPLETE" in printed_for_completion({"_SESSION_RELAY_COMPLETE": f"{shell}_source"})


@pytest.mark.parametrize(
    "arguments",
    [
        *(["session", "sess_1"], ["sessions"], ["sessions", "user_1"], ["tail"], ["expire", "--once"]),
        *(["dead-letters", *rest] for rest in (["list"], ["show", "msg_1"], ["replay"], ["drop", "msg_1"])),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("url", [None, "redis://relay:hunter-two@127.0.0.1:port/0"])
def test_a_wrong_redis_url_is_told_in_one_line(arguments: list[str], url: str | None) -> None:
    result = run(*arguments, environment={"REDIS_URL": url})
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("REDIS_URL: ")
    assert "hunter" not in line
