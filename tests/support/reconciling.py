"""A Clerk instance, a relay that gets its webhooks, and runs of `reconcile` between them; at one time, which a test sets."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

from service.clerk.backend_api import BackendApi
from service.clerk.budget import Budget
from service.config import ReconcileSettings, load
from service.dev.fake_clerk import FakeClerk
from service.store.sessions import SessionStore
from service.workers.mend import COMPARED
from service.workers.reconcile import Reconciler
from service.workers.report import Report, Scope
from service.workers.runs import Runs
from service.workers.turn import dry_turn, turn
from support.constants import DAY_MS, NOW_S
from support.redis_clients import client_of, contents
from support.relay import Relay, run_relay

WEEK_MS = 7 * DAY_MS


class World:
    """Each webhook arrives at once, unless Clerk loses it."""

    def __init__(self, redis_url: str, client: Any, partitions: int = 1, **settings: Any) -> None:
        self.now = float(NOW_S)
        self.redis_url = redis_url
        self.client = client
        self.clerk = FakeClerk(clock=lambda: self.now, on_webhook=self.deliver)
        self.relay: Relay
        self._settings = {"partitions": partitions, **settings}
        self._numbers = itertools.count()

    @property
    def now_ms(self) -> int:
        return int(self.now * 1000)

    def later(self, seconds: float = 10) -> None:
        self.now += seconds
        self.relay.now_ms = self.now_ms

    def deliver(self, event: Any) -> str:
        return self.relay.take(event, f"msg_{next(self._numbers)}").outcome

    def settings(self) -> ReconcileSettings:
        clerk = {"clerk_secret_key": self.clerk.secret_key, "clerk_api_url": self.clerk.url}
        return load(ReconcileSettings, _env_file=None, redis_url=self.redis_url, **clerk, **self._settings)

    def reconcile(
        self,
        *,
        dry_run: bool = False,
        allow: int = 0,
        ask_again_seconds: float = 0,
        requests: int = 1_000_000,
        **scope: Any,
    ) -> Report:
        """Run once; as fast as Clerk responds, if it is not given how many requests it may send."""
        return asyncio.run(self._reconcile(Scope(**scope), dry_run, allow, ask_again_seconds, requests))

    async def _reconcile(
        self, scope: Scope, dry_run: bool, allow: int, ask_again_seconds: float, requests: int
    ) -> Report:
        settings, budget = self.settings(), Budget(requests)
        with contextlib.closing(SessionStore(settings)) as store, contextlib.closing(Runs(settings)) as runs:
            whose_turn = dry_turn(runs, budget) if dry_run else turn(runs, budget, wait=True)
            async with whose_turn, BackendApi(settings, budget=budget) as api:
                reconciler = Reconciler(
                    api, store, runs, scope,
                    dry_run=dry_run, allow=allow, ask_again_seconds=ask_again_seconds, clock=lambda: self.now,
                )  # fmt: skip
                return await reconciler.run()

    def message(self, session_id: str) -> Any:
        """Return the message that is stored of a session, None if there is none."""
        found = [self.client.hget(key, "state") for key in self.client.scan_iter(f"*:session:{session_id}")]
        assert len(found) <= 1
        return json.loads(found[0]) if found else None

    def session(self, session_id: str) -> Any:
        return self.message(session_id)["session"]

    def status(self, session_id: str) -> str | None:
        message = self.message(session_id)
        return None if message is None else str(message["session"]["status"])

    def events(self) -> list[tuple[str, Any]]:
        """Return the outcome and the message of each entry of the stream of the first partition."""
        entries = self.client.xrange("{clerk}:events")
        return [(fields["outcome"], json.loads(fields["message"])) for _, fields in entries]

    def disagreeing(self) -> list[str]:
        """Return the sessions that are stored otherwise than Clerk has them."""
        return [id_ for id_, session in self.clerk._records.sessions.items() if not self._agrees(id_, session)]

    def _agrees(self, session_id: str, session: dict[str, Any]) -> bool:
        message = self.message(session_id)
        return message is not None and all(message["session"][name] == session.get(name) for name in COMPARED)


@contextlib.contextmanager
def run_world(redis_url: str, **settings: Any) -> Iterator[World]:
    with client_of(redis_url) as client:
        world = World(redis_url, client, **settings)
        with world.clerk, run_relay(redis_url, now_ms=world.now_ms, **world._settings) as world.relay:
            yield world


def dump(client: Any, *, runs: bool = False) -> dict[str, Any]:
    """Return everything that Redis stores, and when it expires; without what it stores of runs, unless `runs`.

    What a run has spent of the budget is left out always: that is gone after seconds. So is the mark of partitions,
    whose end each connection moves.
    """
    expiries = {}
    if not client.info("server")["redis_version"].startswith("6."):  # which tells only how long is left
        expiries = {key: client.execute_command("PEXPIRETIME", key) for key in client.scan_iter()}
    stored = {key: (value, expiries.get(key)) for key, value in contents(client).items()}
    return {
        key: value
        for key, value in stored.items()
        if key not in {"{clerk}:reconcile:spent", "{clerk}:partitions"} and (runs or ":reconcile" not in key)
    }
