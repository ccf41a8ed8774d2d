"""Consumer groups: each update at least once, whoever dies and whatever Redis loses."""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from clerk_session_feed import CursorLostError, SessionUpdate, UnreadableMessageError, transport, unused
from clerk_session_feed import group as group_rules
from clerk_session_feed import shares as share_rules
from clerk_session_feed.cursors import NOTHING
from clerk_session_feed.testing import AsyncMemorySessionFeed
from clerk_session_feed.transport import as_dict
from redis.exceptions import NoPermissionError, ReadOnlyError
from support.children import started
from support.clock import eventually
from support.constants import EVENTS_KEY, NOW_MS
from support.events import clerk_event
from support.feeds import EndedError, Feed, OpenFeed, Reconnects, block_shortly
from support.network import free_port
from support.redis_clients import client_of
from support.redis_servers import start_durable_redis
from support.relay import Relay, run_relay

from service.dev.embedded import EmbeddedRedis


@pytest.fixture
def relay_redis(real_redis: EmbeddedRedis) -> EmbeddedRedis:
    """For `client` and `relay`."""
    return real_redis


def begin_sessions(relay: Relay, *numbers: int) -> list[str]:
    """Let each session begin; return the cursors."""
    return [str(relay.take(clerk_event(session_id=f"sess_{number}"), f"msg_{number}").cursor) for number in numbers]


def numbers(updates: list[SessionUpdate]) -> list[int]:
    return [int(update.session.id.removeprefix("sess_")) for update in updates]


def calls(client: Any) -> dict[str, int]:
    """Return how often Redis has executed each command, but for those by which that is counted."""
    counted = {name: each["calls"] for name, each in client.info("commandstats").items()}
    ours = ("cmdstat_info", "cmdstat_config", "cmdstat_flushall")
    return {name.removeprefix("cmdstat_"): count for name, count in counted.items() if not name.startswith(ours)}


def reads(client: Any) -> int:
    return calls(client).get("xreadgroup", 0)


def pending(client: Any, group: str = "group") -> int:
    """Return how many entries somebody has that are not acknowledged."""
    count: int = client.xpending(EVENTS_KEY, group)["pending"]
    return count


def groups(client: Any) -> list[str]:
    return [group["name"] for group in client.xinfo_groups(EVENTS_KEY)] if client.exists(EVENTS_KEY) else []


def trim(client: Any, length: int) -> None:
    client.xtrim(EVENTS_KEY, maxlen=length, approximate=False)


def before_each_command(monkeypatch: pytest.MonkeyPatch, call: Callable[[transport.Command], None]) -> None:
    """Call something with each command that a feed is about to send."""
    execute = transport.Connection.execute

    async def call_and_execute(self: Any, *commands: transport.Command) -> list[Any]:
        for command in commands:
            call(command)
        return await execute(self, *commands)

    monkeypatch.setattr(transport.Connection, "execute", call_and_execute)


# Where a group begins, and goes on


def test_a_new_group_begins_with_the_state_of_every_session(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, 1, 2)
    updates = feed.consume()
    held = updates.take(2)
    begin_sessions(relay, 3)
    (news,) = updates.take(1)
    assert sorted(numbers(held)) == [1, 2]
    assert [update.is_snapshot for update in (*held, news)] == [True, True, False]
    assert numbers([news]) == [3]


def test_whoever_dies_in_the_snapshots_leaves_them_to_the_next(feed: Feed, relay: Relay, client: Any) -> None:
    begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(name="first")
    updates.next()
    updates.leave()
    assert groups(client) == []
    assert sorted(numbers(feed.consume(name="second").take(3))) == [1, 2, 3]


def test_a_group_that_is_there_goes_on(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, 1)
    updates = feed.consume()
    updates.next()
    begin_sessions(relay, 2)
    updates.next()
    begin_sessions(relay, 3)
    updates.next()  # acknowledges 2
    updates.leave()
    begin_sessions(relay, 4)
    assert numbers(feed.consume().take(2)) == [3, 4]


def test_a_group_that_begins_in_the_stream(feed: Feed, relay: Relay) -> None:
    first, *_ = begin_sessions(relay, 1, 2, 3)
    assert numbers(feed.consume("a", after="0-0").take(3)) == [1, 2, 3]
    assert numbers(feed.consume("b", after=first).take(2)) == [2, 3]
    updates = feed.consume("c", after=feed.now())
    begin_sessions(relay, 4)
    assert numbers(updates.take(1)) == [4]


def test_a_group_that_begins_behind_what_was_trimmed(feed: Feed, relay: Relay, client: Any) -> None:
    first, *_ = begin_sessions(relay, 1, 2, 3, 4)
    trim(client, 1)
    for _ in range(2):
        with pytest.raises(CursorLostError) as lost:
            feed.consume(after=first).next()
        assert (lost.value.cursor, lost.value.partition) == (first, 0)


def test_groups_know_nothing_of_each_other(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, 1, 2)
    for group in ("one", "other"):
        assert numbers(feed.consume(group, after="0-0").take(2)) == [1, 2]


