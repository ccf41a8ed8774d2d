"""Where sessions are kept: the partitions, and the connections to Redis that they share.

A long module: who connects has to ask how the data is divided, and who asks needs the connections.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from clerk_session_feed import connections
from clerk_session_feed.errors import ConfigurationError
from clerk_session_feed.keys import Keys, partition_of
from clerk_session_feed.layout import FIELD

from service.config import StoreSettings
from service.errors import RelayError, StoreUnavailableError
from service.store.layout import LayoutCheck, PartitionsError, check_mark
from service.store.pipeline import Pipeline
from service.store.scripts import SCRIPTS
from service.waiting import Steps, wait

log = structlog.get_logger(__name__)

T = TypeVar("T")

WRITE_SECONDS: Final = 4.0
"""Seconds that a caller waits at most for a write; senders get their response within 5 s, also on a busy machine."""
PROBE_SECONDS: Final = 0.5
"""Seconds that a health check waits for Redis; its response is sent within a second in any case."""


class Partition(NamedTuple):
    """The users of one number of PARTITIONS."""

    number: int
    keys: Keys
    pipeline: Pipeline
    of: int
    """How many there are."""

    def checked(self) -> Future[bool]:
        """Ask whether the data is still divided into so many: what was sent before was done in the right place.

        The future raises PartitionsError if it is not.
        """
        return self.pipeline.submit(*self.check)

    @property
    def check(self) -> tuple[tuple[Any, ...], Callable[[Any], bool]]:
        """The command that `checked` submits, for `submit_all`."""
        return ("HMGET", self.keys.layout, FIELD), partial(_check_mark, self.of)

    def ask(self, *commands: tuple[Any, ...], seconds: float = WRITE_SECONDS) -> list[Any]:
        """Return what Redis replies to commands, all of which it ran in the right place.

        Args:
            commands: each with its arguments.
            seconds: to wait at most.

        Raises:
            PartitionsError: The data is not divided into so many any more.
            StoreUnavailableError: Redis did not do one of them, or not in time.
        """
        submits: list[Callable[[], Future[Any]]] = [
            partial(self.pipeline.submit, command, _as_it_is) for command in commands
        ]
        return results([*submits, self.checked], seconds)[:-1]

    def run_script(self, command: tuple[Any, ...], parse: Callable[[list[bytes]], T]) -> Future[T]:
        """Run a script that does nothing, and says so, if the data is not divided into so many; see `submit`.

        The future raises PartitionsError then.
        """
        return self.pipeline.submit(command, partial(_parse_checked, self.of, parse))

    def run_scripts(
        self, commands: Iterable[tuple[tuple[Any, ...], Callable[[list[bytes]], T]]]
    ) -> Future[list[T | RelayError]]:
        """Run scripts as `run_script` does; see `submit_all`."""
        return self.pipeline.submit_all([(words, partial(_parse_checked, self.of, parse)) for words, parse in commands])


class Backlog(NamedTuple):
    """What Redis holds that somebody has still to work off, and when it was last compared with Clerk."""

    dead_letters: int
    first_expiry_ms: float
    """When the first open session runs out, in Unix milliseconds; infinite if no open session has an end."""
    pending_revokes: int
    """How many sessions Clerk has still to revoke."""
    reconcile: list[bytes | None]
    """The values of the fields that were asked for; None where there is none."""


class PartitionedStore:
    """Redis, as the settings name it; what it holds of sessions is in `sessions`."""

    def __init__(self, settings: StoreSettings, *, may_mark: bool = True) -> None:
        """Connect to nothing yet. may_mark: whether a new connection may mark the number of partitions."""
        self._settings, self._may_mark = settings, may_mark
        # One connection; for a cluster, one for each slot that is written to.
        self._pipelines: dict[int, Pipeline] = {}
        keys = Keys(settings.redis_key_prefix, settings.redis_channel)
        self._layout = LayoutCheck(settings, keys, may_mark=may_mark)
        self._refused = ""
        """What the last connection was refused for."""
        self._common_keys: Final = keys
        self._dead_letters = keys.dead_letters, self._pipeline_for(keys.dead_letters)
        self._layout_key: Final = keys.layout  # in the slot of the dead letters, like the next
        self._reconcile_key: Final = keys.reconcile
        parts = keys.split(settings.partitions)
        self._partitions = [
            Partition(number, part, self._pipeline_for(part.events), len(parts)) for number, part in enumerate(parts)
        ]
        self._probes = {self._pipeline_for(part.probe): part.probe for part in (keys, *parts)}

    def _pipeline_for(self, key: str) -> Pipeline:
        settings = self._settings
        slot = connections.slot(settings.redis_url.get_secret_value(), key)
        if slot not in self._pipelines:
            self._pipelines[slot] = Pipeline(
                partial(self._connect, key),
                [script.source for script in SCRIPTS],
                timeout=settings.redis_timeout,
                min_replicas=settings.redis_min_replicas,
            )
        return self._pipelines[slot]

    def _connect(self, key: str, on_connect: Callable[[Any], Awaitable[None]]) -> Any:
        """Return a client whose connections are used only if the data is divided into PARTITIONS."""

        async def greet(connection: Any) -> None:
            try:
                await on_connect(connection)
                await self._layout.ask(connection, key)
            except PartitionsError as error:
                if self._may_mark and str(error) != self._refused:  # who only looks says it himself
                    log.warning("partitions_differ", detail=str(error))
                self._refused = str(error)
                await connection.disconnect()  # redis-py would only do so after errors of its own
                raise
            self._refused = ""

        settings = self._settings
        return connections.connect_async(
            settings.redis_url.get_secret_value(),
            key,
            tls_verify=settings.redis_tls_verify,
            timeout=settings.redis_timeout,
            on_connect=greet,
        )

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Talk to Redis on this loop, instead of on one in a thread."""
        for pipeline in self._pipelines.values():
            pipeline.bind_loop(loop)

    def set_metrics_hooks(self, on_round_trip: Callable[[int, float], None], on_failure: Callable[[str], None]) -> None:
        """Call these after each round trip (commands, seconds) and each failure (its name)."""
        for pipeline in self._pipelines.values():
            pipeline.on_round_trip, pipeline.on_failure = on_round_trip, on_failure

    @property
    def partitions(self) -> Sequence[Partition]:
        """Where sessions are kept, by number."""
        return self._partitions

    @property
    def common(self) -> Partition:
        """Where the keys are that are not split: dead letters, and what `reconcile` keeps."""
        _, pipeline = self._dead_letters
        return Partition(0, self._common_keys, pipeline, len(self._partitions))

    def partition_of(self, user_id: str) -> Partition:
        """Return where the sessions of a user are kept."""
        return self._partitions[partition_of(user_id, len(self._partitions))]

    def connect(self) -> None:
        """Connect now, and ask whether the data is divided into PARTITIONS, and no partition is being moved.

        Raises:
            PartitionsError: It is not.
            StoreUnavailableError: Redis does not answer in time.
        """
        results(self._marks())

    def probe(self) -> None:
        """Ask if Redis would take a write now (memory, replicas, loading and so on), without writing.

        Raises:
            PartitionsError: The data is not divided into PARTITIONS, or is being moved.
            StoreUnavailableError: Redis would not, or does not answer in time.
        """
        asked = self._marks()
        asked += [partial(each.submit, ("LPUSHX", key, ""), bool) for each, key in self._probes.items()]
        results(asked, PROBE_SECONDS)

    def _marks(self) -> list[Callable[[], Future[bool]]]:
        _, pipeline = self._dead_letters
        whole = partial(pipeline.submit, ("HMGET", self._layout_key, FIELD), self._check_whole)
        return [whole, *(each.checked for each in self._partitions if each.of > 1)]

    def _check_whole(self, reply: list[bytes | None]) -> bool:
        count = len(self._partitions)
        # The data was replaced since the connections asked. Where nobody may mark it, they would ask again each time.
        if self._may_mark and count > 1 and reply != [b"%d" % count]:
            for pipeline in self._pipelines.values():
                pipeline.reconnect()
        return _check_mark(count, reply)

    def backlog(self, reconcile_fields: Sequence[str]) -> Backlog:
        """Ask what there is to work off, and for these fields of what `reconcile` recorded."""
        key, pipeline = self._dead_letters
        size = partial(pipeline.submit, ("HLEN", key), int)
        reconcile = partial(pipeline.submit, ("HMGET", self._reconcile_key, *reconcile_fields), list)
        first = ("-inf", "+inf", "WITHSCORES", "LIMIT", 0, 1)
        firsts = [
            partial(each.submit, ("ZRANGEBYSCORE", keys.expiry, *first), _score)
            for _, keys, each, _ in self._partitions
        ]
        revokes = [
            partial(each.submit, ("ZCOUNT", keys.revokes, "-inf", "+inf"), int) for _, keys, each, _ in self._partitions
        ]
        asked: list[Callable[[], Future[Any]]] = [size, reconcile, *firsts, *revokes]
        dead_letters, recorded, *counts = results(asked, PROBE_SECONDS)
        return Backlog(dead_letters, min(counts[: len(firsts)]), sum(counts[len(firsts) :]), recorded)

    def close(self) -> None:
        """Send what waits, then disconnect."""
        with ThreadPoolExecutor(len(self._pipelines)) as threads:  # side by side: each may take its time
            list(threads.map(Pipeline.close, self._pipelines.values()))


