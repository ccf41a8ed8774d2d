"""Whether Redis refused something because its user lacks a right, or because it has no such command.

Redis has a code for a missing right, NOPERM, but none where a script runs the command. There it has only words, and
they differ by version. For a command that a server or a proxy does not have, each has its own.
"""

import re
from typing import Final

import redis
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
_NO_SUCH: Final = re.compile(
    r"\b(unknown|unsupported|invalid|illegal|unrecogni[sz]ed|undefined|unimplemented|disallowed|forbidden|disabled)\b"
    r".{0,20}\b(command|subcommand|request|operation)\b"
    r"|\b(unsupported|disabled|forbidden|denied|no such (sub)?command)\b"
    r"|(\bnot|n't|\bnever)( be| been| yet| currently)? "
    r"(support(ed)?|available|allowed|permitted|authori[sz]ed|implement(ed)?|enabled|recogni[sz]ed|provided?|offer(ed)?)\b"
    r"|\b(command|subcommand)\b.{0,40}\b(not found|unavailable|unsupported|unknown|blocked)\b",
    re.IGNORECASE,
)
_NOT_NOW: Final = re.compile(
    r"^(OOM|MISCONF|LOADING|BUSY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|READONLY|DENIED|NOAUTH) "
    r"|\bwhen used memory\b|from script|\b(while|during|until|at the moment)\b|limit|quota|exceed|too many|throttl"
    r"|temporar|try again|retry|maintenance"
    r"|\b(server|service|host|backend|upstream|node|shard|cluster|instance|database|replica|primary|master)s?"
    r"( is| are)? (currently )?(not |un)available",
    re.IGNORECASE,
)
"""What passes, or is about something else than a command."""


def has_no_command(error: BaseException) -> bool:
    """Tell whether the server, or a proxy before it, does not have a command, or never lets anybody use it.

    It is about the words of the reply, so what may pass is none, like a lack of memory, and neither is a missing right.
    """
    if type(error) is not redis.ResponseError or is_missing_right(error):  # others stand for codes of Redis
        return False
    said = explain(error)
    return _NO_SUCH.search(said) is not None and _NOT_NOW.search(said) is None


def is_missing_right(error: BaseException) -> bool:
    """Tell whether the user of Redis lacks a right: to a command, a key, a channel or a database.

    It is about what the server said, so a wrong password is none, and neither is a command that the server does not
    have, or never lets a script run.

    Args:
        error: redis-py's. Of a StoreUnavailableError, give its `__cause__`.
    """
    return isinstance(error, NoPermissionError) or _SAYS_SO.search(explain(error)) is not None
