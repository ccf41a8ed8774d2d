"""The Lua scripts that Redis runs, with their arguments by name."""

import hashlib
import importlib.resources
import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final


class Script:
    """A Lua script beside this module, which Redis is asked to run by its hash.

    The script opens with a name, and a comment, for each of its KEYS and ARGV. `command` takes these names,
    so that Python and Lua can't disagree about their order:

        local
          session_id    -- the id of …
          = unpack(ARGV)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (importlib.resources.files(__package__) / f"{name}.lua").read_bytes()
        keys = _names("KEYS", self.source.decode())
        self.names = keys + _names("ARGV", self.source.decode())
        self._head = ("EVALSHA", hashlib.sha1(self.source, usedforsecurity=False).hexdigest(), len(keys))
        self._count = len(self.names)
        self._in_order: Callable[..., tuple[Any, ...]] = itemgetter(*self.names)  # at least two names

    def command(self, **values: str | bytes | int) -> tuple[Any, ...]:
        """Return the Redis command that runs the script with these KEYS and ARGV.

        Raises:
            TypeError: A name is missing or unknown.
        """
        try:
            if len(values) == self._count:
                return self._head + self._in_order(values)
        except KeyError:
            pass
        missing, unknown = set(self.names) - set(values), set(values) - set(self.names)
        raise TypeError(f"{self.name}.lua: missing {sorted(missing)}, unknown {sorted(unknown)}")


def _names(table: str, source: str) -> list[str]:
    opening = re.search(rf"^local\n((?:  .*\n)+?)  = unpack\({table}\)$", source, re.MULTILINE)
    if opening is None:
        raise ValueError(f"The script does not open with the names of its {table}.")
    return re.findall(r"^  (\w+)", opening[1], re.MULTILINE)


APPLY_SESSION: Final = Script("apply_session")
SETTLE_EXPIRY: Final = Script("settle_expiry")
KEEP_DEAD_LETTER: Final = Script("keep_dead_letter")
MARK_USER: Final = Script("mark_user")
INDEX_SESSION: Final = Script("index_session")
LIST_DEAD_LETTERS: Final = Script("list_dead_letters")
MARK_PARTITIONS: Final = Script("mark_partitions")
"""Loaded where it is needed: once for each connection."""
SCRIPTS: Final = (APPLY_SESSION, SETTLE_EXPIRY, KEEP_DEAD_LETTER, MARK_USER, INDEX_SESSION, LIST_DEAD_LETTERS)
