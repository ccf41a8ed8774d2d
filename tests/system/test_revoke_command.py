"""`session-relay revoke` and `forget`, as a user types them, and killed at the moments that matter."""

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.children import started
from support.cli import run
from support.constants import NO_REDIS, RELAY, ROOT, SESSION_KEY
from support.documents import section
from support.redis_clients import client_of
from support.relay import Relay, run_relay
from support.topologies import cluster_of

from service.dev.embedded import EmbeddedRedis
from service.dev.fake_clerk import FakeClerk

REVOKES_KEY = "{clerk}:revokes"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any .env."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def relay(any_redis: EmbeddedRedis, any_client: Any) -> Iterator[Relay]:
    with run_relay(any_redis.url) as relay:
        yield relay


@pytest.fixture
def clerk(relay: Relay) -> Iterator[FakeClerk]:
    """A production instance with one user, whose webhooks the relay gets at its own time."""
    numbers = iter(range(1000))

    def deliver(event: Any) -> None:
        relay.take(event, f"msg_{next(numbers)}")

    with FakeClerk(environment="production", clock=lambda: relay.now_ms / 1000, on_webhook=deliver) as clerk:
        clerk.add_user(id="user_1")
        yield clerk


Command = Callable[..., Result]


@pytest.fixture
def settings(any_redis: EmbeddedRedis, clerk: FakeClerk) -> dict[str, str]:
    return {"REDIS_URL": any_redis.url, "CLERK_SECRET_KEY": clerk.secret_key, "CLERK_API_URL": clerk.url}


@pytest.fixture
def command(settings: dict[str, str]) -> Command:
    return lambda *arguments, **changed: run(*arguments, environment=settings | changed)


def statuses(client: Any, *names: str) -> dict[str, str | None]:
    return {name: client.hget(f"{{clerk}}:session:sess_{name}", "status") for name in names}


def lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# revoke


def test_a_session_ends_here_and_at_clerk_in_one_line(command: Command, clerk: FakeClerk, any_client: Any) -> None:
    clerk.sign_in("user_1", id="sess_1")

    result = command("revoke", "sess_1")

    assert (result.exit_code, result.stderr) == (0, "Ended here: 1. Clerk is told now.\n")
    assert result.stdout == "sess_1  user_1  here: revoked  at Clerk: revoked\n"
    assert clerk.get("sess_1")["status"] == statuses(any_client, "1")["1"] == "revoked"
    outcomes = [fields["outcome"] for _, fields in any_client.xrange("{clerk}:events")]
    assert outcomes == ["applied", "applied", "stale"]  # the webhook that followed
    assert any_client.exists(REVOKES_KEY) == 0


def test_only_what_was_open_counts_as_ended_here(command: Command, clerk: FakeClerk) -> None:
    clerk.sign_in("user_1", id="sess_1")
    command("revoke", "sess_1")

    result = command("revoke", "sess_1", "sess_2")

    assert result.stderr.startswith("Ended here: 0. Clerk is told now.\n")


def test_a_user_of_whom_nobody_knows_an_open_session_is_told_of(command: Command, clerk: FakeClerk) -> None:
    result = command("revoke", "--user", "user_nobody")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        "Ended here: 0. No such session is stored as open.",
        "Clerk lists no such session of user_nobody.",
    ]


def test_json_has_an_object_for_each_session(command: Command, clerk: FakeClerk) -> None:
    clerk.sign_in("user_1", id="sess_1")

    (revoked, unknown) = sorted(
        lines(command("revoke", "--json", "sess_1", "sess_2")), key=lambda each: each["session_id"]
    )

    assert isinstance(revoked.pop("since_ms"), int)
    assert revoked == {
        "session_id": "sess_1", "user_id": "user_1", "status": "revoked", "clerk": "revoked", "detail": None,
    }  # fmt: skip
    assert (unknown["clerk"], unknown["status"]) == ("not_found", None)


