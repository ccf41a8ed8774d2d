"""The store and the expiry worker agree with a reference model on any sequence of events.

docs/contract.md, sections 4 to 6.

Hypothesis makes up the events, in which order and how often they are delivered, and when the worker looks.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.constants import DAY_MS, EVENTS_KEY, EXPIRY_KEY, NOW_MS, WEEK_S
from support.events import clerk_event
from support.redis_clients import assert_messages_keep_to_the_schema, client_of
from support.relay import Relay, make_settings, run_relay

from service.dev.embedded import EmbeddedRedis
from service.expiry.worker import ExpiryWorker

RANKS = ["pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked"]
OPEN = ["pending", "active"]
WEEK_MS = WEEK_S * 1000


class Sent(NamedTuple):
    """One event, as its sender made it; or an expiry, as the contract has it in the order."""

    message_id: str
    status: str
    updated_at: int
    occurred_at: int
    user: str
    expire_at: int | None
    source: str = "clerk"

    @property
    def order(self) -> tuple[bool, int, int, int, bytes]:
        is_terminal = self.status not in OPEN and self.source == "clerk"
        rank = RANKS.index(self.status)
        return is_terminal, self.updated_at, self.occurred_at, rank, self.message_id.encode()

    def is_live(self, now_ms: int) -> bool:
        return self.status == "active" and (self.expire_at is None or self.expire_at > now_ms)

    def time_to_live(self, now_ms: int) -> int:
        if self.expire_at is None:
            return 400 * DAY_MS
        return max(self.expire_at, now_ms) - now_ms + WEEK_MS

    def body(self, session_id: str, user_id: str) -> dict[str, Any]:
        return clerk_event(
            self.status,
            session_id=session_id,
            user_id=user_id,
            type_=f"session.{self.status}",
            updated_at=self.updated_at,
            occurred_at=self.occurred_at,
            expire_at=self.expire_at,
            client_id="client_1",
            latest_activity=None,
        )


class Model:
    """A session, as the contract says, without Redis."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.seen: dict[str, int | None] = {}
        self.state: Sent | None = None
        self.told: Sent | None = None
        """What Clerk said last of what is published: an expiry changes only the status of it."""
        self.revision = self.ttl = 0
        self.is_live = self.waits = False
        self.history: list[tuple[str, str, int | None, str | None]] = []

    def take(self, sent: Sent, now_ms: int) -> tuple[str, int | None]:
        if sent.message_id in self.seen:
            return "duplicate", self.seen[sent.message_id]
        is_newer = self.state is None or sent.order > self.state.order
        previous = self.state.status if is_newer and self.state else None
        if is_newer:
            self.state, self.revision = sent, self.revision + 1
            self.told = sent if sent.source == "clerk" else self.told
            self.is_live, self.ttl = sent.is_live(now_ms), sent.time_to_live(now_ms)
            self.waits = sent.status in OPEN and sent.expire_at is not None
        self.ttl = max(self.ttl, WEEK_MS)
        self.seen[sent.message_id] = revision = self.revision if is_newer else None
        outcome = "applied" if is_newer else "stale"
        self.history.append((outcome, sent.message_id, revision, previous))
        return outcome, revision

    def expire(self, now_ms: int) -> bool:
        """Return whether it ran out, which is told of once for each `expire_at`."""
        stored = self.state
        if not self.waits or stored is None or stored.expire_at is None or stored.expire_at > now_ms:
            return False
        self.waits = False
        expiry = Sent(
            f"exp_{self.session_id}_{stored.expire_at}",
            "expired",
            max(stored.updated_at, stored.expire_at),
            max(stored.occurred_at, stored.expire_at),
            stored.user,
            stored.expire_at,
            source="synthetic",
        )
        outcome, _ = self.take(expiry, now_ms)
        assert outcome != "stale"
        return outcome == "applied"


# Few times, users and sessions, and short ids: ties are what has to be tried.
times = st.sampled_from([NOW_MS, NOW_MS + DAY_MS, 999_999_999_999])
times_passed = st.sampled_from([0, DAY_MS])


def events(*statuses: str) -> st.SearchStrategy[Sent]:
    return st.builds(
        Sent,
        message_id=st.sampled_from(["a", "a0", "a-", "Z", "_", "0", "ab"]),
        status=st.sampled_from(statuses),
        updated_at=times,
        occurred_at=times,
        user=st.sampled_from("ab"),
        expire_at=st.sampled_from([NOW_MS, NOW_MS + DAY_MS, None]),
        source=st.just("clerk"),
    )


