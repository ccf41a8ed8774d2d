"""JSON text to Python values and back, whatever is in the parts that nobody reads.

Clerk's payload embeds the `user` with metadata that end users write themselves. Fast parsers give up on
some valid JSON (lone surrogates, deep nesting, integers of thousands of digits), and a user who could make
the parser give up could hide the end of a session. So what Python's own parser refuses is read again here,
by the same rules (NaN and Infinity are accepted, the last of duplicate keys wins), without recursion and
without a limit on digits.
"""

import contextlib
import json
import re
from collections.abc import Generator, Iterator
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]  # C, without a stub
from typing import Any, Final

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_COLON: Final = re.compile(r"[ \t\n\r]*:")
_SCALAR: Final = re.compile(
    r"-?(?:0|[1-9][0-9]*)(?P<fraction>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>true|false|null|NaN|-?Infinity)"
)
_WORDS: Final = {
    "true": True,
    "false": False,
    "null": None,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}


def loads(text: bytes) -> Any:
    """Return the value of UTF-8 JSON.

    Raises:
        ValueError: If it is none.
    """
    decoded = text.decode()
    try:
        return json.loads(decoded)
    except JSONDecodeError:
        raise
    except (ValueError, RecursionError):
        pass  # an integer is too long, or something is too deep
    try:
        return json.loads(decoded, parse_int=_integer)
    except RecursionError:
        return _loads_without_recursion(decoded)


def dumps(value: Any, at_most: int | None = None) -> str:
    """Return compact JSON; Python's own encoder would give up on deep nesting.

    Args:
        value: What JSON can express.
        at_most: The greatest length, in characters.

    Raises:
        ValueError: If it is longer, or has NaN or Infinity, which JSON does not have.
    """
    written: list[str] = []
    size = 0
    open_containers = [iter([("", value)])]
    while open_containers:
        before, member = next(open_containers[-1], (None, None))
        if before is None:
            open_containers.pop()
            continue
        if isinstance(member, dict | list):
            open_containers.append(_members(member))
        elif member is not _END:
            before += json.dumps(member, ensure_ascii=False, allow_nan=False)
        written.append(before)
        size += len(before)
        if at_most is not None and size > at_most:
            raise ValueError(f"more than {at_most} characters of JSON")
    return "".join(written)


_END: Final = object()


def _members(container: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each member with the text before it, then _END with the closing bracket."""
    if isinstance(container, dict):
        opening, closing = "{}"
        named = ((f"{json.dumps(name, ensure_ascii=False)}:", member) for name, member in container.items())
    else:
        opening, closing = "[]"
        named = (("", member) for member in container)
    before = opening
    for name, member in named:
        yield before + name, member
        before = ","
    yield (closing if container else opening + closing), _END


def is_unicode(text: str) -> bool:
    """Tell whether UTF-8 can hold it: JSON's escapes can name half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _loads_without_recursion(text: str) -> Any:
    parsers = [_parse(text, _skip_space(text, 0))]
    parsed: Any = None
    while parsers:
        try:
            position = parsers[-1].send(parsed)
        except StopIteration as end:
            parsers.pop()
            parsed = end.value
        else:
            parsers.append(_parse(text, position))
            parsed = None
    value, position = parsed
    if (position := _skip_space(text, position)) != len(text):
        raise JSONDecodeError("Extra data", text, position)
    return value


def _parse(text: str, position: int) -> Generator[int, tuple[Any, int], tuple[Any, int]]:
    """Return the value at the position and where it ends.

    Yields the position of each value inside it, and is sent what this function returns of that.
    """
    opening = text[position : position + 1]
    if opening == '"':
        value, position = scanstring(text, position + 1, True)
        return value, position
    if opening not in {"{", "["}:
        return _read_scalar(text, position)
    is_object, closing = opening == "{", {"{": "}", "[": "]"}[opening]
    keys: list[str] = []
    values: list[Any] = []
    position = _skip_space(text, position + 1)
    is_open = text[position : position + 1] != closing
    while is_open:
        if is_object:
            key, position = _read_key(text, position)
            keys.append(key)
        value, position = yield position
        values.append(value)
        position = _skip_space(text, position)
        is_open = text[position : position + 1] == ","
        if is_open:
            position = _skip_space(text, position + 1)
    if text[position : position + 1] != closing:
        raise JSONDecodeError(f"Expecting ',' or '{closing}'", text, position)
    return dict(zip(keys, values, strict=True)) if is_object else values, position + 1


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _read_key(text: str, position: int) -> tuple[str, int]:
    """Return the key of `"key":` and where its value begins."""
    if text[position : position + 1] != '"':
        raise JSONDecodeError("Expecting a key in double quotes", text, position)
    key, position = scanstring(text, position + 1, True)
    colon = _COLON.match(text, position)
    if not colon:
        raise JSONDecodeError("Expecting ':'", text, position)
    return key, _skip_space(text, colon.end())


def _read_scalar(text: str, position: int) -> tuple[Any, int]:
    match = _SCALAR.match(text, position)
    if not match:
        raise JSONDecodeError("Expecting a value", text, position)
    if match["word"]:
        return _WORDS[match["word"]], match.end()
    return (float if match["fraction"] else _integer)(match[0]), match.end()


def _integer(text: str) -> int | float:
    """Python converts no more digits than sys.get_int_max_str_digits(): it takes quadratic time."""
    with contextlib.suppress(ValueError):
        return int(text)
    return float(text)
