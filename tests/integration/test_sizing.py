"""That Redis takes as much memory as docs/deploy.md says, under Sizing."""

import re
from collections.abc import Callable
from typing import Final

from support.constants import NOW_MS, ROOT
from support.documents import section
from support.redis_clients import client_of
from support.relay import run_relay

from service.dev import simulator
from service.dev.embedded import EmbeddedRedis

SESSIONS: Final = 2000
SIZING: Final = section(ROOT / "docs" / "deploy.md", "Sizing")


def said(what: str) -> int:
    (number,) = re.findall(rf"^\| {what}.*? \| ([\d,]+)", SIZING, re.MULTILINE)
    return int(number.replace(",", ""))


def test_sessions_and_entries_take_no_more_memory_than_is_said(start_redis: Callable[..., EmbeddedRedis]) -> None:
    server = start_redis()
    with client_of(server.url) as client:
        with run_relay(server.url) as relay:
            relay.take(simulator.sample("user.created", now_ms=NOW_MS), "msg_1")
            before = client.info("memory")["used_memory"]
            deliveries = [(simulator.sample(now_ms=NOW_MS), simulator.new_id("msg")) for _ in range(SESSIONS)]
            assert relay.take_all(deliveries) == {"applied"}
        entries = client.memory_usage("{clerk}:events", samples=0)
        sessions = client.info("memory")["used_memory"] - before - entries

    # Other servers take less, and a growing table of keys a little more for a moment.
    assert 0.6 < sessions / SESSIONS / said("a session that is open") < 1.1
    assert 0.6 < entries / SESSIONS / said("an entry of the stream") < 1.1