def test_late_events_are_acknowledged_and_left_out(feed: Feed, relay: Relay, client: Any) -> None:
    relay.take(clerk_event("ended"), "msg_1")
    relay.take(clerk_event(), "msg_late")
    begin_sessions(relay, 3)
    updates = feed.consume(after="0-0")
    assert numbers(updates.take(2)) == [1, 3]
    updates.leave()
    assert pending(client) == 1
    with_stale = feed.consume("with stale", after="0-0", stale=True).take(3)
    assert [update.outcome for update in with_stale] == ["applied", "stale", "applied"]


# Acknowledged after the loop's body


def test_what_is_done_is_acknowledged_with_the_next_read(feed: Feed, relay: Relay, client: Any) -> None:
    begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(after="0-0")
    updates.take(3)
    assert pending(client) == 3
    more = updates.begin()
    eventually(lambda: pending(client) == 0)
    begin_sessions(relay, 4)
    more.result(30)


def test_a_thousand_updates_take_few_commands(own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed) -> None:
    """Each command that writes costs a write to the disk where Redis has `appendfsync always`."""
    with run_relay(own_redis.url) as relay:
        begin_sessions(relay, 1)
    fields = own_client.xrange(EVENTS_KEY)[0][1]
    with own_client.pipeline() as pipeline:
        for _ in range(999):
            pipeline.xadd(EVENTS_KEY, fields)
        pipeline.execute()
    own_client.config_resetstat()
    updates = open_feed(own_redis.url).consume(after="0-0")
    updates.take(1000)
    updates.begin()
    eventually(lambda: pending(own_client) == 0)
    assert calls(own_client)["xack"] <= 40
    assert reads(own_client) <= 42


