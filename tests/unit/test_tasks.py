"""Tasks that run together: the first error comes out as it was raised."""

import asyncio
from typing import NoReturn

import pytest

from service.errors import StoreUnavailableError
from service.workers.tasks import background, gather


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
