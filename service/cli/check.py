"""The command `check`: can this configuration work, and what is to be done if not?"""

import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import click
import redis
from clerk_session_feed import connections
from clerk_session_feed.keys import Keys, has_hash_tag, partition_of
from clerk_session_feed.redis_url import RedisUrl

from service.cli.diagnosis import CheckResult, check_info, explain
from service.config import DevSettings, ReconcileSettings, Settings, load, misspelt
from service.dev import simulator
from service.errors import DeadLettersFullError, RelayError
from service.ingest import Ingest
from service.models import Delivery
from service.store.sessions import SessionStore
from service.telemetry import log, printable

CLOCK_SECONDS: Final = 60
"""How far the clocks of Redis and of this machine may differ without a warning."""
SAMPLE: Final = 100
"""Entries of each stream that are checked for belonging to its partition."""


@click.command(short_help="Tell whether this configuration can work.")
@click.option("--clerk", "with_clerk", is_flag=True, help="Also ask Clerk's Backend API; it needs CLERK_SECRET_KEY.")
def check(*, with_clerk: bool) -> None:
    """Tell whether this configuration can work, and what to do if not.

    With --clerk, it also compares up to 50 of the sessions that are stored as open with Clerk's, and needs no
    signing secret. It writes a test event, and deletes it.

    The exit status is 1 if the service can't work.
    """
    clerk = load(ReconcileSettings) if with_clerk else None
    # Where only `reconcile` and `revoke` run, there may be no secret.
    has_secret = clerk is None or load(DevSettings).clerk_webhook_signing_secret is not None
    settings = load(Settings) if has_secret else load(Settings, clerk_webhook_signing_secret=simulator.new_secret())
    log.configure(settings.model_copy(update={"log_level": "critical"}))
    can_work = True
    for result in itertools.chain(run_checks(settings, has_secret=has_secret), _clerk_checks(clerk)):
        can_work &= result.level != "error"
        click.echo(f"{result.level:<9}{printable(result.text)}")
    sys.exit(not can_work)


def _clerk_checks(settings: ReconcileSettings | None) -> Iterator[CheckResult]:
    if settings is not None:
        from service.cli.check_clerk import run_clerk_checks  # noqa: PLC0415  # it loads all of reconcile

        yield from run_clerk_checks(settings)


def run_checks(settings: Settings, *, has_secret: bool = True) -> Iterator[CheckResult]:
    """Check one thing after the other. If one result is an `error`, the service can't work."""
    if has_secret:
        yield CheckResult("ok", f"signing secrets: {len(settings.secrets)}, well-formed")
    else:
        yield CheckResult("warning", "CLERK_WEBHOOK_SIGNING_SECRET is not set: serve does not start without it")
    for name in sorted(Settings.model_fields.keys() - settings.model_fields_set):
        if alike := misspelt(name):
            yield CheckResult("warning", f"{alike} is not a setting: if it is meant for {name.upper()}, rename it")
    yield _check_tls(settings)
    writing = _check_writing(settings)
    yield writing
    try:
        yield from _check_servers(settings)
        yield from _check_types(settings)
        yield _check_partitions(settings)
    except redis.RedisError as error:
        if writing.level == "ok":
            yield CheckResult("warning", f"the other checks can't be done: {explain(error)}")


def _keys(settings: Settings) -> Keys:
    return Keys(settings.redis_key_prefix, settings.redis_channel)


def _client_at(settings: Settings, key: str) -> Any:
    return connections.connect(
        settings.redis_url.get_secret_value(), key, tls_verify=settings.redis_tls_verify, timeout=settings.redis_timeout
    )


def _check_tls(settings: Settings) -> CheckResult:
    url = RedisUrl.parse(settings.redis_url.get_secret_value()).server_url
    if not url.startswith("rediss:"):
        return CheckResult("ok", "TLS: off; use rediss:// across any network that is not your own")
    if not settings.redis_tls_verify or "ssl_cert_reqs=none" in url:
        return CheckResult("ok", "TLS: on; the certificate is not checked, as configured")
    return CheckResult("ok", "TLS: on; the certificate is checked")


