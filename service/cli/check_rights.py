"""Which rights the user of Redis lacks, and which program needs them.

From Redis 7.0 on, a script can ask for a right without using it. Where no script can be asked, the commands are
tried, in a form that changes nothing.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import redis
from clerk_session_feed.connections import explain
from clerk_session_feed.keys import HASH_TAG, Keys

from service.cli.check_connect import client_at, connection_of, keys_of, partitions_by_client, run
from service.cli.diagnosis import CheckResult
from service.cli.rights_commands import (
    CHECK,
    DEAD_LETTERS,
    DUE,
    ENDINGS,
    METRICS,
    PACE,
    READINESS,
    SERVE,
    TRIAL,
    UNUSABLE,
    WATCH,
    Command,
    commands_of,
)
from service.config import Settings
from service.store.rights import has_no_command, is_missing_right

_FAILS: Final = {
    UNUSABLE: "events that can't be turned into state get 503, again and again",
    ENDINGS: "user.deleted and user.banned get 503, again and again",
    READINESS: "/readyz is always 503",
}
_EFFECTS: Final = _FAILS | {
    METRICS: "/metrics lacks what there is to work off",
    DUE: "session-relay expire can't work",
    WATCH: "session-relay expire looks once a minute only",
    PACE: "each session-relay expire paces itself alone",
    DEAD_LETTERS: "session-relay dead-letters can't work",
    CHECK: "check can't look at everything",
    TRIAL: "no test delivery is tried",
}
"""What comes of it if a right or a command is missing. Those of _FAILS are errors: `serve` lacks a part."""
_PARTS: Final = {*_FAILS, METRICS, DUE}
"""What is not named again where the whole of `serve` fails."""
_DISPENSABLE: Final = ("script|load", "evalsha")
"""What `serve` does without where it is unknown: it sends the source of its scripts. The test deliveries tell."""
_LOOKS_AT: Final = {"info": "version, maxmemory-policy, persistence and connections", "time": "the clock"}
"""What `check` looks at by some of its commands."""

_ASK: Final = """
if not redis.acl_check_cmd then
  return false
end
local refused, unknown = {}, {}
for number, words in ipairs(cjson.decode(ARGV[1])) do
  local is_known, is_allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not is_known then
    unknown[#unknown + 1] = number - 1
  elseif not is_allowed then
    refused[#refused + 1] = number - 1
  end
end
return {refused, unknown}
"""
"""Returns the indices of the commands that the user may not run, and of those that the server does not know; `false` if
it can't be asked: https://redis.io/docs/latest/develop/programmability/lua-api/#redis.acl_check_cmd"""


@dataclasses.dataclass
class Rights:
    """What the user of Redis may not do, by program."""

    user: str
    are_tried: bool = False
    """Whether Redis can't be asked, so that only what is harmless was tried."""
    missing: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)
    """Rights as ACL SETUSER takes them, each once, in the order in which they were found."""
    unknown: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)
    """Commands that the server does not have."""

    def add(self, command: Command, error: redis.ResponseError, settings: Settings) -> None:
        """Add what a refused command says is missing; nothing if it was refused for another reason."""
        said = explain(error)
        if has_no_command(error):
            self.add_unknown(command)
        elif is_missing_right(error):
            access = re.search(r"access (?:one of the |an? |the )?(key|channel)", said)
            right = f"+{command.right}"
            if access is not None:
                is_key = access[1] == "key"
                right = f"~{_pattern(settings, command.key)}" if is_key else f"&{settings.redis_channel}*"
            self.missing.setdefault(command.program, {})[right] = None

    def add_unknown(self, command: Command) -> None:
        """Add a command that the server does not have."""
        if command.right in _DISPENSABLE:
            return
        self.unknown.setdefault(command.program, {})[command.right] = None

    @property
    def suffice_for_trial(self) -> bool:
        """Whether test deliveries can be stored, and deleted."""
        needed = {SERVE, TRIAL, *_FAILS}
        return not needed & {*self.missing, *self.unknown}

    def results(self) -> Iterator[CheckResult]:
        """Say what is missing, and what comes of it. An `error` is about `serve`."""
        lacking_all = self.missing.get(SERVE, {})
        parts = {
            program: [right for right in rights if not (program in _PARTS and right in lacking_all)]
            for program, rights in self.missing.items()
        }
        missing = {program: " ".join(rights) for program, rights in parts.items() if rights}
        unknown = {program: " ".join(commands) for program, commands in self.unknown.items()}
        lacks = f"its user {self.user} lacks"
        if SERVE in missing:
            advice = "give the user these, and what else docs/redis.md lists"
            yield CheckResult("error", f"Redis takes no deliveries: {lacks} {missing[SERVE]}: {advice}")
            missing.pop(TRIAL, None)
        if SERVE in self.unknown:
            text = f"Redis takes no deliveries: it does not know {unknown[SERVE]}"
            yield CheckResult("error", f"{text}: see that this is a Redis, and that the command was not renamed")
        for program in _EFFECTS:
            level: Literal["warning", "error"] = "error" if program in _FAILS else "warning"
            if program in missing:
                text = f"{self._effect(program)}: {lacks} {missing[program]}"
                yield CheckResult(level, f"{text}: give the user these")
            if program in unknown:
                text = f"{self._effect(program)}: this Redis does not know {unknown[program]}"
                yield CheckResult(level, f"{text}: see whether that was renamed, or a proxy keeps it back")
        if lacking := _of_others(unknown):
            yield CheckResult("ok", f"commands: what else there is needs some that this Redis lacks: {lacking}")
        if others := _of_others(missing):
            text = f"rights: what else runs as the user {self.user} needs more, if it is used"
            yield CheckResult("ok", f"{text}: {others}")
        elif not (missing or unknown) and self.are_tried:
            text = "this Redis can't be asked for those of other commands"
            yield CheckResult("ok", f"rights: the user {self.user} has those of serve, expire and dead-letters; {text}")
        elif not missing and not self.are_tried:
            yield CheckResult("ok", f"rights: the user {self.user} lacks none")

    def _effect(self, program: str) -> str:
        """Return what comes of what is missing; of `check`, at what it does not look."""
        rights = {each.lstrip("+") for found in (self.missing, self.unknown) for each in found.get(program, {})}
        unseen = [what for right, what in _LOOKS_AT.items() if program == CHECK and right in rights]
        return _EFFECTS[program] + (f" ({', '.join(unseen)})" if unseen else "")


