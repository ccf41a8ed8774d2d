"""A Clerk instance of which a relay missed a fifth: what `reconcile` has to mend, and what it must not do.

Webhooks go on arriving meanwhile, late, repeated and out of order.
"""

import collections
import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Final

from clerk_session_feed.models import OPEN_STATUSES

from service.dev.fake_clerk import FakeClerk
from service.models import Outcome
from service.workers.mend import COMPARED
from support.constants import DAY_MS, HOUR_MS
from support.redis_clients import client_of
from support.relay import Relay, run_relay

SHARE: Final = 0.2
"""The part of all sessions that drift, in equal parts by kind."""
KINDS: Final = (
    "missing", "missing and over", "late end", "abandoned", "extended", "expired and extended", "gone", "wrong user",
)  # fmt: skip
AT_ONCE: Final = 500
"""Deliveries under way at once."""


class Instance:
    """The instance, and the relay.

    Args:
        clerk: without users.
        relay: gets the webhooks.
        seed: decides what drifts, and what happens.
    """

    def __init__(self, clerk: FakeClerk, relay: Relay, seed: int) -> None:
        self.clerk, self.relay = clerk, relay
        self.random = random.Random(seed)
        self.drifted: dict[str, str] = {}
        """The kind of drift, by session."""
        self.happened: collections.Counter[str] = collections.Counter()
        self._under_way: collections.deque[Future[Outcome]] = collections.deque()
        self._numbers = itertools.count()
        self._late: list[tuple[float, Any, str]] = []
        self._owners: set[str] = set()
        """Users of whom a session is stored that is another's: their end would be that one's."""
        clerk.on_webhook = self._deliver

    def _deliver(self, event: Any) -> None:
        self._under_way.append(self.relay.begin(event, f"msg_{next(self._numbers)}"))
        while len(self._under_way) > AT_ONCE:
            self._under_way.popleft().result(60)

    def _deliver_late(self, event: Any) -> None:
        """Deliver within a second, and sometimes twice."""
        message_id = f"msg_{next(self._numbers)}"
        for _ in range(self.random.choice((1, 1, 2))):
            self._late.append((time.monotonic() + self.random.random(), event, message_id))

    def wait(self) -> None:
        while self._under_way:
            self._under_way.popleft().result(60)

    def fill(self, users: int, sessions_each: int) -> None:
        """Let users sign in, with webhooks for all but those that drift by being missed; then let the others drift."""
        now_ms = time.time_ns() // 1_000_000
        for user in range(users):
            user_id = self.clerk.add_user(created_at=now_ms - DAY_MS + user)
            for _ in range(sessions_each):
                kind = self.random.choice(KINDS) if self.random.random() < SHARE else ""
                end = {"expire_at": now_ms - 1} if kind == "expired and extended" else {}
                lost = self.clerk.webhooks_lost() if kind.startswith("missing") else contextlib.nullcontext()
                with lost:
                    session_id = self.clerk.sign_in(user_id, created_at=now_ms - HOUR_MS, **end)
                if kind:
                    self.drifted[session_id] = kind
        self.wait()
        others = list(self.clerk._records.users)
        with self.clerk.webhooks_lost():
            for session_id, kind in self.drifted.items():
                self._drift(session_id, kind, others)

    def _drift(self, session_id: str, kind: str, users: list[str]) -> None:
        later = time.time_ns() // 1_000_000 + 30 * DAY_MS
        match kind:
            case "late end" | "missing and over":
                self.clerk.end(session_id, self.random.choice(("ended", "removed", "revoked", "replaced")))
            case "abandoned":
                self.clerk.end(session_id, "abandoned")
            case "extended" | "expired and extended":
                self.clerk.extend(session_id, later)
            case "gone":
                self.clerk.vanish(session_id)
            case "wrong user":
                self._owners.add(self.clerk.get(session_id)["user_id"])
                self.clerk.set(session_id, user_id=self.random.choice(users))

    @contextlib.contextmanager
    def busy(self, per_second: float) -> Iterator[None]:
        """Let things happen meanwhile, of which webhooks tell."""
        stopped = threading.Event()
        faults: list[BaseException] = []

        def live() -> None:
            try:
                while not stopped.wait(1 / per_second):
                    self._happen()
                    self._deliver_due(time.monotonic())
            except BaseException as error:  # noqa: BLE001  # the test's thread raises it
                faults.append(error)

        self.clerk.on_webhook = self._deliver_late
        thread = threading.Thread(target=live)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            self._deliver_due(time.monotonic() + 10)
            self.wait()
        assert faults == []

    def _happen(self) -> None:
        what = self.random.choices(("sign in", "end", "ban", "delete", "sign up"), (40, 40, 1, 1, 5))[0]
        records = self.clerk._records
        user_id = self.random.choice(list(records.users))
        open_ones = [each["id"] for each in records.owned_by(user_id) if each["status"] in OPEN_STATUSES]
        match what:
            case "sign up":
                self.clerk.sign_in(self.clerk.add_user())
            case "sign in" if not records.users[user_id]["banned"]:
                self.clerk.sign_in(user_id)
            case "end" if open_ones:
                self.clerk.end(self.random.choice(open_ones), self.random.choice(("ended", "removed", "revoked")))
            case "ban" | "delete" if user_id in self._owners:
                return
            case "ban":
                self.clerk.ban(user_id)
            case "delete":
                self.clerk.delete_user(user_id)
        self.happened[what] += 1

    def _deliver_due(self, now: float) -> None:
        due = [each for each in self._late if each[0] <= now]
        self._late = [each for each in self._late if each[0] > now]
        for _, event, message_id in sorted(due, key=lambda each: each[0]):
            self._under_way.append(self.relay.begin(event, message_id))
        while self._under_way and self._under_way[0].done():
            self._under_way.popleft().result()


