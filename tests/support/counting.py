"""What is counted after a load: what Redis stores, what the sender was told, and what subscribers saw."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from support.clock import eventually
from support.constants import EVENTS_KEY, EXPIRY_KEY
from support.lives import OPEN, Message, demanded
from support.load import WORKERS, Load, Usage, await_connections
from support.onlookers import CHANNEL, our_client
from support.schemas import PUBLISHED, faults, faults_stored

RESPONSE_SECONDS: Final = 5.0
HEALTH_SECONDS: Final = 1.0
MORE_MEGABYTES: Final = 16.0
"""That a worker may have taken since the first fault: caches of its libraries fill up, and memory fragments."""

Wrong = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Counts:
    told: Mapping[str, object]
    wrong: Wrong
    """What must not be, with the cases; every list is to be empty."""

    @property
    def wrong_ones(self) -> dict[str, list[str]]:
        return {what: cases[:5] for what, cases in self.wrong.items() if cases}

    def __str__(self) -> str:
        rows = [*self.told.items(), *((what, len(cases)) for what, cases in self.wrong.items())]
        width = max(len(what) for what, _ in rows)
        return "\n".join(f"{what:<{width}}  {count}" for what, count in rows)


def count(load: Load) -> Counts:
    """Count once the load is over, and the sender and the watches have gone."""
    eventually(lambda: len(load.workers()) in {WORKERS, 0})
    await_connections(load.redis, load.service)
    usage = load.usage()
    with our_client(load.redis.url) as client:
        stored = Stored(client)
    sender = load.sender
    attempts = sender.attempts
    health = {watch.path: watch.answers for watch in load.watches}
    applied = [entry for entry in stored.entries if entry.revision is not None]
    was_there = load.killed_workers == load.moves == 0
    told: dict[str, object] = {
        "deliveries": len(sender.messages),
        "sessions": len(demanded(sender.messages)),
        **_rows(message.status for message in demanded(sender.messages).values()),
        "attempts": len(attempts),
        **_rows(attempt.said for attempt in attempts),
        "acknowledged": len(sender.acknowledged),
        "in the stream": len(stored.entries),
        "  applied": len(applied),
        "  stale": len(stored.entries) - len(applied),
        "subscriber: messages of applied events": sum(channel == CHANNEL for channel, _ in load.subscriber.messages),
        "subscriber: connections made": load.subscriber.connections,
        "slowest answer (s)": f"{max(attempt.seconds for attempt in attempts):.3f}",
        **{
            f"{path}: slowest answer (s), answers by status": f"{_slowest(answers):.3f}, "
            + ", ".join(f"{status or 'none'}: {times}" for status, times in _by_status(answers))
            for path, answers in health.items()
        },
        "longest delay of the machine itself (s)": f"{load.metronome.delay(0, float('inf')):.3f}",
        "connections to Redis, before and after": f"{load.before.redis_connections}, {usage.redis_connections}",
        "sockets of the workers, before and after": f"{load.before.sockets}, {usage.sockets}",
        "MB of the largest worker, before and after": f"{load.megabytes_before:.1f}, {usage.megabytes:.1f}",
        "workers killed": load.killed_workers,
        "deliveries taken that nobody was told of": len(taken := _taken_unanswered(load)),
    }
    wrong = {
        **_wrong_in_stream(load, stored),
        **_wrong_states(load, stored),
        **_wrong_for_subscribers(load, stored),
        "answers later than 5 s": [
            f"{attempt.message.id}: {attempt.seconds}"
            for attempt in attempts
            if attempt.seconds - load.metronome.delay(attempt.ended - attempt.seconds, attempt.ended) > RESPONSE_SECONDS
        ],
        "answers that are none of the contract's": [
            attempt.said
            for attempt in attempts
            if attempt.status not in {None, 200} and attempt.body.get("code") != "store_unavailable"
        ],
        "health answers later than 1 s": [
            f"{path}: {seconds}"
            for path, answers in health.items()
            for status, seconds, ended in answers
            if status is not None and seconds - load.metronome.delay(ended - seconds, ended) > HEALTH_SECONDS
        ],
        "health answers of another status": [
            f"{path}: {status}"
            for path, answers in health.items()
            for status, *_ in answers
            if status not in {None, 200} | ({503} if path == "/readyz" else set())
        ],
        "requests not answered by a service that was there": [
            attempt.message.id for attempt in attempts if attempt.status is None and was_there
        ],
        "health checks not answered by a service that was there": [
            path for path, answers in health.items() for status, *_ in answers if status is None and was_there
        ],
        "requests taken, but not answered": [] if load.killed_workers else taken,
        "connections or memory not given back": list(_kept(load, usage)),
    }
    return Counts(told, wrong)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    cursor: str
    session_id: str
    message_id: str
    revision: int | None
    """None: stale."""


class Stored:
    """What Redis stores."""

    def __init__(self, client: Any) -> None:
        self.entries = [
            Entry(cursor, fields["session_id"], message["event"]["id"], message["revision"])
            for cursor, fields in client.xrange(EVENTS_KEY)
            if (message := json.loads(fields["message"]))
        ]
        self.schema_faults = faults_stored(client)
        self.sessions: dict[str, dict[str, str]] = {}
        self.user_sets: dict[tuple[str, str], dict[str, float]] = {}
        """By user and kind: `sessions` (live ones) or `pending` (the other open ones)."""
        self.expiry: dict[str, float] = {}
        self.without_ttl: list[str] = []
        self.unexpected: list[str] = []
        for key in client.scan_iter("*"):
            match key.split(":"):
                case ["{clerk}", "session", session_id]:
                    self.sessions[session_id] = client.hgetall(key)
                case ["{clerk}", "user", user_id, "sessions" | "pending" as kind]:
                    self.user_sets[user_id, kind] = dict(client.zrange(key, 0, -1, withscores=True))
                case ["{clerk}", "expiry"]:
                    self.expiry = dict(client.zrange(EXPIRY_KEY, 0, -1, withscores=True))
                    continue
                case ["{clerk}", "events" | "dead-letters"]:
                    continue
                case _:
                    self.unexpected.append(key)
            if client.ttl(key) == -1:
                self.without_ttl.append(key)


def _rows(values: Iterable[str]) -> dict[str, int]:
    return {f"  {value}": times for value, times in sorted(collections.Counter(values).items())}


def _by_status(answers: list[tuple[int | None, float, float]]) -> list[tuple[int | None, int]]:
    counted = collections.Counter(status for status, *_ in answers)
    return sorted(counted.items(), key=lambda pair: pair[0] or 0)


def _slowest(answers: list[tuple[int | None, float, float]]) -> float:
    return max((seconds for _, seconds, _ in answers), default=0.0)


def _taken_unanswered(load: Load) -> list[str]:
    """Return the messages that were in Redis already when they were first answered, and never refused before."""
    unanswered = set()
    refused = set()
    for attempt in load.sender.attempts:
        if attempt.status is None:
            unanswered.add(attempt.message.id)
        elif not attempt.is_success:
            refused.add(attempt.message.id)
    first = load.sender.acknowledged
    return [id_ for id_ in unanswered - refused if id_ in first and first[id_].body["outcome"] == "duplicate"]


def _wrong_in_stream(load: Load, stored: Stored) -> Wrong:
    sent = {message.id for message in load.sender.messages}
    times = collections.Counter(entry.message_id for entry in stored.entries)
    place = {entry.message_id: (entry.cursor, entry.revision) for entry in stored.entries}
    answers = [attempt for attempt in load.sender.attempts if attempt.is_success]
    return {
        "sent, but never acknowledged": sorted(sent - set(load.sender.acknowledged)),
        "acknowledged, but not in the stream": sorted(set(load.sender.acknowledged) - set(times)),
        "more than once in the stream": [id_ for id_, number in times.items() if number > 1],
        "in the stream, but never sent": sorted(set(times) - sent),
        "answers with another cursor or revision than the stream's": [
            f"{answer.message.id}: {answer.body}"
            for answer in answers
            if (answer.body["cursor"], answer.body["revision"]) != place.get(answer.message.id)
        ],
    }


def _wrong_states(load: Load, stored: Stored) -> Wrong:
    demands = demanded(load.sender.messages)
    orders = {message.id: message.order for message in load.sender.messages}
    applied: dict[str, list[Entry]] = collections.defaultdict(list)
    for entry in stored.entries:
        if entry.revision is not None:
            applied[entry.session_id].append(entry)
    return {
        "sessions in another state than their events demand": [
            session_id
            for session_id in demands.keys() | stored.sessions.keys()
            if not _is_as_demanded(stored.sessions.get(session_id), demands.get(session_id))
        ],
        "sessions whose revision does not count the applied events": [
            session_id
            for session_id, fields in stored.sessions.items()
            if [entry.revision for entry in applied[session_id]] != list(range(1, int(fields["revision"]) + 1))
            or applied[session_id][-1].cursor != fields["cursor"]
        ],
        "sessions that took an older event after a newer one": [
            session_id
            for session_id, entries in applied.items()
            if any(
                orders.get(later.message_id, ()) <= orders.get(earlier.message_id, ())
                for earlier, later in itertools.pairwise(entries)
            )
        ],
        "sessions that are in the wrong users' sets": _differing(
            {
                (str(message.session["user_id"]), kind, session_id): _score(message)
                for session_id, message in demands.items()
                for kind in ("sessions", "pending")
                if message.status in OPEN
                and stored.sessions.get(session_id, {}).get("live") == ("1" if kind == "sessions" else "0")
            },
            {
                (user_id, kind, session_id): score
                for (user_id, kind), scores in stored.user_sets.items()
                for session_id, score in scores.items()
            },
        ),
        "sessions that wait for their expiry, or should": _differing(
            {
                session_id: _score(message)
                for session_id, message in demands.items()
                if message.status in OPEN and message.session["expire_at"] is not None
            },
            stored.expiry,
        ),
        "keys without a TTL": stored.without_ttl,
        "keys that the contract does not know": stored.unexpected,
    }


def _is_as_demanded(fields: Mapping[str, str] | None, demand: Message | None) -> bool:
    if fields is None or demand is None:
        return False
    message = json.loads(fields["state"])
    live = message["session"].pop("live")
    return (
        message["session"] == demand.session
        and message["event"]["id"] == demand.id
        and live == _is_live(demand)
        and fields["live"] == str(int(live))
        and fields["status"] == demand.status
        and fields["user_id"] == demand.session["user_id"]
        and (message["revision"], message["cursor"]) == (int(fields["revision"]), fields["cursor"])
    )


def _is_live(message: Message) -> bool:
    """No session of `lives` ends by the clock while it is sent: its end is days away, or long past."""
    expire_at = message.session["expire_at"]
    return message.status == "active" and (expire_at is None or expire_at > message.sent_from_ms)


def _score(message: Message) -> float:
    expire_at = message.session["expire_at"]
    return float("inf") if expire_at is None else float(expire_at)


def _differing(demanded: Mapping[Any, float], stored: Mapping[Any, float]) -> list[str]:
    return [str(key) for key in demanded.keys() | stored.keys() if demanded.get(key) != stored.get(key)]


def _wrong_for_subscribers(load: Load, stored: Stored) -> Wrong:
    place = {entry.message_id: (entry.cursor, entry.revision) for entry in stored.entries}
    ended: set[tuple[str, str]] = set()
    revisions: dict[tuple[str, str], int] = collections.defaultdict(int)
    risen, unordered, unknown = [], [], []
    for channel, message in load.subscriber.messages:
        session = message["session"]
        seen = (channel, session["id"])
        if seen in ended and (session["live"] or session["status"] in OPEN):
            risen.append(session["id"])
        if session["status"] not in OPEN:
            ended.add(seen)
        if message["revision"] <= revisions[seen]:
            unordered.append(session["id"])
        revisions[seen] = message["revision"]
        if place.get(message["event"]["id"]) != (message["cursor"], message["revision"]):
            unknown.append(message["event"]["id"])
    return {
        "messages that break the schema": [
            *stored.schema_faults,
            *(fault for _, message in load.subscriber.messages for fault in faults(PUBLISHED, message)),
        ],
        "sessions that subscribers saw go from ended to live": risen,
        "sessions that subscribers saw go back to an older revision": unordered,
        "messages to subscribers that are not in the stream": unknown,
    }


def _kept(load: Load, usage: Usage) -> Iterator[str]:
    if usage.redis_connections != load.before.redis_connections:
        yield f"connections to Redis: {usage.redis_connections}"
    if usage.sockets > load.before.sockets:
        yield f"sockets: {usage.sockets}"
    if usage.megabytes > load.megabytes_before + MORE_MEGABYTES:
        yield f"MB: {usage.megabytes}"
