"""What another attempt can mend: errors as redis-py raises them, with the words of servers, providers and proxies."""

import pytest
import redis
from clerk_session_feed.refusals import is_refusal, may_pass
from redis.exceptions import (
    AskError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

LIMITS = [
    "max requests limit exceeded. Limit: 500000, Usage: 500000. See https://example.com/limits for details",
    "max daily request limit exceeded. Limit: 10000, Usage: 10000.",
    "max concurrent connections exceeded",
    "max number of clients + cluster connections reached",
    "rate limit exceeded, try again in 3 seconds",
    "Too many requests",
    "command rate is too high",
    "bandwidth quota is used up until the end of the month",
    "Access denied: too many connections",
    "request not allowed: limit of the plan reached",
    "database is temporarily suspended",
    "this command is not allowed while the instance is being upgraded",
    "upstream failure",
    "no upstream host",
    "backend is not available",
    "The server is being maintained",
    "Internal error",
    "THROTTLED slow down",
    "UNAVAILABLE",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "MISCONF Redis is configured to save RDB snapshots. Commands that may modify the data set are disabled.",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Errors writing to the AOF file: Permission denied",
    "OOM command not allowed under OOM prevention.",
    "command not allowed under OOM prevention.",
    "Can't write to slot being migrated which is in write forbidden phase",
    "upstream protocol error",
    "operation not permitted while the cluster is failing over",
    "writes are not permitted during failover",
    "write commands are not allowed in read-only mode",
    "write command not allowed: disk is full",
    "not allowed because the instance is frozen",
    "command is not allowed on a replica",
    "command failed: shard unavailable",
    "command unavailable: node is resharding",
    "Command denied: server overloaded",
    "request denied by circuit breaker",
    "connection denied: server is busy",
    "access denied: node is draining",
    "not permitted as long as the backup runs",
    "commands are disabled until the restore is done",
    "command is blocked: backup in progress",
    "Operation is not supported in the current state",
    "this operation is not available at present",
    "auth failed: timeout of IAM service",
    "auth failed: IAM service unreachable",
    "backend server 'x' not found",
    "invalid argument",
]
FAILOVERS = [
    redis.ConnectionError("Connection refused"),
    redis.TimeoutError("Timeout reading from socket"),
    BusyLoadingError("Redis is loading the dataset in memory"),
    ReadOnlyError("You can't write against a read only replica."),
    ClusterDownError("The cluster is down"),
    AskError("1234 127.0.0.1:1"),
    TryAgainError("Can't write to slot being migrated which is in write forbidden phase"),
    redis.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
    redis.ResponseError("MASTERDOWN Link with MASTER is down"),
]
LASTING_WORDS = [
    "NOPERM this user has no permissions to run the 'xread' command",
    "User relay has no permissions to access one of the keys used as arguments",
    "The user executing the script can't run this command or subcommand",
    "ACL failure in script: No permissions to access a key",
    "permission denied",
    "operation not permitted",
    "Unauthorized",
    "user is not authorized to perform this command",
    "command 'xread' is not allowed",
    "SELECT is not allowed in cluster mode",
    "Access forbidden by policy",
    "DENIED Redis is running in protected mode because no password is set",
    "WRONGPASS invalid or missing auth token",
    "NOAUTH Authentication required.",
    "invalid password",
    "invalid username-password pair",
    "wrong password",
    "Authentication failed.",
    "Client sent AUTH, but no password is set",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "unknown command 'XREAD', with args beginning with: 'COUNT' 'limit' 'exceeded' ",
    "unknown command `XINFO`, with args beginning with: `STREAM`, ",
    "unknown subcommand 'STREAM'. Try XINFO HELP.",
    "unsupported command 'XREAD'",
    "Command is not available: 'XREAD'. See https://example.com/commands",
    "wrong number of arguments for 'xread' command",
    "syntax error",
    "value is not an integer or out of range",
    "timeout is not an integer or out of range",
    "DB index is out of range",
    "Invalid stream ID specified as stream command argument",
    "Protocol error: invalid bulk length",
    "command 'xread' not support for normal user",
    "unsupport command",
    "Command XREAD has been disabled",
    "XREAD is disabled",
    "unimplemented",
    "command not found",
    "Command 'xread' does not exist",
    "Not support command: xread",
    "not supported",
    "operation not supported on this database",
    "auth permission deny",
    "client ip is not in whitelist",
    "no access",
    "The user has been disabled",
    "This Redis command is not allowed from script",
    "invalid DB index",
    "no such key",
    "NOGROUP No such key '{clerk}:events' or consumer group 'mirror'",
]
LASTING = [
    redis.AuthenticationError("invalid username-password pair or user is disabled."),
    AuthorizationError("not this user"),
    NoPermissionError("in words to come"),
    ClusterCrossSlotError("Keys in request don't hash to the same slot"),
    redis.DataError("Invalid input of type: 'NoneType'."),
    *map(redis.ResponseError, LASTING_WORDS),
]


@pytest.mark.parametrize(
    "error",
    [
        *map(redis.ResponseError, LIMITS),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        redis.ConnectionError("max number of clients reached"),
    ],
    ids=str,
)
def test_a_refusal_may_pass_and_is_met_with_longer_pauses(error: redis.RedisError) -> None:
    assert (may_pass(error), is_refusal(error)) == (True, True)


@pytest.mark.parametrize("error", FAILOVERS, ids=str)
def test_a_failover_may_pass_soon(error: redis.RedisError) -> None:
    assert (may_pass(error), is_refusal(error)) == (True, False)


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_rights_types_syntax_and_passwords_stay_wrong(error: redis.RedisError) -> None:
    assert not may_pass(error)