def _of_others(found: dict[str, str]) -> str:
    """Return what is missing for programs that nothing else is said of."""
    return "; ".join(f"{program} {what}" for program, what in found.items() if program not in {SERVE, *_EFFECTS})


def ask_rights(settings: Settings) -> Rights:
    """Ask Redis, or each node of a cluster that has a part of the data, what its user may do.

    Raises:
        redis.RedisError: Redis can't be reached.
    """
    keys = keys_of(settings)
    with client_at(settings, keys.dead_letters) as client:
        rights = Rights(client.connection_pool.connection_kwargs.get("username") or "default")
        _ask(client, settings, None, rights)
    for client, parts in partitions_by_client(settings):
        for part in parts:
            _ask(client, settings, part, rights)
    return rights


def _ask(client: Any, settings: Settings, part: Keys | None, rights: Rights) -> None:
    connection_of(client)
    commands = commands_of(settings, part)
    told = _told_by_script(client, commands)
    if told is None:
        rights.are_tried = True
        told = commands_of(settings, part, is_tried=True), []
    refused, unknown = told
    for command in unknown:
        rights.add_unknown(command)
    for command in refused:
        try:
            run(client, *command.words)
        except redis.ResponseError as error:
            rights.add(command, error, settings)


def _pattern(settings: Settings, key: str) -> str:
    """Return the pattern of keys that one belongs to, and if only that was refused, which."""
    prefix = settings.redis_key_prefix
    if not key.startswith(f"{prefix}:"):
        prefix = HASH_TAG.sub(r"{\1:*}", prefix, count=1)
    return f"{prefix}:*"


def _told_by_script(client: Any, commands: Sequence[Command]) -> tuple[list[Command], list[Command]] | None:
    """Return those that the user may not run, and those that the server does not know; None if it can't be asked.

    To try the former does nothing.
    """
    try:
        digest = run(client, "SCRIPT LOAD", _ASK)
        told = run(client, "EVALSHA", digest, 0, json.dumps([each.words for each in commands]))
    except redis.ResponseError:  # these are rights, too
        return None
    if told is None:
        return None
    refused, unknown = ([commands[each] for each in indices] for indices in told)
    return refused, unknown
