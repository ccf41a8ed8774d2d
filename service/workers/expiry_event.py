"""The expiry event, which the relay makes of a session's stored state once that ran out. Does no I/O."""

from clerk_session_feed.models import Event

from service.models import OPEN, RANKS, NewState, OrderKey
from service.store.stored import StoredState


def expiry_of(stored: StoredState | None, now_ms: int, omitted: frozenset[str] = frozenset()) -> NewState | None:
    """Return the state that ends a session, or None if nothing is stored of it, or it did not run out.

    Args:
        stored: what Redis has of the session.
        now_ms: Unix milliseconds.
        omitted: fields that are null from now on, even if they were published in the stored state.

    Raises:
        ValueError: The state was not written by this version of the relay.
    """
    if stored is None or not stored.is_open or stored.expire_at_ms is None or stored.expire_at_ms > now_ms:
        return None
    end_ms = stored.expire_at_ms
    message_id = f"exp_{stored.session_id}_{end_ms}"
    # After the stored state, and before Clerk's later events: docs/contract.md, section 6.
    order = OrderKey(
        terminal=OPEN,
        updated_at_ms=max(end_ms, stored.order.updated_at_ms),
        occurred_at_ms=max(end_ms, stored.order.occurred_at_ms),
        rank=RANKS.index("expired"),
        message_id=message_id,
    )
    event = Event(id=message_id, type="session.expired", occurred_at=end_ms, instance_id=None, source="synthetic")
    return stored.ended("expired", event, order, omitted)
