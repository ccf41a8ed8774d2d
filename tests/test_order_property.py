"""Any order and any repetition of a session's events ends in the same state (CONTRACT, section 6).

Hypothesis makes up the events and the order of deliveries; the store and the model below have to agree
about every answer, and the end has to be the same for every order.
"""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DAY_MS, NOW_MS, Intake, clerk_event, client_of, intake_on

from service.embedded import EmbeddedRedis

RANKS = ["pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked"]
ID_CHARACTERS = "-09AZ_az"


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

    def body(self, session_id: str) -> dict[str, Any]:
        return clerk_event(
            self.status,
            session_id=session_id,
            user_id=f"{session_id}-{self.user}",
            type_=f"session.{self.status}",
            updated_at=self.updated_at,
            occurred_at=self.occurred_at,
            expire_at=self.expire_at,
            client_id="client_1",
            latest_activity=None,
        )


class Model:
    """What the contract says, without Redis."""

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


# Few times and short ids: ties are what has to be tried.
times = st.sampled_from([NOW_MS - 2, NOW_MS - 1, NOW_MS, 999_999_999_999, 1_000_000_000_000])
events = st.lists(
    st.builds(
        Sent,
        message_id=st.text(ID_CHARACTERS, min_size=1, max_size=3),
        status=st.sampled_from(RANKS),
        updated_at=times,
        occurred_at=times,
        user=st.sampled_from(["a", "b"]),
        expire_at=st.sampled_from([None, NOW_MS - DAY_MS, NOW_MS + DAY_MS, NOW_MS + 2 * DAY_MS]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda sent: sent.message_id,
)
session_numbers = itertools.count()


@pytest.fixture(scope="module")
def shared_intake(real_redis: EmbeddedRedis) -> Iterator[Intake]:
    with intake_on(real_redis.url) as intake:
        yield intake


@pytest.fixture(scope="module")
def shared_client(real_redis: EmbeddedRedis) -> Iterator[Any]:
    with client_of(real_redis.url) as client:
        yield client


def held(client: Any, session_id: str) -> tuple[Any, ...]:
    """Return what is the same for every order of the same events, and where the session is indexed."""
    fields = client.hgetall(f"{{clerk}}:session:{session_id}")
    message = json.loads(fields["state"])
    del message["cursor"], message["revision"], message["previous_status"]
    indexes = [
        client.zscore(f"{{clerk}}:user:{session_id}-a:sessions", session_id),
        client.zscore(f"{{clerk}}:user:{session_id}-b:sessions", session_id),
        client.zscore("{clerk}:expiry", session_id),
    ]
    text = json.dumps(message).replace(session_id, "sess_x")
    return text, fields["status"], fields["user_id"].replace(session_id, "sess_x"), *indexes


@settings(deadline=None, max_examples=120)
@given(events=events, data=st.data())
def test_any_order_with_any_repetition_ends_the_same_and_as_the_model_says(
    shared_intake: Intake, shared_client: Any, events: list[Sent], data: st.DataObject
) -> None:
    ends = []
    for _ in range(2):
        repeated = data.draw(st.lists(st.sampled_from(events), max_size=6), label="repeated")
        deliveries = data.draw(st.permutations(events + repeated), label="deliveries")
        session_id = f"sess_{next(session_numbers)}"
        model = Model()

        futures = [shared_intake.begin(sent.body(session_id), sent.message_id) for sent in deliveries]
        answers = [(outcome.outcome, outcome.revision) for outcome in (f.result(timeout=30) for f in futures)]

        assert answers == [model.take(sent) for sent in deliveries]
        ends.append(held(shared_client, session_id))
        greatest = max(events, key=lambda sent: sent.order)
        assert model.state == greatest
        assert ends[-1][1] == greatest.status
        assert ends[-1][2] == f"sess_x-{greatest.user}"
        is_live = greatest.status == "active" and (greatest.expire_at or NOW_MS + 1) > NOW_MS
        is_open = greatest.status in {"active", "pending"}
        score = float("inf") if greatest.expire_at is None else greatest.expire_at
        in_sets = [score if is_live and greatest.user == user else None for user in "ab"]
        assert ends[-1][3:] == (*in_sets, greatest.expire_at if is_open else None)

    assert ends[0] == ends[1]


def test_an_end_that_has_come_is_final_whatever_comes_after(
    shared_intake: Intake, shared_client: Any
) -> None:
    session_id = f"sess_{next(session_numbers)}"
    shuffled = random.Random(7)  # the same shuffle each time
    shared_intake.take(Sent("m", "ended", NOW_MS - DAY_MS, NOW_MS, "a", None).body(session_id), "m")
    for number in range(30):
        status = shuffled.choice(["active", "pending"])
        sent = Sent(f"z{number}", status, NOW_MS + number, NOW_MS + number, "a", NOW_MS + DAY_MS)
        assert shared_intake.take(sent.body(session_id), sent.message_id).outcome == "stale"

    assert shared_client.hget(f"{{clerk}}:session:{session_id}", "status") == "ended"
