"""What a conformance scenario does to Redis: events of the relay, commands, and faults: clients/conformance/README.md."""

import contextlib
import json
import re
import time
from concurrent.futures import Future
from typing import Any

from service.errors import StoreUnavailableError
from support.conformance_drivers import PATIENCE
from support.conformance_matching import message_with
from support.constants import DAY_MS, HOUR_MS
from support.events import clerk_event
from support.relay import Relay, run_relay

Scenario = dict[str, Any]
Sent = tuple[Future[Any], dict[str, Any], str]


class RedisSteps:
    """The steps that no driver takes part in.

    Attributes:
        names: The drivers that take part in the scenario.
    """

    def __init__(self, scenario: Scenario, place: Any, stack: contextlib.ExitStack, names: list[str]) -> None:
        self.names = names
        self._scenario = scenario
        self._place = place
        self._stack = stack
        self._labels: dict[str, str] = {}
        self._clients: dict[str, Any] = {}
        self._relay: Relay | None = None
        self._applied: dict[tuple[str, int], str] = {}
        """Cursors by session and revision."""
        self._numbers = iter(range(1_000_000))

    def _put(self, value: Any, driver: str = "") -> Any:
        """Replace `$driver` and labels."""
        if isinstance(value, str):
            known = {**self._labels, "driver": driver}
            return re.sub(r"\$(\w+)", lambda found: known[found[1]], value)
        if isinstance(value, dict):
            return {key: self._put(each, driver) for key, each in value.items()}
        return [self._put(each, driver) for each in value] if isinstance(value, list) else value

    def do_relay(self, events: list[Any], late: bool = False) -> None:
        """Let the relay take events, one after the other."""
        for event in events:
            self._end(self._begin(self._event(event, late=late)), event.get("as") if isinstance(event, dict) else None)

    def do_relay_many(self, sessions: int) -> None:
        """Let the relay take an event of each session, some at a time."""
        for first in range(0, sessions, 50):
            numbers = range(first, min(first + 50, sessions))
            for sent in [self._begin(self._event(f"sess_{number}")) for number in numbers]:
                self._end(sent)

    def _running_relay(self) -> Relay:
        if self._relay is None:
            settings = {"partitions": self._scenario.get("partitions", 1)} | self._scenario.get("relay_settings", {})
            if prefix := self._scenario.get("prefix"):
                settings["redis_key_prefix"] = prefix
            now_ms = time.time_ns() // 1_000_000 + self._scenario.get("relay_clock", 0)
            self._relay = self._stack.enter_context(run_relay(self._place.url, now_ms=now_ms, **settings))
        return self._relay

    def _event(self, event: Any, *, late: bool = False) -> tuple[dict[str, Any], str]:
        if isinstance(event, str):
            session, _, status = event.partition(" ")
            event = {"session": session, "status": status or "active"}
        number = next(self._numbers)
        now_ms = self._running_relay().now_ms
        at = now_ms - (2 * HOUR_MS if late else HOUR_MS) + number
        expire_in = event.get("expire_in", DAY_MS)
        options = {"user_id": event.get("user", "user_1"), "updated_at": at, **event.get("data", {})}
        options["expire_at"] = None if expire_in is None else now_ms + expire_in
        return clerk_event(event.get("status", "active"), session_id=event["session"], **options), f"msg_{number}"

    def _begin(self, event: tuple[dict[str, Any], str]) -> Sent:
        return self._running_relay().begin(*event), *event

    def _end(self, sent: Sent, label: str | None = None) -> None:
        """Wait, and send again what was refused, as the sender would."""
        future, event, message_id = sent
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                outcome = future.result(PATIENCE)
                break
            except StoreUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                future = self._running_relay().begin(event, message_id)
        if outcome.revision is not None:
            self._applied[outcome.session_id, outcome.revision] = outcome.cursor
        if label is not None:
            self._labels[label] = outcome.cursor

    def do_redis(self, commands: list[list[Any]]) -> None:
        """Send commands to the server that has the key, which is the second word."""
        for words in commands:
            texts = [self._put(self._text(word)) for word in words]
            key = texts[1] if len(texts) > 1 else ""
            self._client(key).execute_command(*texts)

    def _client(self, key: str = "") -> Any:
        if key not in self._clients:
            self._clients[key] = self._place.client(key)
        return self._clients[key]

    def _text(self, word: Any) -> str:
        if isinstance(word, dict):
            word = json.dumps(message_with(word["$message"]) if "$message" in word else word, separators=(",", ":"))
        return str(word)

    def do_redis_each(self, commands: list[list[Any]]) -> None:
        """The same for each driver, with `$driver` for its name."""
        for name in self.names:
            self.do_redis(self._put(commands, name))

    def do_kill(self, _: bool) -> None:
        """Kill the server."""
        self._place.kill()

    def do_start(self, options: list[str]) -> None:
        """Start it again."""
        self._place.start(*options)
        self._clients.clear()

    def do_freeze(self, _: bool) -> None:
        """Stop the server, with its connections open."""
        self._place.freeze()

    def do_thaw(self, _: bool) -> None:
        """Let it go on."""
        self._place.thaw()

    def do_cut(self, _: bool) -> None:
        """End all connections."""
        self._place.cut()

    def do_demote(self, _: bool) -> None:
        """Make the server a replica."""
        self._place.demote()

    def do_promote(self, _: bool) -> None:
        """Make it a primary again."""
        self._place.promote()

    def do_failover(self, _: bool) -> None:
        """Let another server become the primary."""
        self._place.failover()
        self._clients.clear()

    def do_storm(self, kills: int, sessions: int) -> None:
        """Kill and start the server so many times; each session has an event before and after each."""
        for left in reversed(range(kills + 1)):
            sent = [self._begin(self._event(f"sess_{number}")) for number in range(sessions)]
            if left:
                self._place.kill()
                self._place.start()
            for each in sent:
                self._end(each)

    def do_refuse(self, count: int, words: str, at_connect: bool = False) -> None:
        """Let each driver's next commands, or connections, be refused."""
        self._place.refuse(self.names, words, count, at_connect=at_connect)
