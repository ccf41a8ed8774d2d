"""A sender that behaves like Svix (https://docs.svix.com/retries): at least once, and in no order.

Anything but a 2xx within 15 s is tried again; body and message id stay, timestamp and signature are new each
time. Only its clock runs faster, and it does not give up: what a fault delays is to arrive after all.
"""

import collections
import contextlib
import dataclasses
import heapq
import http.client
import itertools
import json
import random
import select
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from support.clock import eventually
from support.lives import Message
from support.signing import signed

CONCURRENCY: Final = 32
ATTEMPT_SECONDS: Final = 15.0
RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5)
"""For 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h. The last one goes on for as long as it takes."""
SENT_AGAIN: Final = 0.1
"""The part of the messages that is sent again though it was acknowledged, as if the answer had been lost."""


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    message: Message
    seconds: float
    status: int | None
    """None: no answer."""
    body: dict[str, Any]
    """The answer's; empty if there is none."""
    is_refused: bool = False
    """Nobody listened, so the request was never sent."""
    ended: float = 0.0
    """When, by the monotonic clock."""

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def said(self) -> str:
        if self.status is None:
            return "connection refused" if self.is_refused else "no answer"
        return f"{self.status} {self.body.get('outcome') or self.body.get('detail')}"


@dataclasses.dataclass(order=True, slots=True)
class _Job:
    due: float
    number: int
    message: Message = dataclasses.field(compare=False)
    attempts: int = dataclasses.field(default=0, compare=False)
    is_again: bool = dataclasses.field(default=False, compare=False)


class SvixSender:
    """Delivers what it is told to `release`. Threads with http.client: httpx takes ten times the CPU."""

    def __init__(self, messages: Sequence[Message], port: int, *, seed: int) -> None:
        self.port = port
        """May be changed at any time, as a router does."""
        self.attempts: list[Attempt] = []
        self.acknowledged: dict[str, Attempt] = {}
        """The first 2xx of each message that got one, by its id."""
        self.released = 0
        chance = random.Random(seed)
        self.messages = chance.sample(messages, len(messages))
        self._again = {message.id for message in chance.sample(messages, int(len(messages) * SENT_AGAIN))}
        self._numbers = itertools.count()
        self._said: collections.Counter[str] = collections.Counter()
        self._jobs: list[_Job] = []
        self._unfinished = 0
        self._in_flight: dict[int, float] = {}
        self._changed = threading.Condition()
        self._has_ended = False

    def failures(self, kind: str = "") -> int:
        """Return how many attempts were answered, but with no success: those whose answer names this."""
        with self._changed:
            return sum(times for said, times in self._said.items() if said[0] in "345" and kind in said)

    @property
    def unanswered(self) -> int:
        return self._said["no answer"]

    @property
    def refused(self) -> int:
        return self._said["connection refused"]

    def waiting(self, seconds: float) -> int:
        """Return how many requests wait for their answer for so long already."""
        with self._changed:
            before = time.monotonic() - seconds
            return sum(began < before for began in self._in_flight.values())

    def release(self, count: int) -> None:
        """Let it send so many more messages."""
        batch = self.messages[self.released : self.released + count]
        self.released += len(batch)
        for message in batch:
            self._plan(_Job(0, next(self._numbers), message))

    def await_acknowledged(self, count: int, within: float = 60.0) -> None:
        eventually(lambda: len(self.acknowledged) >= count, within)

    def await_idle(self, within: float = 60.0) -> None:
        """Wait until all that was released is acknowledged, and what is sent again, too."""
        eventually(lambda: self._unfinished == 0, within)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._work) for _ in range(CONCURRENCY)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
            for thread in threads:
                thread.join()

    def _plan(self, job: _Job) -> None:
        with self._changed:
            self._unfinished += 1
            heapq.heappush(self._jobs, job)
            self._changed.notify()

    def _work(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ATTEMPT_SECONDS)
        while (job := self._next_job()) is not None:
            if connection.port != self.port:
                connection.close()
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ATTEMPT_SECONDS)
            attempt = self._attempt(connection, job)
            message = job.message
            if not attempt.is_success:
                wait = RETRY_SECONDS[min(job.attempts, len(RETRY_SECONDS) - 1)]
                self._plan(dataclasses.replace(job, due=time.monotonic() + wait, attempts=job.attempts + 1))
            elif message.id in self._again and not job.is_again:
                self._plan(_Job(time.monotonic(), next(self._numbers), message, is_again=True))
            with self._changed:
                self.attempts.append(attempt)
                self._said[attempt.said] += 1
                if attempt.is_success:
                    self.acknowledged.setdefault(message.id, attempt)
                self._unfinished -= 1
        connection.close()

    def _next_job(self) -> _Job | None:
        with self._changed:
            while not self._has_ended:
                now = time.monotonic()
                if self._jobs and self._jobs[0].due <= now:
                    return heapq.heappop(self._jobs)
                self._changed.wait(self._jobs[0].due - now if self._jobs else None)
            return None

    def _attempt(self, connection: http.client.HTTPConnection, job: _Job) -> Attempt:
        message = job.message
        headers = {"content-type": "application/json"} | signed(message.body, message.id)
        began = time.monotonic()
        with self._changed:
            self._in_flight[job.number] = began
        status, is_refused = None, False
        body: dict[str, Any] = {}
        try:
            if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                connection.close()  # the server did; the next request opens it again
            connection.request("POST", "/webhooks/clerk", message.body, headers)
            response = connection.getresponse()
            text = response.read()
            status = response.status
            body = json.loads(text) if "json" in response.headers.get("content-type", "") else {}
        except ConnectionRefusedError:
            is_refused = True
            connection.close()
        except (OSError, http.client.HTTPException):
            connection.close()
        ended = time.monotonic()
        with self._changed:
            del self._in_flight[job.number]
        return Attempt(message, ended - began, status, body, is_refused, ended)
