"""The store agrees with a reference model on any sequence of events (CONTRACT, sections 5 and 6).

Hypothesis makes up the events, and in which order and how often they are delivered.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import (
    DAY_MS,
    NOW_MS,
    Intake,
    assert_messages_keep_to_the_schema,
    clerk_event,
    client_of,
    intake_on,
)

from service.embedded import EmbeddedRedis

RANKS = ["pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked"]


class Sent(NamedTuple):
    """One event, as its sender made it."""

    message_id: str
    status: str
    updated_at: int
    occurred_at: int
    user: str
    expire_at: int | None

    @property
    def order(self) -> tuple[bool, int, int, int, bytes]:
        is_terminal = self.status not in {"active", "pending"}
        rank = RANKS.index(self.status)
        return is_terminal, self.updated_at, self.occurred_at, rank, self.message_id.encode()

    @property
    def is_live(self) -> bool:
        return self.status == "active" and (self.expire_at is None or self.expire_at > NOW_MS)

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

    def __init__(self) -> None:
        self.seen: dict[str, int | None] = {}
        self.state: Sent | None = None
        self.revision = 0

    def take(self, sent: Sent) -> tuple[str, int | None]:
        if sent.message_id in self.seen:
            return "duplicate", self.seen[sent.message_id]
        is_newer = self.state is None or sent.order > self.state.order
        if is_newer:
            self.state, self.revision = sent, self.revision + 1
        self.seen[sent.message_id] = self.revision if is_newer else None
        return ("applied" if is_newer else "stale"), self.seen[sent.message_id]


# Few times, users and sessions, and short ids: ties are what has to be tried.
times = st.sampled_from([NOW_MS, 999_999_999_999])
events = st.builds(
    Sent,
    message_id=st.sampled_from(["a", "a0", "a-", "Z", "_", "0", "ab"]),
    status=st.sampled_from(["active", "ended", *RANKS]),
    updated_at=times,
    occurred_at=times,
    user=st.sampled_from("ab"),
    expire_at=st.sampled_from([None, NOW_MS - DAY_MS, NOW_MS, NOW_MS + 1, NOW_MS + DAY_MS]),
)
names = st.sampled_from("xyz")
runs = itertools.count()


class StoreAndModel(RuleBasedStateMachine):
    """Some sessions of some users, in the store and in the model."""

    def __init__(self, intake: Intake, client: Any) -> None:
        super().__init__()
        self.intake, self.client, self.run = intake, client, next(runs)
        self.models: dict[str, Model] = {}
        self.sent: dict[str, dict[str, Sent]] = {}
        """By session and message id: what has an id is one event, however often it is delivered."""

    @rule(name=names, batch=st.lists(events, min_size=1, max_size=8))
    def deliver(self, name: str, batch: list[Sent]) -> None:
        known = self.sent.setdefault(name, {})
        self.take(name, [known.setdefault(sent.message_id, sent) for sent in batch])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_the_same_in_another_order(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sent)))
        same = list(self.sent[name].values())
        repeated = data.draw(st.lists(st.sampled_from(same), max_size=3))
        twin = f"{name}{len(self.models)}"
        self.take(twin, data.draw(st.permutations(same + repeated)))
        assert self.held(twin) == self.held(name)

    def take(self, name: str, batch: list[Sent]) -> None:
        model = self.models.setdefault(name, Model())
        begun = [
            self.intake.begin(sent.body(self.session(name), self.user(sent.user)), sent.message_id)
            for sent in batch
        ]
        outcomes = [future.result(timeout=30) for future in begun]
        answers = [(outcome.outcome, outcome.revision) for outcome in outcomes]
        assert answers == [model.take(sent) for sent in batch]

    def session(self, name: str) -> str:
        return f"sess_{self.run}_{name}"

    def user(self, name: str) -> str:
        return f"user_{self.run}_{name}"

    def held(self, name: str) -> dict[str, Any]:
        """Return what is the same for every order of the same events."""
        message = json.loads(self.client.hget(f"{{clerk}}:session:{self.session(name)}", "state"))
        assert message["session"].pop("id") == self.session(name)
        return {"event": message["event"], "session": message["session"]}

    @invariant()
    def the_greatest_event_is_the_state(self) -> None:
        for name, model in self.models.items():
            greatest = model.state
            assert greatest is not None
            if name in self.sent:
                assert greatest == max(self.sent[name].values(), key=lambda sent: sent.order)
            fields = self.client.hgetall(f"{{clerk}}:session:{self.session(name)}")
            assert fields["revision"] == str(model.revision)
            assert fields["status"] == greatest.status
            assert fields["user_id"] == self.user(greatest.user)
            assert fields["live"] == str(int(greatest.is_live))
            held = self.held(name)
            assert held["event"]["id"] == greatest.message_id
            assert (held["session"]["status"], held["session"]["live"]) == (greatest.status, greatest.is_live)

    @invariant()
    def the_indexes_have_what_the_states_say(self) -> None:
        states = {self.session(name): model.state for name, model in self.models.items() if model.state}
        for user in "ab":
            key = f"{{clerk}}:user:{self.user(user)}:sessions"
            assert dict(self.client.zrange(key, 0, -1, withscores=True)) == {
                session: float("inf") if state.expire_at is None else state.expire_at
                for session, state in states.items()
                if state.user == user and state.is_live
            }
        expiry = dict(self.client.zrange("{clerk}:expiry", 0, -1, withscores=True))
        assert {session: expiry.get(session) for session in states} == {
            session: state.expire_at if state.status in {"active", "pending"} else None
            for session, state in states.items()
        }


@pytest.fixture
def machine_intake(real_redis: EmbeddedRedis) -> Iterator[Intake]:
    with intake_on(real_redis.url) as intake:
        yield intake


def test_store_and_model_agree_on_any_sequence_of_events(
    real_redis: EmbeddedRedis, machine_intake: Intake
) -> None:
    with client_of(real_redis.url) as client:
        client.flushall()
        run_state_machine_as_test(
            lambda: StoreAndModel(machine_intake, client),  # type: ignore[arg-type]  # any callable will do
            settings=settings(deadline=None, max_examples=60, stateful_step_count=12),
        )
        assert_messages_keep_to_the_schema(client)
