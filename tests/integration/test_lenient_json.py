"""Bodies of the greatest size: too slow for tests/unit."""

from typing import Any

import pytest
from clerk_session_feed.lenient_json import loads
from support.constants import MAX_BODY_BYTES


def depth_of(value: Any) -> int:
    """Return how many arrays and objects of one member lie in each other."""
    depth = 0
    while not isinstance(value, str):
        value = value["a"] if isinstance(value, dict) else value[0]
        depth += 1
    return depth


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), (' [ {"a": ', " } ] ")])
def test_nesting_as_deep_as_a_body_allows_is_read(opening: str, closing: str) -> None:
    depth = MAX_BODY_BYTES // len(opening + closing) - 20
    value = loads(f'[{opening * depth}"deep"{closing * depth}, "after"]'.encode())
    assert value[1] == "after"
    assert depth_of(value[0]) == depth * (opening.count("[") + opening.count("{"))
