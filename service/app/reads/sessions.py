"""GET /sessions…, /users/{id}/sessions: the state of sessions, and what the stream still has of one."""

from typing import Final

from flask import Blueprint, Response, request

from service.app.reads.access import ReadAccess
from service.app.reads.answers import answer, page
from service.app.reads.parameters import check_id, limit, optional_id
from service.errors import InvalidParameterError, NotFoundError
from service.store.listing import WANTED, list_sessions, read_stream_cursor
from service.store.queries import Page, Queries

_NO_CURSOR: Final = "after: what this list, with the same parameters, gave as `next`."


def add_sessions(reads: Blueprint, access: ReadAccess, queries: Queries) -> None:
    """Add the endpoints to the blueprint."""

    @reads.get("/sessions/<session_id>", provide_automatic_options=False)
    def get_session(session_id: str) -> Response:
        access.require()
        found = queries.session(check_id("session id", session_id))
        if found is None:
            raise NotFoundError("Nothing is stored of this session.")
        return answer(found.message)

    @reads.get("/sessions/<session_id>/history", provide_automatic_options=False)
    def get_history(session_id: str) -> Response:
        access.require()
        after = request.args.get("after")
        found = _page_of_history(queries, check_id("session id", session_id), after)
        if after is None and found == Page([], None) and queries.session(session_id) is None:
            raise NotFoundError("Nothing is stored of this session.")
        return answer(page("events", found.messages, found.next))

    @reads.get("/sessions", provide_automatic_options=False)
    def get_sessions() -> Response:
        access.require()
        found = _page_of_sessions(queries, optional_id("user"))
        return answer(page("sessions", found.messages, found.next))

    @reads.get("/users/<user_id>/sessions", provide_automatic_options=False)
    def get_sessions_of_user(user_id: str) -> Response:
        access.require()
        found = _page_of_sessions(queries, check_id("user id", user_id))
        return answer(page("sessions", found.messages, found.next))


def _page_of_history(queries: Queries, session_id: str, after: str | None) -> Page:
    try:
        start = None if after is None else read_stream_cursor(after)
    except ValueError:
        raise InvalidParameterError(_NO_CURSOR) from None
    return queries.history(session_id, start, limit())


def _page_of_sessions(queries: Queries, user_id: str | None) -> Page:
    status = request.args.get("status", "live")
    if status not in WANTED:
        raise InvalidParameterError(f"status: one of {', '.join(WANTED)}.")
    try:
        return list_sessions(queries, status, user_id, request.args.get("after"), limit())
    except ValueError:
        raise InvalidParameterError(_NO_CURSOR) from None
