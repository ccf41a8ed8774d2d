"""Programs that run a client's feeds for the conformance suite, and what they have told: clients/conformance/README.md.

A program is started when it is first needed, and serves all tests of this process. One that does not respond is killed.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from support.constants import ROOT

FOLDER: Final = ROOT / "clients" / "conformance"
PATIENCE: Final = 60.0
"""Seconds that a driver has for what does not have to wait for anything."""

Update = dict[str, Any]
Request = dict[str, Any]


class DriverError(Exception):
    """What a driver responded instead of a result.

    Attributes:
        told: The response's object: `kind`, `message` and so on.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(f"{told.get('kind')}: {told.get('message')}")
        self.told = told


@dataclasses.dataclass(slots=True)
class Told:
    """What a driver has told of one iterator."""

    updates: list[Update] = dataclasses.field(default_factory=list)
    reconnects: list[str] = dataclasses.field(default_factory=list)


class Driver:
    """A running driver."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._ids = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._told: dict[str, Told] = {}
        self._changed = threading.Condition()
        self._ready: Future[dict[str, Any]] = Future()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def can(self) -> list[str]:
        """What it can do that not all can."""
        can: list[str] = self._ready.result(PATIENCE)["can"]
        return can

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = json.loads(text)
            with self._changed:
                if "ready" in line:
                    self._ready.set_result(line)
                elif "id" in line:
                    future = self._waiting.pop(line["id"])
                    if "error" in line:
                        future.set_exception(DriverError(line["error"]))
                    else:
                        future.set_result(line["result"])
                elif "update" in line:
                    self._of(line["iterator"]).updates.append(line["update"])
                else:
                    self._of(line["iterator"]).reconnects.append(line["reconnect"])
                self._changed.notify_all()
        with self._changed:
            for future in self._waiting.values():
                future.set_exception(DriverError({"kind": "dead", "message": "the driver has ended"}))
            self._waiting.clear()

    def _of(self, iterator: str) -> Told:
        return self._told.setdefault(iterator, Told())

    def begin(self, op: str, **request: Any) -> "Future[Any]":
        """Send a request, without waiting for the response."""
        future: Future[Any] = Future()
        self._ready.result(PATIENCE)
        with self._changed:
            number = next(self._ids)
            self._waiting[number] = future
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": number, "op": op, **request}) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._waiting.pop(number, None)
            future.set_exception(DriverError({"kind": "dead", "message": "the driver has ended"}))
        return future

    def told(self, iterator: str) -> Told:
        """Return a copy of what it has told of an iterator until now."""
        with self._changed:
            told = self._of(iterator)
            return Told(list(told.updates), list(told.reconnects))

    def await_told(self, iterator: str, is_enough: Callable[[Told], bool], within: float) -> bool:
        """Wait until it has told enough; return False if it does not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: is_enough(self._of(iterator)), within)

    def forget(self) -> None:
        """Forget what it has told."""
        with self._changed:
            self._told.clear()

    def kill(self) -> None:
        """By SIGKILL."""
        self._process.kill()
        self._reader.join()
        with self._process, contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()


class Drivers:
    """The drivers of all clients, by their names; a client's further processes have names of their own."""

    def __init__(self, commands: dict[str, tuple[str, ...]]) -> None:
        self._commands = commands
        self._running: dict[tuple[str, str], Driver] = {}

    @property
    def names(self) -> list[str]:
        return list(self._commands)

    def get(self, name: str, process: str = "main") -> Driver:
        """Return a driver, which is started unless it runs."""
        if (name, process) not in self._running:
            self._running[name, process] = Driver(self._commands[name])
        return self._running[name, process]

    def start(self, process: str = "main") -> None:
        """Start one of each, all at the same time."""
        for name in self._commands:
            self.get(name, process)

    def kill(self, name: str, process: str) -> None:
        """Kill a driver, if it runs."""
        if driver := self._running.pop((name, process), None):
            driver.kill()

    def kill_all(self, *, but: str = "") -> None:
        """Kill all processes, but for those of that name."""
        for name, process in list(self._running):
            if process != but:
                self.kill(name, process)


def commands() -> dict[str, tuple[str, ...]]:
    """Return how each client's driver is started; those of TypeScript are left out where they can't run.

    Raises:
        FileNotFoundError: They can't run, and CI=true.
    """
    python = str(FOLDER / "python_driver.py")
    found: dict[str, tuple[str, ...]] = {
        f"python-{kind}": (sys.executable, python, kind) for kind in ("threads", "asyncio")
    }
    typescript = FOLDER / "typescript_driver.mjs"
    if lacking := _lacks_typescript():
        if os.environ.get("CI") == "true":
            raise FileNotFoundError(lacking)
        return found
    libraries = ("redis5", "redis6", "ioredis5", "ioredis6", "iovalkey")
    node = shutil.which("node") or "node"
    return found | {f"typescript-{library}": (node, str(typescript), library) for library in libraries}


def _lacks_typescript() -> str | None:
    client: Path = ROOT / "clients" / "typescript"
    if shutil.which("node") is None:
        return "there is no node on PATH"
    for path in (client / "dist" / "index.js", client / "node_modules" / "redis5", FOLDER / "typescript_driver.mjs"):
        if not path.exists():
            return f"there is no {path.relative_to(ROOT)}: `make test` makes it, where there is npm"
    return None


@contextlib.contextmanager
def running_drivers() -> Iterator[Drivers]:
    """Run a driver of each client; all are killed in the end."""
    drivers = Drivers(commands())
    drivers.start()
    try:
        yield drivers
    finally:
        drivers.kill_all()
