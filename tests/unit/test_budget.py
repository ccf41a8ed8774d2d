"""The budget of requests to Clerk: never more than so many in any window, and no fewer than that allows."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import virtual_time
from support.strategies import patient

from service.clerk.budget import CLOCK_TOLERANCE_SECONDS, Budget

WINDOW: Final = 10.0


def now() -> float:
    return asyncio.get_running_loop().time()


def in_virtual_time(
    requests: int, use: Callable[[Budget], Coroutine[Any, Any, None]], sleep: Callable[[float], Any] = asyncio.sleep
) -> None:
    async def main() -> None:
        await use(Budget(requests, WINDOW, clock=asyncio.get_running_loop().time, sleep=sleep))

    virtual_time.run(main())


def most_in_window(arrivals: list[float]) -> int:
    """Count in closed windows: both ends belong to them."""
    times = sorted(arrivals)
    return max((sum(at <= other <= at + WINDOW for other in times) for at in times), default=0)


class Call(NamedTuple):
    asked_at: float
    latency: float
    arrives: float
    """The part of the latency after which Clerk has the request."""
    fails: bool
    patience: float
    """Seconds after which the caller gives up."""


calls: Final = st.builds(
    Call,
    asked_at=st.floats(0, 40),
    latency=st.floats(0, 30),
    arrives=st.floats(0, 1),
    fails=st.booleans(),
    patience=st.floats(0.001, 60) | st.just(1e9),
)


@given(
    requests=st.integers(1, 5),
    planned=st.lists(calls, max_size=25),
    pauses=st.lists(st.tuples(st.floats(0, 60), st.floats(0, 20)), max_size=3),
    early=st.sampled_from([1.0, 0.5, 0.999]),
)
@patient
def test_no_window_has_more_requests_than_allowed(
    requests: int, planned: list[Call], pauses: list[tuple[float, float]], early: float
) -> None:
    arrivals = []

    async def call(budget: Budget, plan: Call) -> None:
        await asyncio.sleep(plan.asked_at)
        try:
            async with asyncio.timeout(plan.patience), budget.slot():
                await asyncio.sleep(plan.latency * plan.arrives)
                arrivals.append(now())
                await finish(plan)
        except (ConnectionError, TimeoutError):
            pass

    async def finish(plan: Call) -> None:
        await asyncio.sleep(plan.latency * (1 - plan.arrives))
        if plan.fails:
            raise ConnectionError

    async def pause(budget: Budget, at: float, seconds: float) -> None:
        await asyncio.sleep(at)
        budget.pause(seconds)

    async def use(budget: Budget) -> None:
        await asyncio.gather(*(call(budget, plan) for plan in planned), *(pause(budget, *each) for each in pauses))
        await asyncio.sleep(2 * WINDOW)
        assert budget.spent() == 0  # no slot is lost

    async def sleep_too_short(seconds: float) -> None:
        await asyncio.sleep(min(seconds, max(seconds * early, 0.001)))

    in_virtual_time(requests, use, sleep_too_short)
    assert most_in_window(arrivals) <= requests


def test_the_rate_comes_within_two_percent_of_the_limit() -> None:
    arrivals = []

    async def ask(budget: Budget) -> None:
        while now() < 300:
            async with budget.slot():
                arrivals.append(now())
                await asyncio.sleep(0.05)

    async def use(budget: Budget) -> None:
        await asyncio.gather(*(ask(budget) for _ in range(16)))

    in_virtual_time(200, use)
    assert most_in_window(arrivals[:2000]) == 200
    assert len(arrivals) >= 0.98 * 200 * 300 / WINDOW


def test_a_slot_is_free_a_window_after_the_response() -> None:
    async def use(budget: Budget) -> None:
        async with budget.slot():
            await asyncio.sleep(7)
        async with budget.slot():
            assert now() == pytest.approx(7 + WINDOW + CLOCK_TOLERANCE_SECONDS)

    in_virtual_time(1, use)


def test_who_came_first_is_served_first() -> None:
    served = []

    async def ask(budget: Budget, number: int) -> None:
        async with budget.slot():
            served.append(number)

    async def use(budget: Budget) -> None:
        await asyncio.gather(*(ask(budget, number) for number in range(20)))

    in_virtual_time(3, use)
    assert served == list(range(20))


def test_a_pause_holds_back_who_waits_and_who_comes() -> None:
    begun = []

    async def ask(budget: Budget) -> None:
        async with budget.slot():
            begun.append(now())

    async def use(budget: Budget) -> None:
        await ask(budget)
        waiting = asyncio.create_task(ask(budget))
        await asyncio.sleep(1)
        budget.pause(30)
        budget.pause(5)  # a shorter one takes nothing back
        await asyncio.sleep(1)
        await asyncio.gather(waiting, ask(budget))

    in_virtual_time(1, use)
    assert begun == [0, pytest.approx(31), pytest.approx(31 + WINDOW + CLOCK_TOLERANCE_SECONDS)]


def test_who_gives_up_waiting_takes_no_slot() -> None:
    async def use(budget: Budget) -> None:
        async with budget.slot():
            pass
        for seconds in (1, 2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds), budget.slot():
                    pytest.fail("there was a slot")
        async with budget.slot():
            assert now() == pytest.approx(WINDOW + CLOCK_TOLERANCE_SECONDS)

    in_virtual_time(1, use)


def test_slots_in_use_and_used_within_the_window_are_spent() -> None:
    async def use(budget: Budget) -> None:
        assert budget.spent() == 0
        async with budget.slot():
            assert budget.spent() == 1
            async with budget.slot():
                pass
            assert budget.spent() == 2
            await asyncio.sleep(WINDOW + 1)
            assert budget.spent() == 1

    in_virtual_time(3, use)


@pytest.mark.parametrize("spent", [3, 5])
def test_what_another_process_spent_is_not_spent_again(spent: int) -> None:
    async def use(budget: Budget) -> None:
        budget.preload(spent)
        assert budget.spent() == 3
        async with budget.slot():
            assert now() == pytest.approx(WINDOW + CLOCK_TOLERANCE_SECONDS)

    in_virtual_time(3, use)


def test_a_part_that_another_process_spent_leaves_the_rest() -> None:
    async def use(budget: Budget) -> None:
        budget.preload(2)
        async with budget.slot():
            assert now() == 0
        async with budget.slot():
            assert now() > WINDOW

    in_virtual_time(3, use)


@pytest.mark.parametrize(("key", "requests"), [("sk_live_x", 200), ("sk_test_x", 20), ("sk_other", 20)])
def test_a_fifth_of_the_limit_is_taken_which_the_prefix_of_the_key_tells(key: str, requests: int) -> None:
    assert Budget.of_key(key).requests == requests
