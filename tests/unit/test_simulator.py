"""What the simulator sends is what Clerk and Svix would send: the relay takes it, and its tests may lean on it."""

import json
import re
from typing import Any, Final

import orjson
import pytest
from clerk_session_feed.models import ID
from support.clerks_own import examples, needs_clerks_own
from support.clock import frozen_svix
from support.constants import DAY_MS, MESSAGE_ID, NOW_MS, NOW_S, SECRET
from support.events import payload
from support.parsing import change, published, read
from support.signing import signed

from service.clerk.signature import Verifier
from service.config import SigningSettings, load
from service.dev import simulator
from service.errors import InvalidSignatureError
from service.models import Delivery

BODY: Final = '{"type":"session.created","city":"Tromsø"}'.encode()
STATUSES: Final = {
    "session.created": "active",
    "session.pending": "pending",
    "session.ended": "ended",
    "session.removed": "removed",
    "session.revoked": "revoked",
}


def verify(headers: dict[str, str], body: bytes = BODY, secret: str = SECRET) -> Delivery:
    with frozen_svix(NOW_S):
        return Verifier([secret]).verify(headers, body, NOW_S)


# Samples.


@pytest.mark.parametrize("type_", STATUSES)
def test_a_sample_is_read_without_a_flaw(type_: str) -> None:
    body = simulator.sample(type_, session_id="sess_1", user_id="user_1", now_ms=NOW_MS)
    _, nulled = read(simulator.encode(body))
    assert nulled == []
    made = change(simulator.encode(body))
    assert (made.event.type, made.session.status) == (type_, STATUSES[type_])
    assert (made.session.id, made.session.user_id) == ("sess_1", "user_1")
    assert (made.order.updated_at_ms, made.order.occurred_at_ms) == (NOW_MS, NOW_MS)
    assert made.session.live == (type_ == "session.created")


def test_only_a_pending_sample_has_tasks() -> None:
    with_tasks = [type_ for type_ in STATUSES if simulator.sample(type_)["data"].get("tasks")]
    assert with_tasks == ["session.pending"]


def test_a_sample_embeds_a_user_that_is_not_published() -> None:
    body = simulator.sample(now_ms=NOW_MS)
    assert body["data"]["user"]["id"] == body["data"]["user_id"]
    secret_metadata = body["data"]["user"]["private_metadata"]["plan"]
    assert secret_metadata not in orjson.dumps(published(change(body))).decode()


def test_a_sample_lives_for_a_week() -> None:
    made = change(simulator.sample(now_ms=NOW_MS))
    assert made.session.expire_at == NOW_MS + 7 * DAY_MS


def test_samples_without_ids_are_of_different_sessions() -> None:
    first, second = simulator.sample(), simulator.sample()
    assert first["data"]["id"] != second["data"]["id"]
    assert first["data"]["user_id"] != second["data"]["user_id"]


@needs_clerks_own
@pytest.mark.parametrize("type_", STATUSES)
def test_a_sample_has_the_shape_of_clerks_own_example(type_: str) -> None:
    example = examples()[type_]
    body = simulator.sample(type_)
    assert set(body) == set(example)
    assert set(body["data"]) - {"tasks"} == set(example["data"])
    theirs = example["data"]["latest_activity"]
    assert theirs is None or set(body["data"]["latest_activity"]) == set(theirs)


@pytest.mark.parametrize("prefix", ["sess", "msg"])
def test_a_new_id_has_the_shape_of_clerks(prefix: str) -> None:
    made = simulator.new_id(prefix)
    assert re.fullmatch(rf"{prefix}_[A-Za-z0-9]{{27}}", made)
    assert ID.fullmatch(made)
    assert made != simulator.new_id(prefix)


def test_a_new_secret_is_one_that_the_settings_take() -> None:
    secret = simulator.new_secret()
    assert load(SigningSettings, clerk_webhook_signing_secret=secret).secrets == (secret,)
    assert secret != simulator.new_secret()


# Values set by path.


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("type", "session.updated"),
        ("data.status", "revoked"),
        ("data.latest_activity.city", None),
        ("data.actor", {"sub": "user_2"}),
        ("data.user.new.deep", [1]),
    ],
)
def test_a_value_is_set_by_its_path_in_a_copy(path: str, value: object) -> None:
    before = payload("session.created")
    after = simulator.with_values(before, {path: value})
    assert before == payload("session.created")
    found: Any = after
    for name in path.split("."):
        found = found[name]
    assert found == value


def test_several_values_are_set_in_turn() -> None:
    after = simulator.with_values({}, {"data.actor": {}, "data.actor.sub": "user_2"})
    assert after == {"data": {"actor": {"sub": "user_2"}}}


@pytest.mark.parametrize("path", ["type.x", "data.id.x", "data.actor.sub", "data.id.x.y"])
def test_a_path_through_no_object_is_refused(path: str) -> None:
    with pytest.raises(KeyError, match=re.escape(path)):
        simulator.with_values(payload("session.created"), {path: 1})


# Signatures.


def test_a_delivery_is_signed_as_svix_signs() -> None:
    headers = simulator.sign(SECRET, BODY, message_id=MESSAGE_ID, at=NOW_S + 0.9)
    assert headers.items() >= signed(BODY, MESSAGE_ID, at=NOW_S).items()
    assert verify(headers) == Delivery(MESSAGE_ID, NOW_S, BODY)
    assert headers["content-type"] == "application/json"


def test_the_public_test_vector_is_signed_alike() -> None:
    headers = simulator.sign(SECRET, b'{"test": 2432232314}', message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", at=1614265330)
    assert headers["svix-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_delivery_has_a_message_id_of_its_own() -> None:
    first, second = (simulator.sign(SECRET, BODY, at=NOW_S)["svix-id"] for _ in range(2))
    assert first != second
    assert ID.fullmatch(first)


def test_a_delivery_signed_with_a_secret_that_nobody_knows_is_well_formed_and_refused() -> None:
    with pytest.raises(InvalidSignatureError):
        verify(simulator.sign(simulator.new_secret(), BODY, at=NOW_S))


@pytest.mark.parametrize("odd", ["\ud800", 10**400, float("inf"), [{"æ": None}]], ids=lambda odd: ascii(odd)[:9])
def test_whatever_was_set_can_be_written_and_signed(odd: object) -> None:
    body = simulator.encode(simulator.with_values(payload("session.created"), {"data.extra": odd}))
    assert json.loads(body)["data"]["extra"] == odd
    assert verify(simulator.sign(SECRET, body, at=NOW_S), body).body == body
