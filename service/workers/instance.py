"""Which Clerk instance the stored sessions are of: the key has to be of that one."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

from clerk_session_feed import lenient_json

from service.clerk.backend_api import BackendApi, Instance
from service.errors import CommandError
from service.store.partitions import Partition, result
from service.store.sessions import SessionStore
from service.store.stored import StoredState
from service.store.wrong_types import naming
from service.workers.runs import Runs

SAMPLED: Final = 200
"""Events, and open sessions, of each partition that are looked at for the instance that they name."""


class WrongInstanceError(CommandError):
    """The key is for another Clerk instance than the stored sessions are of."""


async def check_instance(api: BackendApi, store: SessionStore, runs: Runs, *, record: bool) -> Instance:
    """Return the instance that the key belongs to; with `record`, write it down if none was before.

    Raises:
        WrongInstanceError: Stored events, or an earlier run, name another one.
        ClerkError: Clerk refuses the key, or does not respond.
        StoreUnavailableError: Redis failed; or redis.RedisError.
    """
    instance = await api.instance()
    recorded = (await asyncio.to_thread(runs.status)).get("instance_id")
    named = await asyncio.to_thread(_named_instances, store)
    others = (named | {recorded}) - {instance.id, None}
    if others:
        raise WrongInstanceError(
            f"CLERK_SECRET_KEY is for the instance {instance.id} ({instance.environment}), but the stored sessions "
            f"are of {', '.join(sorted(map(str, others)))}. Nothing was changed. Set the key of that instance, or give "
            "each instance a REDIS_KEY_PREFIX of its own."
        )
    if record and recorded is None:
        await asyncio.to_thread(runs.record_instance, instance.id)
    return instance


def _named_instances(store: SessionStore) -> set[str | None]:
    """Return the instances that a sample of what is stored names; what can't be read names none."""
    return {
        instance_id
        for partition in store.partitions
        for message in (*_last_events(partition), *_open_sessions(store, partition))
        if isinstance(instance_id := _instance_of(message), str)
    }


def _instance_of(message: Any) -> Any:
    with contextlib.suppress(KeyError, TypeError):
        return message["event"]["instance_id"]
    return None


def _last_events(partition: Partition) -> Iterator[Any]:
    command = ("XREVRANGE", partition.keys.events, "+", "-", "COUNT", SAMPLED)
    with naming(partition.keys.events):
        entries = result(partition.pipeline.submit(command, list))
    for _, words in entries:
        fields = dict(zip(words[::2], words[1::2], strict=True))
        with contextlib.suppress(ValueError):
            yield lenient_json.loads(fields.get(b"message", b""))


def _open_sessions(store: SessionStore, partition: Partition) -> Iterator[Any]:
    """The stream may have been trimmed; these last as long as they are open."""
    command = ("ZRANGE", partition.keys.expiry, -SAMPLED, -1)
    with naming(partition.keys.expiry):
        ids = [each.decode(errors="replace") for each in result(partition.pipeline.submit(command, list))]
    for stored in store.read(partition, ids):
        if isinstance(stored, StoredState):
            with contextlib.suppress(ValueError):
                yield stored.message()
