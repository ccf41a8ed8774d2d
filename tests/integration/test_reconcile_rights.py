"""docs/reconcile.md, Rights in Redis: what is listed there suffices, and no right of it is one too many."""

import re
import time
from functools import partial
from typing import Any
from unittest.mock import AsyncMock

import pytest
from support.cli import run
from support.constants import ROOT
from support.documents import REDIS, section
from support.relay import run_relay

from service.dev.embedded import EmbeddedRedis
from service.dev.fake_clerk import FakeClerk
from service.workers.reconcile import Reconciler

RECONCILE = ROOT / "docs/reconcile.md"


def rights() -> list[str]:
    """Return those that are listed in addition to the relay's."""
    (listed,) = re.findall(r"^`(\+[^`]*)`", section(RECONCILE, "Rights in Redis"), re.MULTILINE)
    return str(listed).split()


def add_user(client: Any, *more: str) -> None:
    (line,) = re.findall(r"^ACL SETUSER relay .*$", section(REDIS, "Rights"), re.MULTILINE)
    client.execute_command(*line.split(), *more)


def refused(client: Any) -> set[str]:
    """Return the commands that the relay's user was refused."""
    return {entry["object"] for entry in client.acl_log() if entry["username"] == "relay"}


@pytest.fixture
def clerk() -> Any:
    with FakeClerk(environment="production") as clerk:
        yield clerk


@pytest.fixture
def environment(own_redis: EmbeddedRedis, clerk: FakeClerk) -> dict[str, str]:
    """The settings of a relay whose state differs from Clerk's in every way that needs another command."""
    with run_relay(own_redis.url, now_ms=int(time.time() * 1000)) as relay:
        vanished, abandoned, revoked, user_gone = (clerk.sign_in(clerk.add_user()) for _ in range(4))
        pending = clerk.sign_in(clerk.add_user(), status="pending")
        for number, session_id in enumerate((vanished, abandoned, revoked, user_gone, pending)):
            status = clerk.get(session_id)["status"]
            type_ = "session.pending" if status == "pending" else "session.created"
            relay.take(clerk.event(type_, session_id), f"msg_{number}")
    clerk.vanish(vanished)
    clerk.end(abandoned, "abandoned")
    clerk.sign_in(clerk.add_user())
    return {
        "REDIS_URL": own_redis.url.replace("//", "//relay:password@"),
        "CLERK_SECRET_KEY": clerk.secret_key,
        "CLERK_API_URL": clerk.url,
    }


def test_the_rights_listed_suffice_for_reconcile(
    own_client: Any, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.reconcile.rest", AsyncMock())  # a dry run's, for which Redis is not asked
    monkeypatch.setattr("service.cli.reconcile.Reconciler", partial(Reconciler, ask_again_seconds=1.0))
    add_user(own_client, *rights())
    own_client.config_resetstat()

    results = [run("reconcile", *options, environment=environment) for options in (["--full"], ["--dry-run"], [])]

    assert [result.exit_code for result in results] == [0, 0, 0]
    assert "mended: 1 ended, 1 gone, 1 missing." in results[0].output
    assert refused(own_client) == set()
    used = {name.removeprefix("cmdstat_") for name in own_client.info("commandstats")}
    assert {right.removeprefix("+") for right in rights()} <= used, "one is too many"


def test_the_rights_listed_suffice_for_revoke_and_forget(
    own_client: Any, environment: dict[str, str], clerk: FakeClerk
) -> None:
    add_user(own_client, *rights(), "+xrange", "+type")
    (key, *_) = own_client.keys("{clerk}:user:*:sessions")
    user_id = key.split(":")[2]

    results = [
        run("revoke", "--user", user_id, environment=environment),
        run("revoke", "--impersonated", environment=environment),
        run("revoke", "--pending", environment=environment),
        run("forget", user_id, environment=environment),
    ]

    assert [result.exit_code for result in results] == [0, 0, 0, 0], [result.output for result in results]
    assert refused(own_client) == set()


def test_without_a_right_it_says_so(own_client: Any, environment: dict[str, str]) -> None:
    add_user(own_client)

    result = run("reconcile", environment=environment)

    assert result.exit_code == 1
    assert result.output.startswith("Redis: ")
    assert "Traceback" not in result.output
