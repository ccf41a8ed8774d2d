"""What waits for a reader in memory, and its bounds."""

import asyncio
from typing import Final

import pytest

from service.store import subscription
from service.store.subscription import MAX_BYTES, MAX_NOTICES, Notice, Scope, Subscription

APPLIED: Final = Notice("applied", "1-1", b"{}")


@pytest.fixture
def reader() -> Subscription:
    return Subscription(Scope(), None, Subscription.resume)


def taken(reader: Subscription) -> list[Notice]:
    return asyncio.run(reader.get())


async def put_on_loop(reader: Subscription, *notices: Notice) -> None:
    for each in notices:
        reader.put(each)


def put(reader: Subscription, *notices: Notice) -> None:
    asyncio.run(put_on_loop(reader, *notices))


def test_what_waits_is_taken_together_and_once(reader: Subscription) -> None:
    put(reader, APPLIED, Notice("heartbeat"))

    assert taken(reader) == [APPLIED, Notice("heartbeat")]
    put(reader, APPLIED)
    assert taken(reader) == [APPLIED]


def test_a_reader_who_waits_is_woken(reader: Subscription) -> None:
    async def scenario() -> list[Notice]:
        waiting = asyncio.create_task(reader.get())
        await asyncio.sleep(0)
        reader.put(APPLIED)
        return await waiting

    assert asyncio.run(scenario()) == [APPLIED]


def test_as_many_notices_as_may_wait_do(reader: Subscription) -> None:
    put(reader, *[APPLIED] * MAX_NOTICES)

    assert not reader.is_over
    assert len(taken(reader)) == MAX_NOTICES


def test_one_more_cuts_the_reader_off_and_frees_all(reader: Subscription) -> None:
    put(reader, *[APPLIED] * (MAX_NOTICES + 1))

    assert reader.is_over
    assert taken(reader) == []


def test_too_many_bytes_cut_the_reader_off(reader: Subscription) -> None:
    put(reader, Notice("applied", "1-1", bytes(MAX_BYTES)))
    was_over = reader.is_over
    put(reader, APPLIED)

    assert (was_over, reader.is_over) == (False, True)
    assert taken(reader) == []


def test_after_an_end_nothing_comes(reader: Subscription) -> None:
    async def scenario() -> None:
        reader.put(APPLIED)
        reader.finish("token_expired", at=1)
        reader.put(APPLIED)
        reader.finish("session_ended")

    asyncio.run(scenario())
    assert taken(reader) == [APPLIED, Notice("end", said={"reason": "token_expired", "at": 1})]
    assert taken(reader) == []


def test_who_reads_slowly_is_waited_for(reader: Subscription, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "MAX_NOTICES", 4)

    async def scenario() -> int:
        taken = 0
        filling = asyncio.create_task(fill(reader, 50))
        while taken < 50:
            notices = await reader.get()
            assert len(notices) <= 2
            taken += len(notices)
        await filling
        return taken

    assert asyncio.run(scenario()) == 50
    assert not reader.is_over


async def fill(reader: Subscription, count: int) -> None:
    for _ in range(count):
        await reader.room()
        reader.put(APPLIED)


def test_whoever_waits_for_room_goes_on_when_the_reader_leaves(reader: Subscription) -> None:
    async def scenario() -> None:
        reader.put(Notice("applied", "1-1", bytes(MAX_BYTES)))
        waiting = asyncio.create_task(reader.room())
        await asyncio.sleep(0)
        reader.close()
        await asyncio.wait_for(waiting, 10)

    asyncio.run(scenario())
