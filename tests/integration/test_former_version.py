"""What e4052d6 stored is read and goes on, and what this version stores is read by e4052d6, as after a rollback.

On a real Redis only: the stand-in is not what anybody goes back to.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import support
from support.constants import DAY_MS, EVENTS_KEY, EXPIRY_KEY, NOW_MS, SESSION_KEY
from support.events import clerk_event
from support.redis_clients import contents
from support.relay import Relay, run_relay

from service.clerk.events import SessionEvent, parse
from service.clerk.normalize import normalize
from service.clerk.ordinary import OrdinaryEvent
from service.dev.embedded import EmbeddedRedis
from service.models import SessionChange
from service.store.stored import StoredState

FORMER: Final = Path(support.__file__).parent / "former"
RETENTION_MS: Final = 7 * DAY_MS

EVENTS: Final = {
    "msg_0": clerk_event(updated_at=NOW_MS - 9500),
    "msg_1": clerk_event(updated_at=NOW_MS - 9000, user_id="user_0"),
    "msg_2": clerk_event(updated_at=NOW_MS - 8000, expire_at=NOW_MS + 3 * DAY_MS),
    "msg_20": clerk_event(updated_at=NOW_MS - 8000, expire_at=None),
    "msg_21": clerk_event(updated_at=NOW_MS - 8000, expire_at=NOW_MS + 2 * DAY_MS),
    "msg_3": clerk_event("ended", updated_at=NOW_MS - 5000),
    "msg_4": clerk_event(updated_at=NOW_MS - 4000),
}
"""By message id, all of one session. Where times are equal, the id decides."""
LIFE: Final = ["msg_1", "msg_2", "msg_0", "msg_1", "msg_2", "msg_21", "msg_20", "msg_3", "msg_3", "msg_4"]
OUTCOMES: Final = [
    *[("applied", 1), ("applied", 2), ("stale", None), ("duplicate", 1), ("duplicate", 2), ("applied", 3)],
    *[("stale", None), ("applied", 4), ("duplicate", 4), ("stale", None)],
]


class FormerVersion:
    """Runs the scripts of e4052d6 as its service did."""

    def __init__(self, client: Any) -> None:
        self._apply = client.register_script((FORMER / "apply_session.lua").read_text())
        self._settle = client.register_script((FORMER / "settle_expiry.lua").read_text())

    def take(self, event: Any, message_id: str) -> tuple[str, int | None]:
        """Return the outcome and the revision."""
        body = json.dumps(event).encode()
        read = parse(body, lambda _: None)
        assert isinstance(read, SessionEvent | OrdinaryEvent)
        change = normalize(read, message_id=message_id, now_ms=NOW_MS)
        assert isinstance(change, SessionChange)
        session = change.session
        end = NOW_MS + 400 * DAY_MS - RETENTION_MS if session.expire_at is None else session.expire_at
        outcome, _, revision, remark = self._apply(
            [SESSION_KEY, f"{{clerk}}:user:{session.user_id}:sessions", EVENTS_KEY, EXPIRY_KEY],
            [
                *(message_id, str(change.order), session.id, session.user_id, session.status, int(session.live)),
                *("" if session.expire_at is None else session.expire_at, end - NOW_MS + RETENTION_MS, RETENTION_MS),
                *(5000, "clerk:sessions", f"clerk:sessions:user:{session.user_id}"),
                b"," + orjson.dumps({"event": change.event, "session": session})[1:],
                *(0, f"{zlib.crc32(body):08x}", ""),
            ],
        )
        assert remark == ""
        return outcome, int(revision) if revision else None

    def settle_expiry(self) -> bool:
        return bool(self._settle([SESSION_KEY, EXPIRY_KEY], ["sess_1"]))


@pytest.fixture
def client(real_client: Any) -> Any:
    return real_client


@pytest.fixture
def relay(real_redis: EmbeddedRedis, client: Any) -> Iterator[Relay]:
    with run_relay(real_redis.url) as relay:
        yield relay


@pytest.fixture
def former(client: Any) -> FormerVersion:
    return FormerVersion(client)


def take(relay: Relay, event: Any, message_id: str) -> tuple[str, int | None]:
    outcome = relay.take(event, message_id)
    assert outcome.reason is None
    return str(outcome.outcome), outcome.revision


def stored(client: Any) -> str:
    """Return all that Redis stores, with numbers in place of cursors, and when its keys expire, in minutes."""
    ttls = {key: round(client.pttl(key) / 60_000) for key in client.scan_iter("*")}
    text = json.dumps([contents(client), ttls], sort_keys=True)
    for number, (cursor, _) in enumerate(client.xrange(EVENTS_KEY)):
        text = text.replace(cursor, f"cursor {number}")
    return text


@pytest.mark.parametrize("former_is_first", [True, False], ids=["former first", "former second"])
@pytest.mark.parametrize("until", range(len(LIFE) + 1))
def test_a_session_goes_on_as_if_one_version_had_taken_all_of_it(
    former: FormerVersion, relay: Relay, client: Any, until: int, former_is_first: bool
) -> None:
    def take_all(of_former: Sequence[bool]) -> str:
        client.flushall()
        takes = [
            former.take(EVENTS[message_id], message_id) if is_old else take(relay, EVENTS[message_id], message_id)
            for message_id, is_old in zip(LIFE, of_former, strict=True)
        ]
        assert takes == OUTCOMES
        return stored(client)

    mixed = take_all([(number < until) == former_is_first for number in range(len(LIFE))])

    assert mixed == take_all([False] * len(LIFE))


def test_another_body_is_noticed_by_the_version_that_did_not_take_the_first(
    former: FormerVersion, relay: Relay
) -> None:
    former.take(clerk_event(updated_at=NOW_MS - 9000), "msg_1")
    relay.take(clerk_event(updated_at=NOW_MS - 8000), "msg_2")

    assert relay.take(clerk_event(updated_at=NOW_MS - 7000), "msg_1").reason == "other_body"
    with pytest.raises(AssertionError, match="other_body"):
        former.take(clerk_event(updated_at=NOW_MS - 7000), "msg_2")


def test_the_former_version_finds_out_that_a_session_still_has_to_expire(
    former: FormerVersion, relay: Relay, client: Any
) -> None:
    relay.take(clerk_event(expire_at=NOW_MS + DAY_MS), "msg_1")
    client.delete(EXPIRY_KEY)

    assert former.settle_expiry()
    assert client.zscore(EXPIRY_KEY, "sess_1") == NOW_MS + DAY_MS


def test_the_state_of_the_former_version_is_ended_by_this_one(former: FormerVersion, relay: Relay, client: Any) -> None:
    former.take(clerk_event(), "msg_1")
    partition = relay.store.partition_of("user_1")

    (state,) = relay.call(relay.store.read, partition, ["sess_1"]).result(timeout=30)

    assert isinstance(state, StoredState)
    assert (state.user_id, state.status, state.expire_at_ms) == ("user_1", "active", NOW_MS + DAY_MS)
    assert state.message()["event"]["id"] == "msg_1"
