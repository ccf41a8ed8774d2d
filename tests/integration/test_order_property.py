"""The store and the expiry worker agree with a reference model on any sequence of events.

docs/contract.md, sections 4 to 6 and 10.

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
from service.models import Outcome
from service.workers.expiry import ExpiryWorker

RANKS = ["pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked"]
OPEN = ["pending", "active"]
WEEK_MS = WEEK_S * 1000


class UserEnd(NamedTuple):
    """An event that ends the sessions of a user: `user.deleted`, or `user.updated` of a banned one."""

    message_id: str
    type: str
    at: int
    occurred_at: int

    @property
    def status(self) -> str:
        return "removed" if self.type == "user.deleted" else "revoked"

    @property
    def order(self) -> tuple[bool, int, int, int, bytes]:
        at = self.occurred_at if self.type == "user.deleted" else self.at
        return True, at, self.occurred_at, RANKS.index(self.status), self.message_id.encode()

    def ends(self, created_at: int | None) -> bool:
        return self.type == "user.deleted" or created_at is None or created_at <= self.at

    def body(self, user_id: str) -> dict[str, Any]:
        data = {"id": user_id, "banned": True, "updated_at": self.at, "deleted": True}
        return {"type": self.type, "timestamp": self.occurred_at, "data": data}


class Sent(NamedTuple):
    """One event, as its sender made it; or an expiry, as the contract has it in the order."""

    message_id: str
    status: str
    updated_at: int
    occurred_at: int
    user: str
    expire_at: int | None
    source: str = "clerk"
    base: "Sent | None" = None
    """The open state that this one was made from, if the relay ended that itself."""
    user_end: UserEnd | None = None
    """Why it did, unless the session ran out."""

    @property
    def event(self) -> tuple[str, str, int]:
        """The id, the type and the time of the event, as they are published."""
        if self.user_end is not None:
            return self.user_end.message_id, self.user_end.type, self.user_end.occurred_at
        occurred_at = self.occurred_at if self.expire_at is None or self.base is None else self.expire_at
        return self.message_id, f"session.{self.status}", occurred_at

    @property
    def order(self) -> tuple[bool, int, int, int, bytes]:
        if self.user_end is not None:
            return self.user_end.order
        is_terminal = self.status not in OPEN and self.source == "clerk"
        rank = RANKS.index(self.status)
        return is_terminal, self.updated_at, self.occurred_at, rank, self.message_id.encode()

    def outweighs(self, stored: "Sent") -> bool:
        """Tell whether this event becomes the state.

        A later end voids an expiry. Open states of a user who is gone are compared among themselves.
        """
        if stored.base is not None and self.status in OPEN:
            extends = self.expire_at is None or (stored.expire_at is not None and self.expire_at > stored.expire_at)
            return self.order > (stored.base if extends or stored.user_end else stored).order
        return self.order > stored.order

    def ended_by(self, end: UserEnd) -> "Sent":
        return self._replace(status=end.status, base=self, user_end=end)

    def is_live(self, now_ms: int) -> bool:
        return self.status == "active" and (self.expire_at is None or self.expire_at > now_ms)

    def time_to_live(self, now_ms: int) -> int:
        if self.expire_at is None:
            return 400 * DAY_MS
        return max(self.expire_at, now_ms) - now_ms + WEEK_MS

    def body(self, session_id: str, user_id: str, created_at: int | None) -> dict[str, Any]:
        return clerk_event(
            self.status,
            session_id=session_id,
            user_id=user_id,
            type_=f"session.{self.status}",
            updated_at=self.updated_at,
            occurred_at=self.occurred_at,
            expire_at=self.expire_at,
            created_at=created_at,
            client_id="client_1",
            latest_activity=None,
        )


class Model:
    """A session, as the contract says, without Redis."""

    def __init__(self, session_id: str, created_at: int | None) -> None:
        self.session_id, self.created_at = session_id, created_at
        self.seen: dict[str, int | None] = {}
        self.state: Sent | None = None
        self.told: Sent | None = None
        """What Clerk said last of what is published: what the relay ends itself changes only the status of it."""
        self.user_end: UserEnd | None = None
        self.revision = self.ttl = 0
        self.is_live = self.waits = False
        self.history: list[tuple[str, str, int | None, str | None]] = []

    @property
    def is_open(self) -> bool:
        return self.state is not None and self.state.status in OPEN

    @property
    def has_run_out(self) -> bool:
        return any(message_id.startswith("exp_") for message_id in self.seen)

    def take(self, sent: Sent, now_ms: int) -> tuple[str, int | None]:
        if sent.message_id in self.seen:
            return "duplicate", self.seen[sent.message_id]
        is_newer = self.state is None or sent.outweighs(self.state)
        end = self.user_end
        if is_newer and sent.status in OPEN and end is not None and end.ends(self.created_at):
            return self.become(sent.ended_by(end), sent.message_id, now_ms, is_newer=True)
        return self.become(sent, sent.message_id, now_ms, is_newer=is_newer)

    def become(self, sent: Sent, message_id: str, now_ms: int, *, is_newer: bool) -> tuple[str, int | None]:
        previous = self.state.status if is_newer and self.state else None
        if is_newer:
            self.state, self.revision = sent, self.revision + 1
            if sent.source == "clerk":
                self.told = sent
            self.is_live, self.ttl = sent.is_live(now_ms), sent.time_to_live(now_ms)
            self.waits = self.is_open and sent.expire_at is not None
        self.ttl = max(self.ttl, WEEK_MS)
        self.seen[message_id] = revision = self.revision if is_newer else None
        outcome = "applied" if is_newer else "stale"
        self.history.append((outcome, sent.event[0], revision, previous))
        return outcome, revision

    def lose_user(self, end: UserEnd, now_ms: int) -> int:
        """Return how many sessions end: 1 or 0."""
        self.user_end = end
        if self.state is None or not self.is_open or not end.ends(self.created_at):
            return 0
        self.become(self.state.ended_by(end), end.message_id, now_ms, is_newer=True)
        return 1

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
            base=stored,
        )
        outcome, _ = self.take(expiry, now_ms)
        assert outcome != "stale"
        return outcome == "applied"


# Few times, users and sessions, and short ids: ties are what has to be tried.
times = st.sampled_from([NOW_MS - DAY_MS, NOW_MS, NOW_MS + DAY_MS, 999_999_999_999])
times_passed = st.sampled_from([0, DAY_MS])
users_end = st.builds(
    UserEnd, st.just("end"), type=st.sampled_from(["user.deleted", "user.updated"]), at=times, occurred_at=times
)


def events(*statuses: str, users: str = "ab") -> st.SearchStrategy[Sent]:
    return st.builds(
        Sent,
        message_id=st.sampled_from(["a", "a0", "a-", "Z", "_", "0", "ab"]),
        status=st.sampled_from(statuses),
        updated_at=times,
        occurred_at=times,
        user=st.sampled_from(users),
        expire_at=st.sampled_from([NOW_MS - DAY_MS, NOW_MS, NOW_MS + DAY_MS, NOW_MS + 2 * DAY_MS, None]),
        source=st.just("clerk"),
        base=st.none(),
        user_end=st.none(),
    )


class StoreAndModel(RuleBasedStateMachine):
    """Some sessions of some users, in the store and in the model. All go by the relay's clock.

    A session whose name begins with `g` has a user of its own, who is deleted or banned at most once.
    """

    def __init__(self, relay: Relay, worker: ExpiryWorker, client: Any) -> None:
        super().__init__()
        self.relay, self.worker, self.client = relay, worker, client
        self.relay.now_ms = NOW_MS
        self.client.flushall()
        self.models: dict[str, Model] = {}
        self.sent: dict[str, dict[str, Sent]] = {}
        """By session and message id: what has an id is one event, however often it is delivered."""
        self.user_ttls: dict[str, int] = {}
        """Of the users' sets, by key."""

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

    @rule(
        name=st.sampled_from(["g1", "g2"]),
        created_at=st.none() | times,
        life=st.lists(events(*OPEN, *OPEN, "ended", users="g") | users_end | times_passed, min_size=1, max_size=8),
    )
    def live_until_the_user_goes(self, name: str, created_at: int | None, life: list[Sent | UserEnd | int]) -> None:
        for what in life:
            if isinstance(what, int):
                self.expire_after(what)
            elif isinstance(what, UserEnd):
                self.lose_user(name, created_at, what)
            else:
                self.take(name, [what], created_at)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_the_same_in_another_order(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sent)))
        model = self.models[name]
        same: list[Sent | UserEnd] = [*self.sent[name].values()]
        if model.user_end is not None:
            same.append(model.user_end)
        repeated = data.draw(st.lists(st.sampled_from(same), max_size=3))
        twin = f"{name}-{len(self.models)}"
        for what in data.draw(st.permutations(same + repeated)):
            if isinstance(what, UserEnd):
                self.lose_user(twin, model.created_at, what)
            else:
                self.take(twin, [what], model.created_at)
        if not self.depends_on_order(name):
            assert self.told_of(twin) == self.told_of(name)

    def depends_on_order(self, name: str) -> bool:
        """Tell whether the contract lets it: an event about a user ends only what is open when it comes."""
        model = self.models[name]
        # An expiry depends on what was stored when the worker looked.
        if model.has_run_out or not self.sent.get(name):
            return True
        end = model.user_end
        ends = [sent for sent in self.sent[name].values() if sent.status not in OPEN]
        return end is not None and any(sent.order < end.order for sent in ends)

    def expire_after(self, ms: int) -> None:
        self.relay.now_ms += ms
        expired = [model.expire(self.relay.now_ms) for model in self.models.values()]
        assert self.worker.run_once() == (sum(expired), 0)
        self.note_user_ttls(None)

    def model(self, name: str, created_at: int | None) -> Model:
        return self.models.setdefault(name, Model(self.session(name), created_at))

    def take(self, name: str, batch: list[Sent], created_at: int | None = NOW_MS) -> None:
        known = self.sent.setdefault(name, {})
        batch = [known.setdefault(sent.message_id, sent) for sent in batch]
        model = self.model(name, created_at)
        if name.startswith("g"):
            batch = [sent._replace(user=name) for sent in batch]
        bodies = [sent.body(self.session(name), self.user(sent.user), model.created_at) for sent in batch]
        begun = [self.relay.begin(body, sent.message_id) for body, sent in zip(bodies, batch, strict=True)]
        outcomes = [future.result(timeout=30) for future in begun]
        answers = []
        for sent in batch:
            answers.append(model.take(sent, self.relay.now_ms))
            self.note_user_ttls(model if answers[-1][0] == "applied" else None)
        assert [(outcome.outcome, outcome.revision) for outcome in outcomes] == answers

    def lose_user(self, name: str, created_at: int | None, end: UserEnd) -> None:
        model = self.model(name, created_at)
        is_repeated = model.user_end is not None
        end = model.user_end or end
        ended = model.lose_user(end, self.relay.now_ms)
        self.note_user_ttls(None)
        outcome = self.relay.take(end.body(self.user(name)), end.message_id)
        assert outcome == (Outcome("duplicate") if is_repeated else Outcome("applied", sessions=ended))
        self.assert_lasts(f"{{clerk}}:user:{self.user(name)}:gone", 400 * DAY_MS)

    def note_user_ttls(self, changed: Model | None) -> None:
        """A user's set lasts as long as it has to for any session that came to be in it, while there is one."""
        keys = {self.set_of(model) for model in self.models.values()}
        self.user_ttls = {key: ttl for key, ttl in self.user_ttls.items() if key in keys}
        if changed is not None and (key := self.set_of(changed)):
            self.user_ttls[key] = max(self.user_ttls.get(key, 0), changed.ttl)

    def set_of(self, model: Model) -> str | None:
        """Return the key of the user's set that a session is in."""
        if model.state is None or not model.is_open:
            return None
        return f"{{clerk}}:user:{self.user(model.state.user)}:{'sessions' if model.is_live else 'pending'}"

    def session(self, name: str) -> str:
        return f"sess_{name}"

    def user(self, name: str) -> str:
        return f"user_{name}"

    def told_of(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is the same for every order of the same events: `event` and `session`."""
        message = json.loads(self.client.hget(f"{{clerk}}:session:{self.session(name)}", "state"))
        assert message["session"].pop("id") == self.session(name)
        assert message["session"].pop("live") == self.models[name].is_live
        if name.startswith("g"):
            assert message["session"].pop("user_id") == self.user(name)
        return message["event"], message["session"]

    def assert_lasts(self, key: str, ttl_ms: int) -> None:
        assert ttl_ms - 60_000 < self.client.pttl(key) <= ttl_ms

    @invariant()
    def the_greatest_event_is_the_state(self) -> None:
        for name, model in self.models.items():
            greatest, told = model.state, model.told
            key = f"{{clerk}}:session:{self.session(name)}"
            if greatest is None or told is None:  # only its user was heard of
                assert not self.client.exists(key)
                continue
            if name in self.sent and not model.has_run_out and model.user_end is None:
                assert greatest == max(self.sent[name].values(), key=lambda sent: sent.order)._replace(
                    user=greatest.user
                )
            fields = self.client.hgetall(key)
            assert fields["revision"] == str(model.revision)
            assert fields["status"] == greatest.status
            assert fields["user_id"] == self.user(greatest.user)
            assert fields["live"] == str(int(model.is_live))
            assert ("_base" in fields) == (greatest.base is not None)
            self.assert_lasts(key, model.ttl)
            event, session = self.told_of(name)
            assert (event["id"], event["type"], event["occurred_at"]) == greatest.event
            assert event["source"] == greatest.source
            assert session["status"] == greatest.status
            assert (session["updated_at"], session["expire_at"]) == (told.updated_at, told.expire_at)

    @invariant()
    def the_indexes_have_what_the_states_say(self) -> None:
        states = {self.session(name): (model, model.state) for name, model in self.models.items() if model.state}
        for user in {state.user for _, state in states.values()} | {"a", "b"}:
            for kind in ("sessions", "pending"):
                key = f"{{clerk}}:user:{self.user(user)}:{kind}"
                assert dict(self.client.zrange(key, 0, -1, withscores=True)) == {
                    session: float("inf") if state.expire_at is None else state.expire_at
                    for session, (model, state) in states.items()
                    if self.set_of(model) == key
                }
        for key, ttl in self.user_ttls.items():
            self.assert_lasts(key, ttl)
        assert dict(self.client.zrange(EXPIRY_KEY, 0, -1, withscores=True)) == {
            session: state.expire_at for session, (model, state) in states.items() if model.waits
        }

    def teardown(self) -> None:
        told: dict[str, list[tuple[str, str, int | None, str | None]]] = {}
        for _, fields in self.client.xrange(EVENTS_KEY):
            message = json.loads(fields["message"])
            told.setdefault(fields["session_id"], []).append(
                (fields["outcome"], message["event"]["id"], message["revision"], message["previous_status"])
            )
        assert told == {model.session_id: model.history for model in self.models.values() if model.history}
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
