"""Session state in Redis: each write is one script, so it is applied whole or not at all.

A long module, since the arguments of that script take forty lines, and what reads its replies belongs beside them.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

import orjson
from clerk_session_feed.models import Event, EventWithRequest

from service.config import StoreSettings
from service.errors import DeadLettersFullError, RelayError
from service.models import Delivery, NewState, Outcome, SessionChange, Unusable, UserEnding, omit
from service.store.partitions import WRITE_SECONDS, Partition, PartitionedStore, replied, result
from service.store.scripts import APPLY_SESSION, KEEP_DEAD_LETTER, SETTLE_EXPIRY
from service.store.stored import STORED_FIELDS, StoredState
from service.store.wrong_types import is_wrong_type
from service.waiting import Steps

T = TypeVar("T")

MAX_TTL_MS: Final = 400 * 86_400_000
"""Milliseconds that a session's key lasts at most, and exactly if the session has no end."""
READ_BATCH: Final = 128
"""Sessions that are read at once."""


class SessionStore(PartitionedStore):
    """Writes session state to Redis.

    A method blocks its thread, or its greenlet under `serve` (see `waiting`), until Redis answers; it raises
    StoreUnavailableError if Redis did not do it in time. `replace`, `replace_all` and `settle_expiry` return
    futures instead, since their caller submits many at once.
    """

    def __init__(self, settings: StoreSettings, *, may_mark: bool = True) -> None:
        super().__init__(settings, may_mark=may_mark)
        self.retention_ms: Final = settings.session_retention * 1000
        """SESSION_RETENTION, in milliseconds."""
        self._confirm = int(settings.redis_min_replicas > 0)
        self._rights_known: dict[int, int] = {}
        """By partition, the `rights_version` for which the user had all rights."""

    @property
    def omitted(self) -> frozenset[str]:
        """OMIT_FIELDS."""
        return self._settings.omit_fields

    @property
    def publishes_http_request(self) -> bool:
        """PUBLISH_HTTP_REQUEST."""
        return self._settings.publish_http_request

    def apply(self, change: SessionChange, body: bytes, now_ms: int) -> Steps[Outcome]:
        """Make a change the session's state, if it is the newest; in steps.

        Args:
            change: what an event says.
            body: of its delivery; the outcome's reason tells if the message id was seen with another one.
            now_ms: Unix milliseconds.

        Returns:
            `applied`, `duplicate` or `stale`.
        """
        # Two bodies can be made to have one checksum. Nobody gains by it, since neither would be applied.
        new = self.new_state(change, change.event.id)._replace(body_digest=f"{zlib.crc32(body):08x}")
        partition = self.partition_of(change.session.user_id)
        outcome = yield from replied(self._submit(partition, new, now_ms, partial(_outcome_or_ending, new)))
        if isinstance(outcome, UserEnding):
            ended = self.ended_with_user(change, outcome)._replace(body_digest=new.body_digest)
            outcome = yield from replied(self._submit(partition, ended, now_ms, partial(_outcome, change.session.id)))
        return outcome

    def new_state(self, change: SessionChange, message_id: str) -> NewState:
        """Return a change as it is written, with OMIT_FIELDS left out."""
        session, omitted = change.session, self._settings.omit_fields
        published = omit(session, omitted) if omitted else session
        return NewState(
            session_id=session.id,
            user_id=session.user_id,
            status=session.status,  # type: ignore[arg-type]  # Clerk's: `normalize` lets no other pass
            live=session.live,
            expire_at_ms=session.expire_at,
            created_at_ms=session.created_at,
            message_id=message_id,
            order=change.order,
            message=orjson.dumps({"event": change.event, "session": published}),
        )

    def ended_with_user(self, change: SessionChange, ending: UserEnding) -> NewState:
        """Return the state of a session whose open state came after its user was deleted or banned."""
        told = ending.event
        event = dataclasses.replace(
            change.event,  # for what the other may lack: an instance, and a request
            id=told.id,
            type=told.type,
            occurred_at=told.occurred_at,
            instance_id=told.instance_id or change.event.instance_id,
            source=told.source,
            **{"http_request": None} if isinstance(change.event, EventWithRequest) else {},
        )
        session = dataclasses.replace(change.session, status=ending.status, live=False)
        ended = self.new_state(SessionChange(event, session, ending.order), change.event.id)
        return ended._replace(base=change.order)

    def replace(self, partition: Partition, new: NewState, now_ms: int) -> Future[Outcome | UserEnding | None]:
        """Make a new state the session's state, if it is the newest.

        The future is None if another state is stored than the one that `from_cursor` names.
        """
        return self._submit(partition, new, now_ms, partial(_replaced, new))

    def replace_all(
        self, partition: Partition, new: Sequence[NewState], now_ms: int
    ) -> Future[list[Outcome | UserEnding | RelayError | None]]:
        """Do as `replace` for each state, at least one; for each, the future has the result or the error."""
        return partition.run_scripts([self._command(partition, each, now_ms, partial(_replaced, each)) for each in new])

    def read(
        self, partition: Partition, session_ids: Sequence[str], seconds: float = WRITE_SECONDS
    ) -> list[StoredState | ValueError | None]:
        """Return the stored state of each session; None if there is none, ValueError if it can't be read.

        It waits at most so many seconds for each READ_BATCH of them.

        Raises:
            PartitionsError: The data was moved meanwhile: what is not found here may be elsewhere.
            StoreUnavailableError: Redis failed.
        """
        stored: list[StoredState | ValueError | None] = []
        for start in range(0, len(session_ids), READ_BATCH):
            batch = session_ids[start : start + READ_BATCH]
            commands: list[tuple[tuple[Any, ...], Callable[[Any], Any]]] = [
                (("HMGET", partition.keys.session(each), *STORED_FIELDS), partial(_stored, each)) for each in batch
            ]
            found = result(partition.pipeline.submit_all([*commands, partition.check]), seconds)
            stored += [_unless_wrong_type(each) for each in found][:-1]
        return stored

    def settle_expiry(self, partition: Partition, session_id: str) -> Future[bool]:
        """Make the expiry set agree with the session's state; the future tells if it still has to expire."""
        keys = partition.keys
        command = SETTLE_EXPIRY.command(
            session_key=keys.session(session_id), expiry_key=keys.expiry, session_id=session_id
        )
        return partition.pipeline.submit(command, bool)

    def _submit(self, partition: Partition, new: NewState, now_ms: int, parse: Callable[[list[bytes]], T]) -> Future[T]:
        return partition.run_script(*self._command(partition, new, now_ms, parse))

    def _command(
        self, partition: Partition, new: NewState, now_ms: int, parse: Callable[[list[bytes]], T]
    ) -> tuple[tuple[Any, ...], Callable[[list[bytes]], T]]:
        """Return the command that writes a state, and what reads the reply."""
        keys = partition.keys
        version = partition.pipeline.rights_version
        asks_rights = self._rights_known.get(partition.number) != version
        left_ms = MAX_TTL_MS if new.expire_at_ms is None else new.expire_at_ms - now_ms
        command = APPLY_SESSION.command(
            session_key=keys.session(new.session_id),
            user_key=keys.user_sessions(new.user_id),
            events_key=keys.events,
            pending_key=keys.user_pending(new.user_id),
            gone_key=keys.user_gone(new.user_id),
            expiry_key=keys.expiry,
            layout_key=keys.layout,
            message_id=new.message_id,
            order_key=str(new.order),
            base="" if new.base is None else str(new.base),
            session_id=new.session_id,
            user_id=new.user_id,
            status=new.status,
            live=int(new.live),
            expire_at="" if new.expire_at_ms is None else new.expire_at_ms,
            created_at="" if new.created_at_ms is None else new.created_at_ms,
            ttl_ms=min(max(left_ms, 0) + self.retention_ms, MAX_TTL_MS),  # senders may retry past the session's end
            retention_ms=self.retention_ms,
            stream_maxlen=self._settings.stream_maxlen,
            channel=keys.channel,
            user_channel=keys.user_channel(new.user_id),
            message_tail=b"," + new.message[1:],  # the script writes what comes before it
            confirm=self._confirm,
            body_digest=new.body_digest,
            from_cursor=new.from_cursor,
            keeps_stale=int(new.keeps_stale),
            partitions=partition.of,
            asks_rights=int(asks_rights),
        )
        return command, partial(self._parse_asked, partition.number, version, parse) if asks_rights else parse

    def _parse_asked(self, number: int, version: int, parse: Callable[[list[bytes]], T], reply: list[bytes]) -> T:
        if reply[0] in {b"applied", b"stale"}:  # else the script had nothing to ask for
            self._rights_known[number] = version  # not that of now: there may be a new connection meanwhile
        return parse(reply)

    def keep_dead_letter(self, delivery: Delivery, why: Unusable, now_ms: int) -> Outcome:
        """Keep an event that can't be turned into state.

        Raises:
            DeadLettersFullError: DEAD_LETTER_MAX are kept already.
        """
        dead_letter = {
            "id": delivery.id,
            "received_at": now_ms,
            "reason": why.reason,
            "detail": why.detail,
            "body": (delivery.body if why.kept is None else why.kept).decode(),
        }
        key, pipeline = self._dead_letters
        command = KEEP_DEAD_LETTER.command(
            dead_letters_key=key,
            message_id=delivery.id,
            dead_letter=orjson.dumps(dead_letter),
            max_dead_letters=self._settings.dead_letter_max,
            confirm=self._confirm,
        )
        return result(pipeline.submit(command, partial(_kept, why)))


