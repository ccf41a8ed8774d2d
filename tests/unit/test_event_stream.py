"""Notices as server-sent events: read back as browsers do it."""

import re

import pytest

from service.app.reads.stream import encode
from service.store.subscription import Notice


def fields(notice: Notice) -> list[tuple[str, str]]:
    """Return the fields of the one event that there is, comments aside."""
    text = encode(notice).decode()
    assert text.endswith("\n\n")
    assert "\n\n" not in text[:-2]
    lines = re.split(r"\r\n|\r|\n", text[:-2])
    return [(name, value.removeprefix(" ")) for name, _, value in (line.partition(":") for line in lines) if name]


def test_what_is_applied_is_an_event_with_its_position() -> None:
    notice = Notice("applied", "5-1", b'{"cursor":"5-1"}')

    assert fields(notice) == [("id", "5-1"), ("event", "session"), ("data", '{"cursor":"5-1"}')]


def test_a_heartbeat_is_a_comment_without_an_id() -> None:
    assert fields(Notice("heartbeat")) == []
    assert encode(Notice("heartbeat")).startswith(b":")


def test_a_position_is_an_id_and_no_event() -> None:
    assert fields(Notice("position", "5-1")) == [("id", "5-1")]


def test_a_resync_says_why_and_where_it_goes_on() -> None:
    notice = Notice("resync", "5-1", said={"reason": "trimmed", "cursor": "5-1"})

    assert fields(notice) == [("id", "5-1"), ("event", "resync"), ("data", '{"reason":"trimmed","cursor":"5-1"}')]


def test_an_end_has_no_id_and_keeps_a_browser_from_coming_back_at_once() -> None:
    end = dict(fields(Notice("end", said={"reason": "token_expired"})))

    assert end == {"retry": "86400000", "event": "end", "data": '{"reason":"token_expired"}'}


@pytest.mark.parametrize("between", ["\n", "\r", "\r\n", "\n\n", "\n\nevent: end\ndata: x\n\n"])
def test_json_on_several_lines_is_one_event(between: str) -> None:
    notice = Notice("applied", "5-1", f'{{"a":{between}1}}'.encode())

    assert [name for name, _ in fields(notice)] == ["id", "event", "data"]
