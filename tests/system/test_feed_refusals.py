"""What a feed makes of a Redis that refuses: for a while, as providers do, or for good."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from clerk_session_feed import CursorLostError, SessionFeed, transport
from support.clock import eventually
from support.constants import EVENTS_KEY, NO_REDIS
from support.cutting_proxy import cutting_proxy
from support.events import clerk_event
from support.feeds import EndedError, OpenFeed, Reconnects, Updates, block_shortly
from support.redis_servers import scripted_redis
from support.refusing_proxy import refusing_proxy
from support.relay import run_relay

from service.dev.embedded import EmbeddedRedis

REFUSALS = [
    "ERR max requests limit exceeded. Limit: 500000, Usage: 500000.",
    "ERR max concurrent connections exceeded",
    "ERR max number of clients reached",
    "ERR rate limit exceeded",
    "ERR upstream failure",
    "THROTTLED slow down",
]
BEGIN: dict[str, Callable[..., Updates]] = {
    "follow": lambda feed, **named: feed.follow(**named),
    "consume": lambda feed, **named: feed.consume(**named),
    "subscribe": lambda feed, **named: feed.subscribe(**named),
}
EACH_ITERATOR = pytest.mark.parametrize("begin", BEGIN.values(), ids=BEGIN)


@pytest.fixture
def reconnects(monkeypatch: pytest.MonkeyPatch) -> Reconnects:
    return Reconnects(monkeypatch)


def await_waiting(client: Any, *, count: int) -> None:
    """Return when so many wait for an update."""

    def waiting() -> int:
        ((_, subscribers),) = client.pubsub_numsub("clerk:sessions")
        return int(subscribers + client.info("clients")["blocked_clients"])

    eventually(lambda: waiting() == count)


EACH_REFUSAL = pytest.mark.parametrize("refusal", REFUSALS)
WHEN = pytest.mark.parametrize("at_connect", [False, True], ids=["each command", "each connection"])


@pytest.mark.parametrize("begin", [BEGIN["follow"], BEGIN["consume"]], ids=["follow", "consume"])
@WHEN
@EACH_REFUSAL
def test_an_iterator_outlasts_a_refusal(
    open_feed: OpenFeed,
    own_redis: EmbeddedRedis,
    own_client: Any,
    reconnects: Reconnects,
    begin: Callable[..., Updates],
    refusal: str,
    at_connect: bool,
) -> None:
    with refusing_proxy(own_redis.port, refusal, at_connect=at_connect) as proxy, run_relay(own_redis.url) as relay:
        proxy.left = 5
        waiting = begin(open_feed(proxy.url), on_reconnect=reconnects).begin()
        await_waiting(own_client, count=1)
        relay.take(clerk_event(), "msg_1")
        assert [update.event.id for update in waiting.result(10)] == ["msg_1"]
    assert reconnects.errors
    if not at_connect:
        assert any(refusal.removeprefix("ERR ") in str(error) for error in reconnects.errors)


@WHEN
def test_following_misses_nothing_while_it_is_refused(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, reconnects: Reconnects, at_connect: bool
) -> None:
    with refusing_proxy(own_redis.port, REFUSALS[0], at_connect=at_connect) as proxy, run_relay(own_redis.url) as relay:
        updates = open_feed(proxy.url).follow("0-0", on_reconnect=reconnects)
        waiting = updates.begin(4)
        for number in range(4):
            await_waiting(own_client, count=1)
            proxy.cut_and_refuse(5)
            relay.take(clerk_event(session_id=f"sess_{number}"), f"msg_{number}")
            eventually(lambda: proxy.left < 0)
        assert [update.event.id for update in waiting.result(10)] == ["msg_0", "msg_1", "msg_2", "msg_3"]


@pytest.mark.parametrize("before", range(20))
def test_consuming_waits_for_nothing_that_came_while_a_command_was_refused(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, reconnects: Reconnects, before: int
) -> None:
    """It waits 20 seconds at a time: what it may have got meanwhile is read first."""
    with refusing_proxy(own_redis.port, REFUSALS[0]) as proxy, run_relay(own_redis.url) as relay:
        updates = open_feed(proxy.url).consume(after="0-0", on_reconnect=reconnects)
        proxy.before, proxy.left = before, 1
        for number in range(4):
            relay.take(clerk_event(session_id=f"sess_{number}"), f"msg_{number}")
            assert [update.event.id for update in updates.begin().result(10)] == [f"msg_{number}"]
        assert proxy.left < 0
        waiting = updates.begin()
        eventually(lambda: own_client.xpending(EVENTS_KEY, "group")["pending"] == 0)
        relay.take(clerk_event(session_id="sess_4"), "msg_4")
        assert [update.event.id for update in waiting.result(10)] == ["msg_4"]


@pytest.mark.parametrize("command", ["XREADGROUP", "XACK", "XINFO", "XPENDING", "XGROUP", "XAUTOCLAIM"])
def test_consuming_waits_for_nothing_whose_response_got_lost(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, reconnects: Reconnects, command: str
) -> None:
    with cutting_proxy(own_redis.port, command.encode()) as proxy, run_relay(own_redis.url) as relay:
        cursor = relay.take(clerk_event(session_id="sess_0"), "msg_0").cursor
        if command == "XAUTOCLAIM":
            own_client.xgroup_create(EVENTS_KEY, "group", "0-0")
            own_client.xreadgroup("group", "dead", {EVENTS_KEY: ">"})
            own_client.xclaim(EVENTS_KEY, "group", "dead", 0, [cursor], idle=1_000_000)
        updates = open_feed(proxy.url).consume(after="0-0", on_reconnect=reconnects)
        proxy.cut_next_reply()
        assert [update.event.id for update in updates.begin().result(10)] == ["msg_0"]

        proxy.cut_next_reply()  # of a command before it waits
        waiting = updates.begin()
        await_waiting(own_client, count=1)
        relay.take(clerk_event(session_id="sess_1"), "msg_1")
        assert [update.event.id for update in waiting.result(10)] == ["msg_1"]

        waiting = updates.begin()
        await_waiting(own_client, count=1)
        proxy.cut_next_reply()  # of that with which it waits
        relay.take(clerk_event(session_id="sess_2"), "msg_2")
        assert [update.event.id for update in waiting.result(10)] == ["msg_2"]
        assert reconnects.errors


def test_what_is_done_is_acknowledged_also_if_the_feed_is_closed_on_the_way(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    with (
        refusing_proxy(own_redis.port, REFUSALS[0]) as proxy,
        run_relay(own_redis.url) as relay,
        SessionFeed.from_url(proxy.url) as feed,
    ):
        relay.take(clerk_event(), "msg_1")
        updates = Updates(feed.consume("group", "name", after="0-0", on_reconnect=lambda _: feed.close()))
        assert updates.next().event.id == "msg_1"
        proxy.left = 2  # XACK and XREADGROUP
        with pytest.raises(EndedError):
            updates.next()
        assert own_client.xpending(EVENTS_KEY, "group")["pending"] == 0


@WHEN
@EACH_REFUSAL
def test_a_subscription_outlasts_a_refusal(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, reconnects: Reconnects, refusal: str, at_connect: bool
) -> None:
    """What is published meanwhile is lost."""
    with refusing_proxy(own_redis.port, refusal, at_connect=at_connect) as proxy, run_relay(own_redis.url) as relay:
        proxy.left = 5
        waiting = open_feed(proxy.url).subscribe(on_reconnect=reconnects).begin()
        numbers = itertools.count()

        def has_got_one() -> bool:
            relay.take(clerk_event(session_id=f"sess_{next(numbers)}"), "msg_1")
            return waiting.done()

        eventually(has_got_one)
        assert waiting.result(0)[0].event.id == "msg_1"
        assert proxy.left < 0
    assert reconnects.errors


def test_a_refused_password_check_is_no_wrong_password(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, reconnects: Reconnects
) -> None:
    """It is refused before anybody looks at it."""
    own_client.config_set("requirepass", "hunter-two")
    with refusing_proxy(own_redis.port, "ERR max requests limit exceeded") as proxy:
        proxy.left = 3
        feed = open_feed(proxy.url.replace("//", "//:hunter-two@"))
        waiting = feed.follow(on_reconnect=reconnects).begin()
        await_waiting(own_client, count=1)
        assert len(reconnects.errors) == 3
        feed.close()
        waiting.exception(10)


def test_a_short_read_raises_what_was_refused(open_feed: OpenFeed, own_redis: EmbeddedRedis) -> None:
    with refusing_proxy(own_redis.port, "ERR max requests limit exceeded") as proxy:
        feed = open_feed(proxy.url)
        assert feed.get("sess_1") is None
        proxy.left = 2
        with pytest.raises(redis.ResponseError, match="max requests"):
            feed.is_live("sess_1")
        assert feed.get("sess_1") is None


@pytest.mark.parametrize(
    "reply",
    [
        *(b"-ERR unknown command 'XREAD', with args beginning with: 'limit' ", b"-ERR syntax error"),
        *(b"-ERR permission denied", b"-ERR invalid password", b"-ERR wrong number of arguments for 'xread' command"),
        *(b"-CROSSSLOT Keys in request don't hash to the same slot", b"-ERR value is not an integer or out of range"),
    ],
)
def test_what_is_refused_for_good_is_an_error_at_once(open_feed: OpenFeed, reply: bytes) -> None:
    with scripted_redis(lambda _: reply) as server:
        feed = open_feed(server.url)
        for begin in BEGIN.values():
            with pytest.raises(redis.RedisError):
                begin(feed).next()


def pauses_of(monkeypatch: pytest.MonkeyPatch, url: str) -> list[float]:
    """Return the pauses of an iterator between its first ten attempts, which it does not really make."""
    pauses: list[float] = []

    async def pause(_: object, seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 10:
            raise EnoughError

    monkeypatch.setattr(transport.BlockingConnection, "pause", pause)
    with SessionFeed.from_url(url) as feed, pytest.raises(EnoughError):
        next(feed.follow("0-0", on_reconnect=lambda _: None))
    return pauses


class EnoughError(Exception):
    """The test has seen enough."""


def test_pauses_grow_longer_where_redis_refuses_than_where_it_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    away = pauses_of(monkeypatch, NO_REDIS)
    with scripted_redis(lambda _: b"-ERR max requests limit exceeded") as server:
        refused = pauses_of(monkeypatch, server.url)
    assert (away[0], away[-1], max(away)) == (0.1, 2.0, 2.0)
    assert (refused[0], refused[-1], max(refused)) == (0.1, 10.0, 10.0)


# What is billed while nothing happens


DAYS_30_MS = 30 * 24 * 3600 * 1000
MOST_COMMANDS = 300_000
"""In 30 days, of an iterator on whose stream or channel nothing happens."""


@pytest.mark.parametrize("kind", ["follow behind an entry", "follow an empty stream", "subscribe"])
def test_an_idle_iterator_sends_few_commands(
    open_feed: OpenFeed, own_redis: EmbeddedRedis, own_client: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Counted by Redis while it looks around ten times, which is how often it does in ten times BLOCK_MS."""
    looks_in_30_days = DAYS_30_MS / transport.BLOCK_MS
    block_shortly(monkeypatch)
    if kind == "follow behind an entry":
        own_client.xadd(EVENTS_KEY, {"outcome": "stale", "session_id": "sess_1", "user_id": "user_1", "message": "{}"})
    feed = open_feed(own_redis.url)
    after = "1" if kind == "follow an empty stream" else "0-0"
    waiting = (feed.subscribe() if kind == "subscribe" else feed.follow(after)).begin()

    def calls() -> dict[str, int]:
        stats = own_client.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("xread", "ping", "info")}

    def looks() -> int:
        return calls()["ping" if kind == "subscribe" else "xread"]

    def commands() -> int:
        """Of all but this client, whose own commands are INFO only."""
        return int(own_client.info("stats")["total_commands_processed"]) - calls()["info"]

    eventually(lambda: looks() >= 2)
    looks_before, commands_before = looks(), commands()
    eventually(lambda: looks() >= looks_before + 10)
    per_look = (commands() - commands_before) / (looks() - looks_before)
    assert 0.5 <= per_look <= 2.5
    assert round(per_look) * looks_in_30_days <= MOST_COMMANDS
    feed.close()
    waiting.exception(10)


