"""Cursors: ids of stream entries, such as `1795422761000-0`.

https://redis.io/docs/latest/develop/data-types/streams/#entry-ids
"""

import re
from typing import Final

START: Final = "0-0"
"""The cursor before everything that the stream holds, whatever was trimmed."""
NOTHING: Final = "0-1"
"""The cursor of a stream that was empty. No entry has it. Unlike with START, what is trimmed behind it was missed."""
MAX_PART: Final = 2**64 - 1
"""The greatest number on either side of the hyphen."""


def whole_cursor(cursor: str) -> str:
    """Return the cursor without leading zeros; for a time alone (Unix milliseconds), the one before all of that time.

    Raises:
        ValueError: If it is neither.
    """
    parts = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", cursor)
    numbers = [int(part) for part in parts.groups() if part is not None] if parts else []
    if not numbers or max(numbers) > MAX_PART:
        raise ValueError(f"{cursor!r} is no cursor like 1795422761000-0")
    ms = numbers[0]
    if "-" in cursor:
        return f"{ms}-{numbers[1]}"
    return f"{ms - 1}-{MAX_PART}" if ms else START


def position(cursor: str) -> tuple[int, int]:
    """Return the two numbers by which cursors compare."""
    ms, _, sequence = cursor.partition("-")
    return int(ms), int(sequence)
