"""The commands that each program sends to Redis: by them `check` finds out which rights are missing."""

from typing import Final, NamedTuple

from clerk_session_feed.keys import Keys, has_hash_tag

from service.cli.check_connect import keys_of
from service.cli.check_trial import SUFFIX
from service.config import Settings

SERVE: Final = "serve"
UNUSABLE: Final = "the dead letters of serve"
ENDINGS: Final = "user.deleted and user.banned"
READINESS: Final = "/readyz"
METRICS: Final = "/metrics"
DUE: Final = "expire"
WATCH: Final = "the wait of expire"
PACE: Final = "the pace of expire"
DEAD_LETTERS: Final = "dead-letters"
CHECK: Final = "check"
TRIAL: Final = "the test delivery of check"
REPLICAS: Final = "REDIS_MIN_REPLICAS"

_COMMANDS: Final[dict[str, str]] = {
    SERVE: """
        script|load return
        evalsha 0000000000000000000000000000000000000000 0
        exists @events
        hmget @session .
        hset @session . . .
        hset @gone . . .
        hdel @session .
        hmget @layout .
        hset @layout . . .
        pexpire @layout .
        del @session
        pttl @session
        pexpire @session .
        pexpire @user .
        pexpire @gone .
        zadd @user . .
        zadd @pending . .
        zadd @expiry . .
        zrem @user .
        zrem @pending .
        zrem @expiry .
        xadd @events nomkstream 0-0 . .
        xdel @events 0-0
        publish @channel .
        publish @user_channel .
    """,
    UNUSABLE: """
        hset @dead_letters . . .
        hexists @dead_letters .
        hlen @dead_letters
    """,
    ENDINGS: "zscan @user 0",
    READINESS: "lpushx @probe .",
    METRICS: """
        hlen @dead_letters
        hmget @reconcile .
        zcount @revokes -inf -inf
        zrangebyscore @expiry -inf -inf
    """,
    DUE: """
        hexists @session .
        zcount @expiry -inf -inf
        zrangebyscore @expiry -inf -inf
    """,
    WATCH: """
        xread count 1 streams @events $
        xrevrange @events + - count 1
    """,
    PACE: "xinfo stream @events",
    DEAD_LETTERS: """
        hget @dead_letters .
        hscan @dead_letters 0
        hdel @dead_letters .
    """,
    CHECK: """
        info
        time
        xrevrange @events + - count 1
        config|get save
    """,
    TRIAL: """
        hset @trial . . .
        hset @trial_dead_letters . . .
        publish @trial_channel .
    """,
    REPLICAS: "wait 0 0",
    "a database in REDIS_URL": "select 0",
    "TLS": "ping",
    "READ_TOKEN": """
        evalsha 0000000000000000000000000000000000000000 0
        hmget @session .
        hlen @dead_letters
        hscan @dead_letters 0
        xinfo stream @events
        xrange @events - +
        xread count 1 streams @events $
        xrevrange @events + - count 1
        zcount @expiry -inf -inf
        zrangebyscore @expiry -inf -inf
        zrangebyscore @pending -inf -inf
        zrangebyscore @user -inf -inf
    """,
    "reconcile": """
        append @run .
        dbsize
        exec
        expire @run 1
        get @run
        hgetall @run
        hincrby @run . 1
        multi
        scan 0
        set @run .
        xrevrange @events + - count 1
        zrange @user 0 0
        zrevrange @user 0 0
        zscore @user .
    """,
    "revoke": """
        dbsize
        scan 0
        zrange @user 0 0
        zrevrange @user 0 0
    """,
    "forget": """
        scan 0
        type @user
        xrange @events - +
        zrange @user 0 0
    """,
    "repartition": """
        watch @layout
        unwatch
        multi
        exec
        dbsize
        scan 0
        hget @session .
        hgetall @session
        hset @session . .
        exists @divided
        exists @session
        del @session
        pttl @session
        pexpire @session .
        zrange @user 0 0
        zscore @user .
        zadd @user . .
        zrem @user .
        xinfo stream @events
        xadd @events nomkstream 0-0 . .
        xdel @events 0-0
        xsetid @events 0-0
    """,
    "consumers": """
        hmget @session .
        scan 0
        subscribe @channel
        unsubscribe
        xack @events . 0-0
        xautoclaim @events . . 0 0-0
        xgroup create @events . $
        xinfo stream @events
        xpending @events .
        xrange @events - +
        xread count 1 streams @events $
        xreadgroup group . . streams @events >
        xrevrange @events + - count 1
        zrangebyscore @user -inf -inf
        ping
        select 0
    """,
}
"""The commands of each program, or of a part of it that the rest does without, by what they do to which key.

`.` is a name that no session and no user can have. With it, or with an argument that Redis refuses, those of TRIED
change nothing. The others are never run by a user who may run them.
"""
TRIED: Final = (*(SERVE, UNUSABLE, ENDINGS, READINESS, METRICS), *(DUE, WATCH, PACE, DEAD_LETTERS, CHECK, TRIAL))


class Command(NamedTuple):
    """A command that a program sends."""

    program: str
    right: str
    """As ACL SETUSER takes it, without the `+`."""
    words: tuple[str, ...]
    key: str
    """The one that it uses; empty if it uses none, or a channel."""


def commands_of(settings: Settings, part: Keys | None, *, is_tried: bool = False) -> list[Command]:
    """Return the commands about the keys of a partition or, without one, about those that are not divided.

    is_tried: only those that may be run.
    """
    names = _shared_names(settings) if part is None else _names(part)
    if is_tried:  # nobody but `check` shall hear of it
        names |= {each: names[each] + SUFFIX for each in ("@channel", "@user_channel") if each in names}
    programs = dict(_COMMANDS)
    if settings.redis_min_replicas:
        programs[SERVE] += programs.pop(REPLICAS)
    commands = []
    for program in TRIED if is_tried else programs:
        for line in programs[program].strip().splitlines():
            right, *arguments = line.split()
            named = [each for each in arguments if each.startswith("@")]
            if all(each in names for each in named):
                words = (*right.split("|"), *(names.get(each, each) for each in arguments))
                key = names[named[0]] if named and not named[0].endswith("channel") else ""
                commands.append(Command(program, right, words, key))
    return commands


def _names(part: Keys) -> dict[str, str]:
    return {
        "@session": part.session("."),
        "@user": part.user_sessions("."),
        "@pending": part.user_pending("."),
        "@gone": part.user_gone("."),
        "@events": part.events,
        "@expiry": part.expiry,
        "@revokes": part.revokes,
        "@probe": part.probe,
        "@channel": part.channel,
        "@user_channel": part.user_channel("."),
        "@trial": f"{part.prefix}{SUFFIX}:.",
        "@trial_channel": part.channel + SUFFIX,
    }


def _shared_names(settings: Settings) -> dict[str, str]:
    keys = keys_of(settings)
    divided = {"@divided": keys.split(2)[0].events} if has_hash_tag(keys.prefix) else {}
    return divided | {
        "@dead_letters": keys.dead_letters,
        "@layout": keys.layout,
        "@reconcile": keys.reconcile,
        "@run": keys.reconcile_run("."),
        "@trial_dead_letters": f"{keys.prefix}{SUFFIX}:.",
    }
