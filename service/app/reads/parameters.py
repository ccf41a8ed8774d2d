"""The parameters of a request: each is what it may be, or the request gets 400 with the name of the parameter."""

from clerk_session_feed.models import ID
from flask import request

from service.app.reads.limits import DEFAULT_LIMIT, LARGEST_LIMIT
from service.errors import InvalidParameterError


def check_id(name: str, value: str) -> str:
    """Return an id of a session or a user; raise InvalidParameterError if it can't be one."""
    if ID.fullmatch(value) is None:
        raise InvalidParameterError(f"{name}: an id has 1 to 128 letters, digits, underscores or hyphens.")
    return value


def optional_id(name: str) -> str | None:
    """Return the id in the query; None if there is none."""
    value = request.args.get(name)
    return None if value is None else check_id(name, value)


def limit() -> int:
    """Return how many items a page may have."""
    value = request.args.get("limit", str(DEFAULT_LIMIT))
    if not (value.isascii() and value.isdecimal() and len(value) < 4 and 1 <= int(value) <= LARGEST_LIMIT):  # noqa: PLR2004
        raise InvalidParameterError(f"limit: a number from 1 to {LARGEST_LIMIT}.")
    return int(value)