def _outcome(session_id: str, reply: list[bytes]) -> Outcome:
    outcome, cursor, revision, remark = reply
    applied = int(revision) if revision else None
    return Outcome(outcome.decode(), session_id, cursor.decode() or None, applied, remark.decode() or None)  # type: ignore[arg-type]


def _outcome_or_ending(new: NewState, reply: list[bytes]) -> Outcome | UserEnding:
    if reply[0] != b"user_gone":
        return _outcome(new.session_id, reply)
    _, status, at_ms, event = reply
    fields = orjson.loads(event)
    fields.pop("http_request", None)
    return UserEnding(new.user_id, status.decode(), Event(**fields), int(at_ms))  # type: ignore[arg-type]


def _replaced(new: NewState, reply: list[bytes]) -> Outcome | UserEnding | None:
    return None if reply[0] == b"superseded" else _outcome_or_ending(new, reply)


def _stored(session_id: str, values: list[bytes | None]) -> StoredState | ValueError | None:
    try:
        return StoredState.read(session_id, values)
    except ValueError as error:
        return error


def _unless_wrong_type(found: Any) -> Any:
    if not isinstance(found, RelayError):
        return found
    if is_wrong_type(found):
        return ValueError("its key is not a hash")
    raise found


def _kept(why: Unusable, reply: bytes) -> Outcome:
    if reply == b"full":
        raise DeadLettersFullError("Work them off (session-relay dead-letters), or raise DEAD_LETTER_MAX.")
    return Outcome("dead_lettered", reason=why.reason)
