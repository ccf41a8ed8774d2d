"""What stands for Redis in tests: the commands that the rules of a feed use, as Redis 7 executes them.

A long module, since all commands on streams and groups share one state.
"""

import bisect
import contextlib
import dataclasses
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import redis

from clerk_session_feed.cursors import START, position
from clerk_session_feed.transport import Command

Id = tuple[int, int]
Fields = list[bytes]
"""Names and values in turns."""
Look = Callable[[], Any]
"""Returns what somebody waits for, or None; or raises."""


@dataclasses.dataclass(slots=True)
class Pending:
    """An entry that a consumer has got and not acknowledged."""

    consumer: str
    at: float = dataclasses.field(default_factory=time.monotonic)
    """When it got it, in seconds."""

    @property
    def idle_ms(self) -> int:
        """Milliseconds since then."""
        return int((time.monotonic() - self.at) * 1000)


@dataclasses.dataclass(slots=True)
class Group:
    """A consumer group."""

    delivered: Id
    consumers: dict[str, float] = dataclasses.field(default_factory=dict)
    """When each was heard of last, in seconds."""
    pending: dict[Id, Pending] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Stream:
    """A stream: its entries by their ids, in order."""

    ids: list[Id] = dataclasses.field(default_factory=list)
    entries: list[Fields] = dataclasses.field(default_factory=list)
    last: Id = (0, 0)
    added: int = 0
    groups: dict[str, Group] = dataclasses.field(default_factory=dict)

    def find(self, at: Id) -> Fields | None:
        """Return an entry; None if it is gone."""
        index = bisect.bisect_left(self.ids, at)
        return self.entries[index] if index < len(self.ids) and self.ids[index] == at else None

    def range(self, first: int, end: int | None = None) -> list[Any]:
        """Return entries by their places, as Redis sends them."""
        return [
            [_id(at), list(fields)] for at, fields in zip(self.ids[first:end], self.entries[first:end], strict=True)
        ]

    def behind(self, at: Id, count: int) -> list[Any]:
        """Return so many entries behind a position, at most."""
        first = bisect.bisect_right(self.ids, at)
        return self.range(first, first + count)


