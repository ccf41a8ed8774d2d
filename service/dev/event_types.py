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
_SIMILARITY: Final = 0.7
"""From this ratio of difflib on, one word may be meant for another."""


def meant_by(name: str) -> str | None:
    """Return the type that is probably meant by one that Clerk does not send: `session.ended` by `sesion_end`."""
    subject, what = _parts(name)
    subjects = {each.lower(): each for each in _BY_SUBJECT}
    for close in difflib.get_close_matches(subject, subjects, n=1, cutoff=_SIMILARITY):
        types = {_letters(each): f"{subjects[close]}.{each}" for each in _BY_SUBJECT[subjects[close]].split()}
        for found in difflib.get_close_matches(what, types, n=1, cutoff=_SIMILARITY):
            return types[found]
    return None


def alike(name: str) -> list[str]:
    """Return the types about the same subject as this one; those about sessions, if there are none."""
    subject, _ = _parts(name)
    return [each for each in EVENT_TYPES if _parts(each)[0] == subject] or alike("session.")


def _parts(name: str) -> tuple[str, str]:
    """Return the letters of the subject (`session`, if there is none) and those of what happened to it."""
    subject, _, what = name.partition(".") if "." in name else name.replace("-", "_").rpartition("_")
    return _letters(subject or "session"), _letters(what)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())
