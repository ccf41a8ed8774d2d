"""The deliveries that `check` tries, under keys of its own that it deletes."""

import contextlib
import time

import redis
from clerk_session_feed.keys import partition_of

from service.cli.check_connect import client_at, keys_of
from service.cli.diagnosis import CheckResult, explain
from service.config import Settings
from service.dev import simulator
from service.errors import DeadLettersFullError, RelayError
from service.ingest import Ingest
from service.models import Delivery
from service.store.sessions import SessionStore

SUFFIX = ":check"
"""What follows on REDIS_KEY_PREFIX and REDIS_CHANNEL in the names that `check` writes to."""


def check_writing(settings: Settings) -> CheckResult:
    """Store events in each partition, and a dead letter; then delete them."""
    names = {name: getattr(settings, name) + SUFFIX for name in ("redis_key_prefix", "redis_channel")}
    trial = settings.model_copy(update=names)
    many = (f"user_{number}" for number in range(20 * settings.partitions))
    users = {partition_of(user, settings.partitions): user for user in many}
    store = SessionStore(trial, may_mark=False)
    ingest = Ingest(store)
    try:
        store.connect()  # which may take longer than the probe waits
        store.probe()
        events = [
            simulator.sample(type_, session_id="sess_check", user_id=user)
            for user in users.values()
            for type_ in ("session.pending", "user.deleted")
        ]
        for event in [*events, {"type": "session.check"}]:
            with contextlib.suppress(DeadLettersFullError):  # with DEAD_LETTER_MAX=0
                ingest(Delivery(simulator.new_id("msg"), int(time.time()), simulator.encode(event)))
    except RelayError as error:
        return CheckResult("error", f"Redis takes no deliveries: {explain(error.__cause__ or error)}")
    finally:
        store.close()
        with contextlib.suppress(redis.RedisError):
            _delete(trial, users)
    return CheckResult("ok", "Redis takes deliveries")


def _delete(trial: Settings, users: dict[int, str]) -> None:
    keys = keys_of(trial)
    for number, part in enumerate(keys.split(trial.partitions)):
        with client_at(trial, part.events) as client:
            user = users[number]
            of_user = part.user_sessions(user), part.user_pending(user), part.user_gone(user)
            client.delete(part.session("sess_check"), *of_user, part.events, part.expiry)
    with client_at(trial, keys.dead_letters) as client:
        client.delete(keys.dead_letters)
