"""Whether Redis refused something because its user lacks a right.

Redis has a code for that, NOPERM, but none where a script runs the command. There it has only words, and they differ
by version.
"""

import re
from typing import Final

from clerk_session_feed.connections import explain
from redis.exceptions import NoPermissionError

MISSING_RIGHT_ADVICE: Final = "give the user the rights that docs/redis.md lists"

_SAYS_SO: Final = re.compile(
    r"\bNOPERM\b"
    r"|The user executing the script can't "  # Redis 6.2, which puts the place in the script before it, and 7.0
    r"|ACL failure in script: "  # Redis 7.2 and newer, Valkey
    # redis-py takes the code off. So these are left, where one error quotes another: of a sentinel, say.
    r"|\bno permissions to (?:run|access) ",
    re.IGNORECASE,
)


def is_missing_right(error: BaseException) -> bool:
    """Tell whether the user of Redis lacks a right: to a command, a key, a channel or a database.

    It is about what the server said, so a wrong password is none, and neither is a command that the server does not
    have, or never lets a script run.

    Args:
        error: redis-py's. Of a StoreUnavailableError, give its `__cause__`.
    """
    return isinstance(error, NoPermissionError) or _SAYS_SO.search(explain(error)) is not None
