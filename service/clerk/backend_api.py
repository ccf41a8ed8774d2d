"""A client of Clerk's Backend API: https://clerk.com/docs/reference/backend-api, version 2026-05-12.

It is made of httpx and of the models that webhooks are read with, not of Clerk's SDK. clerk-backend-api 7.0.0 reads a
session's `actor` as an empty object, so who impersonates is lost; it drops a whole `latest_activity` for one odd field;
one unknown status makes a list unreadable; it repeats no request after 429, and others for up to an hour; it keeps the
header `Date`, the time of an answer, to itself. To import it takes 0.25 s of CPU time and 31 MB more than httpx and
pydantic, which are here anyway. (findings/clerk-sdk-that-loses-who-impersonates.sh)
"""

from typing import Any, Final, NamedTuple, Self

import httpx
from clerk_session_feed.models import ID, OPEN_STATUSES

from service.clerk.api_requests import Requests, Response
from service.clerk.api_sessions import (
    ApiSession,
    SessionList,
    SessionNotFound,
    SessionRefused,
    UnreadableSession,
    read_session,
)
from service.clerk.budget import Budget
from service.config import ClerkSettings
from service.errors import ClerkCursorError, ClerkError

PAGE_SIZE: Final = 500
"""Users or sessions in one response: the most that Clerk gives."""
MAX_PAGES: Final = 200
"""Pages of one user's sessions, 96,000 in all: a list that is longer does not end."""
OVERLAP: Final = 20
"""Sessions of a page that the next one repeats, since each session that vanishes meanwhile moves the others up."""


class Instance(NamedTuple):
    """A Clerk instance."""

    id: str
    environment: str
    """`production`, `development`, or whatever else Clerk calls it."""


class UsersPage(NamedTuple):
    """Some users, the oldest first."""

    ids: tuple[str, ...]
    is_last: bool


