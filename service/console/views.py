"""The pages. Each is a short function; what it may show, and to whom, is decided in one place around it."""

import functools
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from flask import Blueprint, Request, Response, redirect, request
from werkzeug import exceptions

from service.config import StoreSettings, redis_address
from service.console import explain, health, pages
from service.console.actions import Actions, Changes
from service.console.data import MAX_FOUND, ConsoleStore
from service.console.live import LiveFeed, read_cursors, write_cursors
from service.console.masking import masked
from service.console.rows import Entry, Filter, loads, row, tone
from service.console.search import search
from service.console.security import PATH, Gate, RefusedError, Visit, check_origin
from service.console.words import place_of, span
from service.errors import RelayError, StoreUnavailableError
from service.store.queries import Queries
from service.telemetry import printable
from service.waiting import STREAMS

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
_OPEN_TO_ALL: Final = frozenset({"sign_in", "open_link", "static"})
_STREAM_HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
"""nginx would hold events back otherwise."""

View = Callable[..., str | Response | tuple[str, int]]


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
        hint: a command that makes something happen, for whoever sees an empty feed; empty for a general one.
    """

    def __init__(
        self, settings: StoreSettings, gate: Gate, queries: Queries, *, changes: Changes | None = None
    ) -> None:
        super().__init__("console", __name__, url_prefix=PATH)
        self.gate: Final = gate
        self.store: Final = ConsoleStore(queries)
        self._settings, self.hint = settings, ""
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
            "/sign-in": (self.sign_in, ("GET", "POST")),
            "/sign-out": (self.sign_out, ("POST",)),
            "/open/<token>": (self.open_link, ("GET",)),
            "/static/<name>": (self.static, ("GET",)),
        }
        self.actions: Final = None if changes is None else Actions(changes, self.store, self.page)
        if self.actions:
            views |= self.actions.views()
        for rule, (view, methods) in views.items():
            guarded = self._guarded(view)
            self.add_url_rule(
                rule, view.__name__, guarded, methods=methods, provide_automatic_options=False, strict_slashes=False
            )

    def _guarded(self, view: View) -> Callable[..., Response]:
        """Return a view that lets in who may see it, and whose every response has the headers."""

        @functools.wraps(view)
        def guarded(**values: str) -> Response:
            visit: Visit | None = None
            try:
                visit = self.gate.visit(request)
                if request.method == "POST":
                    self.gate.check_form(request, visit)
                if visit.is_signed_in or view.__name__ in _OPEN_TO_ALL:
                    made = view(visit, **values)
                else:
                    made = self._ask_for_token(visit)
            except RefusedError as refused:
                made = self._problem(visit, refused.status, "Not for this console", str(refused))
            except StoreUnavailableError as error:
                made = self._problem(visit, error.status, "Redis is unavailable", str(error))
            except RelayError as error:
                made = self._problem(visit, error.status, error.title, str(error))
            except exceptions.HTTPException as error:
                made = self._problem(visit, error.code or 500, error.name, error.description or "")
            response = made if isinstance(made, Response) else _html(made)
            if response.status_code == 401:  # noqa: PLR2004
                response.headers["WWW-Authenticate"] = "Bearer"
            if response.status_code == 503:  # noqa: PLR2004
                response.headers["Retry-After"] = "5"
            return self.gate.dress(response, request, visit)

        return guarded

    def page(self, template: str, visit: Visit | None, active: str = "", **values: Any) -> str:
        """Return a page with what all of them show."""
        is_in = visit is not None and visit.is_signed_in
        return pages.render(
            template,
            active=active,
            visit=visit if is_in else None,
            form_token=self.gate.form_token(visit) if visit else "",
            where=redis_address(self._settings.redis_url.get_secret_value()) if is_in else "",
            key_prefix=self._settings.redis_key_prefix if is_in else "",
            may_change=self.actions is not None,
            **values,
        )

    def _problem(self, visit: Visit | None, status: int, title: str, text: str) -> tuple[str, int]:
        return self.page("problem.html", visit, title=title, text=printable(text)), status

    def _ask_for_token(self, visit: Visit, fault: str = "", status: int = 401) -> tuple[str, int]:
        # From a page of another site, the browser does not send the cookie. A click here does.
        is_elsewhere = request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method == "GET"
        following = request.path if request.path.startswith(f"{PATH}/") and "/sign-" not in request.path else PATH
        return self.page(
            "sign_in.html",
            visit,
            fault=fault,
            takes_tokens=self.gate.takes_tokens,
            following=following,
            is_elsewhere=is_elsewhere,
        ), status

    # ---- Signing in

    def sign_in(self, visit: Visit) -> str | Response | tuple[str, int]:
        """Take a token, and begin a visit."""
        if request.method == "GET":
            return _redirect(PATH) if visit.is_signed_in else self._ask_for_token(visit)
        who = self.gate.who_has(request.form.get("token", "").strip())
        if not who:
            log.warning("console_sign_in_refused")
            return self._ask_for_token(visit, "That is not a token of CONSOLE_TOKEN.")
        return self._begin(self.gate.new_visit(who), _own_path(request))

    def open_link(self, visit: Visit, token: str) -> str | Response | tuple[str, int]:
        """Begin a visit by an address that works once."""
        if request.method == "HEAD":  # of something that looks at links
            raise exceptions.MethodNotAllowed(["GET"])
        if (new := self.gate.open_link(token)) is not None:
            return self._begin(new, PATH)
        if visit.is_signed_in:  # who opens it twice
            return _redirect(PATH)
        return self._ask_for_token(visit, "This link was used before, or is too old.")

    def _begin(self, visit: Visit, following: str) -> Response:
        log.info("console_signed_in", who=visit.who, visit=visit.id)
        return self.gate.dress(_redirect(following), request, visit)

    def sign_out(self, visit: Visit) -> Response:
        """End the visit in this browser."""
        log.info("console_signed_out", who=visit.who, visit=visit.id)
        response = _redirect(PATH)
        self.gate.forget(response, request)
        return response

    def static(self, _: Visit, name: str) -> Response:
        """Send a file that the pages load."""
        if name not in pages.static_files():
            raise exceptions.NotFound("There is no such file.")
        content, content_type = pages.static_files()[name]
        return Response(content, content_type=content_type)

    # ---- Pages

    def live(self, visit: Visit) -> str:
        """Show what comes in."""
        wanted = _filter(request)
        cursors = self.store.newest()  # before the rows: what comes in between is shown twice, and not never
        found = self.store.find(wanted.wants, NEWEST)
        backlog = self.store.queries.backlog(("last_success_at",))
        return self.page(
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
        cursors = read_cursors(text, len(self.store.partitions)) or self.store.newest()
        tab = self._live.open(cursors, _filter(request), visit.ends_at)
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
        found = self.store.find(lambda each: each.session_id == session_id, TIMELINE, owner, is_first=_is_first)
        if stored is None and not found.entries:
            raise exceptions.NotFound("Nothing is stored about this session: neither a state nor an event.")
        message = state or loads(found.entries[0].message)
        session = message["session"]
        since = self.store.pending_revoke(stored[0], session_id) if stored else None
        live = state is not None and explain.is_live(session, now_ms)
        return self.page(
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
            timeline=_timeline(found.entries),
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
        return self.page(
            "user.html",
            visit,
            user_id=user_id,
            sessions=[_listed(each, now_ms) for each in live + pending],
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
        if hits is not None and [prefix] in (hits.sessions + hits.users, hits.sessions, hits.users):
            return _redirect(f"{PATH}/{'sessions' if hits.sessions else 'users'}/{prefix}")
        return self.page("search.html", visit, prefix=prefix if hits else "", hits=hits, at_most=MAX_FOUND)

    def dead_letters(self, visit: Visit) -> str:
        """List the dead letters, without their bodies."""
        in_all = self.store.queries.backlog(("last_success_at",)).dead_letters
        return self.page("dead_letters.html", visit, "dead-letters", letters=self.store.letters(), in_all=in_all)

    def dead_letter(self, visit: Visit, message_id: str) -> str:
        """Show a dead letter; its values only to who asks for them."""
        letter = self.store.letter(message_id)
        if letter is None:
            raise exceptions.NotFound("There is no such dead letter: it may have been replayed or dropped.")
        is_shown = request.method == "POST"
        if is_shown:
            log.info("console_dead_letter_shown", who=visit.who, visit=visit.id, message_id=message_id)
        body = letter.body if is_shown else masked(letter.body)
        return self.page(
            "dead_letter.html", visit, "dead-letters", letter=letter, body=pages.indented(body), is_shown=is_shown
        )

    def health(self, visit: Visit) -> str:
        """Show whether all is well."""
        settings = self._settings
        found = health.look(self.store, dead_letter_max=settings.dead_letter_max, stream_maxlen=settings.stream_maxlen)
        return self.page("health.html", visit, "health", health=found, now_ms=time.time() * 1000)


def create_console(settings: StoreSettings, tokens: tuple[str, ...], queries: Queries) -> ConsoleBlueprint:
    """Return the pages as a blueprint of `serve`, in which nothing can be changed.

    Args:
        settings: where Redis is.
        tokens: CONSOLE_TOKEN.
        queries: asks Redis; who made it closes it.
    """
    return ConsoleBlueprint(settings, Gate(tokens), queries)


def _html(made: str | tuple[str, int]) -> Response:
    text, status = (made, 200) if isinstance(made, str) else made
    return Response(text, status, content_type="text/html; charset=utf-8")


def _redirect(path: str) -> Response:
    response = redirect(path, 303)
    assert isinstance(response, Response)  # noqa: S101  # for mypy: it is, unless another class is asked for
    return response


def _own_path(request: Request) -> str:
    """Return where to go after signing in: a page of the console, whatever the form says."""
    path = request.form.get("following", "")
    is_ours = path.startswith(f"{PATH}/") and not set("\\\r\n?#") & set(path) and "//" not in path
    return path if is_ours else PATH


def _filter(request: Request) -> Filter:
    arguments = request.args
    return Filter(*(arguments.get(name, "").strip()[:128] for name in Filter._fields))


def _is_first(entry: Entry) -> bool:
    return entry.outcome == "applied" and loads(entry.message).get("revision") == 1


def _timeline(entries: list[Entry]) -> list[dict[str, Any]]:
    """Return the events of a session, the newest first, each with what it changed."""
    shown = []
    before: dict[str, Any] | None = None
    for entry in reversed(entries):
        message = loads(entry.message)
        is_applied = entry.outcome == "applied"
        changed = explain.changes(before, message["session"]) if is_applied else []
        shown.append({**row(entry), "changed": changed, "event_id": str(message["event"].get("id") or "")})
        before = message["session"] if is_applied else before
    return shown[::-1]


def _listed(message: dict[str, Any], now_ms: int) -> dict[str, Any]:
    session = message["session"]
    status, live = str(session.get("status")), explain.is_live(session, now_ms)
    end = session.get("expire_at")
    return {
        "session": str(session.get("id")),
        "status": status,
        "tone": tone(status, live=live),
        "is_live": live,
        "actor": bool(session.get("actor")),
        "place": place_of(session.get("latest_activity")),
        "ends": "no end" if end is None else f"in {span(end - now_ms)}" if end > now_ms else "ran out",
        "created_at": session.get("created_at"),
        "last_active_at": session.get("last_active_at"),
    }
