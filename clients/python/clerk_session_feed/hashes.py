"""Fields of many hashes at once: by a script, which makes one response of them; or by a command for each.

redis-py takes several microseconds for each response, in asyncio a dozen. It is much less as a part of one.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import redis

from clerk_session_feed.transport import Command, Connection

SCRIPT: Final = """
-- KEYS: hashes, all in one slot. ARGV: names of fields.
-- Returns for each hash a list of the values of these fields, nil for one that is missing; of a single field, the value
-- alone. Writes nothing.
local found = {}
for i, key in ipairs(KEYS) do
  local values = redis.call('HMGET', key, unpack(ARGV))
  if #ARGV == 1 then
    found[i] = values[1]
  else
    found[i] = values
  end
end
return found
"""
AT_ONCE: Final = 250
"""Hashes that the script reads in one run: a millisecond or two, in which Redis serves nobody else."""


async def read_hashes(
    connection: Connection, keys: Sequence[bytes], fields: Sequence[str], *further: Command
) -> tuple[list[Any], list[Any]]:
    """Return the values of two or more fields for each hash, and the responses to further commands, in one round trip.

    A value that is missing is None. Raises like `Connection.ask`.
    """
    return await connection.persist(_read, connection, keys, fields, *further)


async def read_field(
    connection: Connection, keys: Sequence[bytes], field: str, *further: Command
) -> tuple[list[bytes | None], list[Any]]:
    """Return the value of one field for each hash; see `read_hashes`."""
    return await connection.persist(_read, connection, keys, [field], *further)


async def _read(
    connection: Connection, keys: Sequence[bytes], fields: Sequence[str], *further: Command
) -> tuple[list[Any], list[Any]]:
    if connection.runs_scripts:
        parts = [keys[first : first + AT_ONCE] for first in range(0, len(keys), AT_ONCE)]
        scripts = (("EVAL", SCRIPT, len(part), *part, *fields) for part in parts)
        try:
            responses = await connection.execute(*scripts, *further)
        except redis.ResponseError:
            pass  # a right that is missing, or a server or a proxy without scripts; if it is more, the commands tell
        else:
            return list(chain.from_iterable(responses[: len(parts)])), responses[len(parts) :]
    responses = await connection.execute(*(("HMGET", key, *fields) for key in keys), *further)
    connection.runs_scripts = False
    found = responses[: len(keys)]
    return [values[0] for values in found] if len(fields) == 1 else found, responses[len(keys) :]
