"""Whether all is well: Redis, the stream, what lags behind, who reads, and when all was last compared with Clerk."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from service.app.console.data import SECONDS, ConsoleStore, fields_of
from service.app.console.groups import Group, Worker, groups_of, has_stream, workers_of
from service.app.console.rows import Entry, loads
from service.app.console.words import span, utc
from service.errors import StoreUnavailableError
from service.store.partitions import Partition

Level = Literal["ok", "warning", "error", "unknown", "info"]

OVERDUE_SECONDS: Final = 120
"""From so long after its end on, a session is one that nobody expires; `check` says so from then on, too."""
NEARLY_FULL: Final = 0.8
DRIFT: Final = ("missing", "late_end", "extended", "gone", "wrong_user", "changed")
"""How stored states differed from Clerk's: docs/reconcile.md."""
_RECONCILE: Final = ("last_success_at", "state_as_of", *(f"drift_{kind}" for kind in DRIFT))
_BAD_POLICIES: Final = ("allkeys-lru", "allkeys-lfu", "allkeys-random", "allkeys-lrm")


class Check(NamedTuple):
    """One line of the page."""

    name: str
    level: Level
    value: str
    advice: str = ""
    """What it means, or what to do."""


class Health(NamedTuple):
    """All that the page shows."""

    sections: dict[str, list[Check]]
    groups: list[Group]
    workers: list[Worker]


def look(store: ConsoleStore, *, dead_letter_max: int, stream_maxlen: int) -> Health:
    """Ask Redis; raise StoreUnavailableError if it does not answer at all."""
    now_ms = time.time() * 1000
    started = time.perf_counter()
    backlog = store.queries.backlog(_RECONCILE)
    round_trip_ms = (time.perf_counter() - started) * 1000
    groups = [group for part in store.partitions for group in groups_of(part)]
    workers = [worker for part in store.partitions for worker in workers_of(part)]
    sections = {
        "Redis": [
            Check("Response time", "ok" if round_trip_ms < 50 else "warning", f"{round_trip_ms:.1f} ms"),  # noqa: PLR2004
            *_redis(_info(store.queries.common)),
        ],
        "Stream": list(_stream(store, stream_maxlen, now_ms)),
        "Work": [
            _expiry(now_ms - backlog.first_expiry_ms),
            _letters(backlog.dead_letters, dead_letter_max),
            Check(
                "Clerk has still to revoke",
                "warning" if backlog.pending_revokes else "ok",
                f"{backlog.pending_revokes:,} sessions",
                "`session-relay revoke --pending` lists them." if backlog.pending_revokes else "",
            ),
            *_pending(groups),
        ],
        "Reconcile": list(_reconcile(backlog.reconcile, now_ms)),
    }
    return Health(sections, groups, workers)


def _info(part: Partition) -> dict[str, str]:
    """Return INFO as a mapping; an empty one if the user lacks that right."""
    try:
        (text,) = part.ask(("INFO",), seconds=SECONDS)
    except StoreUnavailableError:
        return {}
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in lines}


def _redis(info: Mapping[str, str]) -> Iterator[Check]:
    if not info:
        yield Check(
            "INFO", "unknown", "not readable", "The relay's user lacks +info: persistence and memory are unknown."
        )
        return
    version = f"{info.get('server_name', 'redis')} {info.get('valkey_version', info.get('redis_version', '?'))}"
    up = span(int(info.get("uptime_in_seconds", 0)) * 1000)
    yield Check("Server", "ok", f"{version}, {info.get('role', '?')}, up {up}")
    yield _persistence(info)
    policy = info.get("maxmemory_policy", "unknown")
    if policy in _BAD_POLICIES:
        yield Check(
            "Eviction", "error", policy, "Redis may evict the state of sessions: set maxmemory-policy noeviction."
        )
    else:
        advice = (
            "" if policy == "noeviction" else "Keys with a TTL can be evicted, sessions among them: set noeviction."
        )
        yield Check("Eviction", "ok" if policy == "noeviction" else "warning", policy, advice)
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    share = f", {used / limit:.0%} of {_mega(limit)}" if limit else ", no limit"
    is_full = bool(limit) and used > NEARLY_FULL * limit
    advice = "When it is full, deliveries get 503. docs/deploy.md, Sizing." if is_full else ""
    yield Check("Memory", "warning" if is_full else "ok", f"{_mega(used)}{share}", advice)
    replicas = info.get("connected_slaves", "0")
    yield Check("Clients", "info", f"{info.get('connected_clients', '?')} connected, {replicas} replicas")


