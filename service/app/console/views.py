"""The pages. Each is a short function; what it may show, and to whom, is decided in one place around it."""

import time
from typing import Final

import structlog
from flask import Blueprint, Request, Response, request
from werkzeug import exceptions

from service.app.console import explain, health, pages
from service.app.console.actions import Actions, Changes
from service.app.console.data import MAX_FOUND, ConsoleStore
from service.app.console.frame import Frame, View, open_to_all, redirect_to
from service.app.console.live import LiveFeed, read_cursors, write_cursors
from service.app.console.masking import masked
from service.app.console.rows import Filter, loads, row, tone
from service.app.console.search import search
from service.app.console.security import PATH, Gate, Visit, check_origin
from service.app.console.summaries import is_first, listed, timeline
from service.app.console.visits import Visits
from service.config import StoreSettings
from service.store.queries import Queries
from service.waiting import STREAMS, read_body

log = structlog.get_logger(__name__)

NEWEST: Final = 50
"""Events that the first sight shows."""
TIMELINE: Final = 200
"""Events of one session that its page shows."""
TYPES: Final = (
    *("session.created", "session.pending", "session.ended", "session.removed", "session.revoked"),
    *("session.expired", "user.deleted", "user.updated"),
)
"""What the feed can be narrowed to."""
_STREAM_HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
"""nginx would hold events back otherwise."""


