"""Reading what Redis holds: the state of sessions, and the stream of events. CONTRACT, 4 and 5."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from children import durable_redis
from support import (
    DAY_MS,
    EVENTS_KEY,
    NOW_MS,
    SESSION_KEY,
    USER_KEY,
    Intake,
    clerk_event,
    client_of,
    eventually,
    free_port,
    intake_on,
    scripted_redis,
    subscribed,
    unused_port,
)

from service import feed as feed_module
from service.config import RedisSettings, load
from service.embedded import EmbeddedRedis
from service.feed import SessionFeed, Update


def feed_on(redis_url: str, **overrides: Any) -> SessionFeed:
    return SessionFeed(load(RedisSettings, _env_file=None, redis_url=redis_url, **overrides))


@pytest.fixture
def feed(relay_redis: EmbeddedRedis) -> Iterator[SessionFeed]:
    feed = feed_on(relay_redis.url)
    yield feed
    feed.close()


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed's clock shows the frozen time of the events."""
    monkeypatch.setattr(time, "time_ns", lambda: NOW_MS * 1_000_000)


def refuse(error: Exception) -> None:
    raise error


def first(feed: SessionFeed, count: int, after: str = "0-0") -> list[Update]:
    return list(itertools.islice(feed.follow(after, on_reconnect=refuse), count))


# The state of a session


def test_the_state_of_a_session_is_what_was_published_last(
    feed: SessionFeed, intake: Intake, client: Any
) -> None:
    with subscribed(client, "clerk:sessions") as subscriber:
        intake.take(clerk_event(), "msg_1")
        intake.take(clerk_event("ended", updated_at=NOW_MS), "msg_2")
        _, (_, last) = subscriber.rest()
    assert feed.get("sess_1") == last.encode()


def test_a_session_that_is_not_held_has_no_state(feed: SessionFeed, client: Any) -> None:
    assert feed.get("sess_1") is None


def test_a_late_event_leaves_the_state_as_it_is(feed: SessionFeed, intake: Intake) -> None:
    intake.take(clerk_event("ended"), "msg_1")
    before = feed.get("sess_1")
    assert intake.take(clerk_event(), "msg_2").outcome == "stale"
    assert feed.get("sess_1") == before


# A user's live sessions


def live_ids(feed: SessionFeed, user_id: str = "user_1") -> list[str]:
    return [json.loads(message)["session"]["id"] for message in feed.live_sessions(user_id)]


def test_live_sessions_are_those_of_the_user(feed: SessionFeed, intake: Intake) -> None:
    intake.take(clerk_event(session_id="sess_1"), "msg_1")
    intake.take(clerk_event(session_id="sess_2", user_id="user_2"), "msg_2")
    assert live_ids(feed) == ["sess_1"]


def test_live_sessions_are_the_messages_published(feed: SessionFeed, intake: Intake, client: Any) -> None:
    intake.take(clerk_event(), "msg_1")
    assert feed.live_sessions("user_1") == [client.hget(SESSION_KEY, "state").encode()]


def test_a_user_without_sessions_has_no_live_ones(feed: SessionFeed, client: Any) -> None:
    assert feed.live_sessions("user_1") == []


@pytest.mark.parametrize("status", ["pending", "ended", "revoked"])
def test_a_session_that_is_not_active_is_not_live(status: str, feed: SessionFeed, intake: Intake) -> None:
    intake.take(clerk_event(status), "msg_1")
    assert live_ids(feed) == []


