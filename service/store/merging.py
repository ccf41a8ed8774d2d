"""What becomes of two hashes of one session, or of one user, that are found in different partitions. Does no I/O.

That is so where a session has changed its user, or where a service once ran with another number of PARTITIONS.
"""

from collections.abc import Mapping
from typing import Final

from service.models import OrderKey

Fields = dict[bytes, bytes]

_MESSAGE: Final = b"_message:"
"""How the fields begin that hold the ids of messages."""


def merged_session(one: Mapping[bytes, bytes], other: Mapping[bytes, bytes]) -> Fields:
    """Return the state with the greater order, and the messages of both."""
    less, greater = sorted((one, other), key=_order)
    return {name: value for name, value in less.items() if name.startswith(_MESSAGE)} | dict(greater)


def merged_gone(one: Mapping[bytes, bytes], other: Mapping[bytes, bytes]) -> Fields:
    """Return what ended the user's sessions last, of each kind, and the messages of both: see mark_user.lua."""
    merged: Fields = {}
    for kind in (b"deleted", b"banned"):
        at = kind + b"_at"
        known = [each for each in (one, other) if at in each]
        if known:
            last = max(known, key=lambda each: int(each[at]))
            merged |= {name: last[name] for name in (kind, at) if name in last}
    done = dict.fromkeys([*one.get(b"done", b"").split(), *other.get(b"done", b"").split()])
    return merged | ({b"done": b"".join(b" " + each for each in done)} if done else {})


def _order(session: Mapping[bytes, bytes]) -> tuple[object, ...]:
    try:
        return (1, *OrderKey.read(session.get(b"_order", b"").decode()))
    except ValueError:
        return (0,)
