"""Why Clerk's answer about one session does not say how that is: in words for people, for every command that asks."""

import http

from service.clerk.api_sessions import SessionRefused, UnreadableSession


def why_unreadable(session: UnreadableSession) -> str:
    """Return what is wrong with a session that Clerk sent."""
    if session.unknown_status is not None:
        return f"its status {session.unknown_status} is unknown to this version: upgrade"
    return session.detail


def why_refused(session: SessionRefused) -> str:
    """Return what came in place of a session."""
    if session.status == http.HTTPStatus.NOT_FOUND:
        return (
            "the response has the status 404, and is not Clerk's: check CLERK_API_URL, and that no proxy responds in "
            "Clerk's place"
        )
    return f"Clerk refuses to show it (status {session.status})"
