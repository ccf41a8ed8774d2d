"""What servers say to a user who lacks a right, or of a command that they lack; and what sounds like it."""

import pytest
import redis
from redis.exceptions import NoPermissionError, OutOfMemoryError

from service.store.rights import has_no_command, is_missing_right, is_script_unknown

SHA = "076bb169a140b41e70aa653f3ed1db8bd327d011"
PLACE_FIRST = f"Error running script (call to f_{SHA}): @user_script:1: @user_script: 1: "  # by redis.call of 6.2
MISSING_RIGHTS = {
    "6.2, a command": PLACE_FIRST + "The user executing the script can't run this command or subcommand",
    "6.2, a key": PLACE_FIRST
    + "The user executing the script can't access at least one of the keys mentioned in the command arguments",
    "6.2, a channel": PLACE_FIRST
    + "The user executing the script can't publish to the channel mentioned in the command",
    "6.2, by redis.pcall": "@user_script: 1: The user executing the script can't run this command or subcommand",
    "6.2, a code in a script": f"Error running script (call to f_{SHA}): @user_script:1: NOPERM this user may not",
    "7.0, a command": f"The user executing the script can't run this command or subcommand script: {SHA}, "
    "on @user_script:1.",
    "7.0, a key": "The user executing the script can't access at least one of the keys mentioned in the command "
    f"arguments script: {SHA}, on @user_script:1.",
    "7.0, a channel": "The user executing the script can't publish to the channel mentioned in the command",
    "8.2, a command": "ACL failure in script: User relay has no permissions to run the 'hset' command "
    f"script: {SHA}, on @user_script:1.",
    "8.2, a key": f"ACL failure in script: No permissions to access a key script: {SHA}, on @user_script:1.",
    "8.2, a channel": "ACL failure in script: No permissions to access a channel",
    "Valkey 9, a command": "ACL failure in script: User relay has no permissions to run the 'hset' command "
    "script: on @user_script:1.",
    "Valkey 9, a database": "ACL failure in script: No permissions to access database script: on @user_script:1.",
    "quoted": "Nobody names the primary; 127.0.0.1:7000, asked last, says: User relay has no permissions to run the "
    "'cluster|slots' command",
    "6.2, quoted": "Nobody names the primary; 127.0.0.1:7000, asked last, says: this user has no permissions to run "
    "the 'cluster' command or its subcommand",
}
OTHERS = [
    redis.ResponseError("unknown command 'INFO', with args beginning with: 'NOPERM' "),
    redis.ResponseError(f"This Redis command is not allowed from script script: {SHA}, on @user_script:1."),
    redis.ResponseError("This Valkey command is not allowed from script script: on @user_script:1."),
    redis.ResponseError("Unknown Redis command called from script"),
    redis.ResponseError(f"WRONGTYPE Operation against a key holding the wrong kind of value script: {SHA}, on @user"),
    redis.AuthenticationError("invalid username-password pair or user is disabled."),
    redis.AuthenticationError("Authentication required."),
    redis.ConnectionError("Error 13 connecting to unix:/run/redis.sock. Permission denied."),
    redis.exceptions.NoScriptError("No matching script. Please use EVAL."),
    redis.TimeoutError("Timeout reading from 127.0.0.1:6379"),
    ValueError(),
]


