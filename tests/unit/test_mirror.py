"""What a mirror keeps of sessions, and what it says when it can't answer; before anything connects."""

import asyncio
import json
import math
import pickle
import re
import threading
from typing import Any

import pytest
import redis
from clerk_session_feed import (
    AsyncSessionFeed,
    FeedClosedError,
    FeedError,
    MirrorTooOldError,
    SessionFeed,
    mirror_reading,
    transport,
)
from clerk_session_feed.keys import Keys
from clerk_session_feed.mirror_reading import MirrorReading
from clerk_session_feed.mirror_table import HOUR, MAX_KEPT, NOT_YET, Table
from clerk_session_feed.mirror_table import end_of as exact_end
from clerk_session_feed.stream import Partition
from clerk_session_feed.testing import MemorySessionFeed
from support.constants import NO_REDIS, NOW_S, ROOT

DAY = 86_400.0
WEEK = 7 * DAY


@pytest.fixture
def table() -> Table:
    return Table(WEEK)


@pytest.fixture
def reading() -> MirrorReading:
    """What reads for a mirror of one partition."""
    return MirrorReading(1, 5.0, WEEK, longest_wait=2.5, on_ready=lambda: None)


def put(table: Table, session_id: str = "sess_1", *, end: float = NOW_S + DAY, status: str = "active") -> None:
    is_open = status in {"active", "pending"}
    table.put(session_id, "user_1", end, is_open=is_open, is_live=status == "active", now=NOW_S)


def end_of(table: Table, session_id: str = "sess_1") -> float:
    return exact_end(table.exact[session_id])


# What is kept


def test_of_an_open_session_its_end_and_its_user_are_kept(table: Table) -> None:
    put(table)
    assert (end_of(table), table.user_id("sess_1")) == (NOW_S + DAY, "user_1")


def test_a_session_without_an_end_never_ends_by_itself(table: Table) -> None:
    put(table, end=math.inf)
    table.forget(["sess_1"], NOW_S + 1000 * DAY)
    assert end_of(table) == math.inf


def test_the_end_of_a_pending_session_is_in_the_past_whatever_the_time_is(table: Table) -> None:
    for end in (NOW_S + DAY, math.inf):
        put(table, end=end, status="pending")
        assert end_of(table) == -end


def test_sessions_are_live_for_sure_until_the_hour_in_which_they_end(table: Table) -> None:
    for number, end in enumerate((NOW_S + DAY + 0.001, NOW_S + DAY + 1)):
        put(table, f"sess_{number}", end=end)
        assert table.kept[f"sess_{number}"] <= end < table.kept[f"sess_{number}"] + HOUR
        assert table.is_live_at(f"sess_{number}", end - 0.001)
        assert not table.is_live_at(f"sess_{number}", end)
    assert table.kept["sess_0"] is table.kept["sess_1"]


def test_a_pending_session_is_live_at_no_time(table: Table) -> None:
    put(table, status="pending")
    assert table.kept["sess_1"] == NOT_YET
    assert not table.is_live_at("sess_1", NOW_S)


def test_of_a_session_that_ended_no_user_is_kept(table: Table) -> None:
    put(table, status="revoked")
    assert table.user_id("sess_1") is None


def test_sessions_that_ended_in_the_same_hour_share_a_number(table: Table) -> None:
    for number in range(2):
        put(table, f"sess_{number}", status="ended")
    assert table.kept["sess_0"] is table.kept["sess_1"]


def test_open_sessions_are_counted_once(table: Table) -> None:
    put(table, "sess_1")
    put(table, "sess_1", end=math.inf)
    put(table, "sess_2", status="pending")
    put(table, "sess_3", status="ended")
    assert len(table.exact) == 2
    put(table, "sess_2", status="removed")
    assert len(table.exact) == 1
    put(table, "sess_2")
    assert len(table.exact) == 2


# What is forgotten


