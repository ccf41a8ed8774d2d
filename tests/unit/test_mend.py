"""Which sessions that Clerk no longer has may end, what a report adds up, and the name under which a run is resumed.

What a stored state is compared with, and how, is in tests/integration/test_reconcile.py.
"""

import pytest

from service.workers.gone import GoneSessions, TooManyGoneError
from service.workers.report import MAX_FAULTS, Faults, Gone, Report, Scope


def gone_sessions(count: int, allow: int = 0) -> GoneSessions:
    gone = GoneSessions(allow)
    for number in range(count):
        gone.add(Gone(f"sess_{number}", "user_1", "1-0", 1))
    return gone


@pytest.mark.parametrize(
    ("count", "looked_at", "allow"),
    [(0, 0, 0), (10, 10, 0), (10, 219, 0), (11, 220, 0), (50, 1000, 0), (11, 11, 11), (51, 1000, 60)],
)
def test_so_many_may_be_gone(count: int, looked_at: int, allow: int) -> None:
    gone_sessions(count, allow).check(looked_at)


@pytest.mark.parametrize(
    ("count", "looked_at", "allow"), [(11, 11, 0), (11, 219, 0), (51, 1000, 0), (11, 11, 10), (61, 1000, 60)]
)
def test_more_are_not_credible_and_the_text_says_what_to_do(count: int, looked_at: int, allow: int) -> None:
    with pytest.raises(
        TooManyGoneError,
        match=rf"^Clerk no longer has {count} of {looked_at} sessions.*run it again with --allow {count}\.",
    ):
        gone_sessions(count, allow).check(looked_at)


def test_a_run_does_not_go_on_if_most_of_many_sessions_are_gone() -> None:
    gone = gone_sessions(1001)

    gone.check_early(2002)
    with pytest.raises(TooManyGoneError, match="There may be more, since it stopped before its end"):
        gone.check_early(2001)
    gone_sessions(1000).check_early(1000)
    gone_sessions(1001, allow=1001).check_early(1001)


def test_a_run_does_not_go_on_if_those_that_are_gone_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.workers.gone.TOO_MANY", 100)

    gone_sessions(101).check_early(2020)
    with pytest.raises(TooManyGoneError):
        gone_sessions(101).check_early(2019)


def test_a_session_that_is_found_twice_is_gone_once() -> None:
    gone = gone_sessions(3)
    gone.load(gone.unsaved())

    assert len(gone) == 3


def test_what_was_stored_has_not_to_be_stored_again() -> None:
    gone = gone_sessions(2)
    gone.saved(gone.unsaved())
    later = Gone("sess_later", "user_1", "1-0", 1)
    gone.add(later)

    assert gone.unsaved() == {"sess_later": later}


def test_only_so_many_faults_are_named_and_all_are_counted() -> None:
    report = Report(1)
    for number in range(MAX_FAULTS + 5):
        report.faults.add(f"sess_{number}", "why")

    assert (len(report.faults), report.fault_count) == (MAX_FAULTS, MAX_FAULTS + 5)


def test_a_fault_of_something_named_counts_once() -> None:
    report = Report(1)
    report.faults.add("sess_1", "why")
    report.faults.add("sess_1", "why else")

    assert (report.faults, report.fault_count) == ({"sess_1": "why else"}, 1)


def test_a_fault_that_is_taken_back_is_not_counted() -> None:
    report = Report(1)
    report.faults.add("user_1", "why")
    report.faults.drop("user_1")
    report.faults.drop("user_2")

    assert (report.faults, report.fault_count) == ({}, 0)


def test_a_fault_that_is_not_named_counts_once_and_can_be_taken_back() -> None:
    faults = Faults()
    for _ in range(2):
        for number in range(MAX_FAULTS + 5):
            faults.add(f"sess_{number}", "why")
    assert faults.count == MAX_FAULTS + 5

    faults.drop(f"sess_{MAX_FAULTS}")

    assert (len(faults), faults.count) == (MAX_FAULTS, MAX_FAULTS + 4)


def test_a_run_that_goes_on_adds_to_what_was_found() -> None:
    report = Report(1)
    report.faults.add("revokes", "why")
    report.resume(2, 3, {"gone": 1}, {"sess_1": "why"}, 150)
    report.add(["gone", "missing"], [])

    assert (report.resumed, report.users, report.sessions, report.fault_count) == (True, 2, 3, 151)
    assert report.users_before == 2
    assert report.drift == {"gone": 2, "missing": 1}


@pytest.mark.parametrize(
    ("scope", "mode"),
    [
        (Scope(), "stored"),
        (Scope(full=True), "full"),
        (Scope(full=True, active_within_days=30), "full-30"),
        (Scope(since_ms=5), "since-5"),
    ],
)
def test_a_run_is_resumed_by_one_that_looks_at_the_same(scope: Scope, mode: str) -> None:
    assert scope.mode == mode