@pytest.mark.parametrize(("past_the_end_ms", "expected"), [(-1, ["sess_1"]), (0, []), (1, [])])
def test_a_session_is_live_until_it_runs_out(
    past_the_end_ms: int,
    expected: list[str],
    feed: SessionFeed,
    intake: Intake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    intake.take(clerk_event(expire_at=NOW_MS + DAY_MS), "msg_1")
    now_ms = NOW_MS + DAY_MS + past_the_end_ms
    monkeypatch.setattr(time, "time_ns", lambda: now_ms * 1_000_000)
    assert live_ids(feed) == expected


def test_the_longest_lived_session_comes_last(feed: SessionFeed, intake: Intake) -> None:
    intake.take(clerk_event(session_id="sess_for_ever", expire_at=None), "msg_1")
    intake.take(clerk_event(session_id="sess_long", expire_at=NOW_MS + 2 * DAY_MS), "msg_2")
    intake.take(clerk_event(session_id="sess_short", expire_at=NOW_MS + DAY_MS), "msg_3")
    assert live_ids(feed) == ["sess_short", "sess_long", "sess_for_ever"]


def test_an_id_whose_session_is_gone_is_left_out(feed: SessionFeed, intake: Intake, client: Any) -> None:
    intake.take(clerk_event(session_id="sess_1"), "msg_1")
    intake.take(clerk_event(session_id="sess_2"), "msg_2")
    client.delete(SESSION_KEY)
    assert client.zcard(USER_KEY) == 2
    assert live_ids(feed) == ["sess_2"]


# The stream


def test_an_update_is_the_message_published_with_its_cursor(
    feed: SessionFeed, intake: Intake, client: Any
) -> None:
    with subscribed(client, "clerk:sessions") as subscriber:
        outcome = intake.take(clerk_event(), "msg_1")
        ((_, published),) = subscriber.rest()
    assert outcome.cursor is not None
    assert first(feed, 1) == [Update(outcome.cursor, "applied", "user_1", published.encode())]


def test_a_late_event_is_an_update_too(feed: SessionFeed, intake: Intake) -> None:
    intake.take(clerk_event("ended"), "msg_1")
    late = intake.take(clerk_event(), "msg_2")
    _, update = first(feed, 2)
    message = json.loads(update.message)
    assert (update.outcome, update.cursor) == ("stale", late.cursor)
    assert (message["cursor"], message["revision"], message["event"]["id"]) == (late.cursor, None, "msg_2")


def test_a_duplicate_is_no_update(feed: SessionFeed, intake: Intake, client: Any) -> None:
    for message_id in ("msg_1", "msg_1", "msg_2"):
        intake.take(clerk_event(), message_id)
    assert [json.loads(update.message)["event"]["id"] for update in first(feed, 2)] == ["msg_1", "msg_2"]
    assert client.xlen(EVENTS_KEY) == 2


def test_following_begins_after_the_cursor(feed: SessionFeed, intake: Intake) -> None:
    cursors = [str(intake.take(clerk_event(session_id=f"sess_{n}"), f"msg_{n}").cursor) for n in range(3)]
    assert [update.cursor for update in first(feed, 2, after=cursors[0])] == cursors[1:]


def test_following_begins_after_a_cursor_that_is_only_a_time(feed: SessionFeed, intake: Intake) -> None:
    cursor = str(intake.take(clerk_event(), "msg_1").cursor)
    milliseconds = int(cursor.partition("-")[0])
    assert first(feed, 1, after=str(milliseconds - 1))[0].cursor == cursor


def test_following_goes_on_past_what_one_read_returns(feed: SessionFeed, intake: Intake, client: Any) -> None:
    intake.take(clerk_event(), "msg_1")
    ((_, entry),) = client.xrange(EVENTS_KEY)
    pipeline = client.pipeline(transaction=False)
    for _ in range(1200):
        pipeline.xadd(EVENTS_KEY, entry)
    pipeline.execute()
    cursors = [update.cursor for update in first(feed, 1201)]
    assert cursors == [cursor for cursor, _ in client.xrange(EVENTS_KEY)]


def test_following_waits_for_what_comes_later(feed: SessionFeed, intake: Intake) -> None:
    before = intake.take(clerk_event(), "msg_1")
    updates = feed.follow(str(before.cursor), on_reconnect=refuse)
    got: list[Update] = []
    thread = threading.Thread(target=lambda: got.append(next(updates)), daemon=True)
    thread.start()
    after = intake.take(clerk_event("ended", updated_at=NOW_MS), "msg_2")
    thread.join(10)
    assert [update.cursor for update in got] == [after.cursor]


def test_waiting_longer_than_one_read_blocks_is_no_failure(
    feed: SessionFeed, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "BLOCK_MS", 10)
    reads = threading.Semaphore(0)
    xread = feed._clients[0].xread

    def count_reads(*arguments: Any, **options: Any) -> Any:
        reads.release()
        return xread(*arguments, **options)

    monkeypatch.setattr(feed._clients[0], "xread", count_reads)
    updates = feed.follow("0-0", on_reconnect=refuse)
    got: list[Update] = []
    thread = threading.Thread(target=lambda: got.append(next(updates)), daemon=True)
    thread.start()
    for _ in range(3):
        assert reads.acquire(timeout=10)
    intake.take(clerk_event(), "msg_1")
    thread.join(10)
    assert [update.user_id for update in got] == ["user_1"]


@pytest.mark.parametrize("held", [0, 2], ids=["nothing is there", "what is there is left out"])
def test_following_from_now_on(feed: SessionFeed, intake: Intake, held: int) -> None:
    for number in range(held):
        intake.take(clerk_event(updated_at=NOW_MS - 5000 + number), f"msg_{number}")
    updates = feed.follow(None, on_reconnect=refuse)
    later = intake.take(clerk_event("ended"), "msg_later")
    assert next(updates).cursor == later.cursor


def test_keys_have_the_prefix_that_is_set(relay_redis: EmbeddedRedis, client: Any) -> None:
    with intake_on(relay_redis.url, redis_key_prefix="{other}") as intake:
        intake.take(clerk_event(), "msg_1")
    other = feed_on(relay_redis.url, redis_key_prefix="{other}")
    try:
        assert other.get("sess_1") is not None
        assert live_ids(other) == ["sess_1"]
        assert len(first(other, 1)) == 1
    finally:
        other.close()


# When Redis fails


class Reconnects:
    """Collects why, and has each new try at once; ends a test that would try for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_most: int = 500) -> None:
        monkeypatch.setattr(feed_module, "RECONNECT_SECONDS", 0.02)
        self._at_most = at_most
        self.errors: list[Exception] = []

    def __call__(self, error: Exception) -> None:
        self.errors.append(error)
        assert len(self.errors) < self._at_most


def test_following_goes_on_after_redis_was_restarted(
    start_redis: Callable[..., EmbeddedRedis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    before = durable_redis(start_redis, tmp_path / "redis", port)
    feed = feed_on(before.url)
    reconnects = Reconnects(monkeypatch)
    with intake_on(before.url) as intake:
        cursors = [str(intake.take(clerk_event(session_id=f"sess_{n}"), f"msg_{n}").cursor) for n in range(3)]
    updates = feed.follow("0-0", on_reconnect=reconnects)
    got = [next(updates).cursor for _ in range(3)]

    assert before.process is not None
    before.process.kill()
    before.process.wait(10)
    after = durable_redis(start_redis, tmp_path / "redis", port)
    with intake_on(after.url) as intake:
        cursors += [
            str(intake.take(clerk_event(session_id=f"sess_{n}"), f"msg_{n}").cursor) for n in range(3, 6)
        ]
    got += [next(updates).cursor for _ in range(3)]
    feed.close()
    assert got == cursors


def test_following_tells_why_it_tries_again_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    reconnects = Reconnects(monkeypatch, at_most=3)
    with unused_port() as port:
        feed = feed_on(f"redis://relay:hunter-two@127.0.0.1:{port}/0")
        with pytest.raises(AssertionError):
            next(feed.follow("0-0", on_reconnect=reconnects))
        feed.close()
    assert all("refused" in str(error) for error in reconnects.errors)
    assert "hunter" not in str(reconnects.errors)


@pytest.mark.parametrize(
    "reply",
    [
        b"-LOADING Redis is loading the dataset in memory",
        b"-BUSY Redis is busy running a script.",
        b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        b"-MOVED 1234 127.0.0.1:1",
        b"-ASK 1234 127.0.0.1:1",
        b"-TRYAGAIN Multiple keys request during rehashing of slot",
        b"-CLUSTERDOWN The cluster is down",
    ],
)
def test_following_waits_for_what_passes(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_redis(lambda _: reply) as server:
        reconnects = Reconnects(monkeypatch, at_most=3)
        feed = feed_on(server.url)
        with pytest.raises(AssertionError):
            next(feed.follow("0-0", on_reconnect=reconnects))
        feed.close()
    assert len(reconnects.errors) == 3


def cut(client: Any) -> None:
    client.client_kill_filter(_type="normal", skipme=True)


def demote_and_promote(client: Any) -> None:
    with unused_port() as port:
        client.replicaof("127.0.0.1", port)
        client.replicaof("NO", "ONE")


@pytest.mark.parametrize("disturb", [cut, demote_and_promote])
def test_following_goes_on_after_a_disturbance(
    own_redis: EmbeddedRedis,
    own_client: Any,
    monkeypatch: pytest.MonkeyPatch,
    disturb: Callable[[Any], None],
) -> None:
    reconnects = Reconnects(monkeypatch)
    feed = feed_on(own_redis.url)
    updates = feed.follow("0-0", on_reconnect=reconnects)
    got: list[Update] = []
    thread = threading.Thread(target=lambda: got.append(next(updates)), daemon=True)
    thread.start()
    eventually(lambda: own_client.info("clients")["blocked_clients"] == 1)
    disturb(own_client)
    eventually(lambda: reconnects.errors)
    with intake_on(own_redis.url) as intake:
        intake.take(clerk_event(), "msg_1")
    thread.join(10)
    feed.close()
    assert [update.user_id for update in got] == ["user_1"]


def test_a_stream_that_is_none_is_an_error_at_once(own_redis: EmbeddedRedis) -> None:
    """It would be one for ever: nothing to try again."""
    feed = feed_on(own_redis.url)
    with client_of(own_redis.url) as client:
        client.set(EVENTS_KEY, "not a stream")
    with pytest.raises(Exception, match="WRONGTYPE"):
        first(feed, 1)
    feed.close()


def test_a_wrong_password_is_an_error_at_once(start_redis: Callable[..., EmbeddedRedis]) -> None:
    """It stays wrong: settings are read once."""
    server = start_redis()
    with client_of(server.url) as client:
        client.config_set("requirepass", "hunter-two")
    feed = feed_on(server.url.replace("//", "//:hunter-three@"))
    with pytest.raises(redis.AuthenticationError):
        first_but_patiently(feed)
    feed.close()


def first_but_patiently(feed: SessionFeed) -> Update:
    tries = itertools.count()

    def try_again(error: Exception) -> None:
        assert next(tries) < 2, f"it would try for ever, in spite of: {error}"

    return next(feed.follow("0-0", on_reconnect=try_again))
