"""Places in the stream as text."""

import pytest
from clerk_session_feed.cursors import MAX_PART
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import patient

from service.store import positions

CURSORS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)).map(lambda parts: f"{parts[0]}-{parts[1]}")


@patient
@given(st.lists(CURSORS, min_size=1, max_size=20))
def test_what_was_written_is_read(cursors: list[str]) -> None:
    assert positions.read(positions.write(cursors), len(cursors)) == cursors


def test_the_position_of_one_partition_is_its_cursor() -> None:
    assert positions.write(["5-1"]) == "5-1"
    assert positions.write(["5-1", "6-0"]) == "0:5-1,1:6-0"


def test_that_of_most_partitions_is_short_enough() -> None:
    cursors = ["1795422761000-12"] * 1024
    assert positions.read(positions.write(cursors), 1024) == cursors


@pytest.mark.parametrize("partitions", [1, 3])
def test_the_beginning_and_a_time_are_the_same_everywhere(partitions: int) -> None:
    assert positions.read("0-0", partitions) == ["0-0"] * partitions
    assert positions.read("1000", partitions) == [f"999-{MAX_PART}"] * partitions


@pytest.mark.parametrize(
    ("text", "partitions"), [("5-1", 2), ("0:5-1,1:5-1", 1), ("0:5-1,1:5-1", 3), ("1:5-1,2:5-1", 2)]
)
def test_that_of_another_number_of_partitions_is_none(text: str, partitions: int) -> None:
    assert positions.read(text, partitions) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "-", "5-", "-1", "5-1-1", "5-1,6-1", "0:5", "0:5-1,", ",0:5-1", "0:5-1,0:6-1", "0:5-1\n", "5-1\n"),
        *("99999999999999999999-0", "$", "+", "0:5-1,x:6-1", "\u0661-\u0660", "5-1" * 30_000, " 5-1", "0: 5-1"),
    ],
)
@pytest.mark.parametrize("partitions", [1, 2])
def test_what_is_no_position_is_an_error(text: str, partitions: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        positions.read(text, partitions)
