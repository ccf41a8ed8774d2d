"""What `service.dev.fake_clerk` keeps, and what its endpoints read of it."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from clerk_session_feed.models import STATUSES

from service.dev import simulator
from service.dev.fake_clerk_http import ApiError

_MOST: Final = 500
_DEFAULT_LIMIT: Final = 10
_DAY_MS: Final = 86_400_000
_STATUS_FILTER: Final = frozenset(STATUSES) - {"pending"}
_TIMES: Final = ("created_at", "last_active_at", "last_sign_in_at")
_BOUNDS: Final = tuple(f"{name}_{side}" for name in _TIMES for side in ("before", "after"))
_ORDERS: Final = (
    *_TIMES, "updated_at", "email_address", "web3wallet", "first_name", "last_name", "phone_number", "username"
)  # fmt: skip

Object = dict[str, Any]


class Records:
    """Users and sessions by id, and the ids of the sessions of each user and client, in order of creation."""

    def __init__(self, instance_id: str, environment: str) -> None:
        self.instance: Object = {"object": "instance", "id": instance_id, "environment_type": environment}
        self.instance |= dict.fromkeys(("allowed_origins", "workspace_id"))
        self.users: dict[str, Object] = {}
        self.sessions: dict[str, Object] = {}
        self._owned: dict[str, dict[str, None]] = {}

    def put(self, session: Object) -> None:
        """Keep a session, instead of the one of its id that may be there."""
        self.drop(session["id"])
        self.sessions[session["id"]] = session
        for owner in (session.get("user_id"), session.get("client_id")):
            self._owned.setdefault(str(owner), {})[session["id"]] = None

    def drop(self, session_id: str) -> None:
        session = self.sessions.pop(session_id, {})
        for owner in (session.get("user_id"), session.get("client_id")):
            self._owned.get(str(owner), {}).pop(session_id, None)

    def owned_by(self, owner: str) -> list[Object]:
        """Return the sessions of a user or a client, the newest first."""
        sessions = [self.sessions[session_id] for session_id in reversed(self._owned.get(owner, {}))]
        return sorted(sessions, key=_number("created_at"), reverse=True)


def new_user(user_id: str, address_id: str, now_ms: int) -> Object:
    """Return a user with all that the OpenAPI asks for."""
    address: Object = {
        "object": "email_address",
        "id": address_id,
        "email_address": f"{user_id.lower()}@example.com",
        "verification": {
            "object": "verification_admin",
            "status": "verified",
            "strategy": "admin",
            "attempts": None,
            "expire_at": None,
        },
        "linked_to": [],
        "reserved": False,
        "created_at": now_ms,
        "updated_at": now_ms,
    }
    no = ("username", "primary_phone_number_id", "primary_web3_wallet_id", "external_id", "last_sign_in_at",
          "last_active_at", "lockout_expires_in_seconds", "verification_attempts_remaining", "mfa_enabled_at",
          "mfa_disabled_at", "legal_accepted_at")  # fmt: skip
    false = ("has_image", "password_enabled", "two_factor_enabled", "totp_enabled", "backup_code_enabled", "banned",
             "locked", "delete_self_enabled", "create_organization_enabled")  # fmt: skip
    empty = ("phone_numbers", "web3_wallets", "passkeys", "external_accounts", "saml_accounts", "enterprise_accounts")
    return simulator.new_user(user_id, now_ms) | {
        "primary_email_address_id": address_id,
        "email_addresses": [address],
        "created_at": now_ms,
        **dict.fromkeys(no),
        **dict.fromkeys(false, False),
        **{name: [] for name in empty},
    }


def read(records: Records, method: str, path: str, query: dict[str, str]) -> Any:
    """Return the body of a response with status 200, of an endpoint that changes nothing.

    Raises:
        ApiError: Not found, refused, or not known here.
    """
    match method, path.removeprefix("/v1/").split("/"):
        case "GET", ["instance"]:
            return records.instance
        case "GET", ["users"]:
            return _users(records, query)
        case "GET", ["users", "count"]:
            _only(query, "banned", *_BOUNDS)
            return {"object": "total_count", "total_count": len(_selected(records.users.values(), query))}
        case "GET", ["users", user_id]:
            return _user(records, user_id)
        case "GET", ["sessions"]:
            return _sessions(records, query)
        case "GET", ["sessions", session_id]:
            return session(records, session_id)
    raise ApiError(501, "not_implemented", f"The stand-in for Clerk's API does not know {method} {path}.")


def _user(records: Records, user_id: str) -> Object:
    try:
        return _public(records.users[user_id])
    except KeyError:
        raise ApiError(404, "resource_not_found", f"There is no user {user_id}.") from None


def session(records: Records, session_id: str) -> Object:
    """Return a session as it is answered by id: without `latest_activity`, which may be missing there."""
    try:
        found = records.sessions[session_id]
    except KeyError:
        raise ApiError(404, "resource_not_found", f"There is no session {session_id}.") from None
    return {name: value for name, value in found.items() if name != "latest_activity"}


def _sessions(records: Records, query: dict[str, str]) -> list[Object] | Object:
    _only(query, "user_id", "client_id", "status", "paginated", "limit", "offset")
    if not (query.get("user_id") or query.get("client_id")):
        raise _refused("user_id", "One of user_id and client_id is needed.", "form_param_missing")
    if (status := query.get("status", "")) and status not in _STATUS_FILTER:
        raise _refused("status", f"status is one of {', '.join(sorted(_STATUS_FILTER))}.")
    found = records.owned_by(query.get("user_id") or query["client_id"])
    if "user_id" in query and "client_id" in query:
        found = [each for each in found if each.get("client_id") == query["client_id"]]
    if status:
        found = [each for each in found if each.get("status") == status]
    page = [dict(each) for each in _page(found, query)]
    return {"data": page, "total_count": len(found)} if query.get("paginated") == "true" else page


def _users(records: Records, query: dict[str, str]) -> list[Object]:
    _only(query, "limit", "offset", "starting_after", "order_by", "banned", *_BOUNDS)
    # A `+` in a query is a space, unless it is escaped.
    order = query.get("order_by", "-created_at").replace(" ", "+")
    name, newest_first = order.lstrip("+-"), order.startswith("-")
    if name not in _ORDERS:
        raise _refused("order_by", f"order_by is one of {', '.join(_ORDERS)}, after + or -.")
    found = sorted(records.users.values(), key=_order_key(name), reverse=newest_first)
    if "starting_after" in query:
        if name != "created_at":
            raise _refused("starting_after", "starting_after goes with the order of created_at only.")
        if _integer(query, "offset", 0, 0):
            raise _refused("starting_after", "starting_after does not go with an offset.")
        if (last := records.users.get(query["starting_after"])) is None:
            raise _refused("starting_after", "There is no such user.")
        key = _order_key(name)
        found = [each for each in found if key(each) != key(last) and (key(each) < key(last)) == newest_first]
    return [_public(each) for each in _page(_selected(found, query), query)]


def _selected(users: Iterable[Object], query: dict[str, str]) -> list[Object]:
    """Return the users within the bounds of a query."""
    found = list(users)
    for bound in (each for each in _BOUNDS if each in query):
        limit_ms, (field, _, side) = _integer(query, bound, 0, 0), bound.rpartition("_")
        at = _number(field)
        found = [
            each for each in found if at(each) and (at(each) > limit_ms if side == "after" else at(each) < limit_ms)
        ]
    if "banned" in query:
        found = [each for each in found if each.get("banned") is (query["banned"] == "true")]
    return found


def _public(found: Object) -> Object:
    """Return a user as Clerk shows it: what is selected by milliseconds is shown by days."""
    active_at = found.get("last_active_at")
    return found | {"last_active_at": active_at and active_at // _DAY_MS * _DAY_MS}


def _number(field: str) -> Callable[[Object], int]:
    """Return a reader of a field that may be missing, or of another type, where a test put that in."""
    return lambda each: value if isinstance(value := each.get(field), int) else 0


def _order_key(field: str) -> Callable[[Object], tuple[bool, Any, str]]:
    return lambda each: (each.get(field) is not None, each.get(field), each["id"])


def _page(found: list[Object], query: dict[str, str]) -> Iterable[Object]:
    offset = _integer(query, "offset", 0, 0)
    return found[offset : offset + _integer(query, "limit", _DEFAULT_LIMIT, 1, _MOST)]


def _integer(query: dict[str, str], name: str, default: int, least: int, most: int | None = None) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or int(text) < least or (most is not None and int(text) > most):
        raise _refused(name, f"{name} is an integer from {least}{'' if most is None else f' to {most}'}.")
    return int(text)


def _only(query: dict[str, str], *names: str) -> None:
    """Refuse what this stand-in would have to leave out of account."""
    if unknown := query.keys() - set(names):
        raise ApiError(501, "not_implemented", f"The stand-in for Clerk's API does not know {', '.join(unknown)}.")


def _refused(name: str, message: str, code: str = "form_param_value_invalid") -> ApiError:
    return ApiError(422, code, message, param_name=name)
