"""The three changes that pages offer where `--allow-changes` was given: each is asked once more, and logged.

What they do is handed in (`Changes`): the pages of a console that only looks can't even import it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import structlog
from clerk_session_feed.models import ID
from flask import request
from werkzeug import exceptions

from service.app.console.data import ConsoleStore
from service.app.console.security import PATH, Visit

log = structlog.get_logger(__name__)


class Changes(Protocol):
    """What may be changed. Each returns what became of it, in a sentence, and may raise RelayError."""

    def replay(self, message_id: str) -> str:
        """Process a dead letter once more."""

    def drop(self, message_id: str) -> str:
        """Remove a dead letter for good."""

    def revoke(self, session_id: str) -> str:
        """End a session at once."""

    def revoke_means(self) -> str:
        """Return what `revoke` will do, for who is asked."""


class Actions:
    """The views that change something.

    Args:
        changes: does it.
        store: knows what is to be changed.
        page: renders a page.
    """

    def __init__(self, changes: Changes, store: ConsoleStore, page: Callable[..., str]) -> None:
        self._changes: Final = changes
        self._store, self._page = store, page

    def views(self) -> Mapping[str, tuple[Any, tuple[str, ...]]]:
        """Return the views by their rules."""
        return {
            "/dead-letters/<message_id>/replay": (self.replay, ("POST",)),
            "/dead-letters/<message_id>/drop": (self.drop, ("POST",)),
            "/sessions/<session_id>/revoke": (self.revoke, ("POST",)),
        }

    def replay(self, visit: Visit, message_id: str) -> str:
        """Process a dead letter once more, after a question."""
        what = "It is processed once more, as if it were delivered now. If it can be read now, it is removed."
        return self._ask(visit, "Replay", message_id, what, self._changes.replay, "dead-letters")

    def drop(self, visit: Visit, message_id: str) -> str:
        """Remove a dead letter, after a question."""
        what = "It is removed for good: what it says about a session is lost, unless Clerk sends it again."
        return self._ask(visit, "Drop", message_id, what, self._changes.drop, "dead-letters")

    def revoke(self, visit: Visit, session_id: str) -> str:
        """End a session, after a question."""
        return self._ask(visit, "Revoke", session_id, self._changes.revoke_means(), self._changes.revoke, "sessions")

    def _ask(self, visit: Visit, verb: str, id_: str, what: str, change: Callable[[str], str], kind: str) -> str:
        if not ID.fullmatch(id_):
            raise exceptions.NotFound("There is nothing with such an id.")
        is_letter = kind == "dead-letters"
        back = f"{PATH}/{kind}/{id_}"
        if (self._store.letter(id_) if is_letter else self._store.state(id_)) is None:
            raise exceptions.NotFound("It is not stored any more.")
        if request.form.get("confirmed") != "yes":
            return self._page("confirm.html", visit, kind, verb=verb, id=id_, what=what, back=back)
        name = f"{'dead_letter' if is_letter else 'session'}_id"
        log.warning("console_change", change=verb.lower(), who=visit.who, visit=visit.id, **{name: id_})
        result = change(id_)
        log.warning("console_changed", change=verb.lower(), who=visit.who, visit=visit.id, result=result, **{name: id_})
        return self._page("done.html", visit, kind, verb=verb, id=id_, result=result, back=back, is_letter=is_letter)