def refuse_other_partitions(settings: StoreSettings) -> None:
    """Raise ConfigurationError if Redis answers, and its data is not divided into PARTITIONS.

    For the start of whatever writes. If Redis does not answer, each connection is asked that is made later.
    """
    try:
        with contextlib.closing(PartitionedStore(settings, may_mark=False)) as store:
            store.connect()
    except PartitionsError as error:
        raise ConfigurationError([str(error)]) from None
    except StoreUnavailableError:
        pass


def result(future: Future[T], seconds: float = WRITE_SECONDS) -> T:
    """Wait for a future of the store, at most so many seconds.

    Raises:
        StoreUnavailableError: Redis did not do it, or not in time.
    """
    try:
        return wait(future, seconds)  # type: ignore[no-any-return]
    except TimeoutError:
        raise StoreUnavailableError("Redis did not answer in time.") from None


def replied(future: Future[T]) -> Steps[T]:
    """Wait for a future of the store, as a step.

    Raises:
        StoreUnavailableError: Redis did not do it, or not in time.
    """
    try:
        return (yield future)  # type: ignore[no-any-return]
    except TimeoutError:
        raise StoreUnavailableError("Redis did not answer in time.") from None


def results(
    submits: Iterable[Callable[[], Future[T]]],
    seconds: float = WRITE_SECONDS,
    result: Callable[[Future[T], float], T] = result,
) -> list[T]:
    """Submit all at once, and wait for all, at most so many seconds, by `result`.

    Raises:
        StoreUnavailableError: Redis did not do one of them, or not in time.
    """
    futures: list[Future[T]] = []
    deadline = time.monotonic() + seconds
    try:
        futures.extend(submit() for submit in submits)
        return [result(future, max(0.0, deadline - time.monotonic())) for future in futures]
    finally:  # asyncio would log the errors of futures that nobody waited for
        for future in futures:
            future.add_done_callback(lambda each: each.cancelled() or each.exception())


def _as_it_is(reply: Any) -> Any:
    return reply


def _check_mark(partitions: int, reply: list[bytes | None]) -> bool:
    check_mark(partitions, *reply)
    return True


def _parse_checked(partitions: int, parse: Callable[[list[bytes]], T], reply: list[bytes]) -> T:
    if reply[0] == b"other_partitions":
        check_mark(partitions, reply[1])
    return parse(reply)


def _score(reply: list[bytes]) -> float:
    return float(reply[1]) if reply else math.inf