@contextlib.contextmanager
def run_instance(redis_url: str, seed: int = 1, **faults: Any) -> Iterator[Instance]:
    """Run both; `faults` are those of a FakeClerk."""
    with (
        FakeClerk(environment="production", seed=seed, **faults) as clerk,
        run_relay(redis_url, now_ms=time.time_ns() // 1_000_000, stream_maxlen=10_000_000) as relay,
    ):
        yield Instance(clerk, relay, seed)


def wrong_states(instance: Instance, redis_url: str) -> dict[str, str]:
    """Return what is stored otherwise than Clerk has it, by session."""
    faults = {}
    with client_of(redis_url) as client:
        stored = dict(_states(client))
    at_clerk = instance.clerk._records.sessions
    for session_id, session in at_clerk.items():
        message = stored.get(session_id)
        if message is None:
            faults[session_id] = "not stored"
            continue
        state = message["session"]
        different = [name for name in COMPARED if state[name] != session.get(name)]
        if different == ["status"] and message["event"]["type"].startswith("user."):
            # The ban came before the session's own end, and is the later one: docs/contract.md, section 10.
            different = (
                [] if state["status"] not in OPEN_STATUSES and session["status"] not in OPEN_STATUSES else different
            )
        if different:
            faults[session_id] = f"{different}: {[(state[name], session.get(name)) for name in different]}"
    for session_id, message in stored.items():
        if session_id not in at_clerk and message["session"]["status"] in OPEN_STATUSES:
            faults[session_id] = "open, and Clerk has it no more"
    return {session_id: f"{instance.drifted.get(session_id)}: {fault}" for session_id, fault in faults.items()}


def _states(client: Any) -> Iterator[tuple[str, Any]]:
    keys = list(client.scan_iter("{clerk}:session:*", count=1000))
    for start in range(0, len(keys), 1000):
        pipeline = client.pipeline(transaction=False)
        for key in keys[start : start + 1000]:
            pipeline.hget(key, "state")
        for key, state in zip(keys[start : start + 1000], pipeline.execute(), strict=True):
            yield key.removeprefix("{clerk}:session:"), json.loads(state)


def wrong_ends(instance: Instance, redis_url: str) -> list[str]:
    """Return the sessions that reconcile ended although Clerk had them open, or that were open again after their end."""
    wrong = []
    over: set[str] = set()
    at_clerk = instance.clerk._records.sessions
    with client_of(redis_url) as client:
        last = "-"
        while entries := client.xrange("{clerk}:events", last, "+", count=1000):
            for _, fields in entries:
                if fields["outcome"] != "applied":
                    continue
                message = json.loads(fields["message"])
                session_id, status = fields["session_id"], message["session"]["status"]
                if status in OPEN_STATUSES:
                    wrong += [session_id] if session_id in over else []
                elif message["event"]["source"] == "clerk-api":
                    over.add(session_id)
                    is_open = at_clerk.get(session_id, {}).get("status") in OPEN_STATUSES
                    wrong += [session_id] if is_open else []
                elif message["event"]["source"] == "clerk":
                    over.add(session_id)
            last = f"({entries[-1][0]}"
    return wrong


def repeated_requests(clerk: FakeClerk) -> int:
    """Return how many of the lists of sessions that were asked for had been answered before."""
    asked = collections.Counter(
        each.target for each in clerk.requests if each.status == 200 and "/sessions?" in each.target
    )
    return asked.total() - len(asked)
