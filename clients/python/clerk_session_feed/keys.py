"""Every key and channel in Redis, with its type. The prefix's braces put all keys into one cluster slot.

With PARTITIONS, each partition has a prefix, and so a slot, of its own: what one node of a cluster can't bear
is spread over several.
"""

import binascii
import dataclasses
import re
from typing import Final

HASH_TAG: Final = re.compile(r"\{([^}]*)\}")
"""https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags"""


def has_hash_tag(prefix: str) -> bool:
    """Tell whether a cluster keeps all keys with this prefix in one slot."""
    tag = HASH_TAG.search(prefix)
    return tag is not None and tag[1] != ""


def partition_of(user_id: str, partitions: int) -> int:
    """Return the number of the partition that has a user's sessions; it lasts as long as the data.

    It is defined for any text, so that who asks about a user who can't exist learns that nothing is stored.
    """
    return binascii.crc32(user_id.encode(errors="surrogatepass")) % partitions


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """The names of the keys with one prefix, and of the channels."""

    prefix: str = "{clerk}"
    channel: str = "clerk:sessions"
    """Pub/sub: gets every applied message."""

    def session(self, session_id: str) -> str:
        """Hash: state, status, live, user_id, revision, cursor; `_…` is bookkeeping. Has a TTL."""
        return f"{self.prefix}:session:{session_id}"

    def user_sessions(self, user_id: str) -> str:
        """Sorted set: ids of the user's live sessions, scored by expire_at (ms; +inf). Has a TTL."""
        return f"{self.prefix}:user:{user_id}:sessions"

    def user_pending(self, user_id: str) -> str:
        """Sorted set: ids of the user's open sessions that are not live, scored by expire_at (ms; +inf). Has a TTL."""
        return f"{self.prefix}:user:{user_id}:pending"

    def user_gone(self, user_id: str) -> str:
        """Hash: since when the user is deleted or banned, and the event that said so. Has a TTL."""
        return f"{self.prefix}:user:{user_id}:gone"

    @property
    def revokes(self) -> str:
        """Sorted set: ids of sessions that Clerk has still to revoke, scored by when it was ordered (ms). Has a TTL."""
        return f"{self.prefix}:revokes"

    @property
    def events(self) -> str:
        """Stream: every session event applied or stale, once, in the order taken. Trimmed by length."""
        return f"{self.prefix}:events"

    @property
    def expiry(self) -> str:
        """Sorted set: ids of open sessions, scored by expire_at (ms)."""
        return f"{self.prefix}:expiry"

    @property
    def dead_letters(self) -> str:
        """Hash: message id to the delivery that could not be read, as JSON. Bounded by DEAD_LETTER_MAX."""
        return f"{self.prefix}:dead-letters"

    @property
    def layout(self) -> str:
        """Hash: the number of partitions, unless it is one; where it goes to, while it is changed. Has a TTL."""
        return f"{self.prefix}:partitions"

    @property
    def reconcile(self) -> str:
        """Hash: what `session-relay reconcile` found and when it last succeeded. Has a TTL."""
        return f"{self.prefix}:reconcile"

    @property
    def reconcile_lock(self) -> str:
        """String: which process reconciles now. Has a TTL of less than a minute."""
        return f"{self.prefix}:reconcile:lock"

    def reconcile_run(self, mode: str) -> str:
        """Hash: how far an unfinished run of this mode came. Has a TTL of a day."""
        return f"{self.prefix}:reconcile:run:{mode}"

    @property
    def probe(self) -> str:
        """Never exists: the readiness check pushes to it only if it does."""
        return f"{self.prefix}:probe"

    def split(self, partitions: int) -> tuple["Keys", ...]:
        """Return the keys of each partition: `{clerk:7}:…`; these, if there is only one.

        Channels, dead letters and what `reconcile` keeps are not split.
        """
        if partitions == 1:
            return (self,)
        return tuple(
            dataclasses.replace(self, prefix=HASH_TAG.sub(rf"{{\1:{number}}}", self.prefix, count=1))
            for number in range(partitions)
        )

    def user_channel(self, user_id: str) -> str:
        """Pub/sub: gets the applied messages of one user."""
        return f"{self.channel}:user:{user_id}"
