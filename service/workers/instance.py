"""Which Clerk instance the stored sessions are of: the key has to be of that one."""

import asyncio
from typing import Final

import orjson

from service.clerk.backend_api import BackendApi, Instance
from service.errors import StartError
from service.store.sessions import SessionStore, result
from service.workers.runs import Runs

SAMPLED: Final = 200
"""Stored events of each partition that are looked at for the instance that they name."""


class WrongInstanceError(StartError):
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
    named = await asyncio.to_thread(_instances_of_events, store)
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


def _instances_of_events(store: SessionStore) -> set[str | None]:
    """Return the instances that a sample of the stored events names."""
    named = set()
    for partition in store.partitions:
        command = ("XREVRANGE", partition.keys.events, "+", "-", "COUNT", SAMPLED)
        for _, fields in result(partition.pipeline.submit(command, list)):
            named.add(orjson.loads(fields[fields.index(b"message") + 1])["event"]["instance_id"])
    return named