class StoreAndModel(RuleBasedStateMachine):
    """Some sessions of some users, in the store and in the model. All go by the relay's clock."""

    def __init__(self, relay: Relay, worker: ExpiryWorker, client: Any) -> None:
        super().__init__()
        self.relay, self.worker, self.client = relay, worker, client
        self.relay.now_ms = NOW_MS
        self.client.flushall()
        self.models: dict[str, Model] = {}
        self.sent: dict[str, dict[str, Sent]] = {}
        """By session and message id: what has an id is one event, however often it is delivered."""
        self.user_ttls: dict[str, int] = {}

    @rule(name=st.sampled_from("xyz"), batch=st.lists(events("active", "ended", *RANKS), min_size=1, max_size=8))
    def deliver(self, name: str, batch: list[Sent]) -> None:
        self.take(name, batch)

    @rule(name=st.sampled_from("vw"), life=st.lists(events("active", *OPEN) | times_passed, min_size=1, max_size=8))
    def live(self, name: str, life: list[Sent | int]) -> None:
        """What ends stays so: others have to live, or hardly any would run out, and come to life again."""
        for what in life:
            if isinstance(what, int):
                self.expire_after(what)
            else:
                self.take(name, [what])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_the_same_in_another_order(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sent)))
        same = list(self.sent[name].values())
        repeated = data.draw(st.lists(st.sampled_from(same), max_size=3))
        twin = f"{name}{len(self.models)}"
        self.take(twin, data.draw(st.permutations(same + repeated)))
        # An expiry depends on what was stored when the worker looked.
        if not any(message_id.startswith("exp_") for message_id in self.models[name].seen):
            assert self.told_of(twin) == self.told_of(name)

    def expire_after(self, ms: int) -> None:
        self.relay.now_ms += ms
        expired = [model.expire(self.relay.now_ms) for model in self.models.values()]
        assert self.worker.run_once() == (sum(expired), 0)
        self.note_user_ttls(None)

    def take(self, name: str, batch: list[Sent]) -> None:
        known = self.sent.setdefault(name, {})
        batch = [known.setdefault(sent.message_id, sent) for sent in batch]
        model = self.models.setdefault(name, Model(self.session(name)))
        begun = [
            self.relay.begin(sent.body(self.session(name), self.user(sent.user)), sent.message_id) for sent in batch
        ]
        outcomes = [future.result(timeout=30) for future in begun]
        answers = []
        for sent in batch:
            answers.append(model.take(sent, self.relay.now_ms))
            self.note_user_ttls(model if answers[-1][0] == "applied" else None)
        assert [(outcome.outcome, outcome.revision) for outcome in outcomes] == answers

    def note_user_ttls(self, changed: Model | None) -> None:
        """A user's set lasts as long as it has to for any session that came to be in it, while there is one."""
        live = [model for model in self.models.values() if model.is_live and model.state]
        users = {model.state.user for model in live if model.state}
        self.user_ttls = {user: ttl for user, ttl in self.user_ttls.items() if user in users}
        if changed is not None and changed.is_live and changed.state:
            user = changed.state.user
            self.user_ttls[user] = max(self.user_ttls.get(user, 0), changed.ttl)

    def session(self, name: str) -> str:
        return f"sess_{name}"

    def user(self, name: str) -> str:
        return f"user_{name}"

    def told_of(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is the same for every order of the same events: `event` and `session`."""
        message = json.loads(self.client.hget(f"{{clerk}}:session:{self.session(name)}", "state"))
        assert message["session"].pop("id") == self.session(name)
        assert message["session"].pop("live") == self.models[name].is_live
        return message["event"], message["session"]

    def assert_lasts(self, key: str, ttl_ms: int) -> None:
        assert ttl_ms - 60_000 < self.client.pttl(key) <= ttl_ms

    @invariant()
    def the_greatest_event_is_the_state(self) -> None:
        for name, model in self.models.items():
            greatest, told = model.state, model.told
            assert greatest is not None
            assert told is not None
            if name in self.sent and greatest.source == "clerk":
                assert greatest == max(self.sent[name].values(), key=lambda sent: sent.order)
            key = f"{{clerk}}:session:{self.session(name)}"
            fields = self.client.hgetall(key)
            assert fields["revision"] == str(model.revision)
            assert fields["status"] == greatest.status
            assert fields["user_id"] == self.user(greatest.user)
            assert fields["live"] == str(int(model.is_live))
            self.assert_lasts(key, model.ttl)
            event, session = self.told_of(name)
            assert (event["id"], event["source"]) == (greatest.message_id, greatest.source)
            assert event["type"] == f"session.{greatest.status}"
            is_synthetic = greatest.source == "synthetic"
            assert event["occurred_at"] == (greatest.expire_at if is_synthetic else greatest.occurred_at)
            assert session["status"] == greatest.status
            assert (session["updated_at"], session["expire_at"]) == (told.updated_at, told.expire_at)

    @invariant()
    def the_indexes_have_what_the_states_say(self) -> None:
        states = {self.session(name): (model, model.state) for name, model in self.models.items()}
        for user in "ab":
            key = f"{{clerk}}:user:{self.user(user)}:sessions"
            assert dict(self.client.zrange(key, 0, -1, withscores=True)) == {
                session: float("inf") if state.expire_at is None else state.expire_at
                for session, (model, state) in states.items()
                if state and state.user == user and model.is_live
            }
            if user in self.user_ttls:
                self.assert_lasts(key, self.user_ttls[user])
        assert dict(self.client.zrange(EXPIRY_KEY, 0, -1, withscores=True)) == {
            session: state.expire_at for session, (model, state) in states.items() if state and model.waits
        }

    def teardown(self) -> None:
        told: dict[str, list[tuple[str, str, int | None, str | None]]] = {}
        for _, fields in self.client.xrange(EVENTS_KEY):
            message = json.loads(fields["message"])
            told.setdefault(fields["session_id"], []).append(
                (fields["outcome"], message["event"]["id"], message["revision"], message["previous_status"])
            )
        assert told == {model.session_id: model.history for model in self.models.values()}
        assert_messages_keep_to_the_schema(self.client)


@pytest.fixture
def machine_intake(real_redis: EmbeddedRedis) -> Iterator[Relay]:
    with run_relay(real_redis.url) as relay:
        yield relay


def test_store_worker_and_model_agree_on_any_sequence_of_events(
    real_redis: EmbeddedRedis, machine_intake: Relay
) -> None:
    worker = ExpiryWorker(make_settings(real_redis.url), clock=lambda: machine_intake.now_ms / 1000)
    with client_of(real_redis.url) as client, contextlib.closing(worker):
        run_state_machine_as_test(
            lambda: StoreAndModel(machine_intake, worker, client),  # type: ignore[arg-type]  # any callable will do
            settings=settings(deadline=None, max_examples=60, stateful_step_count=12),
        )
