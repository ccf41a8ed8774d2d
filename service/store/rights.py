"""Whether Redis refused something because its user lacks a right, or because it has no such command.

Redis has a code for a missing right, NOPERM, but none where a script runs the command. There it has only words, and
they differ by version. For a command that a server or a proxy does not have, each has its own. Consumers read the same
words, so the lists are in their package.
"""

from typing import Final

from clerk_session_feed.refusals import has_no_command, is_missing_right

__all__ = ["MISSING_RIGHT_ADVICE", "has_no_command", "is_missing_right"]

MISSING_RIGHT_ADVICE: Final = "give the user the rights that docs/redis.md lists"