def test_all_sessions_of_a_user_end_also_those_that_only_clerk_knows(
    command: Command, clerk: FakeClerk, any_client: Any
) -> None:
    for name in ("stored", "kept"):
        clerk.sign_in("user_1", id=f"sess_{name}")
    with clerk.webhooks_lost():
        clerk.sign_in("user_1", id="sess_missed")
        clerk.sign_in("user_1", id="sess_kept_too")
    clerk.sign_in(clerk.add_user(), id="sess_other")

    result = command("revoke", "--user", "user_1", "--except", "sess_kept", "--except", "sess_kept_too")

    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert statuses(any_client, "stored", "missed", "kept", "other") == {
        "stored": "revoked", "missed": "revoked", "kept": "active", "other": "active",
    }  # fmt: skip
    assert [clerk.get(f"sess_{each}")["status"] for each in ("missed", "kept", "kept_too", "other")] == [
        "revoked", "active", "active", "active",
    ]  # fmt: skip


def test_all_sessions_end_in_which_somebody_impersonates(command: Command, clerk: FakeClerk, any_client: Any) -> None:
    clerk.sign_in("user_1", id="sess_own")
    clerk.sign_in("user_1", id="sess_of_admin", actor={"sub": "user_admin"})

    result = command("revoke", "--impersonated")

    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)
    assert statuses(any_client, "own", "of_admin") == {"own": "active", "of_admin": "revoked"}


def test_impersonation_cannot_be_told_where_the_actor_is_left_out(command: Command, clerk: FakeClerk) -> None:
    result = command("revoke", "--impersonated", OMIT_FIELDS="actor")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("OMIT_FIELDS: leaves out actor")


def test_a_session_that_nobody_knows_is_an_error(command: Command, clerk: FakeClerk) -> None:
    result = command("revoke", "sess_1")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "sess_1  -  here: not stored  at Clerk: not found  (neither Clerk nor the relay knows it)" in result.stderr


def test_a_wrong_key_ends_sessions_here_and_says_what_is_left(
    command: Command, clerk: FakeClerk, any_client: Any
) -> None:
    clerk.sign_in("user_1", id="sess_1")

    result = command("revoke", "sess_1", CLERK_SECRET_KEY="sk_live_s3cr3t")

    assert (result.exit_code, result.stdout) == (1, "")
    _, session, reason, left = result.stderr.splitlines()
    assert re.fullmatch(r"sess_1  user_1  here: revoked  at Clerk: pending since [\d :-]+ UTC", session)
    assert "refuses CLERK_SECRET_KEY" in reason
    assert left.startswith("Clerk has 1 still to revoke")
    assert "reconcile --every" in left
    assert "s3cr3t" not in result.output
    assert clerk.get("sess_1")["status"] == "active"

    assert [each["session_id"] for each in lines(command("revoke", "--pending", "--json"))] == ["sess_1"]
    assert command("revoke", "--impersonated").exit_code == 0  # and sends what is left from before
    assert clerk.get("sess_1")["status"] == "revoked"


def test_pending_needs_no_key(command: Command, any_client: Any) -> None:
    assert command("revoke", "--pending", CLERK_SECRET_KEY=None).exit_code == 0
    any_client.zadd(REVOKES_KEY, {"sess_\x1b[31m": 1_795_425_200_000})
    any_client.expire(REVOKES_KEY, 100)

    result = command("revoke", "--pending", CLERK_SECRET_KEY=None)

    assert (result.exit_code, result.stdout) == (0, "sess_\\x1b[31m  since 2026-11-23 09:13:20 UTC\n")


def test_without_a_key_nothing_is_done(command: Command, clerk: FakeClerk, any_client: Any) -> None:
    clerk.sign_in("user_1", id="sess_1")

    result = command("revoke", "sess_1", CLERK_SECRET_KEY=None)

    (line,) = result.stderr.splitlines()
    assert (result.exit_code, line.startswith("CLERK_SECRET_KEY: is missing")) == (2, True)
    assert statuses(any_client, "1") == {"1": "active"}