@pytest.mark.parametrize(
    "error",
    [
        *map(redis.ResponseError, MISSING_RIGHTS.values()),
        # By Redis' own code, whatever it says.
        NoPermissionError("this user has no permissions to run the 'hset' command"),
        NoPermissionError("in words to come"),
    ],
    ids=[*MISSING_RIGHTS, "a code", "a code, in words to come"],
)
def test_each_version_has_its_words_for_a_missing_right(error: redis.RedisError) -> None:
    assert is_missing_right(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_what_is_no_missing_right(error: Exception) -> None:
    assert not is_missing_right(error)


LACKS = [
    "unknown command 'XREVRANGE', with args beginning with: 'limit' 'during' ",
    "unknown command `xinfo`, with args beginning with: `STREAM`, ",
    "unknown subcommand 'STREAM'. Try XINFO HELP.",
    "Unknown Redis Cluster command 'XREAD'",
    "unsupported command 'xrevrange'",
    "unsupported command",
    "Command XREAD is unsupported",
    "invalid request",
    "illegal command",
    "no such command",
    "command not found: XREAD",
    "XREVRANGE is not supported by this proxy",
    "xread is currently not supported",
    "this proxy doesn't support XREAD",
    "proxy does not implement 'xread'",
    "this proxy doesn't support EVALSHA",
    "EVALSHA is disabled",
    "Command not supported: EVALSHA",
    "command 'xread' is not allowed",
    "command 'xread' not permitted in this plan",
    "'XREAD' has been disabled by the administrator",
    "Command is not available: 'XREAD'. See https://example.com/commands",
    "XREAD command isn't available",
    "not implemented",
    "command 'xread' is blocked",
    "user is not authorized to perform this command",
    "This instance has cluster support disabled",
    "command 'xread' not support for normal user",
    "Not support command: xread",
    "unsupport command",
    "unimplemented",
    "Command XREAD has been disabled",
]
HAS = [
    "command not allowed when used memory > 'maxmemory'.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "MISCONF Redis is configured to save RDB snapshots. Commands that may modify the data set are disabled.",
    "max requests limit exceeded. Limit: 500000, Usage: 500000.",
    "request not allowed: limit of the plan reached",
    "this command is not allowed while the instance is being upgraded",
    "command is temporarily unavailable",
    "backend is not available",
    "service not available",
    "Access denied: too many connections",
    "DENIED Redis is running in protected mode because protected mode is enabled and no password is set",
    "NOPERM User relay has no permissions to run the 'xread' command",
    "The user executing the script can't run this command or subcommand",
    "This Redis command is not allowed from script script: , on @user_script:1.",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "wrong number of arguments for 'xread' command",
    "no such key",
    "upstream failure",
    "command not allowed under OOM prevention.",
    "Can't write to slot being migrated which is in write forbidden phase",
    "Command denied: server overloaded",
    "not allowed because the instance is frozen",
    "command unavailable: node is resharding",
]


@pytest.mark.parametrize("said", LACKS)
def test_each_server_has_its_words_for_a_command_that_it_lacks(said: str) -> None:
    assert has_no_command(redis.ResponseError(said))


@pytest.mark.parametrize(
    "error",
    [
        *map(redis.ResponseError, HAS),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        NoPermissionError("this user has no permissions to run the 'xread' command, which is not allowed"),
        redis.ConnectionError("Error 13 connecting to unix:/run/redis.sock. Permission denied."),
        redis.AuthenticationError("access denied"),
    ],
    ids=str,
)
def test_what_passes_or_is_about_something_else_is_no_lack_of_a_command(error: redis.RedisError) -> None:
    assert not has_no_command(error)


IS_SCRIPT_UNKNOWN = {
    "NOSCRIPT No matching script. Please use EVAL.": True,
    "No matching script. Please use EVAL.": True,
    "script does not exist": True,
    "Script not found": True,
    "unknown script": True,
    "unknown command 'EVALSHA', with args beginning with: '0000' ": True,
    "this proxy doesn't support EVALSHA": True,
    # One that fails, or that may not be run.
    "Error running script (call to f_0000): @user_script:1: unknown command 'XINFO'": False,
    "Unknown Redis command called from script script: 0000, on @user_script:1.": False,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": False,
    "max requests limit exceeded": False,
    "NOPERM this user has no permissions to run the 'evalsha' command": False,
}


@pytest.mark.parametrize(("said", "is_unknown"), IS_SCRIPT_UNKNOWN.items())
def test_each_server_has_its_words_for_a_script_that_it_does_not_know(said: str, is_unknown: bool) -> None:
    assert is_script_unknown(redis.ResponseError(said)) is is_unknown
