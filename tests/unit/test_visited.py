"""The set of users that a run has looked at."""

from service.workers.visited import Visited


def test_what_was_added_is_in_it_and_nothing_else() -> None:
    visited = Visited()
    for number in range(0, 10_000, 2):
        visited.add(f"user_{number}")

    assert len(visited) == 5000
    assert [number for number in range(10_000) if f"user_{number}" in visited] == list(range(0, 10_000, 2))


def test_an_id_that_is_added_twice_counts_once() -> None:
    visited = Visited()

    assert visited.add("user_1") == visited.add("user_1")
    assert len(visited) == 1


def test_what_is_stored_of_it_is_the_same_set_again() -> None:
    first, second = Visited(), Visited()
    stored = b"".join(first.add(f"user_{number}") for number in range(3000))

    second.load(stored)
    second.load(stored)

    assert len(stored) == 8 * 3000
    assert len(second) == 3000
    assert all(f"user_{number}" in second for number in range(3000))


def test_a_part_that_is_cut_off_is_left_out() -> None:
    visited = Visited()
    visited.load(Visited().add("user_1") + b"\0\1\2")

    assert len(visited) == 1
