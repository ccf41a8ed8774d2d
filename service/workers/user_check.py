"""Compares all sessions of one user with Clerk's: those that Clerk lists, and those that are stored as open."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Final

from service.clerk.api_sessions import ApiSession, SessionNotFound, UnreadableSession
from service.clerk.backend_api import BackendApi
from service.errors import StoreUnavailableError
from service.store.sessions import SessionStore
from service.store.stored import StoredState
from service.store.wrong_types import WrongTypeError, check_user, is_wrong_type
from service.workers import sweep
from service.workers.mend import Found, Mender
from service.workers.reasons import why_refused, why_unreadable
from service.workers.report import Drift, Gone
from service.workers.sweep import OpenSession
from service.workers.tasks import gather

ASK_AGAIN_SECONDS: Final = 5.0
"""Seconds between the two questions for a session that Clerk does not list."""


@dataclasses.dataclass(slots=True)
class UserResult:
    """What was found about a user; what differed is mended, but for what is gone."""

    sessions: int = 0
    """How many were looked at."""
    drift: list[Drift] = dataclasses.field(default_factory=list)
    gone: list[Gone] = dataclasses.field(default_factory=list)
    faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """What could not be compared, and why."""

    def add(self, found: Sequence[Found]) -> None:
        """Add what became of answers."""
        self.drift += [each.drift for each in found if each.drift is not None]
        self.faults += [(each.session_id, each.fault) for each in found if each.fault is not None]


class UserCheck:
    """Looks at users, any number at a time.

    Args:
        api: Clerk's.
        store: where states are stored.
        mender: writes what differs, unless its run is dry.
        instance_id: the Clerk instance.
        ask_again_seconds: see ASK_AGAIN_SECONDS.
    """

    def __init__(
        self,
        api: BackendApi,
        store: SessionStore,
        mender: Mender,
        instance_id: str,
        ask_again_seconds: float = ASK_AGAIN_SECONDS,
    ) -> None:
        self._api, self._store, self._mender, self._instance_id = api, store, mender, instance_id
        self._ask_again_seconds = ask_again_seconds

    async def __call__(self, user_id: str, unindexed: Sequence[OpenSession] = ()) -> UserResult:
        """Compare the sessions of a user.

        Args:
            user_id: Clerk's id of the user.
            unindexed: sessions of the user that are stored as open, and are in none of the user's sets.

        Raises:
            ClerkError: Clerk refuses the key, or does not respond, or not as documented.
            WrongTypeError: A key of this user has another type. That is no reason to leave out others.
            StoreUnavailableError: Redis failed.
        """
        try:
            return await self._compare(user_id, unindexed)
        except StoreUnavailableError as error:
            if not is_wrong_type(error):
                raise
            await asyncio.to_thread(check_user, self._store.partition_of(user_id), user_id)
            raise WrongTypeError("a key that its sessions refer to has another type than the relay gives it") from None

    async def _compare(self, user_id: str, unindexed: Sequence[OpenSession]) -> UserResult:
        listed = await self._api.sessions_of(user_id)
        unlisted = [(each.id or f"a session of {user_id}", why_unreadable(each)) for each in listed.unreadable]
        result = UserResult(faults=unlisted)
        result.add(await asyncio.to_thread(self._mender.apply, listed.sessions))
        known = {each.id for each in listed.sessions} | {each.id for each in listed.unreadable if each.id is not None}
        absent, unreadable = await asyncio.to_thread(self._stored_but_not_in, known, user_id, unindexed)
        result.sessions = len(known) + len(absent)
        result.faults += unreadable
        asked = []
        for each in absent:
            if self._is_foreign(each):
                result.faults.append((each.session_id, "its event names another Clerk instance"))
            else:
                asked.append(each)
        if missing := await self._ask(asked, result):
            await asyncio.sleep(self._ask_again_seconds)
            again = await self._ask([each for each, _ in missing], result)
            result.gone = [Gone(each.session_id, user_id, each.cursor, at_ms) for each, at_ms in again]
        return result

    def _stored_but_not_in(
        self, known: set[str], user_id: str, unindexed: Sequence[OpenSession]
    ) -> tuple[list[StoredState], list[tuple[str, str]]]:
        """Return the open sessions of a user that Clerk did not list; and those that can't be read, with the reason."""
        partition = self._store.partition_of(user_id)
        if not self._mender.dry_run:
            for session in unindexed:
                sweep.index(partition, session)
        ids = sorted((sweep.ids_of_user(partition, user_id) | {each.session_id for each in unindexed}) - known)
        states = self._store.read(partition, ids)
        absent = [each for each in states if isinstance(each, StoredState) and each.is_open and each.user_id == user_id]
        unreadable = [(id_, str(each)) for id_, each in zip(ids, states, strict=True) if isinstance(each, ValueError)]
        return absent, unreadable

    def _is_foreign(self, stored: StoredState) -> bool:
        try:
            return stored.message()["event"]["instance_id"] not in {None, self._instance_id}
        except (ValueError, KeyError, TypeError):
            return True

    async def _ask(self, sessions: Sequence[StoredState], result: UserResult) -> list[tuple[StoredState, int]]:
        """Ask Clerk for sessions by their ids; return those that it does not have, with the time of the answer."""
        answers = await gather([self._api.session(each.session_id) for each in sessions])
        result.add(
            await asyncio.to_thread(self._mender.apply, [each for each in answers if isinstance(each, ApiSession)])
        )
        missing = []
        for stored, answer in zip(sessions, answers, strict=True):
            if isinstance(answer, SessionNotFound):
                missing.append((stored, answer.answered_at_ms))
            elif isinstance(answer, UnreadableSession):
                result.faults.append((stored.session_id, why_unreadable(answer)))
            elif not isinstance(answer, ApiSession):
                result.faults.append((stored.session_id, why_refused(answer)))
        return missing
