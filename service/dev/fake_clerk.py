"""A stand-in for one Clerk instance: users and sessions in memory, the Backend API over HTTP, and webhooks.

    with FakeClerk(on_webhook=deliver) as clerk:
        user_id = clerk.add_user()
        session_id = clerk.sign_in(user_id)      # deliver() gets session.created
        httpx.get(f"{clerk.url}/sessions/{session_id}", headers={"Authorization": f"Bearer {clerk.secret_key}"})
        with clerk.webhooks_lost():
            clerk.end(session_id)                # Clerk knows, and tells nobody

Paths, parameters, bounds and the shapes of bodies are checked against Clerk's published OpenAPI, version 2026-05-12.
What that leaves open is assumed. docs/fake-clerk.md has a table of both.
"""

import contextlib
import random
import re
import string
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from service.dev import fake_clerk_api as api
from service.dev import simulator
from service.dev.fake_clerk_http import FaultyServer, Request

__all__ = ["ABSENT", "FakeClerk", "Request"]

ABSENT: Final = object()
"""As a value of `FakeClerk.set`: the field is left out."""

_DAY_MS: Final = 86_400_000
_OPEN: Final = ("active", "pending")
_TYPES: Final = {
    "active": "session.created",
    "pending": "session.pending",
    "ended": "session.ended",
    "removed": "session.removed",
    "revoked": "session.revoked",
}
"""The webhook that tells of a status. Clerk tells nobody of the others."""
_SESSION: Final = {name: value for name, value in simulator.sample()["data"].items() if name != "user"} | {"tasks": []}
_ALPHABET: Final = string.ascii_letters + string.digits


