"""Which key has another type than the relay gives it: Redis says only that one has (WRONGTYPE)."""

import contextlib
from collections.abc import Iterator

import redis

from service.errors import StoreUnavailableError
from service.store.partitions import Partition, result


class WrongTypeError(StoreUnavailableError):
    """A key has another type than the relay gives it. The text names it, where that is known."""


def is_wrong_type(error: Exception) -> bool:
    """Tell whether Redis refused a command, or a script, for the type of a key."""
    return "WRONGTYPE" in str(error.__cause__ or error)


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Let an error about the type of a key name it.

    Raises:
        WrongTypeError: This key has another type than the commands in the block need.
    """
    try:
        yield
    except (StoreUnavailableError, redis.ResponseError) as error:
        if not is_wrong_type(error):
            raise
        raise WrongTypeError(f"{key} has another type than the relay gives it: rename or delete it") from None


def check_user(partition: Partition, user_id: str) -> None:
    """Look at the keys, besides a session's own, that a script needs to write a session of this user.

    Raises:
        WrongTypeError: One of them has another type.
        StoreUnavailableError: Redis failed.
    """
    keys = partition.keys
    commands = [("ZRANGE", key, 0, 0) for key in (keys.user_sessions(user_id), keys.user_pending(user_id), keys.expiry)]
    for command in (*commands, ("HMGET", keys.user_gone(user_id), "deleted")):
        with naming(str(command[1])):
            result(partition.pipeline.submit(command, list))
