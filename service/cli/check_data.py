"""What `check` says of the data: what was received last, and what nobody works off."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import redis

from service.cli.check_connect import client_at, clock_ms, keys_of, partitions_by_client, run
from service.cli.diagnosis import NEARLY_FULL, CheckResult
from service.config import Settings
from service.store.wrong_types import is_wrong_type

SAMPLE: Final = 20
"""Entries of each stream, the newest, among which an event of Clerk's is looked for."""
OVERDUE_SECONDS: Final = 120
"""From so long after its end on, a session is one that nobody expires: twice what a worker takes that looks seldom."""


def check_types(settings: Settings) -> Iterator[CheckResult]:
    """Check that no key of the relay is somebody else's, by commands that `serve` needs, too."""
    key = keys_of(settings).dead_letters
    with client_at(settings, key) as client:
        yield from _check_type(client, "hash", key, "HLEN")
    for client, parts in partitions_by_client(settings):
        for part in parts:
            yield from _check_type(client, "stream", part.events, "XDEL", "0-0")
            yield from _check_type(client, "zset", part.expiry, "ZCOUNT", "-inf", "-inf")


def _check_type(client: Any, expected: str, key: str, command: str, *arguments: str) -> Iterator[CheckResult]:
    try:
        run(client, command, key, *arguments)
    except redis.ResponseError as error:
        if is_wrong_type(error):
            text = f"{key} is a {_type(client, key)}, not a {expected}"
            yield CheckResult("error", f"{text}: find out whose it is; rename or delete it")


def _type(client: Any, key: str) -> str:
    try:
        return str(run(client, "TYPE", key).decode())
    except redis.ResponseError:  # a right that `serve` does not need
        return "key of another type"


def check_dead_letters(settings: Settings) -> Iterator[CheckResult]:
    """Check that there is room for dead letters."""
    key, limit = keys_of(settings).dead_letters, settings.dead_letter_max
    with client_at(settings, key) as client:
        count = client.hlen(key)
    work_off = "work them off (session-relay dead-letters list), or raise DEAD_LETTER_MAX"
    refused = "an event that can't be read gets 503, and is lost when Svix gives up after 27.6 hours"
    if limit == 0 and not count:
        yield CheckResult("ok", f"dead letters: DEAD_LETTER_MAX=0 keeps none; {refused}")
    elif count >= limit:
        yield CheckResult("warning", f"dead letters: {count} of {limit}, so it is full: {refused}: {work_off}")
    elif count >= NEARLY_FULL * limit:
        yield CheckResult("warning", f"dead letters: {count} of {limit}, so it is nearly full: {work_off}")
    else:
        seen = ": session-relay dead-letters list shows them" if count else ""
        yield CheckResult("ok", f"dead letters: {count} of {limit}{seen}")


def check_expiry(settings: Settings) -> Iterator[CheckResult]:
    """Check that somebody expires sessions, as far as sessions tell that are overdue."""
    overdue, first_ms, now_ms = 0, 0.0, 0.0
    for client, parts in partitions_by_client(settings):
        now_ms = clock_ms(client)
        late = now_ms - OVERDUE_SECONDS * 1000
        for part in parts:
            if first := client.zrangebyscore(part.expiry, "-inf", late, start=0, num=1, withscores=True):
                overdue += client.zcount(part.expiry, "-inf", late)
                first_ms = min(first_ms or now_ms, first[0][1])
    if overdue:
        text = f"nobody expires sessions, or not fast enough: {overdue} are overdue, the first"
        advice = "run session-relay expire beside serve; if it runs, see its log"
        yield CheckResult("warning", f"{text} by {_length(now_ms - first_ms)}: {advice}")
    else:
        yield CheckResult("ok", "no session is overdue for session-relay expire")


def check_received(settings: Settings) -> Iterator[CheckResult]:
    """Say what was received last, and of which Clerk instances."""
    newest, now_ms, is_empty = 0, 0.0, True
    event: dict[str, Any] = {}
    instances: set[str] = set()
    for client, parts in partitions_by_client(settings):
        now_ms = clock_ms(client)
        entries = [entry for part in parts for entry in client.xrevrange(part.events, count=SAMPLE)]
        is_empty = is_empty and not entries
        for cursor, fields in entries:
            found, at_ms = _event(fields), int(cursor.partition(b"-")[0])
            if found.get("source") == "clerk":
                instances |= {str(found["instance_id"])} if found.get("instance_id") else set()
                newest, event = max((newest, event), (at_ms, found), key=lambda each: each[0])
    if event:
        at = f"{datetime.fromtimestamp(newest / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
        yield CheckResult("ok", f"last received: {event.get('type')}, {_length(now_ms - newest)} ago ({at})")
    else:
        text = (
            "nothing received yet, dead letters aside"
            if is_empty
            else f"the newest {SAMPLE} events are none of Clerk's"
        )
        where = "https://<where serve is reached>/webhooks/clerk"
        yield CheckResult("ok", f"{text}: see that an endpoint in Clerk's Dashboard, Webhooks, names {where}")
    if len(instances) > 1:
        text = f"events of several Clerk instances arrive here: {', '.join(sorted(instances))}"
        yield CheckResult("warning", f"{text}: let each have a relay, with its own REDIS_KEY_PREFIX and REDIS_CHANNEL")


def _event(fields: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        event = orjson.loads(fields[b"message"])["event"]
    except (KeyError, TypeError, ValueError):  # somebody else's entry
        return {}
    return event if isinstance(event, dict) else {}


def _length(milliseconds: float) -> str:
    """Return a span of time in the largest unit of which there are two: `90 s`, `5 min`."""
    seconds = max(0, round(milliseconds / 1000))
    for unit, size in (("days", 86_400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
