"""How feeds and mirrors read the hashes of all sessions: by a script, or by a command for each; and ahead."""

import threading
from typing import Any, Final

import pytest
import redis
from clerk_session_feed import UnreadableMessageError, hashes, stream
from support.clock import eventually
from support.events import clerk_event
from support.feeds import Feed, OpenFeed
from support.mirrors import mirrored
from support.redis_clients import monitored
from support.relay import run_relay

from service.dev.embedded import EmbeddedRedis

pytestmark = pytest.mark.real_redis

IDS: Final = [f"sess_{number}" for number in range(20)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few keys in a reply, and few of them in a run of the script."""
    monkeypatch.setattr(stream, "SCANNED", 2)  # Valkey returns several times as many
    monkeypatch.setattr(hashes, "AT_ONCE", 3)


@pytest.fixture
def url(own_redis: EmbeddedRedis) -> str:
    """Of a Redis in which the sessions are live."""
    with run_relay(own_redis.url) as relay:
        relay.take_all([(clerk_event(session_id=each, expire_at=None), f"msg_{each}") for each in IDS])
    return own_redis.url


@pytest.fixture
def feed(open_feed: OpenFeed, url: str) -> Feed:
    return open_feed(url)


def reader_url(url: str, client: Any, *rights: str) -> str:
    client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@all", *rights)
    return url.replace("//", "//reader:secret@")


def ids_of(feed: Feed) -> list[str]:
    updates = feed.follow()
    taken = [update.session.id for update in updates.take(len(IDS))]
    updates.leave()
    return sorted(taken)


def names(commands: list[str]) -> list[str]:
    return [command.split()[0].upper() for command in commands if ":session:" in command]


def test_a_script_reads_the_hashes(feed: Feed, own_client: Any) -> None:
    with monitored(own_client) as commands:
        assert ids_of(feed) == sorted(IDS)
        with mirrored(feed) as mirror:
            assert {mirror.status(each) for each in IDS} == {"live"}
    assert set(names(commands)) == {"EVAL", "SCAN"}


@pytest.mark.parametrize("missing", ["-eval", "-@scripting"])
def test_without_the_right_to_scripts_a_command_for_each_reads_them(
    open_feed: OpenFeed, url: str, own_client: Any, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "AT_ONCE", 1000)
    feed = open_feed(reader_url(url, own_client, missing))
    assert ids_of(feed) == sorted(IDS)
    with mirrored(feed) as mirror:
        assert {mirror.status(each) for each in IDS} == {"live"}
    refused = own_client.acl_log()
    assert [(entry["object"], entry["count"]) for entry in refused] == [("eval", 2)]  # each tried once


def test_without_the_right_to_hmget_it_is_said_to_be_missing(open_feed: OpenFeed, url: str, own_client: Any) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError, match="hmget"):
        open_feed(reader_url(url, own_client, "-hmget")).follow().next()


def test_a_key_of_another_type_is_an_error(feed: Feed, own_client: Any) -> None:
    own_client.set("{clerk}:session:sess_other", "text")
    with pytest.raises(redis.ResponseError, match=r"^WRONGTYPE Operation against a key"):
        feed.follow().take(len(IDS) + 1)


def test_a_message_that_can_not_be_read_is_an_error_although_others_were_read_ahead(
    feed: Feed, own_client: Any
) -> None:
    own_client.hset("{clerk}:session:sess_3", "state", "{}")
    with pytest.raises(UnreadableMessageError, match="sess_3"):
        feed.follow().take(len(IDS))
    eventually(lambda: not readers())


def test_whoever_leaves_the_snapshots_leaves_nothing_behind(feed: Feed) -> None:
    for _ in range(3):
        updates = feed.follow()
        updates.next()
        updates.leave()
    eventually(lambda: not readers())
    assert ids_of(feed) == sorted(IDS)


def test_what_is_wrong_in_a_batch_is_raised_behind_what_comes_before_it(feed: Feed, own_client: Any) -> None:
    cursors = [entry_id for entry_id, _ in own_client.xrange("{clerk}:events")]
    own_client.xadd("{clerk}:events", {"outcome": "applied", "session_id": "sess_1", "message": "{}"})
    updates = feed.follow("0-0")
    assert [update.cursor for update in updates.take(len(cursors))] == cursors
    with pytest.raises(UnreadableMessageError):
        updates.next()


def test_redis_reads_the_next_hashes_while_those_before_are_dealt_with(feed: Feed, own_client: Any) -> None:
    def scans() -> int:
        calls: int = own_client.info("commandstats").get("cmdstat_scan", {}).get("calls", 0)
        return calls

    updates = feed.follow()
    updates.next()
    eventually(lambda: scans() >= 3)  # the first, that of the page behind it, and that of the next
    updates.leave()


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "session-feed"]
