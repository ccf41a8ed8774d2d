"""Tasks that run together: the first error comes out as it was raised."""

import asyncio
import itertools
import threading
from typing import NoReturn

import pytest

from service.errors import StoreUnavailableError
from service.workers.tasks import background, gather, repeated


async def fail() -> NoReturn:
    cause = ValueError("what Redis said")
    raise StoreUnavailableError("Redis did not take it.") from cause


def test_the_first_error_comes_with_its_cause() -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        asyncio.run(gather([fail()]))

    assert str(caught.value.__cause__) == "what Redis said"


def test_an_error_beside_a_block_comes_with_its_cause() -> None:
    async def wait() -> None:
        async with background(fail()):
            await asyncio.Event().wait()

    with pytest.raises(StoreUnavailableError) as caught:
        asyncio.run(wait())

    assert str(caught.value.__cause__) == "what Redis said"


def test_an_error_without_a_cause_has_none() -> None:
    async def refuse() -> NoReturn:
        raise StoreUnavailableError

    with pytest.raises(StoreUnavailableError) as caught:
        asyncio.run(gather([refuse()]))

    assert caught.value.__cause__ is None


def test_the_last_call_waits_for_one_that_stalls_and_nothing_is_called_after_it() -> None:
    is_called, goes_on = threading.Event(), threading.Event()
    ended: list[int] = []
    numbers = itertools.count()

    def stall() -> None:
        number = next(numbers)
        if number == 0:
            is_called.set()
            assert goes_on.wait(20)
        ended.append(number)

    async def run() -> list[int]:
        async with repeated(stall, 0.001):
            await asyncio.to_thread(is_called.wait, 20)
            asyncio.get_running_loop().call_later(0.1, goes_on.set)
        return list(ended)

    assert asyncio.run(run()) == ended == [0, 1]


def test_an_error_of_the_last_call_does_not_replace_what_ended_the_block() -> None:
    def fail() -> None:
        raise StoreUnavailableError

    async def run() -> None:
        async with repeated(fail, 60):
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        asyncio.run(run())