def test_a_slow_loop_is_acknowledged_after_a_second(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clock_of_the_group(monkeypatch)
    begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(after="0-0")
    updates.take(2)
    assert pending(client) == 3
    clock.ahead = 1.1
    updates.next()
    assert pending(client) == 1


def test_whoever_leaves_the_loop_gets_only_what_was_not_done_again(feed: Feed, relay: Relay, client: Any) -> None:
    begin_sessions(relay, 1, 2, 3, 4)
    updates = feed.consume(after="0-0")
    assert numbers(updates.take(3)) == [1, 2, 3]
    updates.leave()
    assert pending(client) == 2
    assert numbers(feed.consume().take(2)) == [3, 4]


def test_who_closes_the_feed_meanwhile_gets_only_what_was_not_done_again(
    open_feed: OpenFeed, relay_redis: EmbeddedRedis, relay: Relay, client: Any
) -> None:
    begin_sessions(relay, 1, 2, 3, 4)
    feed = open_feed(relay_redis.url)
    updates = feed.consume(after="0-0")
    assert numbers(updates.take(3)) == [1, 2, 3]
    feed.close()
    with pytest.raises(EndedError):
        updates.next()  # the body is through with 3
    assert pending(client) == 1
    assert numbers(open_feed(relay_redis.url).consume().take(1)) == [4]


def test_a_loop_is_left_although_redis_is_away(
    own_redis: EmbeddedRedis, open_feed: OpenFeed, caplog: pytest.LogCaptureFixture
) -> None:
    with run_relay(own_redis.url) as relay:
        begin_sessions(relay, 1, 2)
    updates = open_feed(own_redis.url).consume(after="0-0")
    updates.take(2)
    assert own_redis.process is not None
    own_redis.process.kill()
    own_redis.process.wait(10)
    updates.leave()
    assert "comes again" in caplog.text


def test_whoever_fails_in_the_loop_gets_the_update_again(feed: Feed, relay: Relay) -> None:
    begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(after="0-0")
    assert numbers(updates.take(2)) == [1, 2]
    updates.leave()
    begin_sessions(relay, 4)
    assert numbers(feed.consume().take(3)) == [2, 3, 4]


def test_what_is_no_message_is_an_error_for_whoever_gets_it(feed: Feed, relay: Relay, client: Any) -> None:
    begin_sessions(relay, 1)
    entry = client.xadd(EVENTS_KEY, {"outcome": "applied", "session_id": "sess_1", "message": "{}"})
    first = feed.consume(after="0-0")
    assert numbers(first.take(1)) == [1]
    for updates in (first, feed.consume()):
        with pytest.raises(UnreadableMessageError, match=re.escape(f"{EVENTS_KEY} {entry}")):
            updates.next()
    client.flushall()  # `client` looks whether what is left keeps to the schema


# Several consumers


def test_consumers_of_a_group_share_the_stream(feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_rules, "SMALLEST_BATCH", 2)
    monkeypatch.setattr(group_rules, "BATCH", 2)
    begin_sessions(relay, *range(8))
    one, other = feed.consume(name="one", after="0-0"), feed.consume(name="other")
    taken = [number for _ in range(4) for updates in (one, other) for number in numbers(updates.take(1))]
    assert sorted(taken) == list(range(8))


def test_the_work_of_a_consumer_that_died_goes_to_another(
    feed: Feed, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_shortly(monkeypatch)
    begin_sessions(relay, 1, 2, 3)
    dead = feed.consume(name="dead", after="0-0")
    dead.take(2)
    dead.leave()
    assert numbers(feed.consume(name="alive", claim_after=0.2).take(2)) == [2, 3]


CONSUMER = """
import sys, time
from clerk_session_feed import SessionFeed

with SessionFeed.from_url(sys.argv[1]) as feed:
    for update in feed.consume("group", "killed", after="0-0", claim_after=0.3):
        print(update.session.id, flush=True)
        if update.session.id == "sess_2":
            time.sleep(600)
"""


def test_what_a_killed_process_was_at_goes_to_another(
    relay_redis: EmbeddedRedis, feed: Feed, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_shortly(monkeypatch)
    begin_sessions(relay, 1, 2, 3)
    with started([sys.executable, "-c", CONSUMER, relay_redis.url], tmp_path) as program:
        program.wait_for("sess_2")
        program.process.kill()
        program.end()
    alive = feed.consume(name="alive", claim_after=0.3)
    assert numbers(alive.take(2)) in ([1, 2], [2, 3])  # what was done last may not be acknowledged


def clock_of_the_group(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Let a test set by how many seconds the consumer's clock is ahead."""
    clock = SimpleNamespace(ahead=0.0)
    for module in (group_rules, share_rules):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + clock.ahead))
    return clock


def test_a_slow_consumer_leaves_alone_what_became_anothers(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clock_of_the_group(monkeypatch)
    _, second, _ = begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(name="slow", after="0-0", claim_after=60)
    updates.next()
    client.xclaim(EVENTS_KEY, "group", "quick", 0, [second])
    clock.ahead = 31
    assert numbers(updates.take(1)) == [3]


def test_a_consumer_that_was_cut_off_leaves_alone_what_became_anothers(
    own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_relay(own_redis.url) as relay:
        _, second, _ = begin_sessions(relay, 1, 2, 3)
    clock = clock_of_the_group(monkeypatch)
    updates = open_feed(own_redis.url).consume(name="cut off", after="0-0", on_reconnect=Reconnects(monkeypatch))
    updates.next()
    own_client.xclaim(EVENTS_KEY, "group", "quick", 0, [second])
    own_client.client_kill_filter(_type="normal", skipme=True)
    clock.ahead = 1.1  # so it acknowledges, and sees that it was cut off
    assert numbers(updates.take(1)) == [3]


def test_a_slow_consumer_shows_that_it_lives(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before others take it for dead: what it has yet to do is idle for half of claim_after at most."""
    clock = clock_of_the_group(monkeypatch)
    begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(name="slow", after="0-0", claim_after=60)
    updates.next()
    clock.ahead = 31
    updates.next()
    taken = client.xpending_range(EVENTS_KEY, "group", "-", "+", 10)
    assert [entry["times_delivered"] for entry in taken] == [2, 2]


# What Redis loses


def destroy_the_group(client: Any) -> None:
    client.xgroup_destroy(EVENTS_KEY, "group")


def delete_the_stream(client: Any) -> None:
    client.delete(EVENTS_KEY)


def lose_everything(client: Any) -> None:
    client.flushall()


@pytest.mark.parametrize("lose", [destroy_the_group, delete_the_stream, lose_everything])
@pytest.mark.parametrize("is_waiting", [True, False])
def test_a_group_that_redis_lost_is_made_again_and_gets_all_that_is_left(
    feed: Feed,
    relay: Relay,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Any], None],
    is_waiting: bool,
) -> None:
    block_shortly(monkeypatch)
    begin_sessions(relay, 1, 2)
    # Redis 7.0 says UNBLOCKED to whoever waits at a stream that is deleted: another attempt follows.
    updates = feed.consume(after="0-0", on_reconnect=Reconnects(monkeypatch))
    updates.take(2)
    if is_waiting:
        waiting = updates.begin()
        eventually(lambda: pending(client) == 0)
        lose(client)
        begin_sessions(relay, 3, 4)
        seen = waiting.result(30)
    else:
        lose(client)
        begin_sessions(relay, 3, 4)
        seen = []
    left = [1, 2, 3, 4] if lose is destroy_the_group else [3, 4]
    while numbers(from_the_stream(seen)) != left:
        seen += updates.take(1)


def test_a_group_that_another_made_again_gets_all_that_is_left(feed: Feed, relay: Relay, client: Any) -> None:
    """Of what was trimmed before, it had got everything."""
    begin_sessions(relay, 1, 2, 3, 4)
    trim(client, 2)
    updates = feed.consume(after="0-0")
    updates.take(2)
    client.xgroup_destroy(EVENTS_KEY, "group")
    client.xgroup_create(EVENTS_KEY, "group", id="0")
    begin_sessions(relay, 5)
    assert numbers(updates.take(3)) == [3, 4, 5]


def from_the_stream(updates: list[SessionUpdate]) -> list[SessionUpdate]:
    return [update for update in updates if not update.is_snapshot]


def test_a_redis_that_was_restarted_with_nothing(
    open_feed: OpenFeed, start_redis: Callable[..., EmbeddedRedis], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    before = start_redis(port=port)
    updates = open_feed(before.url).consume(after="0-0", on_reconnect=Reconnects(monkeypatch))
    with run_relay(before.url) as relay:
        begin_sessions(relay, 1)
    assert numbers(updates.take(1)) == [1]
    assert before.process is not None
    before.process.kill()
    before.process.wait(10)
    with run_relay(start_redis(port=port).url) as relay:
        begin_sessions(relay, 2)
        seen: list[SessionUpdate] = []
        while not seen or seen[-1].is_snapshot:
            seen += updates.take(1)
    assert set(numbers(seen)) == {2}


def test_a_restart_in_the_midst_of_a_batch(
    open_feed: OpenFeed, start_redis: Callable[..., EmbeddedRedis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    before = start_durable_redis(start_redis, tmp_path / "redis", port)
    with run_relay(before.url) as relay:
        begin_sessions(relay, 1, 2, 3)
    updates = open_feed(before.url).consume(after="0-0", on_reconnect=Reconnects(monkeypatch))
    assert numbers(updates.take(2)) == [1, 2]
    assert before.process is not None
    before.process.kill()
    before.process.wait(10)
    after = start_durable_redis(start_redis, tmp_path / "redis", port)
    with run_relay(after.url) as relay, client_of(after.url) as client:
        begin_sessions(relay, 4)
        assert numbers(updates.take(2)) == [3, 4]
        assert pending(client) == 1


def test_what_was_in_a_reply_that_got_lost_comes_next(
    own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has given it to this consumer, which does not know."""
    with run_relay(own_redis.url) as relay:
        begin_sessions(relay, 1)
        updates = open_feed(own_redis.url).consume(after="0-0", on_reconnect=Reconnects(monkeypatch))
        updates.next()
        waiting = updates.begin()
        second, third = lose_a_reply(own_client, left=3)
        assert [update.cursor for update in [*waiting.result(30), updates.next()]] == [second, third]


def lose_a_reply(client: Any, *, left: int) -> tuple[str, str]:
    """Cut off a consumer that waits, and let Redis give it the first of two further entries that is left.

    left: how many entries the stream keeps. Returns the cursors of the two.
    """
    eventually(lambda: pending(client) == 0 and client.info("clients")["blocked_clients"] == 1)
    ((_, fields),) = client.xrange(EVENTS_KEY)
    with client.pipeline() as pipeline:  # no moment in between for the consumer to ask again
        pipeline.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for number in (2, 3):
            pipeline.xadd(EVENTS_KEY, fields | {"session_id": str(number)})
        pipeline.xtrim(EVENTS_KEY, maxlen=left, approximate=False)
        pipeline.xreadgroup("group", "name", {EVENTS_KEY: ">"}, count=1)
        _, second, third, _, _ = pipeline.execute()
    return second, third


# Trimmed


@contextlib.contextmanager
def fallen_behind(feed: Feed, relay: Relay, client: Any) -> Iterator[str]:
    """A group that had got session 1, when 2 and 3 were trimmed; returns how far it was."""
    (first,) = begin_sessions(relay, 1)
    updates = feed.consume(after="0-0")
    updates.next()
    more = updates.begin()
    eventually(lambda: pending(client) == 0)
    begin_sessions(relay, 2)
    more.result(30)
    updates.leave()
    client.execute_command("XGROUP", "SETID", EVENTS_KEY, "group", first)
    client.xack(EVENTS_KEY, "group", *[entry["message_id"] for entry in all_pending(client)])
    begin_sessions(relay, 3, 4)
    trim(client, 1)
    yield first


def all_pending(client: Any) -> list[Any]:
    entries: list[Any] = client.xpending_range(EVENTS_KEY, "group", "-", "+", 100)
    return entries


def test_a_group_that_fell_behind_what_was_trimmed_is_told_so_until_it_begins_again(
    feed: Feed, relay: Relay, client: Any
) -> None:
    with fallen_behind(feed, relay, client) as first:
        for name in ("name", "name", "other"):
            with pytest.raises(CursorLostError, match=first):
                feed.consume(name=name).next()
        updates = feed.consume(resync=True)
        held = updates.take(4)
        assert sorted(numbers(held)) == [1, 2, 3, 4]
        assert {update.is_snapshot for update in held} == {True}
        begin_sessions(relay, 5)
        assert numbers(updates.take(1)) == [5]
        updates.leave()
        assert numbers(feed.consume().take(1)) == [5]


@pytest.fixture(params=["as this server", "as Redis 6.2"])
def counting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stream tell how many entries it ever got, or not."""
    if request.param == "as Redis 6.2":

        def without_count(response: Any) -> dict[bytes, Any]:
            return {name: value for name, value in as_dict(response).items() if name != b"entries-added"}

        monkeypatch.setattr(share_rules, "as_dict", without_count)


@pytest.mark.usefixtures("counting")
def test_a_group_of_an_empty_stream_is_told_what_was_trimmed_while_nobody_was_there(
    feed: Feed, relay: Relay, client: Any
) -> None:
    client.xgroup_create(EVENTS_KEY, "group", NOTHING, mkstream=True)
    begin_sessions(relay, 1, 2, 3)
    trim(client, 2)
    for _ in range(2):
        with pytest.raises(CursorLostError, match=NOTHING):
            feed.consume().next()
    assert sorted(numbers(feed.consume(resync=True).take(3))) == [1, 2, 3]


@pytest.mark.usefixtures("counting")
def test_a_new_group_of_an_empty_stream_gets_what_comes_at_once(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_gap = share_rules.Share.close_gap

    async def close_gap_in_the_midst(share: Any, gap: Any) -> None:
        await close_gap(share, gap)
        begin_sessions(relay, 1)

    monkeypatch.setattr(share_rules.Share, "close_gap", close_gap_in_the_midst)
    update = feed.consume().next()
    assert (update.is_snapshot, update.session.id) == (False, "sess_1")


def test_whoever_dies_while_the_group_begins_again_leaves_that_to_the_next(
    feed: Feed, relay: Relay, client: Any
) -> None:
    with fallen_behind(feed, relay, client):
        updates = feed.consume(resync=True)
        updates.take(2)
        updates.leave()
        with pytest.raises(CursorLostError):
            feed.consume().next()
        assert sorted(numbers(feed.consume(name="other", resync=True).take(4))) == [1, 2, 3, 4]


def test_what_is_trimmed_while_the_group_begins_again_is_not_missed(feed: Feed, relay: Relay, client: Any) -> None:
    with fallen_behind(feed, relay, client):
        updates = feed.consume(resync=True)
        updates.take(4)
        for number in (1, 2):
            event = clerk_event("ended", session_id=f"sess_{number}", updated_at=NOW_MS)
            relay.take(event, f"msg_end_{number}")
        trim(client, 1)
        seen: dict[str, str] = {}
        while list(seen.values()).count("ended") < 2:
            update = updates.next()
            seen[update.session.id] = update.session.status


def test_what_is_trimmed_just_before_it_is_read_is_not_missed(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = begin_sessions(relay, 1, 2, 3, 4)
    take = group_rules._Consumer.take

    async def take_too_late(consumer: Any) -> Any:
        trim(client, 1)
        return await take(consumer)

    monkeypatch.setattr(group_rules._Consumer, "take", take_too_late)
    for _ in range(2):
        with pytest.raises(CursorLostError, match=first):
            feed.consume(after=first).next()


def test_what_was_trimmed_is_not_missed_although_another_consumer_moves_the_group_on(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one reads between two steps of this one: it has moved the group back, and looks where the group is."""
    first, *_ = begin_sessions(relay, 1, 2, 3, 4)
    moved_back = Event()

    def meanwhile(command: transport.Command) -> None:
        if command[0] == "XREADGROUP":
            trim(client, 1)
        elif command[:2] == ("XGROUP", "SETID"):
            moved_back.set()
        elif command[:2] == ("XINFO", "GROUPS") and moved_back.is_set():
            client.xreadgroup("group", "other", {EVENTS_KEY: ">"})

    before_each_command(monkeypatch, meanwhile)
    with pytest.raises(CursorLostError, match=first):
        feed.consume(after=first).next()
    assert moved_back.is_set()


def test_consumers_that_find_the_same_gap_in_step_all_go_on() -> None:
    """Over a feed in memory, where the three take turns. Each moves the group back, and then finds it moved on."""

    async def main() -> None:
        feed, may_go_on = AsyncMemorySessionFeed(), asyncio.Event()
        taken: asyncio.Queue[SessionUpdate] = asyncio.Queue()

        async def work(name: str) -> None:
            async for update in feed.consume("group", name, after="0-0", resync=True):
                taken.put_nowait(update)
                await may_go_on.wait()

        work_of_all = asyncio.gather(*map(work, ("one", "two", "three")))
        await feed.wait_until_idle(3)
        for _ in range(3):  # each consumer takes one, and is at work
            feed.sign_in("user_1")
            await taken.get()
        feed.sign_in("user_1", session_id="sess_trimmed")
        feed.sign_in("user_1")
        feed.trim(1)
        may_go_on.set()
        await feed.wait_until_idle(3)
        held = [
            update.session.id for update in (taken.get_nowait() for _ in range(taken.qsize())) if update.is_snapshot
        ]
        assert "sess_trimmed" in held
        assert feed.pending("group") == 0
        await feed.close()
        await work_of_all

    asyncio.run(main())


@pytest.mark.usefixtures("counting")
def test_what_was_trimmed_in_front_of_a_reply_that_got_lost_is_not_missed(
    own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that reply, Redis has moved the group past what was trimmed."""
    with run_relay(own_redis.url) as relay:
        (first,) = begin_sessions(relay, 1)
    updates = open_feed(own_redis.url).consume(after="0-0", on_reconnect=Reconnects(monkeypatch))
    updates.next()
    waiting = updates.begin()
    lose_a_reply(own_client, left=1)
    with pytest.raises(CursorLostError, match=first):
        waiting.result(30)


def test_snapshots_come_once_for_what_was_trimmed_in_front_of_a_reply_that_got_lost(
    own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_relay(own_redis.url) as relay:
        begin_sessions(relay, 1)
        reconnects = Reconnects(monkeypatch)
        updates = open_feed(own_redis.url).consume(after="0-0", resync=True, on_reconnect=reconnects)
        updates.next()
        waiting = updates.begin(2)
        _, third = lose_a_reply(own_client, left=1)
        held, given = waiting.result(30)
        assert (held.is_snapshot, given.is_snapshot, given.cursor) == (True, False, third)
        begin_sessions(relay, 2)
        assert numbers(updates.take(1)) == [2]


@pytest.mark.parametrize("who", ["the same", "another"])
def test_what_was_trimmed_before_anybody_was_done_with_it(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    block_shortly(monkeypatch)
    _, second, *_ = begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(name="the same", after="0-0")
    updates.take(2)
    updates.leave()
    trim(client, 1)
    for _ in range(2):
        with pytest.raises(CursorLostError, match=second):
            feed.consume(name=who, claim_after=0.05).next()
    updates = feed.consume(name=who, resync=True, claim_after=0.05)
    seen: list[SessionUpdate] = []
    while {(3, False), (1, True), (2, True), (3, True)} - {
        (number, update.is_snapshot) for number, update in zip(numbers(seen), seen, strict=True)
    }:
        seen += updates.take(1)
    begin_sessions(relay, 4)
    while numbers(seen)[-1] != 4:
        seen += updates.take(1)
    updates.begin()
    eventually(lambda: pending(client) == 0)


def test_whoever_dies_over_what_was_trimmed_leaves_that_to_the_next(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_shortly(monkeypatch)
    begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(name="first", after="0-0")
    updates.take(2)
    updates.leave()
    trim(client, 1)
    updates = feed.consume(name="second", resync=True, claim_after=0.05)
    while not updates.next().is_snapshot:
        pass
    updates.leave()
    seen: set[int] = set()
    updates = feed.consume(name="third", resync=True, claim_after=0.05)
    while seen != {1, 2, 3}:
        update = updates.next()
        seen |= set(numbers([update])) if update.is_snapshot else set()


def test_a_group_that_got_everything_before_it_was_trimmed_misses_nothing(
    feed: Feed, relay: Relay, client: Any
) -> None:
    begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(after="0-0")
    updates.take(3)
    waiting = updates.begin()
    eventually(lambda: pending(client) == 0)
    trim(client, 1)
    begin_sessions(relay, 4)
    assert numbers(waiting.result(30)) == [4]


def test_snapshots_come_once_although_what_this_consumer_had_was_trimmed(feed: Feed, relay: Relay, client: Any) -> None:
    begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(after="0-0")
    updates.take(2)
    updates.leave()
    begin_sessions(relay, 4, 5, 6)
    trim(client, 1)
    with pytest.raises(CursorLostError):
        feed.consume().next()
    updates = feed.consume(resync=True)
    held = updates.take(6)
    more = updates.begin()
    eventually(lambda: pending(client) == 0)
    begin_sessions(relay, 7)
    assert sorted(numbers(held)) == [1, 2, 3, 4, 5, 6]
    assert {update.is_snapshot for update in held} == {True}
    assert [(update.session.id, update.is_snapshot) for update in more.result(30)] == [("sess_7", False)]


def test_who_waits_is_told_of_what_another_found_trimmed_before_it_died(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead one has moved the group back, and nothing but that tells of it."""
    block_shortly(monkeypatch)
    first, _, _ = begin_sessions(relay, 1, 2, 3)
    updates = feed.consume(name="waits", after="0-0")
    updates.take(3)
    waiting = updates.begin()
    eventually(lambda: pending(client) == 0)
    with client.pipeline() as pipeline:
        pipeline.xtrim(EVENTS_KEY, maxlen=1, approximate=False)
        pipeline.execute_command("XGROUP", "SETID", EVENTS_KEY, "group", first)
        pipeline.execute()
    with pytest.raises(CursorLostError):
        waiting.result(30)
    assert sorted(numbers(feed.consume(name="waits", resync=True).take(3))) == [1, 2, 3]


# Consumers that nobody uses


def consumers(client: Any) -> list[str]:
    return sorted(each["name"] for each in client.xinfo_consumers(EVENTS_KEY, "group"))


@pytest.fixture
def forgets_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers count as unused after 100 ms, and are looked for as often."""
    block_shortly(monkeypatch)
    monkeypatch.setattr(unused, "UNUSED_SECONDS", 0.1)
    monkeypatch.setattr(unused, "LOOK_EVERY", 0.1)


@pytest.mark.usefixtures("forgets_soon")
def test_consumers_that_nobody_uses_leave_the_group(feed: Feed, relay: Relay, client: Any) -> None:
    (first,) = begin_sessions(relay, 1)
    client.xgroup_create(EVENTS_KEY, "group", id=first)
    for name in ("one", "other"):
        client.xgroup_createconsumer(EVENTS_KEY, "group", name)
    feed.consume(name="stays", claim_after=0.01).begin()
    eventually(lambda: consumers(client) == ["stays"])


@pytest.mark.usefixtures("forgets_soon")
def test_a_consumer_that_is_gone_leaves_once_its_work_is_done(feed: Feed, relay: Relay, client: Any) -> None:
    begin_sessions(relay, 1, 2)
    gone = feed.consume(name="gone", after="0-0")
    gone.next()
    gone.leave()
    updates = feed.consume(name="stays", claim_after=0.01)
    assert numbers(updates.take(2)) == [1, 2]
    more = updates.begin()
    eventually(lambda: consumers(client) == ["stays"])
    begin_sessions(relay, 3)
    assert numbers(more.result(30)) == [3]


@pytest.mark.usefixtures("forgets_soon")
def test_a_consumer_that_was_silent_for_less_than_ten_times_claim_after_stays(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim_after is a minute, so that it is silent for 100 ms means nothing."""
    looks = looks_for_unused(monkeypatch)
    begin_sessions(relay, 1)
    client.xgroup_create(EVENTS_KEY, "group", id="0")
    client.xgroup_createconsumer(EVENTS_KEY, "group", "silent")
    eventually(lambda: client.xinfo_consumers(EVENTS_KEY, "group")[0]["idle"] > 100)
    updates = feed.consume(name="stays", claim_after=60)
    updates.next()
    updates.begin()
    assert looks.wait(10)
    assert consumers(client) == ["silent", "stays"]


def looks_for_unused(monkeypatch: pytest.MonkeyPatch, before_drop: Callable[[str], None] | None = None) -> Event:
    """Return what is set when somebody looked for unused consumers; call something before one is removed."""
    looked = Event()
    remove, drop = unused.UnusedConsumers.remove, unused.UnusedConsumers._drop

    async def remove_and_say(self: Any) -> str | None:
        back = await remove(self)
        looked.set()
        return back

    async def drop_late(self: Any, name: str) -> bool:
        if before_drop is not None:
            before_drop(name)
        return await drop(self, name)

    monkeypatch.setattr(unused.UnusedConsumers, "remove", remove_and_say)
    monkeypatch.setattr(unused.UnusedConsumers, "_drop", drop_late)
    return looked


@pytest.mark.usefixtures("forgets_soon")
def test_nothing_is_lost_if_a_consumer_wakes_in_the_moment_of_its_removal(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets an entry between the look and the removal, which drops that, and dies before it is done with it."""
    (first,) = begin_sessions(relay, 1)
    client.xgroup_create(EVENTS_KEY, "group", id=first)
    client.xgroup_createconsumer(EVENTS_KEY, "group", "silent")
    eventually(lambda: client.xinfo_consumers(EVENTS_KEY, "group")[0]["idle"] > 1000)

    def wake(name: str) -> None:
        if client.xinfo_groups(EVENTS_KEY)[0]["last-delivered-id"] == first:
            begin_sessions(relay, 2, 3)
            assert client.xreadgroup("group", name, {EVENTS_KEY: ">"})

    looks_for_unused(monkeypatch, wake)
    assert numbers(feed.consume(name="stays", claim_after=0.1).take(2)) == [2, 3]
    assert consumers(client) == ["stays"]


@pytest.mark.usefixtures("forgets_soon")
@pytest.mark.parametrize(
    "error", [ReadOnlyError("You can't write against a read only replica."), NoPermissionError("no permissions")]
)
def test_nothing_is_lost_if_removing_the_next_consumer_fails(
    feed: Feed, relay: Relay, client: Any, monkeypatch: pytest.MonkeyPatch, error: redis.RedisError
) -> None:
    """The first one wakes in the moment of its removal, as above."""
    (first,) = begin_sessions(relay, 1)
    client.xgroup_create(EVENTS_KEY, "group", id=first)
    for name in ("silent 1", "silent 2"):
        client.xgroup_createconsumer(EVENTS_KEY, "group", name)
    eventually(lambda: all(each["idle"] > 1000 for each in client.xinfo_consumers(EVENTS_KEY, "group")))
    removed: list[str] = []

    def wake_or_fail(command: transport.Command) -> None:
        if "DELCONSUMER" not in command or len(removed) == 2:
            return
        removed.append(command[-1])
        if len(removed) == 2:
            raise error
        begin_sessions(relay, 2, 3)
        assert client.xreadgroup("group", command[-1], {EVENTS_KEY: ">"})

    before_each_command(monkeypatch, wake_or_fail)
    assert numbers(feed.consume(name="stays", claim_after=0.1).take(2)) == [2, 3]
    assert removed == ["silent 1", "silent 2"]


def test_who_may_not_remove_consumers_consumes_all_the_same(
    own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = looks_for_unused(monkeypatch)
    with run_relay(own_redis.url) as relay:
        begin_sessions(relay, 1)
        rights = ("on", ">secret", "~*", "&*", "+@all", "-xgroup", "+xgroup|create", "-xinfo", "+xinfo|stream")
        own_client.execute_command("ACL", "SETUSER", "reader", *rights, "+xinfo|groups")
        updates = open_feed(own_redis.url.replace("//", "//reader:secret@")).consume(after="0-0")
        updates.take(1)
        more = updates.begin()
        assert looks.wait(10)
        begin_sessions(relay, 2)
        assert numbers(more.result(30)) == [2]


# What it costs while nothing happens

MONTH: float = 30 * 86_400
BLOCK_SECONDS = transport.BLOCK_MS / 1000
"""The one that programs have: tests have a shorter one."""


def test_a_month_of_waiting_takes_at_most_300_000_commands(
    own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by Redis, with both of the times that matter divided by 400."""
    monkeypatch.setattr(transport, "BLOCK_MS", BLOCK_SECONDS * 1000 / 400)
    with run_relay(own_redis.url) as relay:
        begin_sessions(relay, 1)
    updates = open_feed(own_redis.url).consume(claim_after=60 / 400)
    updates.next()
    updates.begin()
    eventually(lambda: reads(own_client) > 3)
    own_client.config_resetstat()
    eventually(lambda: reads(own_client) >= 40)
    counted = calls(own_client)
    assert sum(counted.values()) / counted["xreadgroup"] * MONTH / BLOCK_SECONDS <= 300_000


def test_several_partitions_wait_in_one_command(
    own_redis: EmbeddedRedis, own_client: Any, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_shortly(monkeypatch)
    updates = open_feed(own_redis.url, partitions=4).consume(after="0-0")
    waiting = updates.begin()
    eventually(lambda: reads(own_client) > 3)
    own_client.config_resetstat()
    eventually(lambda: reads(own_client) >= 3)
    assert set(calls(own_client)) <= {"xreadgroup", "xpending"}
    with run_relay(own_redis.url, partitions=4) as relay:
        begin_sessions(relay, 1)
    assert numbers(waiting.result(30)) == [1]


def test_where_xreadgroup_does_not_wait_xread_does(
    stand_in: EmbeddedRedis, open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fakeredis. Otherwise it would ask again and again, without a pause."""
    sent: list[str] = []
    before_each_command(monkeypatch, lambda command: sent.append(command[0]))
    with client_of(stand_in.url) as client:
        client.flushall()
    # The stand-in hangs up after an error, such as that there is no stream yet.
    updates = open_feed(stand_in.url).consume(after="0-0", on_reconnect=Reconnects(monkeypatch))
    waiting = updates.begin()
    eventually(lambda: "XREAD" in sent)
    asked = sent.count("XREADGROUP")
    with run_relay(stand_in.url) as relay:
        begin_sessions(relay, 1)
    assert numbers(waiting.result(30)) == [1]
    assert sent.count("XREADGROUP") - asked <= 4


# Partitions


def test_a_group_reads_all_partitions(open_feed: OpenFeed, relay_redis: EmbeddedRedis, client: Any) -> None:
    users = [f"user_{number}" for number in range(12)]
    updates = open_feed(relay_redis.url, partitions=4).consume(after="0-0")
    with run_relay(relay_redis.url, partitions=4) as relay:
        for user in users:
            relay.take(clerk_event(session_id=f"sess_of_{user}", user_id=user), f"msg_{user}")
    seen = updates.take(12)
    assert sorted(update.session.user_id for update in seen) == sorted(users)
    assert {update.partition for update in seen} == {0, 1, 2, 3}
    more = updates.begin()
    eventually(lambda: not any(client.xpending(f"{{clerk:{n}}}:events", "group")["pending"] for n in range(4)))
    with run_relay(relay_redis.url, partitions=4) as relay:
        relay.take(clerk_event(session_id="sess_later"), "msg_later")
    assert [update.session.id for update in more.result(30)] == ["sess_later"]


@pytest.mark.parametrize("claim_after", [0, -1, float("nan"), float("inf")])
def test_a_time_after_which_nothing_could_be_claimed_is_refused(feed: Feed, claim_after: float) -> None:
    with pytest.raises(ValueError, match="claim_after"):
        feed.consume(claim_after=claim_after)


@pytest.mark.parametrize(("group", "name"), [("", "name"), ("group", "")])
def test_a_group_and_its_consumers_need_names(feed: Feed, group: str, name: str) -> None:
    with pytest.raises(ValueError, match="names"):
        feed.consume(group, name)
