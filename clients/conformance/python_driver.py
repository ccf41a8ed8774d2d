"""Runs Python's feeds for the conformance suite, as README.md says: JSON lines on stdin and stdout.

python python_driver.py threads     SessionFeed
python python_driver.py asyncio     AsyncSessionFeed

A long module, since it is one program for both feeds, and a driver is to be read from top to bottom.
"""
# ruff: noqa: INP001  # a program, and no package

import asyncio
import contextlib
import dataclasses
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from clerk_session_feed import (
    AsyncSessionFeed,
    CursorLostError,
    FeedClosedError,
    MirrorTooOldError,
    PartitionsError,
    RedisError,
    SessionFeed,
    SessionUpdate,
    UnreadableMessageError,
)

Request = dict[str, Any]
_printing = threading.Lock()


def emit(**line: Any) -> None:
    """Print a line, whole, whichever thread it is from."""
    with _printing:
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def as_json(value: Any) -> Any:
    """Return what a method of a feed returned, as README.md has it."""
    if isinstance(value, SessionUpdate):
        plain = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        plain |= {"event": dataclasses.asdict(value.event), "session": dataclasses.asdict(value.session)}
        plain |= {"json": value.json.decode(), "position": value.position, "is_live": value.is_live}
        return plain
    if isinstance(value, list):
        return [as_json(each) for each in value]
    return value


def explain(error: BaseException) -> dict[str, Any]:
    """Return an error, as README.md has it. One that no feed may raise has the name of its class for a kind."""
    kinds: dict[type[BaseException], str] = {
        CursorLostError: "cursor_lost",
        PartitionsError: "partitions",
        FeedClosedError: "closed",
        UnreadableMessageError: "unreadable",
        MirrorTooOldError: "too_old",
        RedisError: "redis",
        ValueError: "invalid",
    }
    kind = next((name for class_, name in kinds.items() if isinstance(error, class_)), type(error).__name__)
    more = {"cursor": error.cursor, "partition": error.partition} if isinstance(error, CursorLostError) else {}
    return {"kind": kind, "message": str(error), **more}


class Threads:
    """Runs each request in a thread of its own."""

    feed: Any = SessionFeed

    def run(self, function: Callable[[Request], Any], request: Request) -> None:
        """Begin with a request."""
        threading.Thread(target=self._answer, args=(function, request), daemon=True).start()

    def _answer(self, function: Callable[[Request], Any], request: Request) -> None:
        try:
            result = self.wait(function(request))
        except BaseException as error:  # noqa: BLE001  # whatever it is, the runner has to learn of it
            emit(id=request["id"], error=explain(error))
        else:
            emit(id=request["id"], result=as_json(result))

    def wait(self, result: Any) -> Any:
        """Return what a method of a feed returns in the end."""
        return result

    def take(self, updates: Any, count: int | None, tell: Callable[[SessionUpdate], None]) -> bool:
        """Tell of so many updates, or of all; return whether the iterator ended."""
        while count is None or count > 0:
            try:
                tell(next(updates))
            except StopIteration:
                return True
            count = None if count is None else count - 1
        return False

    def make(self, method: Callable[..., Any], **options: Any) -> Any:
        """Return what a method that begins something returns."""
        return method(**options)

    def leave(self, updates: Any) -> None:
        """Leave the loop, as `break` does."""
        updates.close()


class Tasks(Threads):
    """Runs them in one event loop, in a thread of its own."""

    feed = AsyncSessionFeed

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def wait(self, result: Any) -> Any:
        if not asyncio.iscoroutine(result):
            return result
        future: Future[Any] = asyncio.run_coroutine_threadsafe(result, self._loop)
        return future.result()

    def take(self, updates: Any, count: int | None, tell: Callable[[SessionUpdate], None]) -> Any:
        return self._take(updates, count, tell)

    async def _take(self, updates: Any, count: int | None, tell: Callable[[SessionUpdate], None]) -> bool:
        while count is None or count > 0:
            try:
                tell(await anext(updates))
            except StopAsyncIteration:
                return True
            count = None if count is None else count - 1
        return False

    def make(self, method: Callable[..., Any], **options: Any) -> Any:
        async def call() -> Any:
            return method(**options)

        return self.wait(call())

    def leave(self, updates: Any) -> Any:
        return updates.aclose()


