"""Clerk's list of users, page by page, and from where it has to be read again after an interruption."""

import dataclasses
from collections.abc import AsyncIterator
from typing import Final

from service.clerk.backend_api import BackendApi, UsersPage
from service.errors import ClerkCursorError
from service.workers.report import Scope
from service.workers.runs import Progress

DAY_MS: Final = 86_400_000


@dataclasses.dataclass(slots=True)
class Page:
    """A page of Clerk's users."""

    after: str
    """The user before it; empty for the first page."""
    ids: tuple[str, ...]
    left: int
    """Users on it that have still to be looked at; who looks at them counts down."""


class UserPages:
    """The pages of a run's users, the oldest user first."""

    def __init__(self, api: BackendApi, scope: Scope, progress: Progress) -> None:
        self._api, self._scope = api, scope
        self._first = progress.after
        self._open: list[Page] = []
        self._active_after_ms = None
        if scope.active_within_days is not None:
            # Clerk knows the day of a user's last activity, and not the time.
            self._active_after_ms = progress.started_at_ms - (scope.active_within_days + 1) * DAY_MS

    async def __aiter__(self) -> AsyncIterator[Page]:
        """Yield each page; raise ClerkError if Clerk does not give it."""
        after = [self._first] if self._first else []
        while True:
            read = await self._read(after)
            page = Page(after[-1] if after else "", read.ids, left=len(read.ids))
            self._open.append(page)
            yield page
            if read.is_last:
                return
            after = [*after[-1:], *read.ids]

    def resume_after(self) -> str:
        """Return `after` of the first page that has users left."""
        while len(self._open) > 1 and self._open[0].left == 0:
            self._open.pop(0)
        return self._open[0].after if self._open else self._first

    async def _read(self, after: list[str]) -> UsersPage:
        """Return the users after the last of these whom Clerk still has; the first users, if it has none of them."""
        while True:
            try:
                return await self._api.users_page(
                    after=after[-1] if after else None,
                    active_after_ms=self._active_after_ms,
                    signed_in_after_ms=self._scope.since_ms,
                )
            except ClerkCursorError:
                after.pop()