class FakeClerk(FaultyServer):
    """A Clerk instance. Its methods may be called from any thread, also from `on_request` and `on_webhook`.

    Args:
        secret_key: What requests have to show; made up if it is left out, with the prefix of the environment.
        instance_id: `ins_…`; made up if it is left out.
        environment: `development` or `production`.
        on_webhook: Is called with each event that Clerk would send, after the change.
        lose_webhooks: The share of webhooks, from 0 to 1, that are lost.
        on_request: Is called with the method, the path and the query of each request before it is answered. If it
            returns a status from 400 to 599, that is the answer.
        rate_limit: So many requests in any window of so many seconds are taken; others get 429 with `Retry-After`.
        latency: Seconds that an answer takes. The state that it shows is the one after half of them.
        errors: The share of answers, from 0 to 1, that are 500, 502, 503 or 504 instead.
        clock: The time in Unix seconds, for what happens and for the header `Date`.
        seed: Decides which answers fail and which webhooks are lost.
    """

    def __init__(
        self,
        *,
        secret_key: str | None = None,
        instance_id: str | None = None,
        environment: str = "development",
        on_webhook: Callable[[dict[str, Any]], object] | None = None,
        lose_webhooks: float = 0,
        on_request: Callable[[str, str, dict[str, str]], object] | None = None,
        rate_limit: tuple[int, float] | None = None,
        latency: float = 0,
        errors: float = 0,
        clock: Callable[[], float] = time.time,
        seed: int = 0,
    ) -> None:
        super().__init__(
            secret_key=secret_key or simulator.new_id("sk_live" if environment == "production" else "sk_test"),
            rate_limit=rate_limit,
            latency=latency,
            errors=errors,
            on_request=on_request,
            clock=clock,
            seed=seed,
        )
        self.instance_id = instance_id or simulator.new_id("ins")
        self.on_webhook = on_webhook
        self.lose_webhooks = lose_webhooks
        self._records = api.Records(self.instance_id, environment)
        self._losing = 0
        self._ids = random.Random()  # noqa: S311  # many and fast; not of the seed: two instances have different ids

    def add_user(self, **fields: Any) -> str:
        """Add a user, with these fields of Clerk's User instead of the usual ones, and return the id."""
        now_ms = fields.get("created_at", self._now_ms())
        user = api.new_user(self._new_id("user"), self._new_id("idn"), now_ms) | fields
        with self._lock:
            self._records.users[user["id"]] = user
        self._tell("user.created", user["id"])
        return str(user["id"])

    def sign_in(self, user_id: str, **fields: Any) -> str:
        """Create a session, with these fields of Clerk's Session instead of the usual ones, and return its id.

        It is active, from now, for 7 days. Times are in Unix milliseconds.

        Raises:
            KeyError: There is no such user.
            ValueError: The user is banned.
        """
        now_ms = fields.get("created_at", self._now_ms())
        session = _SESSION | {"id": self._new_id("sess"), "user_id": user_id, "client_id": self._new_id("client")}
        session |= dict.fromkeys(("created_at", "updated_at", "last_active_at"), now_ms)
        if fields.get("status") == "pending":
            session["tasks"] = [{"key": "choose-organization"}]
        session |= {"expire_at": now_ms + 7 * _DAY_MS, "abandon_at": now_ms + 30 * _DAY_MS, **fields}
        with self._lock:
            user = self._records.users[user_id]
            if user.get("banned"):
                raise ValueError(f"{user_id} is banned.")
            times = {name: max(now_ms, user.get(name) or 0) for name in ("last_sign_in_at", "last_active_at")}
            self.set(user_id, **times)
            self._records.put(session)
        self._tell(_TYPES.get(str(session["status"])), session["id"])
        return str(session["id"])

    def end(self, session_id: str, status: str = "ended") -> None:
        """End a session. Only of `ended`, `removed` and `revoked` a webhook tells."""
        self.set(session_id, status=status, updated_at=self._now_ms())
        self._tell(_TYPES.get(status), session_id)

    def touch(self, session_id: str) -> None:
        """Let the user be active in a session, which moves its times. No webhook tells."""
        times = dict.fromkeys(("last_active_at", "updated_at"), now_ms := self._now_ms())
        with self._lock:
            session = self._records.sessions[session_id]
            activity = session.get("latest_activity") or _SESSION["latest_activity"]
            times["abandon_at"] = now_ms + 30 * _DAY_MS
            self.set(session_id, latest_activity=activity | {"id": self._new_id("sess_activity")}, **times)
            self.set(session["user_id"], last_active_at=now_ms)

    def extend(self, session_id: str, expire_at_ms: int) -> None:
        """Move the end of a session. No webhook tells."""
        self.set(session_id, expire_at=expire_at_ms, updated_at=self._now_ms())

    def ban(self, user_id: str) -> None:
        """Ban a user, and revoke the open sessions; the webhook is `user.updated`."""
        now_ms = self._now_ms()
        with self._lock:
            self.set(user_id, banned=True, updated_at=now_ms)
            for session in self._records.owned_by(user_id):
                if session.get("status") in _OPEN:
                    self.set(session["id"], status="revoked", updated_at=now_ms)
        self._tell("user.updated", user_id)

    def delete_user(self, user_id: str) -> None:
        """Delete a user, and with it the sessions, which are found no longer; the webhook is `user.deleted`."""
        with self._lock:
            del self._records.users[user_id]
            for session in self._records.owned_by(user_id):
                self._records.drop(session["id"])
        self._tell("user.deleted", user_id)

    def vanish(self, session_id: str) -> None:
        """Let a session be found no longer, as old ones are cleaned up. No webhook tells."""
        with self._lock:
            self._records.drop(session_id)

    def set(self, object_id: str, **fields: Any) -> None:
        """Set fields of a session or a user, whatever their type; `ABSENT` leaves one out. No webhook tells.

        Raises:
            KeyError: There is no such session or user.
        """
        with self._lock:
            is_user = object_id in self._records.users
            old = self._records.users[object_id] if is_user else self._records.sessions[object_id]
            new = {name: value for name, value in (old | fields).items() if value is not ABSENT}
            if is_user:
                self._records.users[object_id] = new
            else:
                self._records.put(new)

    def get(self, object_id: str) -> dict[str, Any]:
        """Return a copy of a session or a user, as it is now.

        Raises:
            KeyError: There is no such session or user.
        """
        with self._lock:
            users, sessions = self._records.users, self._records.sessions
            return dict(users[object_id] if object_id in users else sessions[object_id])

    def event(self, type_: str, object_id: str) -> dict[str, Any]:
        """Return the event of this type that Clerk would send of a session or a user now."""
        with self._lock:
            if type_ == "user.deleted":
                data: dict[str, Any] = {"object": "user", "id": object_id, "deleted": True}
            else:
                data = self.get(object_id)
                if type_.startswith("session."):
                    if not data.get("tasks"):  # webhooks have them only where there are some
                        data.pop("tasks", None)
                    data["user"] = self._records.users.get(data.get("user_id", ""))
        event = simulator.sample("user.updated", now_ms=self._now_ms())
        return event | {"type": type_, "instance_id": self.instance_id, "data": data}

    @contextlib.contextmanager
    def webhooks_lost(self) -> Iterator[None]:
        """Lose all webhooks while this lasts."""
        with self._lock:
            self._losing += 1
        try:
            yield
        finally:
            with self._lock:
                self._losing -= 1

    def answer(self, method: str, path: str, query: dict[str, str]) -> Any:
        if method == "POST" and (match := re.fullmatch(r"/v1/sessions/([^/]+)/revoke", path)):
            return self._revoke(match[1])
        with self._lock:
            return api.read(self._records, method, path, query)

    def _revoke(self, session_id: str) -> dict[str, Any]:
        with self._lock:
            is_open = api.session(self._records, session_id).get("status") in _OPEN
            if is_open:
                self.set(session_id, status="revoked", updated_at=self._now_ms())
            revoked = api.session(self._records, session_id)
        if is_open:
            self._tell("session.revoked", session_id)
        return revoked

    def _tell(self, type_: str | None, object_id: str) -> None:
        """Send a webhook, outside of the lock: whoever gets it may take his time, or ask the API."""
        if self.on_webhook is None or type_ is None:
            return
        with self._lock:
            if self._losing or self._random.random() < self.lose_webhooks:
                return
            event = self.event(type_, object_id)
        self.on_webhook(event)

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{''.join(self._ids.choices(_ALPHABET, k=27))}"

    def _now_ms(self) -> int:
        return int(self.clock() * 1000)