class ConsoleBlueprint(Blueprint):
    """The pages under /console.

    Args:
        settings: where Redis is.
        gate: who may look.
        queries: asks Redis.
        changes: what may be changed from the pages; nothing if None.

    Attributes:
        gate: lets requests in; `gate.links` are addresses that sign in.
        store: over which the pages ask Redis.
        hint: how to make something happen, for whoever sees the live feed for the first time.
    """

    def __init__(
        self, settings: StoreSettings, gate: Gate, queries: Queries, *, changes: Changes | None = None
    ) -> None:
        super().__init__("console", __name__, url_prefix=PATH)
        pages.load()
        self.gate: Final = gate
        self.store: Final = ConsoleStore(queries)
        self._settings, self.hint = settings, ""
        frame = Frame(gate, settings, may_change=changes is not None)
        self._page = frame.page
        self._live = LiveFeed(self.store)
        # No hooks: with one, deliveries would not take the fast lane any more.
        views: dict[str, tuple[View, tuple[str, ...]]] = {
            "": (self.live, ("GET",)),
            "/events": (self.events, ("GET",)),
            "/search": (self.find, ("GET",)),
            "/sessions/<session_id>": (self.session, ("GET",)),
            "/users/<user_id>": (self.user, ("GET",)),
            "/dead-letters": (self.dead_letters, ("GET",)),
            "/dead-letters/<message_id>": (self.dead_letter, ("GET", "POST")),
            "/health": (self.health, ("GET",)),
            "/static/<name>": (send_static, ("GET",)),
            **Visits(frame).views(),
        }
        if changes is not None:
            views |= Actions(changes, self.store, self._page).views()
        for rule, (view, methods) in views.items():
            guarded = frame.guarded(view)
            self.add_url_rule(
                rule, view.__name__, guarded, methods=methods, provide_automatic_options=False, strict_slashes=False
            )

    def live(self, visit: Visit) -> str:
        """Show what comes in."""
        wanted = _filter(request)
        cursors = self.store.newest()  # before the rows: what comes in between is told twice, and the script sees that
        found = self.store.find(wanted.wants, NEWEST)
        backlog = self.store.queries.backlog(("last_success_at",))
        return self._page(
            "live.html",
            visit,
            "live",
            rows=[row(entry) for entry in found.entries],
            cursor=write_cursors(cursors),
            wanted=wanted,
            types=TYPES,
            looked_at=found.looked_at,
            is_all=found.is_all,
            open_sessions=self.store.open_sessions(),
            dead_letters=backlog.dead_letters,
            hint=self.hint,
        )

    def events(self, visit: Visit) -> Response:
        """Send events of the live feed."""
        check_origin(request)
        text = request.headers.get("Last-Event-ID") or request.args.get("after", "")
        cursors = read_cursors(text, len(self.store.partitions))
        if request.method == "HEAD":
            return Response(headers=_STREAM_HEADERS)
        # Of cursors that can't be read, say from before the data was divided anew, nobody knows what came since.
        is_lost = bool(text) and cursors is None
        tab = self._live.open(cursors or self.store.newest(), _filter(request), visit.ends_at, is_lost=is_lost)
        if (streams := request.environ.get(STREAMS)) is None:
            return Response(tab, headers=_STREAM_HEADERS, direct_passthrough=True)
        streams.append(tab)  # the server sends it, without a thread or a greenlet
        return Response(iter(()), headers=_STREAM_HEADERS)  # of no length

    def session(self, visit: Visit, session_id: str) -> str:
        """Show a session: its state, why it is live or not, and what happened."""
        now_ms = int(time.time() * 1000)
        stored = self.store.state(session_id)
        state = stored[1] if stored else None
        owner = str(state["session"].get("user_id") or "") or None if state else None
        found = self.store.find(lambda each: each.session_id == session_id, TIMELINE, owner, is_first=is_first)
        if stored is None and not found.entries:
            raise exceptions.NotFound("Nothing is stored about this session: neither a state nor an event.")
        message = state or loads(found.entries[0].message)
        session = message["session"]
        since = self.store.pending_revoke(stored[0], session_id) if stored else None
        live = state is not None and explain.is_live(session, now_ms)
        return self._page(
            "session.html",
            visit,
            session_id=session_id,
            user_id=session.get("user_id") or "",
            status=session.get("status") or "unknown",
            tone=tone(str(session.get("status")), live=live),
            is_live=live,
            is_open=state is not None and session.get("status") in {"active", "pending"},
            actor=session.get("actor"),
            why=explain.why(message, now_ms, at_clerk_since_ms=since)
            if state
            else "Its state is not stored any more: it ended longer than SESSION_RETENTION ago, or was forgotten.",
            expire_at=session.get("expire_at"),
            now_ms=now_ms,
            facts=explain.facts(session, now_ms),
            message=message,
            timeline=timeline(found.entries),
            looked_at=found.looked_at,
            is_all=found.is_all,
        )

    def user(self, visit: Visit, user_id: str) -> str:
        """Show a user's sessions."""
        now_ms = int(time.time() * 1000)
        live, pending, in_all, gone = self.store.user(user_id)
        found = self.store.find(lambda each: each.user_id == user_id, NEWEST, user_id)
        if not (in_all or gone or found.entries):
            raise exceptions.NotFound("Nothing is stored about this user: neither an open session nor an event.")
        return self._page(
            "user.html",
            visit,
            user_id=user_id,
            sessions=[listed(each, now_ms) for each in live + pending],
            in_all=in_all,
            gone=gone,
            rows=[row(entry) for entry in found.entries],
            looked_at=found.looked_at,
            is_all=found.is_all,
        )

    def find(self, visit: Visit) -> str | Response:
        """Look for sessions and users by the beginning of their id."""
        prefix = request.args.get("q", "").strip()
        hits = search(self.store, prefix)
        if hits is not None and [prefix] == hits.sessions + hits.users:
            return redirect_to(f"{PATH}/{'sessions' if hits.sessions else 'users'}/{prefix}")
        return self._page("search.html", visit, prefix=prefix if hits else "", hits=hits, at_most=MAX_FOUND)

    def dead_letters(self, visit: Visit) -> str:
        """List the dead letters, without their bodies."""
        in_all = self.store.queries.backlog(("last_success_at",)).dead_letters
        return self._page("dead_letters.html", visit, "dead-letters", letters=self.store.letters(), in_all=in_all)

    def dead_letter(self, visit: Visit, message_id: str) -> str:
        """Show a dead letter; its values only to who asks for them."""
        letter = self.store.letter(message_id)
        if letter is None:
            raise exceptions.NotFound("There is no such dead letter: it may have been replayed or dropped.")
        is_shown = request.method == "POST"
        if is_shown:
            log.info("console_dead_letter_shown", who=visit.who, visit=visit.id, message_id=message_id)
        body = read_body(letter.body.encode(), _shown, letter.body, is_shown)  # of a megabyte, not on the event loop
        return self._page("dead_letter.html", visit, "dead-letters", letter=letter, body=body, is_shown=is_shown)

    def health(self, visit: Visit) -> str:
        """Show whether all is well."""
        settings = self._settings
        found = health.look(self.store, dead_letter_max=settings.dead_letter_max, stream_maxlen=settings.stream_maxlen)
        return self._page("health.html", visit, "health", health=found, now_ms=time.time() * 1000)


def create_console(settings: StoreSettings, tokens: tuple[str, ...], queries: Queries) -> ConsoleBlueprint:
    """Return the pages as a blueprint of `serve`, in which nothing can be changed.

    Args:
        settings: where Redis is.
        tokens: CONSOLE_TOKEN.
        queries: asks Redis; who made it closes it.
    """
    return ConsoleBlueprint(settings, Gate(tokens), queries)


def _shown(body: str, is_whole: bool) -> str:
    return pages.indented(body if is_whole else masked(body))


@open_to_all
def send_static(_: Visit, name: str) -> Response:
    """Send a file that the pages load."""
    if name not in pages.static_files():
        raise exceptions.NotFound("There is no such file.")
    content, content_type = pages.static_files()[name]
    return Response(content, content_type=content_type)


def _filter(request: Request) -> Filter:
    arguments = request.args
    return Filter(*(arguments.get(name, "").strip()[:128] for name in Filter._fields))
