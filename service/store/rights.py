"""Whether Redis refused something because its user lacks a right, or because it has no such command.

Redis has a code for a missing right, NOPERM, but none where a script runs the command. There it has only words, and
they differ by version. For a command that a server or a proxy does not have, each has its own. Consumers read the same
words, so the lists are in their package.
"""

import re
from typing import Final

from clerk_session_feed.connections import explain
from clerk_session_feed.refusals import has_no_command, is_missing_right
from redis.exceptions import NoScriptError

__all__ = ["MISSING_RIGHT_ADVICE", "NO_SCRIPTS_ADVICE", "has_no_command", "is_missing_right", "is_script_unknown"]

MISSING_RIGHT_ADVICE: Final = "give the user the rights that docs/redis.md lists"
_UNKNOWN_SCRIPT: Final = re.compile(
    r"NOSCRIPT|no matching script|unknown script|script (was |is )?(not found|unknown|(does not|doesn't) exist)",
    re.IGNORECASE,
)
"""At the beginning: Redis' code, and words of proxies that have none."""
NO_SCRIPTS_ADVICE: Final = "what is in front of Redis can't run scripts, so let REDIS_URL name an address behind it"


def is_script_unknown(error: BaseException) -> bool:
    """Tell whether a script did not run, since the server does not know it, or lacks the command that runs it.

    Args:
        error: The reply to EVALSHA or EVAL. What a command in the script met names the script.
    """
    said = explain(error)
    return (
        isinstance(error, NoScriptError)
        or _UNKNOWN_SCRIPT.match(said) is not None
        or (has_no_command(error) and "script" not in said.lower())
    )