def _persistence(info: Mapping[str, str]) -> Check:
    aof = info.get("aof_enabled") == "1"
    saved_at, changed = int(info.get("rdb_last_save_time", 0)), info.get("rdb_changes_since_last_save", "?")
    text = f"snapshot {span((time.time() - saved_at) * 1000)} ago, {changed} changes since"
    if info.get("rdb_last_bgsave_status", "ok") != "ok" or info.get("aof_last_write_status", "ok") != "ok":
        return Check("Persistence", "error", "the last write to disk failed", "See the log of Redis: is the disk full?")
    if aof:
        return Check("Persistence", "ok", f"append-only file; {text}")
    advice = "Without an append-only file, a crash of Redis loses what came since: docs/redis.md, Persistence."
    return Check("Persistence", "warning", text, advice)


def _mega(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"


def _stream(store: ConsoleStore, maxlen: int, now_ms: float) -> Iterator[Check]:
    for part in store.partitions:
        name = "Stream" if part.of == 1 else f"Stream {part.number}"
        if not has_stream(part):
            yield Check(name, "info", "empty", "Nothing was received yet.")
            continue
        try:
            (reply,) = part.ask(("XINFO", "STREAM", part.keys.events), seconds=SECONDS)
        except StoreUnavailableError as error:
            if "permission" not in str(error.__cause__):
                raise
            yield Check(name, "unknown", "not readable", "The relay's user lacks +xinfo: docs/redis.md, Rights.")
            continue
        info = fields_of(reply)
        if not info[b"last-entry"]:
            yield Check(name, "info", "empty", "All its entries were removed.")
            continue
        oldest, newest = (Entry.read(part.number, *info[each]) for each in (b"first-entry", b"last-entry"))
        length = f"{info[b'length']:,} of about {maxlen:,} entries"
        yield Check(name, "ok", length, f"The newest came {_ago(now_ms, newest.at_ms)}.")
        yield Check(
            "Trim horizon" if part.of == 1 else f"Trim horizon {part.number}",
            "info",
            span(now_ms - oldest.at_ms),
            f"It reaches back to {utc(oldest.at_ms)}: a consumer that was away for longer reads snapshots again.",
        )
        occurred_at = loads(newest.message)["event"].get("occurred_at")
        if isinstance(occurred_at, int):
            delay = newest.at_ms - occurred_at
            is_late = delay > OVERDUE_SECONDS * 1000
            advice = "Was it retried, or is the sender behind? Clerk's Dashboard, Webhooks, shows attempts."
            yield Check(
                "Delay of the newest event", "warning" if is_late else "ok", span(delay), advice if is_late else ""
            )


def _ago(now_ms: float, at_ms: int) -> str:
    return f"{span(now_ms - at_ms)} ago"


def _expiry(late_ms: float) -> Check:
    if late_ms > OVERDUE_SECONDS * 1000:
        advice = "Run session-relay expire beside serve; if it runs, see its log."
        return Check("Expiry worker", "error", f"behind by {span(late_ms)}", advice)
    return Check("Expiry worker", "ok", "nothing is overdue" if late_ms < 0 else f"{span(late_ms)} behind")


def _letters(count: int, limit: int) -> Check:
    if count >= limit > 0:
        return Check(
            "Dead letters", "error", f"{count:,} of {limit:,}", "Full: one more gets 503, until Svix gives up."
        )
    advice = "Events that could not be read, and are kept." if count else ""
    return Check("Dead letters", "warning" if count else "ok", f"{count:,} of {limit:,}", advice)


def _pending(groups: list[Group]) -> Iterator[Check]:
    if groups:
        pending = sum(group.pending for group in groups)
        workers = sum(group.consumers for group in groups)
        counted = f"{len(groups)} group{'' if len(groups) == 1 else 's'}"
        shown = f"{counted}, {workers} worker{'' if workers == 1 else 's'}, {pending:,} pending"
        idle = any(group.consumers == 0 for group in groups)
        yield Check("Consumer groups", "warning" if idle else "ok", shown, "A group has no consumer." if idle else "")
    else:
        yield Check("Consumer groups", "info", "none", "Followers without a group leave no trace in Redis.")


def _reconcile(values: Sequence[bytes | None], now_ms: float) -> Iterator[Check]:
    known = {name: int(value) for name, value in zip(_RECONCILE, values, strict=True) if value and value.isdigit()}
    if "last_success_at" not in known:
        advice = "Sessions that began before the endpoint are unknown: session-relay reconcile --full."
        yield Check("Last run", "info", "never", advice)
    else:
        at = known["last_success_at"]
        yield Check("Last run", "ok", _ago(now_ms, at), f"At {utc(at)}. All that is stored as open was compared.")
        if "state_as_of" in known:
            yield Check("State as of", "ok", _ago(now_ms, known["state_as_of"]))
    drift = {kind: known.get(f"drift_{kind}", 0) for kind in DRIFT}
    if total := sum(drift.values()):
        parts = ", ".join(f"{kind} {count:,}" for kind, count in drift.items() if count)
        yield Check("Drift in all runs", "info", f"{total:,} states mended", parts)
