"""The message that is read of a session's stored state."""

import pytest

from service.store.stored import STORED_FIELDS, StoredState


def stored(actor: bytes) -> StoredState:
    values = {
        "state": b'{"schema_version":1,"session":{"id":"sess_1","actor":%s}}' % actor,
        "cursor": b"1-0",
        "status": b"active",
        "user_id": b"user_1",
        "_expire_at": None,
        "_order": b"0 1 1 1 msg_1",
    }
    state = StoredState.read("sess_1", [values[name] for name in STORED_FIELDS])
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("actor", "expected"),
    [(b"null", None), (b'{"sub":"user_2","actor":null,"n":123456789012345678901}', 123456789012345678901)],
)
def test_integers_of_an_actor_keep_all_digits(actor: bytes, expected: int | None) -> None:
    read = stored(actor).message()["session"]["actor"]
    assert (read and read["n"]) == expected
