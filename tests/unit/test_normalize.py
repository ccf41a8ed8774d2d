"""docs/contract.md, sections 4, 6 and 7: an event becomes state with a place among the session's events."""

from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clerks_own import examples, needs_clerks_own
from support.constants import DAY_MS, NOW_MS, NOW_S
from support.events import ABSENT, event
from support.parsing import change, published, reason
from support.strategies import patient

from service.models import SessionChange

RANKS: Final = ("pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked")
OPEN: Final = ("pending", "active")
TERMINAL: Final = RANKS[2:]
TERMINAL_TYPES: Final = {"session.ended": "ended", "session.removed": "removed", "session.revoked": "revoked"}


def status_of(type_: str, status: object) -> str:
    return change(event({"type": type_, "data.status": status})).session.status


# The type outranks an open status.


@pytest.mark.parametrize("type_", TERMINAL_TYPES)
@pytest.mark.parametrize("status", [*OPEN, ABSENT, None])
def test_an_end_that_says_nothing_or_open_has_the_status_of_its_type(type_: str, status: object) -> None:
    assert status_of(type_, status) == TERMINAL_TYPES[type_]


@pytest.mark.parametrize("type_", TERMINAL_TYPES)
@pytest.mark.parametrize("status", TERMINAL)
def test_an_end_keeps_the_terminal_status_that_it_reports(type_: str, status: str) -> None:
    assert status_of(type_, status) == status


@pytest.mark.parametrize("type_", ["session.created", "session.pending", "session.updated"])
@pytest.mark.parametrize("status", RANKS)
def test_any_other_event_has_the_status_that_it_reports(type_: str, status: str) -> None:
    assert status_of(type_, status) == status


@pytest.mark.parametrize("type_", ["session.created", "session.pending", "session.updated"])
@pytest.mark.parametrize("status", [ABSENT, None])
def test_any_other_event_without_a_status_is_a_dead_letter(type_: str, status: object) -> None:
    assert reason(event({"type": type_, "data.status": status})) == "invalid_status"


# Times.


@pytest.mark.parametrize(
    ("missing", "updated_at"),
    [
        ([], 4_000),
        (["data.updated_at"], 3_000),
        (["data.updated_at", "timestamp"], 2_000),
        (["data.updated_at", "timestamp", "data.last_active_at"], 1_000),
    ],
)
@pytest.mark.parametrize("how", [ABSENT, None])
def test_the_next_best_time_stands_in_for_updated_at(missing: list[str], updated_at: int, how: object) -> None:
    times = {"data.created_at": 1, "data.last_active_at": 2, "timestamp": 3, "data.updated_at": 4}
    made = change(event(times | dict.fromkeys(missing, how)))
    assert made.session.updated_at == made.order.updated_at_ms == updated_at
    assert made.session.created_at == (None if "data.created_at" in missing else 1_000)


def test_a_time_of_zero_is_a_time() -> None:
    assert change(event({"data.updated_at": 0, "timestamp": 5})).order[1:3] == (0, 5_000)
    assert change(event({"data.updated_at": 5, "timestamp": 0})).order[1:3] == (5_000, 0)


def test_no_time_at_all_is_a_dead_letter() -> None:
    times = dict.fromkeys(("timestamp", "data.updated_at", "data.last_active_at", "data.created_at"), None)
    assert reason(event(times)) == "invalid_updated_at"


@pytest.mark.parametrize("name", ["data.updated_at", "timestamp"])
@pytest.mark.parametrize(("ahead_ms", "why"), [(DAY_MS, None), (DAY_MS + 1, "invalid_updated_at")])
def test_over_a_day_in_the_future_is_a_dead_letter(name: str, ahead_ms: int, why: str | None) -> None:
    assert reason(event({"data.updated_at": ABSENT, name: NOW_MS + ahead_ms})) == why


@pytest.mark.parametrize("timestamp", [NOW_S, NOW_MS, float(NOW_S)])
def test_the_envelopes_time_in_either_unit_is_when_it_occurred(timestamp: float) -> None:
    made = change(event({"timestamp": timestamp}))
    assert made.event.occurred_at == made.order.occurred_at_ms == NOW_MS


@pytest.mark.parametrize("timestamp", [ABSENT, None, "odd", True, -1, float("nan"), 10**15])
def test_without_a_readable_time_it_occurred_when_the_session_was_updated(timestamp: object) -> None:
    made = change(event({"timestamp": timestamp, "data.updated_at": NOW_S}))
    assert made.event.occurred_at == made.order.occurred_at_ms == NOW_MS


# Live.


