"""What another attempt can mend, and what it can't.

Redis, providers and proxies have words of their own for what passes: a limit of commands, of connections, of a day,
a node that is away. So the list is one of what stays wrong, and whatever is not on it may pass.
"""

import re
from typing import Final

import redis
from redis.exceptions import AskError, AuthorizationError, ClusterError, NoPermissionError, ReadOnlyError, TryAgainError

from clerk_session_feed.connections import explain

_LASTING_CODES: Final = re.compile(
    r"(NOPERM|DENIED|NOAUTH|WRONGPASS|WRONGTYPE|CROSSSLOT|NOPROTO)\b"
    # What the rules of a feed deal with themselves.
    r"|(NOGROUP|BUSYGROUP)\b|no such key|The XGROUP subcommand requires the key to exist"
)
_LASTING_WORDS: Final = re.compile(
    # Rights.
    r"permission|not permitted|not authori[sz]ed|unauthori[sz]ed|denied|forbidden|ACL failure|executing the script"
    r"|not allowed(?! (when|while|during|until))"
    # A wrong password, or none.
    r"|(invalid|wrong|incorrect|bad) (user|pass|auth|credential)|no password is set|without any password"
    r"|auth\w* (is )?(failed|failure|required)"
    # Types of keys.
    r"|wrong kind of value"
    # Syntax, and commands that the server lacks.
    r"|(unknown|unsupported|invalid) (sub)?command|command\b.{0,40}\b((not|un)[ -]?(available|supported|implemented))"
    r"|wrong number of arguments|syntax error|protocol error|is not (valid|an? (valid|integer|float)|supported)"
    r"|not an integer|out of range|invalid (stream|db|argument)",
    re.IGNORECASE,
)
_PASSING_WORDS: Final = re.compile(
    r"limit|quota|exceed|too many|throttl|maximum|try again|retry|temporar|maintenance", re.IGNORECASE
)
"""A limit passes, although what it forbids is said to be denied."""

_MOVING: Final = (ClusterError, AskError, TryAgainError, ReadOnlyError)
_MOVING_CODES: Final = ("UNBLOCKED ", "MASTERDOWN ", "MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ")  # with redis-py 5


def may_pass(error: redis.RedisError) -> bool:
    """Tell whether another attempt may succeed: not with other rights, types of keys, syntax or password."""
    if isinstance(error, redis.AuthenticationError | AuthorizationError | NoPermissionError | redis.DataError):
        return False  # the first two are ConnectionErrors of their own
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return True
    said = explain(error)
    if _LASTING_CODES.match(said):
        return False
    return _LASTING_WORDS.search(said) is None or _PASSING_WORDS.search(said) is not None


def is_refusal(error: redis.RedisError) -> bool:
    """Tell whether a server is there and declines, which may last; not so during a failover."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return "number of clients" in str(error)
    return not isinstance(error, _MOVING) and not str(error).startswith(_MOVING_CODES)