class BackendApi:
    """Reads and revokes Clerk's sessions within a budget; for one run, in one event loop.

    Any number of calls may be under way at once; how many requests are is limited here.

        async with BackendApi(settings) as api:
            instance = await api.instance()

    Every method may raise:
        ClerkKeyError: Clerk refuses the key.
        ClerkUnavailableError: Clerk can't be reached, or fails, after all attempts.
        ClerkError: A response is not what Clerk's API is documented to send.
    """

    def __init__(
        self,
        settings: ClerkSettings,
        *,
        budget: Budget | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Take how Clerk is reached.

        Args:
            settings: the key and the address.
            budget: how many requests may be sent; a fifth of what Clerk takes for such a key, if left out.
            transport: what sends requests; the network, if left out.
        """
        self.budget: Final = budget or Budget.of_key(settings.clerk_secret_key.get_secret_value())
        self._requests = Requests(settings, self.budget, transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._requests.close()

    async def instance(self) -> Instance:
        """Return the instance that the key belongs to."""
        response = await self._requests.send("GET", "instance")
        match response.ok_json():
            case {"id": str(id_), "environment_type": str(environment)} if ID.fullmatch(id_):
                return Instance(id_, environment)
        raise _unexpected("GET /instance", response)

    async def users_page(
        self, *, after: str | None, active_after_ms: int | None = None, signed_in_after_ms: int | None = None
    ) -> UsersPage:
        """Return up to PAGE_SIZE users. The oldest come first, so that who signs up meanwhile is on a later page.

        Args:
            after: the last user of the page before; None for the first page.
            active_after_ms: only users who were active after this time, in Unix milliseconds.
            signed_in_after_ms: only users who signed in after this time, in Unix milliseconds.

        Raises:
            ClerkCursorError: Clerk can't go on after that user. A user before him on the page may do.
        """
        response = await self._requests.send(
            "GET",
            "users",
            {
                "limit": PAGE_SIZE,
                "order_by": "created_at",
                "starting_after": after,
                "last_active_at_after": active_after_ms,
                "last_sign_in_at_after": signed_in_after_ms,
            },
        )
        if after is not None and httpx.codes.is_client_error(response.status):
            raise ClerkCursorError(f"Clerk does not list the users after {after}, who may be deleted ({response!r}).")
        ids = _ids_of(response)
        if ids is None or len(ids) > PAGE_SIZE or after in ids:  # it does not know `starting_after`
            raise _unexpected("GET /users", response)
        return UsersPage(tuple(ids), is_last=len(ids) < PAGE_SIZE)

    async def users_count(
        self, *, active_after_ms: int | None = None, signed_in_after_ms: int | None = None
    ) -> int | None:
        """Return how many users the pages have, by the same bounds; None if Clerk does not tell."""
        response = await self._requests.send(
            "GET", "users/count", {"last_active_at_after": active_after_ms, "last_sign_in_at_after": signed_in_after_ms}
        )
        match response.ok_json():
            case {"total_count": int(count)} if count >= 0:
                return count
        return None

    async def sessions_of(self, user_id: str) -> SessionList:
        """Return every session that Clerk lists for a user, whatever its status; none if it has no such user."""
        sessions: dict[
            str, ApiSession | UnreadableSession
        ] = {}  # of two readings, the later one; but what is over stays so
        without_id: list[UnreadableSession] = []
        for page in range(MAX_PAGES):
            offset = page * (PAGE_SIZE - OVERLAP)
            query: dict[str, str | int | None] = {"user_id": user_id, "limit": PAGE_SIZE, "offset": offset}
            response = await self._requests.send("GET", "sessions", query)
            if response.is_not_found():
                break
            items = _items(response)
            if items is None or len(items) > PAGE_SIZE:
                raise _unexpected("GET /sessions", response)
            known = len(sessions)
            for item in items:
                session = read_session(item, response.answered_at_ms)
                if session.id is None:
                    without_id += [session] if isinstance(session, UnreadableSession) else []
                elif not _is_over(sessions.get(session.id)):
                    sessions[session.id] = session
            if len(items) < PAGE_SIZE:
                break
            if len(sessions) == known:
                raise ClerkError(f"Clerk lists the same sessions of {user_id} again and again.")
        else:
            raise ClerkError(f"Clerk lists more sessions of {user_id} than can be read ({len(sessions)}).")
        readable = tuple(session for session in sessions.values() if isinstance(session, ApiSession))
        unreadable = tuple(session for session in sessions.values() if isinstance(session, UnreadableSession))
        return SessionList(readable, (*unreadable, *without_id))

    async def session(self, session_id: str) -> ApiSession | UnreadableSession | SessionNotFound | SessionRefused:
        """Return a session by its id, whatever its status."""
        return await self._about("GET", session_id, "")

    async def revoke(self, session_id: str) -> ApiSession | UnreadableSession | SessionNotFound | SessionRefused:
        """Revoke a session, and return it as it is then.

        Clerk may refuse that for a session that is over: `session` tells how it ended. Like a read, it is repeated
        after a failure. If the first attempt did arrive, the next one changes nothing, and is refused at worst.
        """
        return await self._about("POST", session_id, "/revoke")

    async def _about(
        self, method: str, session_id: str, action: str
    ) -> ApiSession | UnreadableSession | SessionNotFound | SessionRefused:
        if not ID.fullmatch(session_id):
            raise ValueError("not an id")  # it would become another path
        response = await self._requests.send(method, f"sessions/{session_id}{action}")
        if response.is_not_found():
            return SessionNotFound(session_id, response.answered_at_ms)
        if httpx.codes.is_client_error(response.status):
            return SessionRefused(session_id, response.status)
        item = response.ok_json()
        if _id_of(item) != session_id:
            raise _unexpected(f"{method} /sessions/{session_id}{action}", response)
        return read_session(item, response.answered_at_ms)


def _items(response: Response) -> list[Any] | None:
    """Return the items of a list: a bare array, or as with `paginated=true`. None if it is neither."""
    match response.ok_json():
        case list(items) | {"data": list(items), "total_count": int()}:
            return items
    return None


def _is_over(session: ApiSession | UnreadableSession | None) -> bool:
    return isinstance(session, ApiSession) and session.data.status not in OPEN_STATUSES


def _ids_of(response: Response) -> list[str] | None:
    """Return the ids of what is listed; None if it is no list, or something in it has no id."""
    items = _items(response)
    ids = [id_ for item in items or () if (id_ := _id_of(item))]
    return None if items is None or len(ids) < len(items) else ids


def _id_of(item: object) -> str | None:
    match item:
        case {"id": str(id_)} if ID.fullmatch(id_):
            return id_
    return None


def _unexpected(request: str, response: Response) -> ClerkError:
    return ClerkError(
        f"{request} has an unexpected response ({response!r}): check CLERK_API_URL, and that no proxy responds in "
        "Clerk's place."
    )