@pytest.mark.parametrize(
    ("status", "expire_at", "live"),
    [
        ("active", NOW_MS + 1, True),
        ("active", NOW_MS, False),
        ("active", NOW_MS - 1, False),
        ("active", NOW_S + 1, True),
        ("active", None, True),
        ("active", ABSENT, True),
        *((status, expire_at, False) for status in RANKS if status != "active" for expire_at in (None, NOW_MS + 1)),
    ],
)
def test_live_is_active_and_not_expired_at_the_moment_of_publishing(status: str, expire_at: object, live: bool) -> None:
    assert change(event({"data.status": status, "data.expire_at": expire_at})).session.live is live


# The order of events.


def test_the_order_key_is_made_of_its_five_parts() -> None:
    made = change(event({"data.status": "removed", "data.updated_at": 5, "timestamp": 7}), message_id="msg_x")
    assert made.order == (True, 5_000, 7_000, 5, "msg_x")


def _order(status: str, updated_at: int, occurred_at: int, message_id: str) -> tuple[object, ...]:
    values = {"data.status": status, "data.updated_at": updated_at, "timestamp": occurred_at}
    return change(event(values), message_id=message_id).order


@pytest.mark.parametrize("later", TERMINAL)
@pytest.mark.parametrize("earlier", OPEN)
def test_an_end_comes_after_everything_open_however_old_it_is(earlier: str, later: str) -> None:
    assert _order(later, 1, 1, "a") > _order(earlier, 9, 9, "z")


@pytest.mark.parametrize(
    ("greater", "smaller"),
    [
        pytest.param(("active", 2, 1, "a"), ("active", 1, 2, "b"), id="updated_at before occurred_at"),
        pytest.param(("expired", 2, 1, "a"), ("revoked", 1, 2, "b"), id="updated_at before rank"),
        pytest.param(("pending", 1, 2, "a"), ("active", 1, 1, "b"), id="occurred_at before rank"),
        pytest.param(("active", 1, 1, "a"), ("pending", 1, 1, "b"), id="rank before message id"),
        pytest.param(("active", 1, 1, "b"), ("active", 1, 1, "a"), id="message id"),
        pytest.param(("active", 1, 1, "a"), ("active", 1, 1, "Z"), id="message id bytewise"),
        pytest.param(("active", 1, 1, "a1"), ("active", 1, 1, "a"), id="message id of the same beginning"),
        pytest.param(("active", 10, 1, "a"), ("active", 9, 1, "a"), id="times as numbers"),
    ],
)
def test_each_part_of_the_order_key_outweighs_those_after_it(
    greater: tuple[str, int, int, str], smaller: tuple[str, int, int, str]
) -> None:
    assert _order(*greater) > _order(*smaller)


@pytest.mark.parametrize(("lower", "higher"), list(pairwise(RANKS)))
def test_of_equal_times_the_rank_of_the_status_decides(lower: str, higher: str) -> None:
    assert _order(higher, 1, 1, "a") > _order(lower, 1, 1, "b")


_times = st.integers(NOW_MS - 2, NOW_MS)
_event = st.builds(
    lambda *values: event(dict(zip(("data.status", "data.updated_at", "timestamp", "data.client_id"), values))),  # noqa: B905
    st.sampled_from(RANKS), _times, _times, st.sampled_from("xyz"),
)  # fmt: skip


def _state(changes: list[SessionChange]) -> dict[str, Any]:
    """What the store ends with: each event in turn replaces the state stored, if it is greater."""
    stored = changes[0]
    for made in changes:
        if made.order > stored.order:
            stored = made
    return published(stored)


@patient
@given(st.lists(_event, min_size=1, max_size=6), st.data())
def test_any_order_and_repetition_of_a_sessions_events_ends_in_the_same_state(
    events: list[Any], data: st.DataObject
) -> None:
    changes = [change(body, message_id=f"msg_{number}") for number, body in enumerate(events)]
    more = data.draw(st.lists(st.sampled_from(changes), max_size=6))
    shuffled = data.draw(st.permutations(changes + more))
    assert _state(shuffled) == _state(changes)
    assert len({made.order for made in changes}) == len(changes)


@needs_clerks_own
def test_clerks_published_examples_become_their_states() -> None:
    changes = {type_: change(body) for type_, body in examples().items()}
    assert {type_: made.session.status for type_, made in changes.items()} == {
        "session.created": "active",
        "session.pending": "pending",
        **TERMINAL_TYPES,
    }
    assert {made.event.occurred_at for made in changes.values()} == {1716883200000}
    assert changes["session.ended"].order > changes["session.created"].order
    assert changes["session.ended"].order[1:3] == changes["session.created"].order[1:3]
    assert not changes["session.pending"].session.live
    made = change(examples()["session.created"], now_ms=1716883200000)
    assert made.session.live