class Driver:
    """The operations of README.md, each a method of its name."""

    def __init__(self, runs: Threads) -> None:
        self._runs = runs
        self._feeds: dict[str, Any] = {}
        self._iterators: dict[str, Any] = {}
        self._mirrors: dict[str, Any] = {}

    def serve(self) -> None:
        """Do what stdin says until it ends."""
        for line in sys.stdin:
            request = json.loads(line)
            self._runs.run(getattr(self, request["op"]), request)

    def open(self, request: Request) -> None:
        """Open a feed."""
        ours = {"redis_key_prefix": "prefix", "redis_channel": "channel", "partitions": "partitions"}
        settings = {setting: request[name] for setting, name in ours.items() if name in request}
        if "timeout" in request:
            settings["redis_timeout"] = request["timeout"] / 1000
        self._feeds[request["feed"]] = self._runs.feed.from_url(request["server"]["url"], **settings)

    def close(self, request: Request) -> Any:
        """Close a feed."""
        return self._feeds[request["feed"]].close()

    def ask(self, request: Request) -> Any:
        """Call one of a feed's methods that return something."""
        return getattr(self._feeds[request["feed"]], request["method"])(*request["arguments"])

    def follow(self, request: Request) -> None:
        """Begin an iterator."""
        self._begin(request, **self._options(request, "after", "stale", "resync"))

    def consume(self, request: Request) -> None:
        """Begin an iterator."""
        options = self._options(request, "after", "stale", "resync")
        if "claim_after" in request:
            options["claim_after"] = request["claim_after"] / 1000
        self._begin(request, request["group"], request["name"], **options)

    def subscribe(self, request: Request) -> None:
        """Begin an iterator."""
        self._begin(request, *([request["user_id"]] if "user_id" in request else []))

    def take(self, request: Request) -> Any:
        """Take updates from an iterator."""
        name = request["iterator"]

        def tell(update: SessionUpdate) -> None:
            emit(iterator=name, update=as_json(update))

        return self._runs.take(self._iterators[name], request.get("count"), tell)

    def leave(self, request: Request) -> Any:
        """Leave an iterator."""
        return self._runs.leave(self._iterators.pop(request["iterator"]))

    def mirror(self, request: Request) -> None:
        """Make a mirror."""
        options: dict[str, Any] = {name: request[name] / 1000 for name in ("max_age", "keep_ended") if name in request}
        if "past_max_age" in request:
            options["past_max_age"] = request["past_max_age"]
        self._mirrors[request["mirror"]] = self._runs.make(
            self._feeds[request["feed"]].mirror, on_reconnect=lambda _: None, **options
        )

    def ready(self, request: Request) -> Any:
        """Wait until a mirror has read everything."""
        return self._mirrors[request["mirror"]].wait_until_ready()

    def answer(self, request: Request) -> Any:
        """Call one of a mirror's methods that return something."""
        return getattr(self._mirrors[request["mirror"]], request["method"])(*request["arguments"])

    def close_mirror(self, request: Request) -> Any:
        """Close a mirror."""
        return self._mirrors[request["mirror"]].close()

    def _options(self, request: Request, *names: str) -> dict[str, Any]:
        options = {name: request[name] for name in names if name in request}
        if isinstance(after := options.get("after"), dict):
            options["after"] = {int(number): cursor for number, cursor in after.items()}
        return options

    def _begin(self, request: Request, *arguments: Any, **options: Any) -> None:
        name = request["iterator"]

        def tell(error: RedisError) -> None:
            emit(iterator=name, reconnect=str(error))

        method = getattr(self._feeds[request["feed"]], request["op"])
        self._iterators[name] = method(*arguments, on_reconnect=tell, **options)


def main() -> None:
    """Run the driver."""
    runs = {"threads": Threads, "asyncio": Tasks}[sys.argv[1]]()
    emit(ready=f"python-{sys.argv[1]}", can=["mirror"])
    with contextlib.suppress(KeyboardInterrupt):
        Driver(runs).serve()


if __name__ == "__main__":
    main()