def test_local_ends_sessions_without_a_key_and_tells_clerk_nothing(
    command: Command, clerk: FakeClerk, any_client: Any
) -> None:
    clerk.sign_in("user_1", id="sess_1")

    result = command("revoke", "--local", "sess_1", CLERK_SECRET_KEY=None)

    assert (result.exit_code, result.stdout) == (0, "sess_1  user_1  here: revoked\n")
    assert "Clerk still takes them for live" in result.stderr
    assert statuses(any_client, "1") == {"1": "revoked"}
    assert clerk.requests == []
    assert any_client.exists(REVOKES_KEY) == 0


def test_local_fails_for_a_session_that_could_not_be_ended(command: Command, clerk: FakeClerk, any_client: Any) -> None:
    clerk.sign_in("user_1", id="sess_1")
    any_client.delete("{clerk}:user:user_1:sessions")
    any_client.set("{clerk}:user:user_1:sessions", "text", ex=100)

    result = command("revoke", "--local", "sess_1")
    any_client.delete("{clerk}:user:user_1:sessions")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("sess_1  user_1  here: {clerk}:user:user_1:sessions has another type")


def test_local_fails_for_a_session_that_is_not_stored(command: Command, clerk: FakeClerk) -> None:
    result = command("revoke", "--local", "sess_1")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("sess_1  -  here: not stored\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sess_1", "--user", "user_1"],
        ["sess_1", "--impersonated"],
        ["--user", "user_1", "--impersonated"],
        ["--pending", "sess_1"],
        ["--pending", "--local"],
        ["sess_1", "--except", "sess_2"],
        ["--user", ""],
        ["--user", "user:1"],
        ["--user", "user_1", "--except", "sess 2"],
        ["../users/user_1"],
        ["sess_1", "s" * 129],
    ],
    ids=" ".join,
)
def test_a_wrong_choice_is_refused_before_anything_is_done(arguments: list[str]) -> None:
    result = run("revoke", *arguments, environment={"REDIS_URL": NO_REDIS})

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


@pytest.mark.parametrize("arguments", [["revoke", "sess_1"], ["revoke", "--pending"], ["forget", "user_1"]])
def test_without_redis_it_fails_in_one_line(command: Command, arguments: list[str]) -> None:
    result = command(*arguments, REDIS_URL=NO_REDIS)

    (line,) = result.stderr.splitlines()
    assert (result.exit_code, result.stdout, line.startswith("Redis: ")) == (1, "", True)


@pytest.mark.parametrize("moment", ["before Clerk did it", "before Clerk's answer"])
def test_killed_it_leaves_a_record_from_which_the_next_one_goes_on(
    command: Command, settings: dict[str, str], clerk: FakeClerk, any_client: Any, tmp_path: Path, moment: str
) -> None:
    clerk.sign_in("user_1", id="sess_1")
    asked, is_killed = threading.Event(), threading.Event()

    def wait_for_the_end(*_: object) -> None:
        asked.set()
        assert is_killed.wait(30)

    def on_request(method: str, *_: object) -> None:
        if method == "POST":
            wait_for_the_end()

    if moment == "before Clerk did it":
        clerk.on_request = on_request
    else:
        clerk.on_webhook = wait_for_the_end
    with started([*RELAY, "revoke", "sess_1"], tmp_path, settings) as program:
        try:
            assert asked.wait(30)
            assert statuses(any_client, "1") == {"1": "revoked"}
            assert program.stop(signal.SIGKILL) == -signal.SIGKILL
        finally:
            is_killed.set()
    clerk.on_request = clerk.on_webhook = None

    assert [each["session_id"] for each in lines(command("revoke", "--pending", "--json"))] == ["sess_1"]

    result = command("revoke", "--impersonated", "--json")

    assert (result.exit_code, lines(result)[0]["clerk"]) == (0, "revoked")
    assert clerk.get("sess_1")["status"] == "revoked"
    assert command("revoke", "--pending", "--json").stdout == ""


# Few rights, and a cluster

(RELAYS_RIGHTS,) = re.findall(
    r"^ACL SETUSER relay on >password (.*)$", (ROOT / "docs/redis.md").read_text(), re.MULTILINE
)
(REVOKES_RIGHTS, SCANS_RIGHTS, FORGETS_RIGHTS) = re.findall(
    r"`(\+[^`]*)`", section(ROOT / "docs/revoke.md", "Redis rights")
)


