"""What a feed raises, besides `redis.RedisError`."""

import math


class FeedError(Exception):
    """What a feed can't mend by trying again."""


class CursorLostError(FeedError):
    """The stream does not hold the cursor's entry any more, so entries behind it may be missing, too.

    It was trimmed past it (STREAM_MAXLEN), or Redis lost it. What was missed is in the snapshots.
    """

    def __init__(self, cursor: str, partition: int) -> None:
        super().__init__(cursor, partition)
        self.cursor = cursor
        self.partition = partition

    def __str__(self) -> str:
        return f"The stream was trimmed past {self.cursor}, or Redis lost it: begin again from the snapshots."


class PartitionsError(FeedError):
    """The data is divided into another number of partitions than the feed's, or is just being moved to one.

    The text is one line, and says what to do.
    """


class MirrorTooOldError(FeedError):
    """A mirror can't say what became of a session: it may have missed something, and max_age has passed.

    Attributes:
        age: Seconds since the mirror last knew that it had missed nothing; inf before it has read all sessions.
        max_age: Seconds, as the mirror was told.
    """

    def __init__(self, age: float, max_age: float, reason: str) -> None:
        super().__init__(age, max_age, reason)
        self.age = age
        self.max_age = max_age
        self.reason = reason

    def __str__(self) -> str:
        reason = self.reason.removesuffix(".")  # what Redis says may end with a full stop
        if self.age == math.inf:
            return f"The mirror is not ready: {reason}."
        return f"The mirror is {self.age:.1f} s old, and max_age is {self.max_age:g} s: {reason}."


class FeedClosedError(FeedError):
    """The feed is closed."""


class UnreadableMessageError(FeedError):
    """What is stored, or was published, is no message that this version can read."""


class ConfigurationError(Exception):
    """Settings that can't be used.

    Attributes:
        faults: A line for each fault, which names the variable and never its secret value.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