@pytest.mark.parametrize(
    ("end", "kept"),
    [(NOW_S - DAY, WEEK), (NOW_S + DAY, WEEK + DAY), (NOW_S + 500 * DAY, MAX_KEPT), (math.inf, MAX_KEPT)],
)
def test_a_session_that_ended_is_kept_for_as_long_as_by_the_relay_and_an_hour_at_most(
    table: Table, end: float, kept: float
) -> None:
    put(table, end=end, status="ended")
    table.forget(["sess_1"], NOW_S + kept)
    assert "sess_1" in table.kept
    table.forget(["sess_1"], NOW_S + kept + 3600)
    assert not table.kept


@pytest.mark.parametrize("status", ["active", "pending"])
def test_a_session_whose_end_passed_is_kept_as_one_that_ended(table: Table, status: str) -> None:
    put(table, status=status)
    table.forget(["sess_1"], NOW_S + DAY)
    assert table.kept["sess_1"] < 0
    assert len(table.exact) == 0
    table.forget(["sess_1"], NOW_S + DAY + WEEK)
    assert "sess_1" in table.kept
    table.forget(["sess_1"], NOW_S + DAY + WEEK + 3600)
    assert not table.kept


def test_a_session_that_is_gone_already_is_no_fault(table: Table) -> None:
    table.forget(["sess_1"], NOW_S)
    assert not table.kept