@pytest.mark.parametrize(
    ("arguments", "rights"),
    [
        (["revoke", "--user", "user_1"], REVOKES_RIGHTS),
        (["revoke", "--impersonated"], f"{REVOKES_RIGHTS} {SCANS_RIGHTS}"),
        (["revoke", "--pending"], REVOKES_RIGHTS),
        (["forget", "user_1"], FORGETS_RIGHTS),
    ],
    ids=["revoke --user", "revoke --impersonated", "revoke --pending", "forget"],
)
def test_the_documented_rights_suffice(
    command: Command, clerk: FakeClerk, own_redis: EmbeddedRedis, own_client: Any, arguments: list[str], rights: str
) -> None:
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">password", *RELAYS_RIGHTS.split(), *rights.split())
    clerk.on_webhook = None
    clerk.sign_in("user_1", id="sess_1", actor={"sub": "user_admin"})
    with run_relay(own_redis.url) as relay:
        relay.take(clerk.event("session.created", "sess_1"), "msg_1")

    result = command(*arguments, REDIS_URL=own_redis.url.replace("//", "//relay:password@"))

    assert result.exit_code == 0, result.output


def test_sessions_in_a_cluster_end_and_are_forgotten(command: Command, clerk: FakeClerk, redis_binary: str) -> None:
    clerk.on_webhook = None
    users = [clerk.add_user() for _ in range(6)]
    with cluster_of(redis_binary, replicas=0) as nodes:
        changed = {"REDIS_URL": nodes.url, "PARTITIONS": "3"}
        with run_relay(nodes.url, partitions=3) as relay:
            for user in users:
                session = clerk.sign_in(user, actor={"sub": "user_admin"})
                relay.take(clerk.event("session.created", session), "msg_1")

        revoked = command("revoke", "--impersonated", "--json", **changed)

        assert (revoked.exit_code, {each["clerk"] for each in lines(revoked)}) == (0, {"revoked"})
        assert {each["user_id"] for each in lines(revoked)} == set(users)
        for user in users:
            forgotten = command("forget", user, **changed)
            assert forgotten.stdout.startswith(f"Removed of {user}: sessions: 1 (open: 0), stream entries: 2,")


# forget


def test_what_is_stored_of_a_user_is_forgotten(command: Command, clerk: FakeClerk, any_client: Any) -> None:
    clerk.sign_in("user_1", id="sess_1")
    clerk.delete_user("user_1")

    result = command("forget", "user_1", CLERK_SECRET_KEY=None)

    assert result.exit_code == 0
    assert result.stdout == "Removed of user_1: sessions: 1 (open: 0), stream entries: 2, dead letters: 0.\n"
    (note,) = result.stderr.splitlines()
    assert note.startswith("Not reached: ")
    assert set(any_client.keys()) == {"{clerk}:user:user_1:gone", "{clerk}:events"}
    assert any_client.xlen("{clerk}:events") == 0


def test_it_says_if_sessions_go_on_or_come_back(command: Command, clerk: FakeClerk) -> None:
    clerk.sign_in("user_1", id="sess_1")

    result = command("forget", "user_1")

    told, deletion, _ = result.stderr.splitlines()
    assert told.startswith("1 of the sessions were open, and followers of the feed were not told")
    assert deletion.startswith("Clerk has not said that user_1 is deleted.")


def test_an_id_that_is_none_is_refused_before_anything_is_removed() -> None:
    result = run("forget", "user_*", environment={"REDIS_URL": NO_REDIS})

    assert (result.exit_code, result.stdout) == (2, "")
    assert "user_* is no id" in result.stderr


def test_a_key_that_cannot_be_removed_is_named(command: Command, real_redis: EmbeddedRedis) -> None:
    with client_of(real_redis.url) as client:
        client.flushall()
        client.set(SESSION_KEY, "text")
        client.zadd("{clerk}:user:user_1:sessions", {"sess_1": 1})

        result = command("forget", "user_1", REDIS_URL=real_redis.url)
        client.flushall()

    assert result.exit_code == 1
    assert result.stderr.startswith(f"{SESSION_KEY} is not a hash, and stays.\n")
