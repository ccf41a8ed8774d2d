"""Which users a run has looked at: eight bytes each, so that a million take 16 MB here and 8 MB in Redis.

A module of its own, because it is a data structure, and tested as one.
"""

import hashlib
from array import array
from typing import Final

_SMALLEST: Final = 1 << 10


class Visited:
    """A set of ids that only grows, with open addressing.

    It holds 64 bits of a digest of each id. Among a million users, the chance that one is taken for another is one in
    forty million.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _SMALLEST))  # 0: empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, id_: object) -> bool:
        return isinstance(id_, str) and self._slots[self._find(_digest(id_))] != 0

    def add(self, id_: str) -> bytes:
        """Add an id, and return the bytes by which `load` adds it again."""
        digest = _digest(id_)
        self._add(digest)
        return digest.to_bytes(8, "little")

    def load(self, stored: bytes) -> None:
        """Add what `add` returned, any number of times."""
        for start in range(0, len(stored) - len(stored) % 8, 8):
            self._add(int.from_bytes(stored[start : start + 8], "little"))

    def _add(self, digest: int) -> None:
        slot = self._find(digest)
        if self._slots[slot]:
            return
        self._slots[slot] = digest
        self._count += 1
        if 2 * self._count > len(self._slots):
            old = self._slots
            self._slots = array("Q", bytes(16 * len(old)))
            for each in old:
                if each:
                    self._slots[self._find(each)] = each

    def _find(self, digest: int) -> int:
        """Return the slot that holds a digest, or the empty one where it belongs."""
        slots, last = self._slots, len(self._slots) - 1
        slot = digest & last
        while slots[slot] and slots[slot] != digest:
            slot = (slot + 1) & last
        return slot


def _digest(id_: str) -> int:
    return int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little") or 1
