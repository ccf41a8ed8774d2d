"""Events about users that end sessions: `user.deleted`, and `user.updated` of a banned one.

docs/contract.md, section 10. Of such an event only the fields of these models are read, logged or kept, since the rest
is a user's profile.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

import orjson
import pydantic
from clerk_session_feed import lenient_json
from clerk_session_feed.models import Id

from service.clerk.fields import ClerkModel, Flag, NullIfInvalid, OptionalId, Time
from service.models import Ignored, Unusable

DELETED: Final = "user.deleted"
UPDATED: Final = "user.updated"
_KEPT_TEXT: Final = 256
"""Characters of a text that a dead letter keeps."""
_TEXTS: Final = {"type", "id", "instance_id"}
"""The fields whose value can be a text. In another one a text is out of place, and could be anything of the user's."""
_NO_ID: Final = re.compile(r"[@\s]")
"""What no misspelled id has, but e-mail addresses and most names of people have."""


class UserData(ClerkModel):
    """The user in an event's `data`."""

    id: Id
    banned: Flag = None
    updated_at: Annotated[Time, NullIfInvalid] = None
    deleted: Flag = None


class UserEvent(ClerkModel):
    """An event that ends sessions of a user, with times in Unix milliseconds."""

    type: str
    timestamp: Annotated[Time, NullIfInvalid] = None
    instance_id: OptionalId = None
    data: UserData


def read(type_: str, envelope: dict[str, Any], on_nulled: Callable[[str], None]) -> UserEvent | Ignored | Unusable:
    """Read an event that is not about a session.

    Args:
        type_: of the event.
        envelope: the body.
        on_nulled: see `events.parse`.

    Returns:
        Ignored, unless the event ends sessions; Unusable, with what may be kept of it, if it does not say whose.
    """
    data = envelope.get("data")
    bans = type_ == UPDATED and isinstance(data, dict) and data.get("banned") is True
    if type_ != DELETED and not bans:
        return Ignored(type_)
    try:
        return UserEvent.model_validate(envelope, context=on_nulled)
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        detail = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        return Unusable(type_, "invalid_user_id", detail, kept=_kept(envelope))


def _kept(envelope: dict[str, Any]) -> bytes:
    """Return the event without the user's profile, as JSON."""
    data = envelope.get("data")
    kept = {name: _scalar(name, envelope.get(name)) for name in UserEvent.model_fields if name != "data"}
    fields = {name: _scalar(name, data.get(name)) for name in UserData.model_fields} if isinstance(data, dict) else None
    return orjson.dumps(kept | {"data": fields})


def _scalar(name: str, value: object) -> object:
    """Return a value of a field; null if it could hold more than the field is for."""
    if isinstance(value, str):
        may_be_meant = name in _TEXTS and not _NO_ID.search(value) and lenient_json.is_unicode(value)
        return value[:_KEPT_TEXT] if may_be_meant else None
    return value if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63) else None
