"""Clerk's list of users, page by page, and from where it has to be read again after an interruption."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from service.clerk.backend_api import BackendApi, UsersPage
from service.clerk.normalize import DAY_MS
from service.errors import ClerkCursorError
from service.workers.report import Scope
from service.workers.runs import Progress


@dataclasses.dataclass(slots=True)
class Page:
    """A page that has been read."""

    after: str
    """The user before it; empty for the first page."""
    left: int
    """Users on it that have still to be looked at; who looks at them counts down."""


class _Read(NamedTuple):
    after: str
    page: UsersPage


class UserPages:
    """The pages of a run's users, the oldest user first."""

    def __init__(self, api: BackendApi, scope: Scope, progress: Progress) -> None:
        self._api = api
        self._first = progress.after
        self._begun: list[Page] = []
        self._has_begun_anew = False
        self._bounds: dict[str, Any] = {}
        if scope.active_within_days is not None:
            # Clerk knows the day of a user's last activity, and not the time.
            self._bounds["active_after_ms"] = progress.started_at_ms - (scope.active_within_days + 1) * DAY_MS
        if scope.since_ms is not None:
            self._bounds["signed_in_after_ms"] = max(0, scope.since_ms - 1)

    async def total(self) -> int | None:
        """Return how many users there are on all pages; None if Clerk does not tell."""
        return await self._api.users_count(**self._bounds)

    async def __aiter__(self) -> AsyncIterator[tuple[Page, Sequence[str]]]:
        """Yield each page with the ids of its users; raise ClerkError if Clerk does not give it."""
        last = [self._first] if self._first else []
        while True:
            after, read = await self._read(last)
            page = Page(after, left=len(read.ids))
            self._begun.append(page)
            yield page, read.ids
            if read.is_last:
                return
            last = [*last[-1:], *read.ids]

    def resume_after(self) -> str:
        """Return `after` of the first page that has users left."""
        while len(self._begun) > 1 and self._begun[0].left == 0:
            self._begun.pop(0)
        return self._begun[0].after if self._begun else self._first

    def are_done(self) -> bool:
        """Tell whether no user is left to be looked at on any page that was read."""
        return not any(page.left for page in self._begun)

    async def _read(self, last: Sequence[str]) -> _Read:
        """Return the users after the last of these; after one before, if Clerk refuses that one because it is deleted.

        If Clerk refuses one after the other, the list begins anew, once.
        """
        back, refused = 1, None
        while back <= len(last):
            try:
                return _Read(last[-back], await self._api.users_page(after=last[-back], **self._bounds))
            except ClerkCursorError as error:
                back, refused = 2 * back, error
        if refused is not None:
            if self._has_begun_anew:
                raise refused
            self._has_begun_anew = True
        return _Read("", await self._api.users_page(after=None, **self._bounds))
