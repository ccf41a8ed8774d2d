"""Plays the scenarios of clients/conformance with all drivers at once, and compares what they tell.

A long module, since the steps share what a scenario knows: labels, iterators and what the relay has applied.
"""

import collections
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

from clerk_session_feed.keys import Keys

from support.clock import eventually
from support.conformance_drivers import FOLDER, PATIENCE, Driver, DriverError, Drivers, Told
from support.conformance_matching import check_update, match, match_any_order, shortened
from support.conformance_redis import RedisSteps

Step = dict[str, Any]
TIMEOUT_MS: Final = 10_000
"""The time limit of feeds, unless a scenario says otherwise: on a busy machine, the default of 2 s may not be enough."""
_RUNS: Final = itertools.count()


def scenarios() -> dict[str, Step]:
    """Return all scenarios by name, like `follow/begins with snapshots`."""
    found = {}
    for path in sorted((FOLDER / "scenarios").glob("*.json")):
        for scenario in json.loads(path.read_text()):
            found[f"{path.stem}: {scenario['name']}"] = scenario
    return found


class MismatchError(AssertionError):
    """What a driver told is not what the scenario demands."""


class Play(RedisSteps):
    """One scenario, on its way. Each step is a method; docs are in clients/conformance/README.md."""

    def __init__(self, scenario: Step, drivers: Drivers, place: Any, stack: contextlib.ExitStack) -> None:
        needs = set(scenario.get("needs", []))
        faulty = tuple(scenario.get("known_faults", {}))
        can = [name for name in drivers.names if needs <= set(drivers.get(name).can)]
        super().__init__(scenario, place, stack, [name for name in can if not name.startswith(faulty)])
        self._all = drivers
        self._run = next(_RUNS)
        self._keys = Keys(channel=scenario.get("channel", "clerk:sessions"))
        self._deadline = 0.0
        """When a check of `_each` has to be done, by time.monotonic()."""
        self._processes: dict[str, str] = {}
        """Feeds and iterators that are in another process than the main one."""
        self._feeds: list[tuple[str, str]] = []
        self._early: dict[tuple[str, str], DriverError] = {}
        """Errors that a driver had sooner than another would."""
        self._taking: dict[tuple[str, str], tuple[int, Future[Any]]] = {}
        """By driver and iterator: how many updates came before, and the request that runs."""

    def play(self) -> None:
        """Do all steps."""
        for number, step in enumerate(self._scenario["steps"]):
            verbs = [key for key in step if hasattr(self, f"do_{key}")]
            if len(verbs) != 1:
                raise ValueError(f"step {number} has no verb, or several: {step}")
            (verb,) = verbs
            more = {key: value for key, value in step.items() if key != verb}
            try:
                getattr(self, f"do_{verb}")(step[verb], **more)
            except AssertionError as error:
                raise MismatchError(f"step {number}: {json.dumps(step)[:300]}\n{error}") from error

    def close(self) -> None:
        """Close all feeds; end drivers that don't."""
        closing = [(name, self._driver(name, feed).begin("close", feed=feed)) for name, feed in self._feeds]
        for name, future in closing:
            try:
                future.result(PATIENCE / 4)
            except DriverError:
                pass
            except FutureTimeoutError:
                self._all.kill(name, "main")
        self._all.kill_all(but="main")
        for name in self.names:
            self._all.get(name).forget()

    def _unique(self, iterator: str) -> str:
        """Return the name that drivers know it by: what they still tell of an earlier scenario's is no concern here."""
        return f"{self._run} {iterator}"

    def _driver(self, name: str, of: str) -> Driver:
        return self._all.get(name, self._processes.get(of, "main"))

    def _each(self, check: Callable[[str], None]) -> None:
        """Check each driver, and raise what is wrong with any. All of them together have PATIENCE."""
        failures = []
        self._deadline = time.monotonic() + PATIENCE
        for name in self.names:
            try:
                check(name)
            except (AssertionError, DriverError) as error:
                failures.append(f"{name}: {error}")
            except FutureTimeoutError:
                failures.append(f"{name}: no response")
        assert not failures, "\n".join(failures)

    @property
    def _left(self) -> float:
        """Seconds that are left for a check of `_each`."""
        return max(0.1, self._deadline - time.monotonic())

    # Feeds and iterators

    def do_open(self, feed: str, process: str = "main", **options: Any) -> None:
        """Open a feed."""
        if process != "main":
            self._processes[feed] = process
            self._all.start(process)
        options = {"timeout": TIMEOUT_MS} | options
        common = {name: self._scenario[name] for name in ("prefix", "channel", "partitions") if name in self._scenario}
        user = {name: options.pop(name) for name in ("username", "password") if name in options}
        futures = {}
        for name in self.names:
            server = self._place.address(name) | user
            if user:
                login = f"{user.get('username', '')}:{user.get('password', '')}@"
                server["url"] = server["url"].replace("//", f"//{login}", 1)
            self._feeds.append((name, feed))
            request = common | self._put(options, name)
            futures[name] = self._driver(name, feed).begin("open", feed=feed, server=server, **request)
        self._note_early(feed, futures)

    def _note_early(self, of: str, futures: dict[str, Future[Any]]) -> None:
        for name, future in futures.items():
            try:
                future.result(PATIENCE)
            except DriverError as error:
                self._early[name, of] = error
            except FutureTimeoutError:
                raise AssertionError(f"{name}: no response") from None

    def do_close(self, feed: str) -> None:
        """Close a feed."""
        futures = {name: self._driver(name, feed).begin("close", feed=feed) for name in self.names}
        self._each(lambda name: futures[name].result(self._left))

    def do_mirror(self, mirror: str, feed: str = "main", **options: Any) -> None:
        """Make a mirror."""
        named = {"feed": feed, "mirror": self._unique(mirror)}
        futures = {name: self._driver(name, feed).begin("mirror", **named, **options) for name in self.names}
        self._note_early(mirror, futures)

    def do_ready(self, mirror: str) -> None:
        """Return when a mirror has read everything."""
        self._tell("ready", mirror=mirror)

    def do_close_mirror(self, mirror: str) -> None:
        """Close a mirror."""
        self._tell("close_mirror", mirror=mirror)

    def _tell(self, op: str, **of: str) -> None:
        """Let each driver do something with an iterator, or with a mirror."""
        ((kind, name_of),) = of.items()
        named = {kind: self._unique(name_of)}
        futures = {name: self._driver(name, name_of).begin(op, **named) for name in self.names}
        self._each(lambda name: futures[name].result(self._left))

    def do_ask(
        self, method: str, arguments: list[Any], feed: str = "main", of: str | None = None, **expected: Any
    ) -> None:
        """Call a method of a feed, or of a mirror, that returns something."""
        named = {"op": "ask", "feed": feed} if of is None else {"op": "answer", "mirror": self._unique(of)}
        feed = of or feed
        futures = {
            name: self._driver(name, feed).begin(method=method, arguments=self._put(arguments, name), **named)
            for name in self.names
            if (name, feed) not in self._early
        }

        def check(name: str) -> None:
            try:
                if (name, feed) in self._early:
                    raise self._early[name, feed]
                got = futures[name].result(self._left)
            except DriverError as error:
                self._check_error(error, expected.get("error"), name)
                return
            assert "error" not in expected, f"no error, but {got}"
            match(self._put(expected["is"], name), got)

        self._each(check)

    def do_eventually(self, method: str, **more: Any) -> None:
        """Ask again until the response is as expected."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.do_ask(method, **more)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def do_follow(self, iterator: str, feed: str = "main", **options: Any) -> None:
        """Begin an iterator."""
        self._iterate("follow", iterator, feed, options)

    def do_consume(self, iterator: str, feed: str = "main", **options: Any) -> None:
        """Begin an iterator."""
        self._iterate("consume", iterator, feed, {"group": "$driver", "name": iterator} | options)

    def do_subscribe(self, iterator: str, feed: str = "main", **options: Any) -> None:
        """Begin an iterator."""
        self._iterate("subscribe", iterator, feed, options)

    def _iterate(self, op: str, iterator: str, feed: str, options: dict[str, Any]) -> None:
        self._processes[iterator] = self._processes.get(feed, "main")
        for name in self.names:
            if early := self._early.get((name, feed)):
                self._early[name, iterator] = early
        futures = {
            name: self._driver(name, iterator).begin(
                op, feed=feed, iterator=self._unique(iterator), **self._put(options, name)
            )
            for name in self.names
            if (name, feed) not in self._early
        }
        self._note_early(iterator, futures)

    def do_begin(self, iterator: str, count: int | None = None) -> None:
        """Ask for so many updates, or for all that come, without waiting for them."""
        for name in self.names:
            before = len(self._driver(name, iterator).told(self._unique(iterator)).updates)
            future: Future[Any] = Future()
            if early := self._early.get((name, iterator)):
                future.set_exception(early)
            else:
                future = self._driver(name, iterator).begin("take", iterator=self._unique(iterator), count=count)
            self._taking[name, iterator] = before, future

    def do_take(self, iterator: str, count: int | None = None, **expected: Any) -> None:
        """Ask for as many updates as are expected, and compare; or for so many, whatever they are."""
        if count is not None:
            self.do_begin(iterator, count)
            futures = {name: self._taking.pop((name, iterator))[1] for name in self.names}
            self._each(lambda name: futures[name].result(self._left))
            return
        count = sum(len(expected.get(kind, [])) for kind in ("snapshots", "see"))
        self.do_begin(iterator, count + int("error" in expected or "ended" in expected))
        self.do_finish(iterator, **expected)

    def do_finish(
        self,
        iterator: str,
        see: list[Any] | None = None,
        any_order: list[Any] | None = None,
        snapshots: list[Any] | None = None,
        error: dict[str, Any] | None = None,
        ended: bool = False,
    ) -> None:
        """Wait for what was asked for, and compare."""

        def check(name: str) -> None:
            before, future = self._taking.pop((name, iterator))
            try:
                has_ended = future.result(self._left)
            except FutureTimeoutError:
                updates = self._driver(name, iterator).told(self._unique(iterator)).updates[before:]
                self._taking[name, iterator] = before, future
                raise AssertionError(f"only came: {[shortened(update) for update in updates]}") from None
            except DriverError as told:
                self._check_error(told, error, name)
            else:
                assert error is None, f"no error {error}"
                assert has_ended == ended, f"ended: {has_ended}"
            updates = self._driver(name, iterator).told(self._unique(iterator)).updates[before:]
            for update in updates:
                check_update(update)
            first = self._put(snapshots or [], name)
            match_any_order(first, updates[: len(first)], are_snapshots=True)
            if any_order is None:
                match(self._put(see or [], name), updates[len(first) :])
            else:
                match_any_order(self._put(any_order, name), updates)

        self._each(check)

    def _check_error(self, error: DriverError, expected: dict[str, Any] | None, name: str) -> None:
        if expected is None:
            raise error
        demanded = self._put(expected, name)
        says = demanded.pop("says", "")
        match(demanded, error.told)
        assert says in error.told["message"], error.told

    def do_leave(self, iterator: str) -> None:
        """Leave a loop in its body."""
        self._tell("leave", iterator=iterator)

    def do_abort(self, iterator: str) -> None:
        """End an iterator from outside."""
        self._tell("abort", iterator=iterator)

    def do_kill_process(self, process: str) -> None:
        """Kill the further process of each driver."""
        for name in self.names:
            self._all.kill(name, process)
        gone = {of for of, where in self._processes.items() if where == process}
        self._feeds = [(name, feed) for name, feed in self._feeds if feed not in gone]

    # What is waited for, or has to have happened

    def do_await_waiting(self, count: int) -> None:
        """Return when so many iterators of each driver wait at Redis."""
        channels = [self._keys.channel, self._keys.user_channel("user_1")]
        wanted = count * len(self.names)
        eventually(lambda: self._place.waiting(channels) == wanted, within=PATIENCE)

    def do_await_subscribed(self, count: int) -> None:
        """Return when so many iterators of each driver are subscribed."""
        wanted = count * len(self.names)
        eventually(lambda: self._place.subscribed([self._keys.channel]) == wanted, within=PATIENCE)

    def do_await_seen(self, iterators: list[str], see: list[Any]) -> None:
        """Return when the iterators have seen these updates, in any order, whichever of them did."""

        def check(name: str) -> None:
            driver = self._driver(name, iterators[0])

            def seen() -> list[Any]:
                return [update for each in iterators for update in driver.told(self._unique(each)).updates]

            with contextlib.suppress(AssertionError):
                eventually(lambda: len(seen()) >= len(see), within=self._left)
            match_any_order(self._put(see, name), seen())

        self._each(check)

    def do_await_pending(self, count: int, group: str = "$driver", key: str = "{clerk}:events") -> None:
        """Return when so many entries of each driver's group are not acknowledged."""
        client = self._client(key)
        for name in self.names:
            eventually(
                lambda name=name: client.xpending(key, self._put(group, name))["pending"] == count,  # type: ignore[misc]
                within=PATIENCE,
            )

    def do_await_reconnect(self, iterator: str, says: str = "") -> None:
        """Return when each driver has told that it connects again."""

        def is_enough(told: Told) -> bool:
            return any(says in each for each in told.reconnects)

        def check(name: str) -> None:
            driver = self._driver(name, iterator)
            assert driver.await_told(self._unique(iterator), is_enough, self._left), (
                f"told only {driver.told(self._unique(iterator)).reconnects}"
            )

        self._each(check)

    def do_no_reconnect(self, iterator: str) -> None:
        """No driver may have told that it connects again."""
        told = {name: self._driver(name, iterator).told(self._unique(iterator)).reconnects for name in self.names}
        assert not any(told.values()), told

    def do_complete(self, iterators: list[str], each: str) -> None:
        """Return when the iterators have seen all that the relay has applied: `once` each, or `at least once`."""

        def check(name: str) -> None:
            with contextlib.suppress(AssertionError):
                eventually(lambda: self._applied.keys() <= set(self._seen(name, iterators)), within=self._left)
            seen = self._seen(name, iterators)
            missed = sorted(self._applied.keys() - set(seen))
            assert not missed, f"missed {len(missed)} of {len(self._applied)}: {missed[:5]}"
            assert not set(seen) - self._applied.keys(), "has updates that the relay has not applied"
            if each == "once":
                last: collections.Counter[str] = collections.Counter()
                for session, revision in seen:
                    assert revision == last[session] + 1, f"{session}: {revision} after {last[session]}"
                    last[session] = revision

        self._each(check)

    def do_latest(self, iterator: str) -> None:
        """Return when an iterator has seen the latest revision of each session; none may come twice, or late."""
        latest: collections.Counter[str] = collections.Counter()
        for session, revision in self._applied:
            latest[session] = max(latest[session], revision)

        def check(name: str) -> None:
            with contextlib.suppress(AssertionError):
                eventually(lambda: latest.items() <= set(self._seen(name, [iterator])), within=self._left)
            last: collections.Counter[str] = collections.Counter()
            for session, revision in self._seen(name, [iterator]):
                assert revision > last[session], f"{session}: {revision} after {last[session]}"
                last[session] = revision
            assert last == latest, f"not the latest: {[each for each in latest if last[each] != latest[each]][:5]}"

        self._each(check)

    def _seen(self, name: str, iterators: list[str]) -> list[tuple[str, int]]:
        """Return the session and the revision of all that came."""
        updates = [update for each in iterators for update in self._driver(name, each).told(self._unique(each)).updates]
        return [(update["session"]["id"], update["revision"]) for update in updates]


@contextlib.contextmanager
def played(scenario: Step, drivers: Drivers, place: Any) -> Iterator[Play]:
    """Yield a scenario that can be played; its feeds are closed afterwards."""
    with contextlib.ExitStack() as stack:
        play = Play(scenario, drivers, place, stack)
        try:
            yield play
        finally:
            play.close()