class MemoryRedis:
    """Keys and values, whoever waits for news of them, and channels.

    Thread-safe. Who does several things that belong together holds `lock`, and calls `wake` in the end.

    Attributes:
        hashes: By key; the values by field.
        sorted_sets: By key; the scores by member.
        streams: By key.
        failure: What each command raises while Redis is away; None while it is there.
        cuts: How often entries were removed from streams.
        is_finishing: Nobody waits any more.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.hashes: dict[str, dict[str, bytes]] = {}
        self.sorted_sets: dict[str, dict[str, float]] = {}
        self.streams: dict[str, Stream] = {}
        self.failure: redis.RedisError | None = None
        self.cuts = 0
        self.is_finishing = False
        self._channels: dict[str, list[Callable[[bytes], None]]] = {}
        self._last: Id = (0, 0)
        self._waiting: dict[object, tuple[Look, Future[Any]]] = {}
        """Who waits, the longest first."""
        self._followers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._begun = 0
        self._idle: list[tuple[int, Future[None]]] = []

    # What the relay writes

    def next_id(self) -> str:
        """Return the id of the next entry: greater than all before, whatever has become of them."""
        now = (time.time_ns() // 1_000_000, 0)
        ms, sequence = self._last
        self._last = now if now > self._last else (ms, sequence + 1)
        return _id(self._last).decode()

    def add(self, key: str, cursor: str, fields: dict[str, bytes]) -> None:
        """Append an entry to a stream."""
        stream = self.streams.setdefault(key, Stream())
        stream.last = position(cursor)
        stream.added += 1
        stream.ids.append(stream.last)
        stream.entries.append([each for name, value in fields.items() for each in (name.encode(), value)])

    def trim(self, keep: int) -> None:
        """Leave the last entries of each stream."""
        for stream in self.streams.values():
            gone = max(0, len(stream.ids) - keep)
            del stream.ids[:gone], stream.entries[:gone]
        self.cuts += 1

    def flush(self) -> None:
        """Remove everything."""
        for kept in (self.hashes, self.sorted_sets, self.streams):
            kept.clear()
        self.cuts += 1

    def publish(self, channel: str, message: bytes) -> None:
        """Hand a message to all that have subscribed; nobody gets it while Redis is away."""
        for receive in [] if self.failure else self._channels.get(channel, []):
            receive(message)

    # Waiting

    def subscribe(self, channel: str, receive: Callable[[bytes], None]) -> Callable[[], None]:
        """Hand what is published to `receive`; return what ends that."""
        with self.lock:
            self._channels.setdefault(channel, []).append(receive)

        def unsubscribe() -> None:
            with self.lock:
                self._channels[channel] = [each for each in self._channels[channel] if each != receive]

        return unsubscribe

    def wait(self, who: object, look: Look) -> Future[Any]:
        """Return a future that has what `look` returns, or raises, as soon as it does."""
        future: Future[Any] = Future()
        with self.lock:
            self._waiting[who] = (look, future)
            self._look_for(who)
            self._check_idle()
        return future

    def wake(self) -> None:
        """Let all that wait look again."""
        with self.lock:
            for who in list(self._waiting):
                self._look_for(who)
            self._check_idle()

    def stop_waiting(self, who: object) -> None:
        """Forget what somebody waits for."""
        with self.lock:
            self._waiting.pop(who, None)

    def _look_for(self, who: object) -> None:
        look, future = self._waiting[who]
        try:
            found = look()
        except Exception as error:  # noqa: BLE001  # it is raised where somebody waits
            del self._waiting[who]
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
        else:
            if found is not None:
                del self._waiting[who]
                with contextlib.suppress(InvalidStateError):  # who waited was cancelled
                    future.set_result(found)

    def begin(self, follower: object) -> None:
        """Count an iterator that has begun."""
        with self.lock:
            self._followers.add(follower)
            self._begun += 1

    def end(self, follower: object) -> None:
        """Let an iterator wait no longer, and count no longer."""
        with self.lock:
            self._followers.discard(follower)
            if follower in self._waiting:
                self._look_for(follower)
            self._check_idle()

    def idle(self, loops: int) -> Future[None]:
        """Return a future that is done when so many iterators have begun, and all that have not ended wait."""
        future: Future[None] = Future()
        with self.lock:
            self._idle.append((loops, future))
            self._check_idle()
        return future

    def explain_work(self) -> str:
        """Return what is amiss where a future of `idle` is not done in time."""
        with self.lock:
            working = sum(each not in self._waiting for each in self._followers)
            return f"{self._begun} loops have begun, and {working} of them are not through with all that happened"

    def _check_idle(self) -> None:
        if all(each in self._waiting for each in self._followers):
            for loops, future in self._idle:
                if loops <= self._begun:
                    with contextlib.suppress(InvalidStateError):
                        future.set_result(None)
            self._idle = [each for each in self._idle if not each[1].done()]

    # Commands

    def run(self, command: Command) -> Any:  # noqa: C901, PLR0912  # a case for each command
        """Return the response to a command; None where one that has BLOCK would wait.

        Raises:
            redis.ResponseError: As Redis would say.
        """
        match [each.decode() if isinstance(each, bytes) else str(each) for each in command]:
            case ["HMGET", key, *names]:
                values = self.hashes.get(key, {})
                return [values.get(name) for name in names]
            case ["SCAN", "0", "MATCH", pattern, "COUNT", _]:
                beginning = re.sub(r"\\(.)", r"\1", pattern.removesuffix("*"))
                return [b"0", [key.encode() for key in self.hashes if key.startswith(beginning)]]
            case ["ZRANGEBYSCORE", key, least, "+inf"]:
                scores = self.sorted_sets.get(key, {})
                found = sorted((score, member) for member, score in scores.items() if score > float(least[1:]))
                return [member.encode() for _, member in found]
            case ["XRANGE", key, first, last, *count]:
                return self._range(self.streams.get(key, Stream()), first, last, *count[1:])
            case ["XREVRANGE", key, "+", "-", "COUNT", "1"]:
                return self.streams.get(key, Stream()).range(-1)
            case ["XINFO", "STREAM", key]:
                return _stream_info(self._stream(key))
            case ["XINFO", "GROUPS", key]:
                groups = self._stream(key).groups.items()
                return [[b"name", name.encode(), b"last-delivered-id", _id(each.delivered)] for name, each in groups]
            case ["XINFO", "CONSUMERS", key, name]:
                self._stream(key)
                return _consumers(self._group(key, name))
            case ["XREAD", "COUNT", count, "BLOCK", _, "STREAMS", *names]:
                return self._read(names, int(count))
            case ["XREADGROUP", "GROUP", name, consumer, "COUNT", count, "BLOCK", _, "STREAMS", *names]:
                return self._read_group(name, consumer, names, int(count))
            case ["XACK", key, name, *cursors]:
                group = self.streams.get(key, Stream()).groups.get(name)
                pending = group.pending if group else {}
                return sum(pending.pop(position(cursor), None) is not None for cursor in cursors)
            case ["XPENDING", key, name, "IDLE", idle_ms, "-", "+", count]:
                due = _due(self._group(key, name), int(idle_ms), int(count))
                return [[_id(at), each.consumer.encode(), each.idle_ms, 1] for at, each in due]
            case ["XAUTOCLAIM", key, name, consumer, idle_ms, first, "COUNT", count, "JUSTID"]:
                return self._claim(key, name, consumer, int(idle_ms), position(first), int(count))
            case ["XGROUP", "CREATE", key, name, cursor, "MKSTREAM"]:
                stream = self.streams.setdefault(key, Stream())
                if name in stream.groups:
                    raise redis.ResponseError("BUSYGROUP Consumer Group name already exists")
                stream.groups[name] = Group(position(cursor))
            case ["XGROUP", "SETID", key, name, cursor]:
                self._group(key, name, self._to_change(key)).delivered = position(cursor)
                self.wake()
            case ["XGROUP", "DELCONSUMER", key, name, consumer]:
                group = self._group(key, name, self._to_change(key))
                dropped = [at for at, each in group.pending.items() if each.consumer == consumer]
                for at in dropped:
                    del group.pending[at]
                group.consumers.pop(consumer, None)
                return len(dropped)
            case [name, *_]:
                raise redis.ResponseError(f"unknown command '{name}'")
        return b"OK"

    def _stream(self, key: str) -> Stream:
        if key not in self.streams:
            raise redis.ResponseError("no such key")
        return self.streams[key]

    def _to_change(self, key: str) -> Stream:
        if key not in self.streams:
            raise redis.ResponseError("The XGROUP subcommand requires the key to exist.")
        return self.streams[key]

    def _group(self, key: str, name: str, stream: Stream | None = None) -> Group:
        group = (stream or self.streams.get(key, Stream())).groups.get(name)
        if group is None:
            raise redis.ResponseError(f"NOGROUP No such key '{key}' or consumer group '{name}'")
        return group

    def _range(self, stream: Stream, first: str, last: str, count: str | None = None) -> list[Any]:
        after = bisect.bisect_right if first.startswith("(") else bisect.bisect_left
        begin = 0 if first == "-" else after(stream.ids, position(first.removeprefix("(")))
        end = len(stream.ids) if last == "+" else bisect.bisect_right(stream.ids, position(last))
        return stream.range(begin, end if count is None else min(end, begin + int(count)))

    def _read(self, names: Sequence[str], count: int) -> list[Any] | None:
        found = [
            [key.encode(), entries]
            for key, cursor in _halves(names)
            if (entries := self.streams.get(key, Stream()).behind(position(cursor), count))
        ]
        return found or None

    def _read_group(self, name: str, consumer: str, names: Sequence[str], count: int) -> list[Any] | None:
        groups = [(key, cursor, self._group(key, name)) for key, cursor in _halves(names)]
        found = []
        for key, cursor, group in groups:
            stream = self.streams[key]
            group.consumers[consumer] = time.monotonic()
            if cursor == ">":
                entries = stream.behind(group.delivered, count)
                for entry_id, _ in entries:
                    group.delivered = position(entry_id.decode())
                    group.pending[group.delivered] = Pending(consumer)
            else:
                first = position(cursor) if "-" in cursor else (int(cursor), 0)
                own = sorted(at for at, each in group.pending.items() if each.consumer == consumer and at > first)
                entries = [[_id(at), stream.find(at)] for at in own[:count]]
                for at in own[:count]:
                    group.pending[at] = Pending(consumer)
            if entries or cursor != ">":  # where a consumer reads what it has already, none is a response, too
                found.append([key.encode(), entries])
        return found or None

    def _claim(self, key: str, name: str, consumer: str, idle_ms: int, first: Id, count: int) -> list[Any]:
        group, stream = self._group(key, name), self.streams[key]
        group.consumers[consumer] = time.monotonic()
        due = [at for at, _ in _due(group, idle_ms, count, first)]
        gone = [at for at in due if stream.find(at) is None]
        claimed = [at for at in due if at not in gone]
        for at in gone:
            del group.pending[at]
        for at in claimed:
            group.pending[at] = Pending(consumer)
        return [START.encode(), [_id(at) for at in claimed], [_id(at) for at in gone]]


def _id(at: Id) -> bytes:
    return b"%d-%d" % at


def _halves(names: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Return the keys that follow on STREAMS, each with its cursor."""
    half = len(names) // 2
    return zip(names[:half], names[half:], strict=True)


def _due(group: Group, idle_ms: int, count: int, first: Id = (0, 0)) -> list[tuple[Id, Pending]]:
    due = [(at, each) for at, each in group.pending.items() if each.idle_ms >= idle_ms and at >= first]
    return sorted(due, key=lambda each: each[0])[:count]


def _stream_info(stream: Stream) -> list[Any]:
    first, last = stream.range(0, 1), stream.range(-1)
    return [
        *(b"length", len(stream.ids), b"last-generated-id", _id(stream.last), b"entries-added", stream.added),
        *(b"first-entry", first[0] if first else None, b"last-entry", last[0] if last else None),
    ]


def _consumers(group: Group) -> list[Any]:
    now = time.monotonic()
    having = [each.consumer for each in group.pending.values()]
    return [
        [b"name", name.encode(), b"pending", having.count(name), b"idle", int((now - heard_at) * 1000)]
        for name, heard_at in group.consumers.items()
    ]
