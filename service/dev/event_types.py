"""The types of the events that Clerk sends, and which of them a misspelt one is meant for.

Apart from `simulator`, because shells ask for the types: that is to cost no more than it has to.
"""

import difflib
import re
from typing import Final

_BY_SUBJECT: Final = {
    "session": "created pending ended removed revoked",
    "user": "created updated deleted",
    "email": "created",
    "organization": "created updated deleted",
    "organizationDomain": "created updated deleted",
    "organizationInvitation": "created accepted revoked",
    "organizationMembership": "created updated deleted",
    "paymentAttempt": "created updated",
    "permission": "created updated deleted",
    "role": "created updated deleted",
    "sms": "created",
    "subscription": "created updated active pastDue past_due",
    "subscriptionItem": (
        "created updated active canceled upcoming ended abandoned incomplete pastDue past_due freeTrialEnding"
    ),
    "waitlistEntry": "created updated",
}
# Where these two differ, both are taken: `pastDue` is from the first, `past_due` from the second.
# https://github.com/clerk/openapi-specs/blob/main/webhooks/2025-04-15.yml
# https://github.com/clerk/javascript/blob/main/packages/backend/src/api/resources/Webhooks.ts
EVENT_TYPES: Final = tuple(f"{subject}.{what}" for subject, all_of in _BY_SUBJECT.items() for what in all_of.split())
"""The types of all events that Clerk sends, those about sessions first."""
_SIMILARITY: Final = 0.85
"""From this ratio of difflib on, one type may be meant for another."""
_MORE_OR_LESS: Final = 3
"""Letters that one may have and the other not: the ratio alone would let a long subject stand for what happened."""
_SUBJECTS: Final = {subject.lower(): subject for subject in _BY_SUBJECT}


def meant_by(name: str) -> str | None:
    """Return the type that is probably meant by one that Clerk does not send: `session.ended` by `sesion_end`.

    Only letters count. The first word may be the last one, and `session` may be missing.
    """
    types = {_letters(each): each for each in EVENT_TYPES}
    first, *others = re.findall(r"[A-Za-z]+", name) or [""]
    for each in map(_letters, (name, "".join([*others, first]), f"session{name}")):
        cutoff = max(_SIMILARITY, 1 - _MORE_OR_LESS / (2 * len(each) or 1))
        for found in difflib.get_close_matches(each, types, n=1, cutoff=cutoff):
            return types[found]
    return None


def alike(name: str) -> list[str]:
    """Return the types about the same subject as this one; none if Clerk sends nothing about it."""
    words = re.findall(r"[A-Za-z]+", name)
    beginnings = ("".join(words[:end]).lower() for end in range(len(words), 0, -1))
    subject = next((_SUBJECTS[each] for each in beginnings if each in _SUBJECTS), None)
    return [each for each in EVENT_TYPES if each.partition(".")[0] == subject]


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())
