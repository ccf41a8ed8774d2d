"""Sessions that run out: what the expiry worker makes of them, at a frozen time, on each Redis it runs on.

docs/contract.md, sections 5 and 6. The command, in processes of its own, is in test_expire_command.py.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clerk_session_feed.keys import partition_of
from structlog.testing import CapturingLogger
from support.constants import DAY_MS, EVENTS_KEY, EXPIRY_KEY, HOUR_MS, NOW_MS, SESSION_KEY, USER_KEY, WEEK_S
from support.events import clerk_event
from support.redis_clients import contents, subscribed
from support.relay import Relay, make_settings, run_relay

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError
from service.models import Outcome
from service.store.stored import StoredState
from service.workers import expiry_batch
from service.workers.expiry import ExpiryWorker
from service.workers.expiry_event import expiry_of
from service.workers.expiry_pace import LARGEST_BATCH as BATCH

EXPIRE_AT = NOW_MS + HOUR_MS
LATER = EXPIRE_AT + HOUR_MS
CHANNELS = ("clerk:sessions", "clerk:sessions:user:user_1")


class Worker(ExpiryWorker):
    """Runs at a frozen time; something can happen between its reading and its writing."""

    def __init__(self, redis_url: str, **settings: Any) -> None:
        self.now_ms = LATER
        self.meanwhile: Callable[[], object] = lambda: None
        super().__init__(make_settings(redis_url, **settings), clock=lambda: self.now_ms / 1000)
        read_sessions = self._store.read

        def read(*arguments: Any) -> Any:
            stored = read_sessions(*arguments)
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            return stored

        self._store.read = read  # type: ignore[assignment]


@contextlib.contextmanager
def worker_on(redis_url: str, **settings: Any) -> Iterator[Worker]:
    with contextlib.closing(Worker(redis_url, **settings)) as worker:
        yield worker


@pytest.fixture
def worker(relay_redis: EmbeddedRedis, client: Any) -> Iterator[Worker]:
    with worker_on(relay_redis.url) as worker:
        yield worker


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    logger = CapturingLogger()
    monkeypatch.setattr(expiry_batch, "log", logger)
    return logger


def event(status: str = "active", **values: Any) -> dict[str, Any]:
    return clerk_event(status, **{"expire_at": EXPIRE_AT, **values})


def state(client: Any, session_id: str = "sess_1") -> Any:
    return json.loads(client.hget(f"{{clerk}}:session:{session_id}", "state"))


def expiries(client: Any, stream: str = EVENTS_KEY) -> list[str]:
    """Return the sessions of which the stream has an expiry."""
    messages = [json.loads(fields["message"]) for _, fields in client.xrange(stream)]
    return [each["session"]["id"] for each in messages if each["event"]["type"] == "session.expired"]


# The message


def test_a_session_that_runs_out_is_told_of_in_state_stream_and_both_channels(
    relay: Relay, worker: Worker, client: Any
) -> None:
    relay.take(event(), "msg_1")
    before = state(client)

    with subscribed(client, *CHANNELS) as subscriber:
        assert worker.run_once() == (1, 0)
        published = dict(subscriber.rest())

    _, (cursor, entry) = client.xrange(EVENTS_KEY)
    message = {
        "schema_version": 1,
        "cursor": cursor,
        "revision": 2,
        "previous_status": "active",
        "event": {
            "id": f"exp_sess_1_{EXPIRE_AT}",
            "type": "session.expired",
            "occurred_at": EXPIRE_AT,
            "instance_id": before["event"]["instance_id"],
            "source": "synthetic",
        },
        "session": before["session"] | {"status": "expired", "live": False},
    }
    line = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    assert published == dict.fromkeys(CHANNELS, line)
    assert client.hget(SESSION_KEY, "state") == line
    assert entry == {
        "outcome": "applied",
        "session_id": "sess_1",
        "user_id": "user_1",
        "message": line.replace(f'"{cursor}"', "null", 1),
    }


def test_its_hash_and_the_sets_say_so_too(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(), "msg_1")

    worker.run_once()

    fields = ("status", "live", "user_id", "revision")
    assert client.hmget(SESSION_KEY, fields) == ["expired", "0", "user_1", "2"]
    assert not client.exists(USER_KEY, EXPIRY_KEY)


def test_its_key_is_kept_for_the_retention_from_then_on(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(), "msg_1")

    worker.run_once()

    assert WEEK_S - 60 < client.ttl(SESSION_KEY) <= WEEK_S


def test_a_pending_session_runs_out_too(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event("pending"), "msg_1")

    assert worker.run_once() == (1, 0)

    message = state(client)
    assert (message["previous_status"], message["session"]["status"]) == ("pending", "expired")


def test_what_was_omitted_stays_omitted(relay_redis: EmbeddedRedis, worker: Worker, client: Any) -> None:
    with run_relay(relay_redis.url, omit_fields="latest_activity.city,updated_at,expire_at,tasks") as relay:
        relay.take(event(tasks=[{"key": "choose-organization"}]), "msg_1")
    before = state(client)["session"]

    assert worker.run_once() == (1, 0)

    assert state(client)["session"] == before | {"status": "expired", "live": False}
    assert before["expire_at"] is None


def test_what_is_omitted_by_now_is_omitted(relay_redis: EmbeddedRedis, relay: Relay, client: Any) -> None:
    relay.take(event(tasks=[{"key": "choose-organization"}]), "msg_1")
    relay.take(event(session_id="sess_2", latest_activity=None), "msg_2")
    before = state(client)["session"]

    with worker_on(relay_redis.url, omit_fields="latest_activity.city,client_id,tasks") as worker:
        assert worker.run_once() == (2, 0)

    assert state(client)["session"] == before | {
        "status": "expired",
        "live": False,
        "client_id": None,
        "latest_activity": before["latest_activity"] | {"city": None},
        "tasks": [],
    }


@pytest.mark.parametrize(
    "actor",
    [
        '{"sub":"user_støtte","n":' + "9" * 4000 + "}",
        '{"sub":"user_2","n":-18446744073709551617,"x":1e-07,"y":0.1}',
        '{"sub":"user_2","deep":' + "[" * 1900 + "]" * 1900 + "}",
        '{"sub":"\\u0000\\u2028\\u007f\\ud83d\\ude00"}',
    ],
    ids=["thousands of digits", "numbers", "deep", "odd text"],
)
def test_an_actor_stays_as_it_was(relay: Relay, worker: Worker, client: Any, actor: str) -> None:
    body = json.dumps(event(actor="its place")).replace('"its place"', actor)
    assert relay.take(body.encode(), "msg_1").outcome == "applied"
    before = client.hget(SESSION_KEY, "state")

    assert worker.run_once() == (1, 0)

    def written(line: str) -> str:
        return line[line.index('"actor":') : line.index(',"status"')]

    assert written(client.hget(SESSION_KEY, "state")) == written(before)


@pytest.mark.parametrize("publish", [False, True])
def test_there_is_no_http_request_but_its_key_if_clerks_events_have_it(
    relay_redis: EmbeddedRedis, worker: Worker, client: Any, publish: bool
) -> None:
    with run_relay(relay_redis.url, publish_http_request=publish) as relay:
        relay.take(event(), "msg_1")

    worker.run_once()

    told = state(client)["event"]
    assert told.get("http_request", "no key") == (None if publish else "no key")


# Whom it concerns


@pytest.mark.parametrize(
    "event_",
    [
        pytest.param(event(expire_at=LATER + 1), id="not yet due"),
        pytest.param(event(expire_at=None), id="without an end"),
        pytest.param(event(expire_at=None, abandon_at=EXPIRE_AT), id="only to be abandoned"),
        pytest.param(event("ended"), id="ended"),
        pytest.param(event("abandoned"), id="abandoned"),
    ],
)
def test_other_sessions_are_left_alone(relay: Relay, worker: Worker, client: Any, event_: Any) -> None:
    relay.take(event_, "msg_1")
    before = contents(client)

    assert worker.run_once() == (0, 0)

    assert contents(client) == before


def test_a_session_is_due_at_its_expire_at(relay: Relay, worker: Worker) -> None:
    relay.take(event(expire_at=LATER), "msg_1")

    assert worker.run_once() == (1, 0)


def test_a_session_that_was_extended_runs_out_at_its_new_end(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(updated_at=NOW_MS - 2000), "msg_1")
    relay.take(event(updated_at=NOW_MS - 1000, expire_at=LATER + HOUR_MS), "msg_2")
    assert worker.run_once() == (0, 0)

    worker.now_ms = LATER + HOUR_MS

    assert worker.run_once() == (1, 0)
    assert state(client)["event"]["id"] == f"exp_sess_1_{LATER + HOUR_MS}"


def test_more_than_a_batch_is_worked_off(relay: Relay, worker: Worker, client: Any) -> None:
    size = 2 * BATCH + 3
    assert relay.take_all((event(session_id=f"sess_{n}"), f"msg_{n}") for n in range(size)) == {"applied"}

    assert worker.run_once() == (size, 0)

    assert sorted(expiries(client)) == sorted(f"sess_{n}" for n in range(size))
    assert not client.exists(EXPIRY_KEY)


def test_all_partitions_are_worked_off(relay_redis: EmbeddedRedis, client: Any) -> None:
    users = {partition_of(user := f"user_{n}", 3): user for n in range(20)}
    with run_relay(relay_redis.url, partitions=3) as relay, worker_on(relay_redis.url, partitions=3) as worker:
        for number, user in users.items():
            relay.take(event(session_id=f"sess_{number}", user_id=user), "msg_1")

        assert worker.run_once() == (3, 0)

    for number in range(3):
        assert expiries(client, f"{{clerk:{number}}}:events") == [f"sess_{number}"]
        assert client.hget(f"{{clerk:{number}}}:session:sess_{number}", "status") == "expired"


# Clerk's events before, after, and in between


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param({"updated_at": EXPIRE_AT, "occurred_at": EXPIRE_AT}, id="at the same time"),
        pytest.param({"updated_at": EXPIRE_AT, "occurred_at": LATER + DAY_MS}, id="told of later"),
        pytest.param({"updated_at": EXPIRE_AT + 1}, id="updated later"),
    ],
)
def test_an_expiry_comes_after_the_state_that_it_ends(
    relay: Relay, worker: Worker, client: Any, stored: dict[str, Any]
) -> None:
    relay.take(event(**stored), "msg_1")

    assert worker.run_once() == (1, 0)

    assert state(client)["session"]["status"] == "expired"


@pytest.mark.parametrize(
    ("late", "outcome", "status"),
    [
        pytest.param(event("ended", updated_at=NOW_MS - DAY_MS), "applied", "ended", id="a real end"),
        pytest.param(event(updated_at=EXPIRE_AT + 1, expire_at=LATER + DAY_MS), "applied", "active", id="later life"),
        pytest.param(event(updated_at=EXPIRE_AT - 1), "stale", "expired", id="earlier life"),
    ],
)
def test_later_evidence_outweighs_an_expiry_and_earlier_does_not(
    relay: Relay, worker: Worker, client: Any, late: Any, outcome: str, status: str
) -> None:
    relay.take(event(), "msg_1")
    worker.run_once()

    relay.now_ms = LATER
    assert relay.take(late, "msg_2").outcome == outcome

    assert client.hget(SESSION_KEY, "status") == status


LATE: dict[str, tuple[dict[str, Any], str, str]] = {
    "an extension": ({"expire_at": LATER + DAY_MS}, "applied", "active"),
    "an extension without an end": ({"expire_at": None}, "applied", "active"),
    "an extension of a pending session": ({"status": "pending", "expire_at": LATER + DAY_MS}, "applied", "pending"),
    "an extension that has passed": ({"expire_at": EXPIRE_AT + 1}, "applied", "active"),
    "an extension from before": ({"updated_at": NOW_MS - DAY_MS, "expire_at": None}, "stale", "expired"),
    "the same end": ({"expire_at": EXPIRE_AT}, "stale", "expired"),
    "an earlier end": ({"expire_at": EXPIRE_AT - 1}, "stale", "expired"),
}


@pytest.mark.parametrize("name", LATE)
def test_a_late_event_with_a_later_end_is_compared_with_the_state_that_ran_out(
    relay: Relay, worker: Worker, client: Any, name: str
) -> None:
    relay.take(event(updated_at=NOW_MS - 2000), "msg_1")
    worker.run_once()
    values, outcome, status = LATE[name]

    relay.now_ms = LATER
    assert relay.take(event(**{"updated_at": NOW_MS - 1000} | values), "msg_2").outcome == outcome

    message = state(client)
    assert message["session"]["status"] == status
    assert message["previous_status"] == ("expired" if outcome == "applied" else "active")
    assert client.hexists(SESSION_KEY, "_base") == (outcome == "stale")
    is_live = status == "active" and name != "an extension that has passed"
    assert client.zrange(USER_KEY, 0, -1) == (["sess_1"] if is_live else [])


def test_an_extension_that_has_passed_runs_out_by_an_id_of_its_own(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(updated_at=NOW_MS - 2000), "msg_1")
    worker.run_once()
    relay.take(event(updated_at=NOW_MS - 1000, expire_at=EXPIRE_AT + 1), "msg_2")

    assert worker.run_once() == (1, 0)

    message = state(client)
    assert message["event"]["id"] == f"exp_sess_1_{EXPIRE_AT + 1}"
    assert message["revision"] == 4


def test_an_older_state_that_comes_after_a_void_expiry_is_stale(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(updated_at=NOW_MS - 3000), "msg_1")
    worker.run_once()
    relay.take(event(updated_at=NOW_MS - 1000, expire_at=None), "msg_2")

    assert relay.take(event(updated_at=NOW_MS - 2000, expire_at=None), "msg_3").outcome == "stale"
    assert relay.take(event("ended", updated_at=NOW_MS - DAY_MS), "msg_4").outcome == "applied"
    assert relay.take(event(updated_at=NOW_MS, expire_at=None), "msg_5").outcome == "stale"

    assert client.hget(SESSION_KEY, "status") == "ended"


def test_a_session_that_came_to_life_again_runs_out_again(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(), "msg_1")
    worker.run_once()
    relay.take(event(updated_at=EXPIRE_AT + 1, expire_at=LATER), "msg_2")

    assert worker.run_once() == (1, 0)

    assert state(client)["revision"] == 4
    assert expiries(client) == ["sess_1", "sess_1"]


def test_a_session_extended_in_between_is_not_ended(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(updated_at=NOW_MS - 2000), "msg_1")
    extended = event(updated_at=NOW_MS - 1000, expire_at=LATER + HOUR_MS)
    worker.meanwhile = lambda: relay.take(extended, "msg_2")

    assert worker.run_once() == (0, 0)

    assert state(client)["event"]["id"] == "msg_2"
    assert client.zscore(EXPIRY_KEY, "sess_1") == LATER + HOUR_MS
    assert expiries(client) == []


def test_a_session_ended_in_between_stays_as_it_ended(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(), "msg_1")
    worker.meanwhile = lambda: relay.take(event("revoked"), "msg_2")

    assert worker.run_once() == (0, 0)

    assert client.hget(SESSION_KEY, "status") == "revoked"
    assert expiries(client) == []


def test_what_changed_in_between_is_in_the_message(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(updated_at=NOW_MS - 2000), "msg_1")
    changed = event(updated_at=NOW_MS - 1000, client_id="client_new")
    worker.meanwhile = lambda: relay.take(changed, "msg_2")

    assert worker.run_once() == (1, 0)

    message = state(client)
    assert (message["session"]["client_id"], message["revision"]) == ("client_new", 3)


def test_a_session_gone_in_between_is_not_made_anew(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(), "msg_1")
    worker.meanwhile = lambda: client.delete(SESSION_KEY)

    assert worker.run_once() == (0, 0)

    assert not client.exists(SESSION_KEY, EXPIRY_KEY)


def test_two_workers_that_read_the_same_end_it_once(
    relay_redis: EmbeddedRedis, relay: Relay, worker: Worker, client: Any
) -> None:
    relay.take(event(), "msg_1")
    with worker_on(relay_redis.url) as other, subscribed(client, *CHANNELS) as subscriber:
        worker.meanwhile = other.run_once

        assert worker.run_once() == (0, 0)

        assert len(subscriber.rest()) == 2
    assert expiries(client) == ["sess_1"]
    assert state(client)["revision"] == 2


# What would be due for ever


def test_an_id_without_a_session_leaves_the_expiry_set(worker: Worker, client: Any) -> None:
    client.zadd(EXPIRY_KEY, {"sess_gone": EXPIRE_AT})

    assert worker.run_once() == (0, 0)

    assert contents(client) == {}


def test_a_session_that_came_in_between_stays_in_the_expiry_set(relay: Relay, worker: Worker, client: Any) -> None:
    client.zadd(EXPIRY_KEY, {"sess_1": EXPIRE_AT})
    worker.meanwhile = lambda: relay.take(event(expire_at=LATER + HOUR_MS), "msg_1")

    assert worker.run_once() == (0, 0)

    assert client.zscore(EXPIRY_KEY, "sess_1") == LATER + HOUR_MS


def test_a_session_opened_again_without_a_new_end_is_told_of_once_and_not_looked_at_again(
    relay: Relay, worker: Worker, client: Any
) -> None:
    relay.take(event(), "msg_1")
    worker.run_once()
    relay.take(event(updated_at=EXPIRE_AT + 1), "msg_2")
    before = contents(client)
    assert before.pop(EXPIRY_KEY)

    assert worker.run_once() == (0, 0)

    assert contents(client) == before


def test_a_session_of_which_no_end_is_held_leaves_the_expiry_set(relay: Relay, worker: Worker, client: Any) -> None:
    relay.take(event(), "msg_1")
    client.hdel(SESSION_KEY, "_expire_at")

    assert worker.run_once() == (0, 0)

    assert client.hget(SESSION_KEY, "status") == "active"
    assert not client.exists(EXPIRY_KEY)


@pytest.mark.parametrize("name", [b"\xff", b"", b"sess 1"])
def test_what_is_no_id_of_a_session_is_in_nobodys_way(
    relay: Relay, worker: Worker, client: Any, logger: CapturingLogger, name: bytes
) -> None:
    relay.take(event(), "msg_1")
    client.zadd(EXPIRY_KEY, {name: NOW_MS})

    assert worker.run_once() == (1, 1)

    (warning,) = [call.kwargs for call in logger.calls if call.args == ("session_unreadable",)]
    assert (warning["session_id"], warning["detail"]) == (
        name.decode(errors="backslashreplace"),
        "it is not an id of a session",
    )


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("state", "{", "Expecting"),
        ("state", "[]", "not a message"),
        ("state", '{"schema_version":2,"session":{"id":"sess_1"},"event":{}}', "another schema"),
        ("state", '{"schema_version":1,"session":{"id":"sess_2"},"event":{}}', "another session"),
        ("_order", "0 1", "its order can't be read"),
        ("_order", None, "missing"),
    ],
)
def test_a_state_that_cannot_be_read_stays_as_it_is_and_is_in_nobodys_way(
    relay: Relay, worker: Worker, client: Any, logger: CapturingLogger, field: str, value: str | None, why: str
) -> None:
    for n in (1, 2, 3):
        relay.take(event(session_id=f"sess_{n}"), f"msg_{n}")
    if value is None:
        client.hdel(SESSION_KEY, field)
    else:
        client.hset(SESSION_KEY, field, value)
    before = contents(client)[SESSION_KEY]

    assert worker.run_once() == (2, 1)
    assert worker.run_once() == (0, 1)

    (warning,) = [call.kwargs for call in logger.calls if call.args == ("session_unreadable",)]
    assert warning["session_id"] == "sess_1"
    assert why in warning["detail"]
    assert contents(client)[SESSION_KEY] == before
    assert client.zrange(EXPIRY_KEY, 0, -1) == ["sess_1"]
    client.delete(SESSION_KEY)  # what is left has to keep to the schema


# What the stand-in can't do: replicas, and connections that outlive an error


def test_more_than_a_batch_that_cannot_be_read_is_in_nobodys_way(real_redis: EmbeddedRedis, real_client: Any) -> None:
    with run_relay(real_redis.url) as relay, worker_on(real_redis.url) as worker:
        for n in range(BATCH + 1):
            real_client.set(f"{{clerk}}:session:sess_{n}", "no hash", ex=60)
            real_client.zadd(EXPIRY_KEY, {f"sess_{n}": NOW_MS})
        relay.take(event(session_id="sess_last"), "msg_1")

        assert worker.run_once() == (1, BATCH + 1)

    assert expiries(real_client) == ["sess_last"]


def test_sessions_that_redis_refuses_to_end_are_named_in_nobodys_way_and_stay_due(
    real_redis: EmbeddedRedis, real_client: Any, logger: CapturingLogger
) -> None:
    refused = [f"sess_{n:03}" for n in range(BATCH + 1)]
    with run_relay(real_redis.url) as relay, worker_on(real_redis.url) as worker:
        for session_id in refused:
            relay.take(event(session_id=session_id), "msg_1")
        relay.take(event(session_id="sess_last", user_id="user_2"), "msg_1")
        real_client.set(USER_KEY, "no set", ex=60)

        assert worker.run_once() == (1, BATCH + 1)
        assert worker.run_once() == (0, BATCH + 1)

    assert expiries(real_client) == ["sess_last"]
    assert real_client.zrange(EXPIRY_KEY, 0, -1) == refused
    warnings = [call.kwargs for call in logger.calls if call.args == ("session_unreadable",)]
    assert [warning["session_id"] for warning in warnings] == refused
    assert "WRONGTYPE" in warnings[0]["detail"]


def test_without_the_replicas_that_have_to_confirm_it_says_so(real_redis: EmbeddedRedis, real_client: Any) -> None:
    with run_relay(real_redis.url) as relay, worker_on(real_redis.url, redis_min_replicas=1, redis_timeout=1) as worker:
        relay.take(event(), "msg_1")

        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
            worker.run_once()


# The script's own guard


def test_an_expiry_made_from_another_state_than_the_one_held_does_nothing(relay: Relay, client: Any) -> None:
    relay.take(event(), "msg_1")
    (partition,) = relay.store.partitions
    (stored,) = relay.call(relay.store.read, partition, ["sess_1"]).result(timeout=30)
    assert isinstance(stored, StoredState)
    made = expiry_of(stored, LATER)
    assert made is not None
    before = contents(client)

    for cursor in ("1-1", made.from_cursor + "0"):
        other = made._replace(from_cursor=cursor)
        assert relay.store.replace(partition, other, LATER).result(timeout=30) is None
    unknown = made._replace(session_id="sess_2")
    assert relay.store.replace(partition, unknown, LATER).result(timeout=30) is None

    assert contents(client) == before
    assert relay.store.replace(partition, made, LATER).result(timeout=30) == Outcome(
        "applied", "sess_1", client.hget(SESSION_KEY, "cursor"), 2
    )


def test_an_expiry_lags_behind_the_sessions_end_by_redis_own_clock(
    relay: Relay, worker: Worker, client: Any, logger: CapturingLogger
) -> None:
    relay.take(event(), "msg_1")
    relay.take(event(session_id="sess_2", expire_at=EXPIRE_AT + 60_000), "msg_2")

    worker.run_once()

    cursor = state(client)["cursor"]
    (line,) = logger.calls
    assert line.args == ("sessions_expired",)
    assert line.kwargs == {"sessions": 2, "max_lag_ms": int(cursor.partition("-")[0]) - EXPIRE_AT}
