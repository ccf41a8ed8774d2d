"""What is said of a session that Clerk's answer does not show."""

import pytest

from service.clerk.api_sessions import SessionRefused, UnreadableSession
from service.workers.reasons import why_refused, why_unreadable


def test_a_404_that_is_not_clerks_points_to_a_proxy() -> None:
    assert why_refused(SessionRefused("sess_1", 404)) == (
        "the response has the status 404, and is not Clerk's: check CLERK_API_URL, and that no proxy responds in "
        "Clerk's place"
    )


def test_another_refusal_is_named_by_its_status() -> None:
    assert why_refused(SessionRefused("sess_1", 418)) == "Clerk refuses to show it (status 418)"


@pytest.mark.parametrize(
    ("status", "why"),
    [(None, "expire_at: not a time"), ("frozen", "its status frozen is unknown to this version: upgrade")],
)
def test_what_can_not_be_read_is_said(status: str | None, why: str) -> None:
    assert why_unreadable(UnreadableSession("sess_1", "expire_at: not a time", status)) == why
