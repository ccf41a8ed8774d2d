"""What another attempt can mend, and what it can't; and what a server lacks, or forbids.

Redis, providers and proxies have words of their own for what passes: a limit of commands, of connections, of a day,
a node that is away. So the list is one of what stays wrong, and whatever is not on it may pass. A server that lacks a
command, or forbids it for good, says so plainly. If more follows ("not allowed because ..."), it may pass.
"""

import re
from typing import Final

import redis
from redis.exceptions import (
    AskError,
    AuthorizationError,
    ClusterCrossSlotError,
    ClusterError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

from clerk_session_feed.connections import explain

_MOVING: Final = (ClusterError, AskError, TryAgainError, ReadOnlyError)
_MOVING_CODES: Final = ("UNBLOCKED ", "MASTERDOWN ", "MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ")  # with redis-py 5
_PASSING_CODES: Final = (*_MOVING_CODES, "OOM ", "MISCONF ", "LOADING ", "BUSY ", "NOREPLICAS ", "READONLY ")
_LASTING_CODES: Final = re.compile(
    r"(NOPERM|DENIED|NOAUTH|WRONGPASS|WRONGTYPE|CROSSSLOT|NOPROTO)\b"
    # What the rules of a feed deal with themselves.
    r"|(NOGROUP|BUSYGROUP)\b|no such key|The XGROUP subcommand requires the key to exist"
)
_FLAWS: Final = re.compile(
    r"^protocol error|syntax error|^unbalanced .* list|wrong kind of value|unknown (sub)?command"
    r"|(wrong|too many)( number of)? arguments|is not (valid|an? (valid )?(integer|float))|out of range"
    r"|invalid (stream|db)",
    re.IGNORECASE,
)
"""Types of keys, syntax, and the plainest words for a command that a server lacks: whatever else is said."""
_PASSING_WORDS: Final = re.compile(
    r"limit|quota|exceed|too many|throttl|\b429\b|maximum|try again|retry|temporar|maintenance|busy|overload|breaker"
    r"|frozen|migrat|reshard|rebalanc|fail(ing|ed)?[ -]?over|shutting|starting|time[ -]?out|timed out|read[ -]?only"
    r"|\bdisk\b|out of memory|\bwrit(es?|ing)\b|\bmodify\b|\b(while|during|until|at the moment)\b|\b(state|phase)$"
    r"|\b(server|service|host|backend|upstream|node|shard|slot|cluster|instance|database|replica|primary|master)s?"
    r"( is| are)? (currently )?(not |un)available",
    re.IGNORECASE,
)
"""A limit, or a state of the server, passes, although what it forbids is said to be denied."""

_NAME: Final = r"\b(x\w+|eval(sha)?|script|scan|hmget|subscribe)\b"
"""A command of those that the relay and its consumers send, where it is not also a word of every day."""
_END: Final = (
    rf"(?=\W*$|:? ?['\"`(]|: ?{_NAME}\W*$|\. (see|contact|upgrade)\b"
    r"| (for (this|the|your|normal)|to|in (this|your|cluster|serverless)|on (this|your)|with this)\b"
    r"| by (the |this |your |an? )?(polic|acl|rule|admin|proxy|server|provider|configuration|plan))"
)
"""What follows on a plain word: nothing, the command, or whom it concerns."""
_COMMAND: Final = rf"\b(sub)?command\b|\boperation\b|['\"`]?{_NAME}['\"`]?"
_LACKS: Final = re.compile(
    r"\b(unknown|unsupport(ed)?|invalid|illegal|unrecogni[sz]ed|undefined|unimplemented|disallowed|forbidden|disabled"
    r"|no such) (\w+ ){0,2}(sub)?command\b"
    rf"|\b(unsupported|invalid|illegal|forbidden|disabled) (request|operation){_END}"
    rf"|\b(unsupport(ed)?|unimplemented|disallowed|forbidden|denied){_END}"
    r"|(\bnot|n't|\bnever)( be| been| yet| currently)? "
    rf"(support(ed)?|allowed|permitted|authori[sz]ed|implement(ed)?|enabled|recogni[sz]ed|provided?|offer(ed)?){_END}"
    rf"|(\bnot|n't) (support(ed)?|implement|provide|offer|recogni[sz]e) (the )?({_COMMAND})"
    rf"|({_COMMAND})[^:,]{{0,40}}(\bnot |n't |\bun)available{_END}"
    rf"|({_COMMAND}|['\"`]|\bsupport\b)[^:,]{{0,40}}\b(disabled|blocked){_END}"
    r"|\b(sub)?command\b[^:,]{0,40}\b(not found|unknown|(does not|doesn't) exist)\b",
    re.IGNORECASE,
)
_MISSING_RIGHT: Final = re.compile(
    r"\bNOPERM\b"
    r"|The user executing the script can't "  # Redis 6.2, which puts the place in the script before it, and 7.0
    r"|ACL failure in script: "  # Redis 7.2 and newer, Valkey
    # redis-py takes the code off. So these are left, where one error quotes another: of a sentinel, say.
    r"|\bno permissions to (?:run|access) ",
    re.IGNORECASE,
)
_FROM_SCRIPT: Final = re.compile(r"not allowed from script", re.IGNORECASE)
_OTHER_RIGHTS: Final = re.compile(
    rf"(\bno|insufficient|lacks?|missing) (the |any )?(permission|access|right|privilege)s?|permission den(y|ied){_END}"
    rf"|unauthori[sz]ed{_END}|\bnot in (the )?(white|allow)-?list|\buser\b.{{0,20}} disabled{_END}"
    # A wrong password, or none.
    r"|(invalid|wrong|incorrect|bad) (user|pass|auth|credential)|password mismatch|no password is set"
    r"|without any password|\b(not |un)authenticated\b|\brequires? auth"
    rf"|\b(auth\w*|login) (is )?(failed|failure|required){_END}",
    re.IGNORECASE,
)


def may_pass(error: redis.RedisError) -> bool:
    """Tell whether another attempt may succeed: not with other rights, types of keys, syntax or password."""
    lasting = redis.AuthenticationError | AuthorizationError | NoPermissionError | redis.DataError
    if isinstance(error, lasting | ClusterCrossSlotError):
        return False  # the first two are ConnectionErrors of their own
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError, *_MOVING)):
        return True
    said = explain(error)
    if said.startswith(_PASSING_CODES):
        return True
    if _LASTING_CODES.match(said) or _FLAWS.search(said) or _MISSING_RIGHT.search(said):
        return False
    if _PASSING_WORDS.search(said):
        return True
    return not any(pattern.search(said) for pattern in (_LACKS, _FROM_SCRIPT, _OTHER_RIGHTS))


def is_refusal(error: redis.RedisError) -> bool:
    """Tell whether a server is there and declines, which may last; not so during a failover."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return "number of clients" in str(error)
    return not isinstance(error, _MOVING) and not str(error).startswith(_MOVING_CODES)


def has_no_command(error: BaseException) -> bool:
    """Tell whether the server, or a proxy before it, does not have a command, or never lets anybody use it.

    It is about the words of the reply, so what may pass is none, like a lack of memory, and neither is a missing right.
    """
    if type(error) is not redis.ResponseError or may_pass(error):  # other classes stand for codes of Redis
        return False
    said = explain(error)
    is_other = _LASTING_CODES.match(said) or _MISSING_RIGHT.search(said) or _FROM_SCRIPT.search(said)
    return not is_other and _LACKS.search(said) is not None


def is_missing_right(error: BaseException) -> bool:
    """Tell whether the user of Redis lacks a right: to a command, a key, a channel or a database.

    It is about what the server said, so a wrong password is none, and neither is a command that the server does not
    have, or never lets a script run.

    Args:
        error: redis-py's. Of a StoreUnavailableError, give its `__cause__`.
    """
    return isinstance(error, NoPermissionError) or _MISSING_RIGHT.search(explain(error)) is not None
