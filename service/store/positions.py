"""A place in the stream, as text: a cursor; with partitions, one for each, as in `0:1795422761000-0,1:1795422761002-0`.

A cursor counts within the stream of its partition, so with several only all of them tell where a reader was.
"""

import re
from collections.abc import Sequence
from typing import Final

from clerk_session_feed.cursors import START, whole_cursor

LONGEST: Final = 65_536
"""Characters of a position that is looked at: 1,024 partitions take 40,000."""
_ONE_OF_MANY: Final = re.compile(r"([0-9]{1,4}):([0-9]{1,20}-[0-9]{1,20})")


def write(cursors: Sequence[str]) -> str:
    """Return the cursors of all partitions, by number, as one text."""
    if len(cursors) == 1:
        return cursors[0]
    return ",".join(f"{number}:{cursor}" for number, cursor in enumerate(cursors))


def read(text: str, partitions: int) -> list[str] | None:
    """Return the cursor of each partition; None if the text is of another number of partitions.

    `0-0` stands for the beginning of every stream, and a time alone (Unix milliseconds) for that time in each.

    Raises:
        ValueError: It is no position.
    """
    if len(text) > LONGEST:
        raise ValueError("It is too long.")
    if "-" not in text or text == START:
        return [whole_cursor(text)] * partitions
    if ":" not in text:
        cursor = whole_cursor(text)
        return [cursor] if partitions == 1 else None
    parts = [_ONE_OF_MANY.fullmatch(part) for part in text.split(",")]
    if not all(parts):
        raise ValueError("It has a part that is no `number:cursor`.")
    by_number = {int(part[1]): whole_cursor(part[2]) for part in parts if part}
    if len(by_number) != len(parts):
        raise ValueError("It has a partition twice.")
    return [by_number[number] for number in range(partitions)] if set(by_number) == set(range(partitions)) else None
