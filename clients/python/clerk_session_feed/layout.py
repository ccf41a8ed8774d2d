"""Into how many partitions the data is divided, as its mark says: a field of a hash.

One partition needs no mark. It may have one, if the data was moved: `session-relay repartition`.
"""

import re
from typing import Final, NamedTuple, Self

from clerk_session_feed.errors import PartitionsError

FIELD: Final = "partitions"
"""Of the mark: `8`; or, while the data is moved, `1>8@<when that began, in Unix milliseconds>`."""


class Move(NamedTuple):
    """A move of the data from one number of partitions to another, as it is marked."""

    was: int
    to: int
    began_at_ms: int

    @classmethod
    def read(cls, mark: str) -> Self | None:
        """Return the move that a mark tells of, if it does."""
        found = re.fullmatch(r"([0-9]{1,4})>([0-9]{1,4})@([0-9]{1,15})", mark)
        return cls(*map(int, found.groups())) if found else None

    def __str__(self) -> str:
        """Return the mark."""
        return f"{self.was}>{self.to}@{self.began_at_ms}"


def refuse_other_number(partitions: int, mark: bytes | None) -> None:
    """Compare a feed's number of partitions with that of the data.

    Raises:
        PartitionsError: If a mark is there and says another number.
    """
    if mark is None or mark == str(partitions).encode():
        return
    if mark.isdigit():
        raise PartitionsError(f"PARTITIONS={partitions}, but the data has {int(mark)}: set PARTITIONS={int(mark)}.")
    raise PartitionsError("The data has a mark that this version can't read: upgrade clerk-session-feed.")
