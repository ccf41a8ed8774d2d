"""Feeds, before anything connects."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from clerk_session_feed import CursorLostError, FeedClosedError, SessionFeed, transport
from clerk_session_feed.cursors import whole_cursor
from clerk_session_feed.errors import ConfigurationError
from clerk_session_feed.transport import BlockingConnection
from support.constants import NO_REDIS


@pytest.mark.parametrize(
    "after",
    [
        *("", "-", "now", "1-", "-1", "1-2-3", "1-2\n", " 1-2", "\u0661-\u0662", "$", ">", "+", "(1-1"),
        *("18446744073709551616", "0-18446744073709551616", {1: "0-0"}, {-1: "0-0"}, {0: "x"}),
    ],
)
def test_what_is_no_cursor_is_an_error_at_once(after: Any) -> None:
    with SessionFeed.from_url(NO_REDIS) as feed:
        with pytest.raises(ValueError, match=r"cursor|partition"):
            feed.follow(after)
        with pytest.raises(ValueError, match=r"cursor|partition"):
            feed.consume("group", "name", after=after)


@pytest.mark.parametrize(
    ("time", "before"),
    [("0", "0-0"), ("1", "0-18446744073709551615"), ("1795422761000", "1795422760999-18446744073709551615")],
)
def test_a_time_alone_is_the_cursor_before_all_entries_of_that_time(time: str, before: str) -> None:
    assert whole_cursor(time) == before


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("1795422761000-7", "1795422761000-7"),
        ("00017-0", "17-0"),
        ("07-010", "7-10"),
        ("0-0001", "0-1"),
        ("00", "0-0"),
        ("007", "6-18446744073709551615"),
        ("18446744073709551615-18446744073709551615", "18446744073709551615-18446744073709551615"),
    ],
)
def test_a_cursor_is_spelt_as_redis_does(given: str, whole: str) -> None:
    assert whole_cursor(given) == whole


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="STREAM_MAXLEN"):
        SessionFeed.from_url("redis://127.0.0.1:1/0", stream_maxlen=1)  # type: ignore[call-arg]


def test_the_environment_is_read_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_TIMEOUT", "soon")
    SessionFeed.from_url("redis://127.0.0.1:1/0").close()
    with pytest.raises(ConfigurationError, match="REDIS_TIMEOUT"):
        SessionFeed.from_env()


def test_a_file_that_is_not_utf8_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("REDIS_URL=redis://127.0.0.1:1/0", encoding="utf-16")
    with pytest.raises(ConfigurationError, match=r"^\.env: "):
        SessionFeed.from_env()


def test_an_error_survives_being_handed_to_another_process() -> None:
    lost = pickle.loads(pickle.dumps(CursorLostError("5-0", 3)))
    assert (lost.cursor, lost.partition) == ("5-0", 3)
    assert "5-0" in str(lost)


def test_what_begins_while_the_feed_is_closed_is_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = SessionFeed.from_url(NO_REDIS)
    connect = transport.BlockingConnection._connect

    def close_meanwhile(*arguments: Any, **named: Any) -> Any:
        feed.close()
        return connect(*arguments, **named)

    monkeypatch.setattr(BlockingConnection, "_connect", staticmethod(close_meanwhile))
    with pytest.raises(FeedClosedError):
        feed.follow()


@pytest.mark.parametrize("name", ["redis_key_prefix", "redis_channel", "redis_url", "partitions"])
def test_a_setting_in_quotes_is_refused_whoever_gives_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run --env-file` leaves them."""
    fault = rf"{name.upper()}: begins with a quotation mark: leave the quotes out"
    given: dict[str, Any] = {name: '"8"'}
    if name != "redis_url":
        with pytest.raises(ConfigurationError, match=fault):
            SessionFeed.from_url("redis://127.0.0.1:1/0", **given)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv(name.upper(), "'redis://127.0.0.1:1/0'")
    with pytest.raises(ConfigurationError, match=fault):
        SessionFeed.from_env()
