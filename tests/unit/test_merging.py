"""Two hashes of one session, or of one user, become one."""

import itertools

from service.store.merging import Fields, merged_gone, merged_session


def session(order: str, **fields: str) -> Fields:
    fields = {"_order": order, "state": order} | fields
    return {name.encode(): value.encode() for name, value in fields.items()}


def test_the_greater_order_is_the_state_whichever_comes_first() -> None:
    live = session("0 9 9 1 msg_9", _base="0 1 1 1 msg_1")
    revoked = session("1 10 1 7 msg_1")

    assert merged_session(live, revoked) == merged_session(revoked, live) == revoked


def test_the_messages_of_both_stay_known() -> None:
    one = session("0 1 1 1 msg_1") | {b"_message:msg_1": b"1-0 1 ", b"_message:both": b"1-0 1 "}
    other = session("1 2 2 7 msg_2") | {b"_message:msg_2": b"2-0 1 ", b"_message:both": b"2-0  "}

    assert merged_session(one, other) == other | {b"_message:msg_1": b"1-0 1 "}


def test_what_has_no_order_is_less() -> None:
    known = session("0 1 1 1 msg_1")

    assert merged_session(known, {b"state": b"odd"}) == known


def test_of_each_kind_what_was_said_last_of_a_user_stays() -> None:
    one = {b"deleted": b"a", b"deleted_at": b"5", b"banned": b"b", b"banned_at": b"9", b"done": b" msg_1 msg_2"}
    other = {b"deleted": b"c", b"deleted_at": b"10", b"done": b" msg_2 msg_3"}

    for first, second in itertools.permutations((one, other)):
        merged = merged_gone(first, second)
        assert (merged[b"deleted"], merged[b"deleted_at"]) == (b"c", b"10")
        assert (merged[b"banned"], merged[b"banned_at"]) == (b"b", b"9")
        assert sorted(merged[b"done"].split()) == [b"msg_1", b"msg_2", b"msg_3"]
        assert merged[b"done"].startswith(b" msg_")


def test_a_mark_alone_stays_as_it_is() -> None:
    mark = {b"banned": b"b", b"banned_at": b"9"}

    assert merged_gone(mark, {}) == mark
