"""Readers of one hub: each is told of what is applied, from where it was, exactly."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clerk_session_feed.cursors import position
from support.clock import eventually
from support.constants import DAY_MS
from support.events import clerk_event
from support.redis_clients import client_of
from support.redis_servers import DurableRedis, durable_redis
from support.relay import Relay, make_settings, run_relay

from service.dev.embedded import EmbeddedRedis
from service.store import behind, hub, positions, recent, subscription
from service.store.reader import Reader
from service.store.subscription import Notice, Scope, Subscription

EVERYTHING = Scope()


def label(notice: Notice) -> str:
    message = json.loads(notice.message)
    return f"{message['cursor']} {message['session']['id']}"


class Told:
    """A reader in a thread, and what it was told."""

    def __init__(self, reader: Reader, scope: Scope = EVERYTHING, after: str | None = None) -> None:
        count = len(reader.queries.partitions)
        cursors = None if after is None else positions.read(after, count)
        self.scope, self.begun_at = scope, after or ""
        self.notices: list[Notice] = []
        self.subscription: Subscription = reader.hub.subscribe(scope, cursors, is_lost=bool(after) and cursors is None)
        self._hub = reader.hub
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while notices := self._hub.wait(self.subscription.get()):
            self.notices += notices

    def of(self, kind: str) -> list[Notice]:
        return [each for each in self.notices if each.kind == kind]

    def cursors(self) -> list[str]:
        """Return the cursors of what it was told, each with the session: two partitions may have the same."""
        return [label(each) for each in self.of("applied")]

    def position(self) -> str:
        """Return where it began, once that is known."""
        return eventually(lambda: next((each.position for each in self.notices if each.position), ""))

    def leave(self) -> None:
        self._hub.leave(self.subscription)
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def relay(partitioned_relay: Relay) -> Relay:
    return partitioned_relay


@pytest.fixture
def reader(real_redis: EmbeddedRedis, relay: Relay, partitions: int) -> Iterator[Reader]:
    with contextlib.closing(Reader(make_settings(real_redis.url, partitions=partitions))) as reader:
        yield reader


def put(relay: Relay, session_id: str, status: str = "active", user_id: str = "user_1", **values: Any) -> str:
    """Store a state, and return its cursor, with the session."""
    values = {"updated_at": relay.now_ms, "expire_at": relay.now_ms + DAY_MS} | values
    relay.now_ms += 1
    outcome = relay.take(
        clerk_event(status, session_id=session_id, user_id=user_id, **values), f"msg_{session_id}_{relay.now_ms}"
    )
    assert outcome.outcome == "applied"
    return f"{outcome.cursor} {session_id}"


def put_many(relay: Relay, count: int, name: str = "sess") -> list[str]:
    return [put(relay, f"{name}_{number}", user_id=f"user_{number % 7}") for number in range(count)]


def test_who_begins_now_gets_what_comes(relay: Relay, reader: Reader) -> None:
    put_many(relay, 5)
    told = Told(reader)
    assert told.position()
    expected = put_many(relay, 20, "new")

    eventually(lambda: len(told.cursors()) >= 20)
    assert sorted(told.cursors()) == sorted(expected)
    if len(reader.queries.partitions) == 1:
        assert told.cursors() == expected


def test_who_begins_at_the_beginning_gets_all_that_there_is(relay: Relay, reader: Reader) -> None:
    expected = put_many(relay, 20)
    told = Told(reader, after="0-0")

    eventually(lambda: len(told.cursors()) >= 20)
    assert sorted(told.cursors()) == sorted(expected)
    assert [each.kind for each in told.notices] == ["applied"] * 20


@pytest.mark.parametrize("kept", [0, 5, 500], ids=["nothing in memory", "some in memory", "all in memory"])
def test_each_position_is_where_one_can_go_on(
    relay: Relay, reader: Reader, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "KEPT", kept)
    monkeypatch.setattr(behind, "PAGE", 3)
    first = Told(reader)
    begun_at = first.position()
    expected = put_many(relay, 20)
    eventually(lambda: len(first.cursors()) >= 20)
    assert sorted(first.cursors()) == sorted(expected)

    places = [(begun_at, set[str]())]
    seen: set[str] = set()
    for notice, cursor in zip(first.of("applied"), first.cursors(), strict=True):
        seen = {*seen, cursor}
        places.append((notice.position, seen))
    for place, before in places:
        again = Told(reader, after=place)
        put(relay, "sess_last", updated_at=relay.now_ms)
        last = put(relay, "sess_last", updated_at=relay.now_ms)
        eventually(lambda: last in again.cursors())  # noqa: B023  # it is called at once
        assert len(again.cursors()) == len(set(again.cursors()))
        assert set(again.cursors()) & set(expected) == set(expected) - before
        assert not again.of("resync")
        again.leave()


def test_readers_who_come_while_much_happens_miss_nothing_and_get_nothing_twice(
    relay: Relay, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "KEPT", 7)
    monkeypatch.setattr(behind, "PAGE", 5)
    monkeypatch.setattr(hub, "REST", 0.001)
    readers, stored = [Told(reader, after="0-0")], []
    for number in range(300):
        user_id = f"user_{number % 7}"
        cursor = put(relay, f"sess_{number}", user_id=user_id)
        stored.append((reader.queries.partition_of(user_id).number, user_id, cursor))
        if number % 30 == 0:
            readers.append(Told(reader, Scope(user_id="user_3"), after="0-0"))
            told = readers[0].of("applied")
            readers.append(Told(reader, after=told[-1].position if told else "0-0"))

    for each in readers:
        begun_at = positions.read(each.begun_at, len(reader.queries.partitions)) or []
        expected = {
            cursor
            for partition, user_id, cursor in stored
            if position(cursor.partition(" ")[0]) > position(begun_at[partition])
            and each.scope.user_id in {None, user_id}
        }
        eventually(lambda: expected <= set(each.cursors()))  # noqa: B023
        assert sorted(each.cursors()) == sorted(expected)
        assert not each.of("resync")


def test_a_user_narrows(relay: Relay, reader: Reader) -> None:
    told = Told(reader, Scope(user_id="user_3"))
    assert told.position()
    expected = [put(relay, "sess_a", user_id="user_3")]
    put(relay, "sess_b", user_id="user_4")
    expected.append(put(relay, "sess_c", user_id="user_3"))

    eventually(lambda: len(told.cursors()) >= 2)
    assert told.cursors() == expected


def test_stale_events_are_not_told(relay: Relay, reader: Reader, now_ms: int) -> None:
    told = Told(reader, after="0-0")
    ended = put(relay, "sess_1", "ended")
    event = clerk_event(session_id="sess_1", updated_at=now_ms - 5000)
    assert relay.take(event, "msg_late").outcome == "stale"
    last = put(relay, "sess_2")

    eventually(lambda: last in told.cursors())
    assert told.cursors() == [ended, last]


class TestLost:
    def test_who_was_trimmed_past_is_told_so_once_and_goes_on_from_there(
        self, relay: Relay, reader: Reader, real_client: Any
    ) -> None:
        place = Told(reader).position()
        put_many(relay, 30)
        put_many(relay, 30, "more")
        for key in real_client.scan_iter("*:events"):
            real_client.xtrim(key, maxlen=1, approximate=False)
        with contextlib.closing(Reader(reader.hub._settings)) as other:  # another process, with nothing in memory
            told = Told(other, after=place)
            eventually(lambda: told.of("resync"))
            last = put(relay, "sess_last")
            eventually(lambda: last in told.cursors())

            (resync,) = told.of("resync")
            assert resync.said == {"reason": "trimmed", "cursor": resync.position}
            assert told.notices[0] is resync
            assert told.cursors() == [last]

    def test_a_position_that_was_never_one_is_told_to_be_lost(
        self, relay: Relay, reader: Reader, partitions: int
    ) -> None:
        put_many(relay, 20)
        far = [f"{time.time_ns() // 1_000_000 + DAY_MS}-0"] * partitions
        told = Told(reader, after=positions.write(far))

        assert [each.kind for each in eventually(lambda: told.notices)] == ["resync"]

    def test_a_position_of_another_number_of_partitions_is_told_to_be_lost(
        self, relay: Relay, reader: Reader, partitions: int
    ) -> None:
        put_many(relay, 3)
        told = Told(reader, after="0:1-1,1:1-1" if partitions == 1 else "1-1")

        assert [each.kind for each in eventually(lambda: told.notices)] == ["resync"]

    def test_when_redis_lost_its_data_all_are_told(self, relay: Relay, reader: Reader, real_client: Any) -> None:
        put_many(relay, 20)
        readers = [Told(reader), Told(reader, Scope(user_id="user_1")), Told(reader, after="0-0")]
        for told in readers:
            assert told.position()
        real_client.flushall()
        put(relay, "sess_after", user_id="user_9")

        for told in readers:
            eventually(lambda: told.of("resync"))  # noqa: B023
        last = put(relay, "sess_last", user_id="user_1")
        for told in readers:
            eventually(lambda: last in told.cursors())  # noqa: B023
            assert len(told.of("resync")) == 1


class TestSlowReaders:
    def test_one_that_takes_nothing_is_cut_off_and_others_go_on(
        self, relay: Relay, reader: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = reader.hub.subscribe(EVERYTHING)
        told = Told(reader)
        assert told.position()
        monkeypatch.setattr(subscription, "MAX_BYTES", 0)
        put(relay, "sess_1")
        eventually(lambda: slow.is_over)
        monkeypatch.undo()
        assert reader.hub.wait(slow.get()) == []

        again = Told(reader)
        assert again.position()
        last = put(relay, "sess_2")
        eventually(lambda: last in again.cursors())

    def test_who_is_behind_is_read_for_at_its_own_pace(
        self, relay: Relay, reader: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(subscription, "MAX_NOTICES", 10)
        monkeypatch.setattr(recent, "KEPT", 3)
        expected = put_many(relay, 50)
        slow = reader.hub.subscribe(EVERYTHING, ["0-0"] * len(reader.queries.partitions))
        taken: list[Notice] = []
        while len(taken) < 50:
            notices = reader.hub.wait(slow.get())
            assert 0 < len(notices) <= 10
            taken += notices

        assert sorted(map(label, taken)) == sorted(expected)


class TestTheEndOfASession:
    @pytest.fixture
    def of_session(self, reader: Reader) -> Callable[..., Told]:
        return lambda after=None: Told(reader, Scope(session_id="sess_1"), after)

    def test_it_is_told_and_nothing_comes_after_it(self, relay: Relay, of_session: Callable[..., Told]) -> None:
        put(relay, "sess_1")
        told = of_session()
        assert told.position()
        put(relay, "sess_2", "ended")
        cursor = put(relay, "sess_1", "revoked")

        told.thread.join(30)
        assert told.cursors() == [cursor]
        assert told.notices[-1].said == {"reason": "session_ended", "session_id": "sess_1", "status": "revoked"}

    def test_one_that_ended_before_is_told_at_once(self, relay: Relay, of_session: Callable[..., Told]) -> None:
        put(relay, "sess_1", "removed")
        told = of_session()

        told.thread.join(30)
        assert told.notices[-1].said == {"reason": "session_ended", "session_id": "sess_1", "status": "removed"}

    def test_one_that_runs_out_is_told_though_nobody_publishes_it(
        self, relay: Relay, of_session: Callable[..., Told]
    ) -> None:
        put(relay, "sess_1", expire_at=time.time_ns() // 1_000_000 + 500)
        told = of_session()
        assert told.position()

        told.thread.join(30)
        assert not told.thread.is_alive()
        assert told.notices[-1].said == {"reason": "session_ended", "session_id": "sess_1", "status": "expired"}

    def test_one_that_is_extended_goes_on(self, relay: Relay, of_session: Callable[..., Told]) -> None:
        put(relay, "sess_1", expire_at=time.time_ns() // 1_000_000 + 700)
        told = of_session()
        assert told.position()
        put(relay, "sess_1")
        time.sleep(1.0)  # until after the former end: nothing tells that nothing happens

        assert told.thread.is_alive()
        put(relay, "sess_1", "ended")
        told.thread.join(30)
        assert told.notices[-1].said["status"] == "ended"

    def test_one_that_is_not_known_yet_is_waited_for(self, relay: Relay, of_session: Callable[..., Told]) -> None:
        told = of_session()
        assert told.position()
        put(relay, "sess_1", "pending")
        put(relay, "sess_1")
        put(relay, "sess_1", "ended")

        told.thread.join(30)
        assert len(told.cursors()) == 3
        assert told.notices[-1].kind == "end"

    def test_what_was_missed_comes_before_the_end(self, relay: Relay, of_session: Callable[..., Told]) -> None:
        cursors = [put(relay, "sess_1"), put(relay, "sess_1", "ended")]
        told = of_session("0-0")

        told.thread.join(30)
        assert told.cursors() == cursors
        assert told.notices[-1].kind == "end"


def test_a_reader_for_some_time_is_told_when_that_is_over(reader: Reader) -> None:
    told = Told(reader, Scope(user_id="user_1", seconds=0.2))

    told.thread.join(30)
    assert told.notices[-1].said == {"reason": "token_expired"}
    assert reader.hub.count == 1
    told.leave()
    eventually(lambda: reader.hub.count == 0)


def test_who_is_told_nothing_gets_heartbeats_and_after_many_entries_its_position(
    relay: Relay, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TICK", 0.01)
    monkeypatch.setattr(hub, "POSITION_EVERY", 10)
    told = Told(reader, Scope(user_id="user_of_none"))
    begun_at = told.position()
    eventually(lambda: len(told.of("heartbeat")) > 2)
    assert {each.position for each in told.of("heartbeat")} == {""}
    assert len(told.of("position")) == 1
    put_many(relay, 12)

    later = eventually(lambda: told.of("position")[1:])[0].position
    assert later != begun_at
    again = Told(reader, after=later)
    last = put(relay, "sess_last")
    eventually(lambda: last in again.cursors())
    assert not again.of("resync")


def test_closing_ends_all(reader: Reader) -> None:
    readers = [Told(reader), Told(reader, Scope(session_id="sess_1")), Told(reader, after="0-0")]
    reader.close()

    for told in readers:
        told.thread.join(30)
        assert not told.thread.is_alive()


@pytest.fixture
def durable(redis_binary: str, tmp_path: Path) -> Iterator[DurableRedis]:
    with durable_redis(redis_binary, tmp_path) as server:
        yield server


def test_readers_go_on_without_a_gap_when_redis_was_away(
    durable: DurableRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TICK", 0.01)
    now_ms = time.time_ns() // 1_000_000
    with contextlib.closing(Reader(make_settings(durable.url))) as reader:
        with run_relay(durable.url, now_ms=now_ms) as relay:
            told = Told(reader)
            place = told.position()
            expected = put_many(relay, 10)
            eventually(lambda: len(told.cursors()) >= 10)
        durable.kill()
        before = len(told.of("heartbeat"))
        late = Told(reader, after=place)  # it comes while Redis is away
        eventually(lambda: len(told.of("heartbeat")) > before + 2)
        durable.start()
        with client_of(durable.url) as client:
            assert client.xlen("{clerk}:events") == 10
        with run_relay(durable.url, now_ms=now_ms + 1000) as relay:
            expected += put_many(relay, 10, "later")
            eventually(lambda: len(told.cursors()) >= 20)
            eventually(lambda: len(late.cursors()) >= 20)

        assert told.cursors() == expected
        assert late.cursors() == expected
        assert not told.of("resync")
        assert not late.of("resync")
