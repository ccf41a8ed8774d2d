"""How an idle expiry worker waits: at the streams, by one command, for whatever comes after it looked."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from clerk_session_feed.keys import Keys
from structlog.testing import CapturingLogger
from support.clock import in_time
from support.constants import EVENTS_KEY
from support.redis_clients import emptied, monitored
from support.redis_servers import frozen, scripted_redis
from support.relay import make_settings

from service.dev.embedded import EmbeddedRedis
from service.store.sessions import SessionStore
from service.workers import expiry_watch
from service.workers.expiry_watch import BEGINNING, LOOK_SECONDS, POLL_SECONDS, StreamWatch

LONG = 30.0
"""Seconds: longer than any of these tests."""
OTHER_KEY = Keys().split(2)[1].events


@contextlib.contextmanager
def watch_on(redis_url: str, **settings: Any) -> Iterator[StreamWatch]:
    made = make_settings(redis_url, **settings)
    store = SessionStore(made)
    with contextlib.closing(store), contextlib.closing(StreamWatch(made, store.partitions)) as watch:
        yield watch


@pytest.fixture
def client(relay_redis: EmbeddedRedis) -> Iterator[Any]:
    """A client of the Redis under test: no entry here is a message."""
    with emptied(relay_redis.url) as client:
        yield client


@pytest.fixture
def watch(relay_redis: EmbeddedRedis, client: Any) -> Iterator[StreamWatch]:
    with watch_on(relay_redis.url) as watch:
        yield watch


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    logger = CapturingLogger()
    monkeypatch.setattr(expiry_watch, "log", logger)
    return logger


def test_what_came_after_the_look_and_before_the_wait_ends_the_wait(watch: StreamWatch, client: Any) -> None:
    (position,) = watch.positions([EVENTS_KEY])
    client.xadd(EVENTS_KEY, {"field": "1"})

    assert watch.wait({EVENTS_KEY: position}, LONG, threading.Event()) == {EVENTS_KEY}


def test_what_comes_while_it_waits_ends_the_wait(watch: StreamWatch, client: Any) -> None:
    client.xadd(EVENTS_KEY, {"field": "1"})
    (position,) = watch.positions([EVENTS_KEY])

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(watch.wait, {EVENTS_KEY: position}, LONG, threading.Event())
        while not waiting.done():  # each of them is behind the position
            client.xadd(EVENTS_KEY, {"field": "2"})

    assert waiting.result() == {EVENTS_KEY}


def test_what_came_before_the_look_does_not(watch: StreamWatch, client: Any) -> None:
    client.xadd(EVENTS_KEY, {"field": "1"})
    (position,) = watch.positions([EVENTS_KEY])

    assert watch.wait({EVENTS_KEY: position}, 0.01, threading.Event()) == set()


def test_it_tells_which_of_several_streams_got_something(watch: StreamWatch, client: Any) -> None:
    positions = dict(zip([EVENTS_KEY, OTHER_KEY], watch.positions([EVENTS_KEY, OTHER_KEY]), strict=True))
    assert positions == {EVENTS_KEY: BEGINNING, OTHER_KEY: BEGINNING}
    client.xadd(OTHER_KEY, {"field": "1"})

    assert watch.wait(positions, LONG, threading.Event()) == {OTHER_KEY}


def test_it_stops_waiting_when_it_has_to_stop(watch: StreamWatch) -> None:
    stopping = threading.Event()
    stopping.set()

    with in_time(LONG / 2):
        assert watch.wait({EVENTS_KEY: BEGINNING}, LONG, stopping) == set()


def test_a_stream_that_is_not_there_has_got_nothing_that_is_known(watch: StreamWatch) -> None:
    with contextlib.suppress(redis.ConnectionError):  # the stand-in hangs up
        assert watch.added(EVENTS_KEY) is None


# What the stand-in can't do


def test_it_counts_what_a_stream_ever_got(real_redis: EmbeddedRedis, real_client: Any) -> None:
    for _ in range(5):
        real_client.xadd(EVENTS_KEY, {"field": "1"}, maxlen=1, approximate=False)

    with watch_on(real_redis.url) as watch:
        assert watch.added(EVENTS_KEY) == (None if real_client.info()["redis_version"].startswith("6.") else 5)


def test_a_wait_is_one_command_however_long(real_redis: EmbeddedRedis, real_client: Any) -> None:
    with watch_on(real_redis.url) as watch:
        watch.positions([EVENTS_KEY])
        with monitored(real_client) as commands:
            watch.wait({EVENTS_KEY: BEGINNING}, 1.0, threading.Event())

    assert commands == [f"XREAD COUNT 1 BLOCK 1000 STREAMS {EVENTS_KEY} 0-0"]


def test_it_connects_again_after_its_connection_was_closed(real_redis: EmbeddedRedis, real_client: Any) -> None:
    with watch_on(real_redis.url) as watch:
        watch.positions([EVENTS_KEY])
        real_client.client_kill_filter(_type="normal", skipme=True)

        with contextlib.suppress(redis.ConnectionError):
            watch.positions([EVENTS_KEY])

        assert watch.positions([EVENTS_KEY]) == [BEGINNING]


def test_a_server_that_hangs_is_noticed(own_redis: EmbeddedRedis) -> None:
    with watch_on(own_redis.url, redis_timeout=1) as watch:
        watch.positions([EVENTS_KEY])
        with frozen(own_redis), pytest.raises(redis.TimeoutError):
            watch.wait({EVENTS_KEY: BEGINNING}, 0.1, threading.Event())


@pytest.mark.parametrize("missing", ["-xrevrange", "-xread"])
def test_without_a_right_it_waits_without_redis_and_says_so_once(
    own_redis: EmbeddedRedis, own_client: Any, logger: CapturingLogger, missing: str
) -> None:
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">password", "~*", "+@all", missing)
    own_client.xadd(EVENTS_KEY, {"field": "1"})
    with watch_on(own_redis.url.replace("//", "//relay:password@")) as watch:
        assert watch.look_seconds == LOOK_SECONDS
        for _ in range(2):
            watch.positions([EVENTS_KEY])
            watch.added(EVENTS_KEY)
            watch.wait({EVENTS_KEY: BEGINNING}, 0.01, threading.Event())

        assert watch.look_seconds == POLL_SECONDS
        assert watch.added(EVENTS_KEY) is None

    (warning,) = logger.calls
    assert (warning.method_name, warning.args) == ("warning", ("expiry_polls",))
    assert warning.kwargs["detail"].startswith("The user of Redis may not read the stream")
    assert "Allow +xread +xrevrange +xinfo, " in warning.kwargs["detail"]


@pytest.mark.parametrize("missing", ["-xrevrange", "-xread"])
def test_a_right_that_comes_later_is_used_and_each_change_is_said_once(
    own_redis: EmbeddedRedis, own_client: Any, logger: CapturingLogger, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(expiry_watch, "POLL_SECONDS", 0.0)  # a try each time
    user = ("ACL", "SETUSER", "relay")
    own_client.execute_command(*user, "on", ">password", "~*", "+@all", missing)
    own_client.xadd(EVENTS_KEY, {"field": "1"})
    with watch_on(own_redis.url.replace("//", "//relay:password@")) as watch:

        def turn() -> set[str]:
            watch.positions([EVENTS_KEY])
            return watch.wait({EVENTS_KEY: BEGINNING}, 0.01, threading.Event())

        for _ in range(3):
            turn()
        own_client.execute_command(*user, "+@all")
        assert [turn(), turn()] == [{EVENTS_KEY}, {EVENTS_KEY}]
        assert watch.look_seconds == LOOK_SECONDS
        own_client.execute_command(*user, missing)
        turn()

    said = [call.args[0] for call in logger.calls]
    assert said == ["expiry_polls", "expiry_command_works", "expiry_polls"]


def test_a_new_connection_tries_again_at_once(
    own_redis: EmbeddedRedis, own_client: Any, logger: CapturingLogger
) -> None:
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">password", "~*", "+@all", "-xrevrange")
    with watch_on(own_redis.url.replace("//", "//relay:password@")) as watch:
        watch.positions([EVENTS_KEY])
        assert watch.look_seconds == POLL_SECONDS
        own_client.execute_command("ACL", "SETUSER", "relay", "+@all")
        watch.disconnect()
        watch.positions([EVENTS_KEY])

        assert watch.look_seconds == LOOK_SECONDS

    assert [call.args[0] for call in logger.calls] == ["expiry_polls", "expiry_command_works"]


def test_without_the_right_to_xinfo_it_waits_at_the_stream_and_does_not_count(
    own_redis: EmbeddedRedis, own_client: Any, logger: CapturingLogger
) -> None:
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">password", "~*", "+@all", "-xinfo")
    own_client.xadd(EVENTS_KEY, {"field": "1"})
    with watch_on(own_redis.url.replace("//", "//relay:password@")) as watch:
        assert [watch.added(EVENTS_KEY) for _ in range(2)] == [None, None]

        assert watch.look_seconds == LOOK_SECONDS
        assert watch.wait({EVENTS_KEY: BEGINNING}, LONG, threading.Event()) == {EVENTS_KEY}

    (warning,) = logger.calls
    assert warning.args == ("expiry_paces_alone",)
    assert "Allow +xinfo, " in warning.kwargs["detail"]
    assert own_client.acl_log()[0]["count"] == 1


@pytest.mark.parametrize(
    "said",
    [
        b"unknown command 'XREVRANGE', with args beginning with: ",
        b"unsupported command 'xrevrange'",
        b"XREVRANGE is not supported by this proxy",
    ],
)
def test_a_server_without_the_command_is_polled(logger: CapturingLogger, said: bytes) -> None:
    with scripted_redis(lambda _: b"-ERR " + said) as server, watch_on(server.url) as watch:
        watch.positions([EVENTS_KEY])
        watch.wait({EVENTS_KEY: BEGINNING}, 0.01, threading.Event())

        assert watch.look_seconds == POLL_SECONDS

    (warning,) = logger.calls
    assert "does not have the command to read the stream" in warning.kwargs["detail"]
    assert "Allow" not in warning.kwargs["detail"]


@pytest.mark.parametrize(
    "said",
    [
        *(b"-ERR max requests limit exceeded", b"-LOADING Redis is loading", b"-MOVED 1 x:1"),
        b"-OOM command not allowed when used memory > 'maxmemory'.",
        b"-ERR command not allowed under OOM prevention.",
        b"-ERR Command denied: server overloaded",
        b"-ERR not allowed because the instance is frozen",
    ],
)
def test_what_may_pass_is_no_missing_right(said: bytes, logger: CapturingLogger) -> None:
    with scripted_redis(lambda _: said) as server, watch_on(server.url) as watch:
        with pytest.raises(redis.RedisError):
            watch.positions([EVENTS_KEY])

        assert watch.look_seconds == LOOK_SECONDS

    assert logger.calls == []