def _check_writing(settings: Settings) -> CheckResult:
    """Store events in each partition, and a dead letter, under keys of its own; then delete them."""
    names = {name: f"{getattr(settings, name)}:check" for name in ("redis_key_prefix", "redis_channel")}
    trial = settings.model_copy(update=names)
    many = (f"user_{number}" for number in range(20 * settings.partitions))
    users = {partition_of(user, settings.partitions): user for user in many}
    store = SessionStore(trial)
    ingest = Ingest(store)
    try:
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
    keys = _keys(trial)
    for number, part in enumerate(keys.split(trial.partitions)):
        with _client_at(trial, part.events) as client:
            user = users[number]
            of_user = part.user_sessions(user), part.user_pending(user), part.user_gone(user)
            client.delete(part.session("sess_check"), *of_user, part.events, part.expiry)
    with _client_at(trial, keys.dead_letters) as client:
        client.delete(keys.dead_letters)


def _check_servers(settings: Settings) -> Iterator[CheckResult]:
    keys, url = _keys(settings), settings.redis_url.get_secret_value()
    parts = keys.split(settings.partitions)
    # A web worker has one connection for each slot; an expiry worker two, but none for the dead letters.
    expiring = {connections.slot(url, part.probe) for part in parts}
    web: Counter[str] = Counter()
    expiry: Counter[str] = Counter()
    key_at = {}
    for slot, key in {connections.slot(url, part.probe): part.probe for part in (keys, *parts)}.items():
        with _client_at(settings, key) as client:
            address = _address(client)
        web[address] += settings.web_concurrency
        expiry[address] += 2 * (slot in expiring)
        key_at[address] = key
    for address, key in key_at.items():
        with _client_at(settings, key) as client:
            for result in _check_server(client, web[address], expiry[address], settings):
                yield result._replace(text=f"{address}: {result.text}")


def _check_server(client: Any, web: int, expiry: int, settings: Settings) -> Iterator[CheckResult]:
    try:
        info = client.info()
    except redis.ResponseError as error:
        text = f"can't be checked, INFO says {connections.explain(error)}"
        advice = "allow +info, or check its version, maxmemory-policy, persistence and connections yourself"
        yield CheckResult("warning", f"{text}: {advice}")
        return
    with contextlib.suppress(redis.ResponseError):  # few managed servers allow it
        info |= client.config_get("save")
    yield from check_info(info, web, expiry, settings.redis_min_replicas)
    with contextlib.suppress(redis.ResponseError):
        seconds, microseconds = client.time()
        ahead = seconds + microseconds / 1e6 - time.time()
        if abs(ahead) > CLOCK_SECONDS:
            text = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
            why = "A machine whose clock is more than 300 s off refuses every delivery"
            yield CheckResult("warning", f"{text}: set both by NTP. {why}")


def _address(client: Any) -> str:
    connection = client.connection_pool.get_connection()
    client.connection_pool.release(connection)
    return getattr(connection, "path", None) or f"{connection.host}:{connection.port}"


def _check_types(settings: Settings) -> Iterator[CheckResult]:
    keys = _keys(settings)
    types = {keys.dead_letters: b"hash"}
    for part in keys.split(settings.partitions):
        types |= {part.events: b"stream", part.expiry: b"zset"}
    for key, expected in types.items():
        with _client_at(settings, key) as client:
            found: Any = client.type(key)
        if found not in {b"none", expected}:
            text = f"{key} is a {found.decode()}, not a {expected.decode()}"
            yield CheckResult("error", f"{text}: find out whose it is; rename or delete it")


def _check_partitions(settings: Settings) -> CheckResult:
    """Compare PARTITIONS with what is stored.

    The users of each stream have to belong to its partition. They also do if the data has a multiple of PARTITIONS,
    but then there are streams of the next numbers, too.
    """
    count, keys = settings.partitions, _keys(settings)
    others: tuple[Keys, ...] = keys.split(2) if has_hash_tag(keys.prefix) else ()
    if count > 1:
        others = (keys, *keys.split(2 * count)[count:])
    wrong = []
    for other in others:
        with _client_at(settings, other.events) as client:
            if client.exists(other.events):
                wrong.append(other.events)
    for number, part in enumerate(keys.split(count)):
        with _client_at(settings, part.events) as client:
            entries: Any = client.xrevrange(part.events, count=SAMPLE)
        users = {fields.get(b"user_id", b"").decode(errors="replace") for _, fields in entries}
        if any(partition_of(user, count) != number for user in users):
            wrong.append(part.events)
    if wrong:
        text = f"PARTITIONS={count} does not fit the data in {', '.join(wrong[:3])}"
        advice = "Set it to what it was, or let the service start anew under another REDIS_KEY_PREFIX"
        return CheckResult("error", f"{text}. {advice}")
    return CheckResult("ok", f"PARTITIONS={count} fits the data")