def test_a_wait_outlasts_no_connection_that_a_provider_keeps() -> None:
    """Heroku ends connections that are silent for 300 seconds, Azure after 600."""
    assert transport.BLOCK_MS <= 100_000


def test_a_server_that_does_not_wait_is_asked_once_a_second(
    open_feed: OpenFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    paused = threading.Event()

    with scripted_redis(lambda words: b"*-1" if words[0] == b"XREAD" else b"*0") as server:
        feed = open_feed(server.url)
        kind = transport.BlockingConnection if isinstance(feed.feed, SessionFeed) else transport.AsyncConnection
        real = kind.pause

        async def pause(connection: Any, seconds: float) -> None:
            pauses.append(seconds)
            paused.set()
            await real(connection, seconds)

        monkeypatch.setattr(kind, "pause", pause)
        waiting = feed.follow("0-0").begin()
        assert paused.wait(10)
        feed.close()
        waiting.exception(10)
    assert pauses[0] == 1.0
    assert [words[0] for words in server.commands].count(b"XREAD") == len(pauses)


# Redis 6.2, which does not count what a stream ever got


def array(*parts: bytes) -> bytes:
    return b"\r\n".join([b"*%d" % len(parts), *parts])


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s" % (len(value), value)


def entry(cursor: bytes) -> bytes:
    fields = [b"outcome", b"stale", b"session_id", b"sess_1", b"message", b"{}"]
    return array(bulk(cursor), array(*map(bulk, fields)))


@pytest.mark.parametrize(("there", "is_lost"), [(b"5-0", False), (b"6-0", True)], ids=["still there", "trimmed"])
def test_the_first_entry_that_was_awaited_may_be_trimmed_before_it_is_read(
    open_feed: OpenFeed, there: bytes, is_lost: bool
) -> None:
    asked: list[bytes] = []
    reads_on, end = threading.Event(), threading.Event()

    def say(words: list[bytes]) -> bytes | None:
        match words[0], b"XREAD" in asked:
            case (b"XREAD", False):
                asked.append(b"XREAD")
                return array(array(bulk(EVENTS_KEY.encode()), array(entry(b"5-0"))))
            case (b"XREAD", True):
                reads_on.set()
                end.wait(30)
                return None
            case (b"XINFO", has_come):
                return array(bulk(b"length"), b":1", bulk(b"first-entry"), entry(there) if has_come else b"$-1")
            case (b"XRANGE", True):
                return array(entry(there))
            case _:
                return array()

    with scripted_redis(say) as server:
        feed = open_feed(server.url)
        waiting = feed.follow("1").begin()
        if is_lost:
            with pytest.raises(CursorLostError, match="0-18446744073709551615"):
                waiting.result(10)
        else:
            assert reads_on.wait(10)
            feed.close()
            waiting.exception(10)
        end.set()