class Clock:
    now = 0.0
    wrong_by = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Two clocks that agree: seconds since the start, and the time of day, which may be wrong."""
    clock = Clock()
    monkeypatch.setattr("clerk_session_feed.mirror_reading.clock", lambda: clock.now)
    monkeypatch.setattr("clerk_session_feed.mirror_reading.time", lambda: NOW_S + clock.now + clock.wrong_by)
    return clock


def test_all_sessions_are_looked_at_in_parts_once_an_hour(clock: Clock, reading: MirrorReading) -> None:
    partition = Partition(0, Keys(), "0-1")
    reading.begin(partition)
    for number in range(5000):
        put(reading._table(partition), f"sess_{number}", status="ended")

    def look() -> int:
        asyncio.run(reading.reached(None, partition, clock.now))  # type: ignore[arg-type]  # it asks nothing
        return len(reading.tables[0].kept)

    assert look() == 5000
    clock.now = 500 * DAY
    assert [look() for _ in range(5)] == [5000, 3000, 1000, 0, 0]


def test_nothing_is_forgotten_in_an_hour_in_which_the_clock_was_set(clock: Clock, reading: MirrorReading) -> None:
    partition = Partition(0, Keys(), "0-1")
    put(reading._table(partition))

    def look() -> list[str]:
        for _ in range(2):
            asyncio.run(reading.reached(None, partition, clock.now))  # type: ignore[arg-type]  # it asks nothing
        return list(reading.tables[0].kept)

    clock.wrong_by, clock.now = 500 * DAY, 3600.0
    assert look() == ["sess_1"]
    clock.wrong_by, clock.now = 0.0, 7200.0
    assert look() == ["sess_1"]
    assert end_of(reading._table(partition)) == NOW_S + DAY
    clock.now = 500 * DAY
    assert look() == []


# What can't be said


@pytest.mark.parametrize(
    "options",
    [
        *({"max_age": 0.0}, {"max_age": -1.0}, {"max_age": math.nan}),
        *({"keep_ended": -1.0}, {"keep_ended": math.inf}, {"keep_ended": math.nan}, {"past_max_age": "throw"}),
    ],
)
def test_options_that_can_not_be_used_are_an_error_at_once(options: dict[str, Any]) -> None:
    threads = threading.active_count()
    with SessionFeed.from_url(NO_REDIS) as feed, pytest.raises(ValueError, match=next(iter(options))):
        feed.mirror(**options)
    assert threading.active_count() == threads


def test_of_a_closed_feed_there_is_no_mirror() -> None:
    feed = SessionFeed.from_url(NO_REDIS)
    feed.close()
    with pytest.raises(FeedClosedError):
        feed.mirror()


def test_the_error_is_one_of_the_feed_and_survives_being_handed_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(MirrorTooOldError(7.25, 5.0, "why")))
    assert issubclass(MirrorTooOldError, FeedError)
    assert (error.age, error.max_age, error.reason) == (7.25, 5.0, "why")
    assert str(error) == "The mirror is 7.2 s old, and max_age is 5 s: why."


@pytest.mark.parametrize("age", [7.25, math.inf])
def test_a_reason_that_ends_with_a_full_stop_gets_no_other(age: float) -> None:
    assert str(MirrorTooOldError(age, 5.0, "Connection refused.")).endswith(": Connection refused.")


def test_in_asyncio_a_mirror_needs_an_event_loop() -> None:
    feed = AsyncSessionFeed.from_url(NO_REDIS)
    with pytest.raises(RuntimeError, match="no running event loop"):
        feed.mirror()


def test_a_mirror_is_ready_only_once_each_partition_is() -> None:
    ready = []
    reading = MirrorReading(2, math.inf, WEEK, longest_wait=1.0, on_ready=lambda: ready.append(True))
    asyncio.run(reading.reached(None, Partition(0, Keys(), "0-1"), 1.0))  # type: ignore[arg-type]
    assert (reading.known_at, reading.old_at, ready) == (-math.inf, -math.inf, [])
    asyncio.run(reading.reached(None, Partition(1, Keys(), "0-1"), 2.0))  # type: ignore[arg-type]
    assert (reading.known_at, reading.old_at, ready) == (1.0, math.inf, [True])


# Questions while other threads are at work


def test_what_is_being_read_may_be_counted_while_another_partition_begins() -> None:
    reading = MirrorReading(2, 5.0, WEEK, longest_wait=2.5, on_ready=lambda: None)

    class Growing:
        @property
        def kept(self) -> dict[str, float]:
            reading.begin(Partition(1, Keys()))
            return {"sess_1": NOT_YET}

    reading._growing[0] = Growing()  # type: ignore[assignment]
    assert reading.growing == 1


def test_why_it_is_too_old_may_be_asked_while_another_connection_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with MemorySessionFeed() as feed, feed.mirror() as mirror:

        def heard_at(slot: int) -> float:
            mirror._away.setdefault(slot + 1, (transport.clock(), redis.ConnectionError("away")))
            return -math.inf

        mirror._away[0] = (transport.clock(), redis.ConnectionError("away"))
        monkeypatch.setattr(mirror, "_heard_at", heard_at)
        assert re.fullmatch(r"Redis has been away for \d\.\d s: away", mirror._reason())


# Another server than the one that was read from


def test_what_only_a_former_server_had_makes_no_entry_of_the_next_one_known(reading: MirrorReading) -> None:
    partition = Partition(0, Keys(), "1-0")
    reading.begin(partition)
    partition.note("sess_1", (9, 0), (1, 0))
    entry = partition.entry((b"5-0", [b"outcome", b"applied", b"session_id", b"sess_1"]))
    assert partition.is_known(entry)

    reading.begin(partition)  # the SCAN begins again

    assert not partition.is_known(entry)


def test_a_hash_that_is_older_than_the_entry_on_whose_account_it_is_read_does_not_undo_that(
    reading: MirrorReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read_hashes(_: object, keys: Any, __: object) -> tuple[list[list[bytes]], list[Any]]:
        return [[b"1", b"active", b"user_1", b"1-1", b""] for _ in keys], []

    monkeypatch.setattr(mirror_reading, "read_hashes", read_hashes)
    partition = Partition(0, Keys(), "2-1")
    message = json.loads((ROOT / "clients/conformance/message.json").read_text())
    message["session"] |= {"status": "ended", "live": False, "expire_at": None}
    fields = [b"outcome", b"applied", b"session_id", b"sess_1", b"message", json.dumps(message).encode()]
    reading.entry(partition.entry((b"2-1", fields)))

    asyncio.run(reading.reached(None, partition, 1.0))  # type: ignore[arg-type]

    assert reading.tables[0].kept["sess_1"] < 0  # it ended
