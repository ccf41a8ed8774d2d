"""What the counts of test_faults and of `make soak` would notice: each harm done here by hand, after a load."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from support.constants import EVENTS_KEY, EXPIRY_KEY
from support.counting import count
from support.load import Load, under_load
from support.onlookers import CHANNEL, our_client
from support.redis_servers import DurableRedis
from support.services import ServiceProcess
from support.svix_sender import Attempt

DELIVERIES = 40
SESSIONS = 8


def nothing(_: Load) -> None:
    pass


def entry(client: Any, outcome: str = "applied") -> tuple[str, dict[str, str]]:
    """Return the first one with that outcome."""
    found: tuple[str, dict[str, str]] = next(
        (cursor, fields) for cursor, fields in client.xrange(EVENTS_KEY) if fields["outcome"] == outcome
    )
    return found


def session_key(client: Any) -> str:
    return str(min(client.scan_iter("*:session:*")))


def append(client: Any, **changes: Any) -> None:
    """Write an entry once more, with other values in its event."""
    _, fields = entry(client)
    message = json.loads(fields["message"])
    message["event"] |= changes
    client.xadd(EVENTS_KEY, fields | {"message": json.dumps(message)})


def publish(client: Any, status: str, revision: int, *, live: bool) -> None:
    message = json.loads(client.hget(session_key(client), "state"))
    message["session"] |= {"status": status, "live": live}
    client.publish(CHANNEL, json.dumps(message | {"revision": revision}))


def raise_from_the_dead(client: Any) -> None:
    publish(client, "ended", 1000, live=False)
    publish(client, "active", 1001, live=True)


def answer(load: Load, **changes: Any) -> None:
    load.sender.attempts.append(dataclasses.replace(load.sender.attempts[0], **changes))


def leave_unanswered(load: Load) -> None:
    first = next(iter(load.sender.acknowledged.values()))
    told = dataclasses.replace(first, body=first.body | {"outcome": "duplicate"})
    load.sender.acknowledged[first.message.id] = told
    load.sender.attempts.append(Attempt(first.message, 0.1, None, {}))


Harm = Callable[[Load, Any], object]

HARMS: dict[str, Harm] = {
    "sent, but never acknowledged": lambda load, _: load.sender.acknowledged.popitem(),
    "acknowledged, but not in the stream": lambda _, client: client.xdel(EVENTS_KEY, entry(client)[0]),
    "more than once in the stream": lambda _, client: append(client),
    "in the stream, but never sent": lambda _, client: append(client, id="msg_forged"),
    "answers with another cursor or revision than the stream's": lambda load, _: answer(
        load, status=200, body={"cursor": "1-0", "revision": 1, "outcome": "applied"}
    ),
    "sessions in another state than their events demand": lambda _, client: client.delete(session_key(client)),
    "sessions whose revision does not count the applied events": lambda _, client: client.hincrby(
        session_key(client), "revision", 1
    ),
    "sessions that took an older event after a newer one": lambda _, client: append(client),
    "sessions that are in the wrong users' sets": lambda _, client: client.zadd(
        "{clerk}:user:user_1:sessions", {"sess_1": 1}
    ),
    "sessions that wait for their expiry, or should": lambda _, client: client.zpopmin(EXPIRY_KEY),
    "keys without a TTL": lambda _, client: client.persist(session_key(client)),
    "keys that the contract does not know": lambda _, client: client.set("{clerk}:mark", 1, ex=60),
    "messages that break the schema": lambda _, client: append(client, type="user.created"),
    "sessions that subscribers saw go from ended to live": lambda _, client: raise_from_the_dead(client),
    "sessions that subscribers saw go back to an older revision": lambda _, client: publish(
        client, "active", 0, live=True
    ),
    "messages to subscribers that are not in the stream": lambda _, client: publish(client, "active", 1000, live=True),
    "answers later than 5 s": lambda load, _: answer(load, seconds=5.1, ended=0.0),
    "answers that are none of the contract's": lambda load, _: answer(load, status=500, body={}),
    "health answers later than 1 s": lambda load, _: load.watches[1].answers.append((503, 1.5, 0.0)),
    "health answers of another status": lambda load, _: load.watches[0].answers.append((503, 0.1, 0.0)),
    "requests not answered by a service that was there": lambda load, _: answer(load, status=None),
    "health checks not answered by a service that was there": lambda load, _: load.watches[0].answers.append(
        (None, 0.1, 0.0)
    ),
    "requests taken, but not answered": lambda load, _: leave_unanswered(load),
}


@pytest.mark.parametrize("what", HARMS)
def test_counts_notice(durable_server: DurableRedis, durable_service: ServiceProcess, what: str) -> None:
    with under_load(durable_server, durable_service, DELIVERIES, SESSIONS, seed=3) as load:
        load.suffer(nothing, DELIVERIES)
        with our_client(durable_server.url) as client:
            HARMS[what](load, client)

    assert count(load).wrong[what]


def test_counts_notice_a_connection_that_was_not_given_back(
    durable_server: DurableRedis, durable_service: ServiceProcess
) -> None:
    with under_load(durable_server, durable_service, DELIVERIES, SESSIONS, seed=3) as load:
        load.suffer(nothing, DELIVERIES)

    with redis.Redis.from_url(durable_server.url) as client:
        client.ping()
        assert count(load).wrong["connections or memory not given back"]


def test_counts_have_a_row_for_each_harm(durable_server: DurableRedis, durable_service: ServiceProcess) -> None:
    with under_load(durable_server, durable_service, DELIVERIES, SESSIONS, seed=3) as load:
        load.suffer(nothing, DELIVERIES)

    assert set(count(load).wrong) == {*HARMS, "connections or memory not given back"}
    assert count(load).wrong_ones == {}
