"""JSON text to Python values and back, whatever is in the parts that nobody reads.

Clerk's payload embeds the `user` with metadata that end users write themselves. Fast parsers give up on some valid JSON
(lone surrogates, deep nesting, integers of thousands of digits), and a user who could make the parser give up could
hide the end of a session. So what Python's own parser refuses is read again here, by the same rules (NaN and Infinity
are accepted, the last of duplicate keys wins), without recursion and without a limit on digits.
"""

import json
import re
from collections.abc import Generator, Iterator
from json import JSONDecodeError
from typing import Any, Final

_SPACE: Final = re.compile(r"[ \t\n\r]*")


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
        return _DECODER.decode(decoded)
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
    unfinished = [_parts(value)]
    while unfinished:
        part = next(unfinished[-1], None)
        if part is None:
            unfinished.pop()
        elif not isinstance(part, str):
            unfinished.append(part)
        else:
            written.append(part)
            size += len(part)
            if at_most is not None and size > at_most:
                raise ValueError(f"more than {at_most} characters of JSON")
    return "".join(written)


def _parts(value: Any) -> Iterator[Any]:
    """Yield the JSON of a value in parts: each is text, or an iterator over the parts of a member."""
    if not isinstance(value, dict | list):
        yield json.dumps(value, ensure_ascii=False, allow_nan=False)
        return
    is_object = isinstance(value, dict)
    opening, closing = "{}" if is_object else "[]"
    before = opening
    for member in value:
        yield f"{before}{json.dumps(member, ensure_ascii=False)}:" if is_object else before
        yield _parts(value[member] if is_object else member)
        before = ","
    yield closing if value else opening + closing


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
    closing = {"{": "}", "[": "]"}.get(text[position : position + 1])
    if closing is None:
        return _DECODER.raw_decode(text, position)
    keys: list[str] = []
    values: list[Any] = []
    position = _skip_space(text, position + 1)
    is_open = text[position : position + 1] != closing
    while is_open:
        if closing == "}":
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
    return dict(zip(keys, values, strict=True)) if closing == "}" else values, position + 1


def _read_key(text: str, position: int) -> tuple[str, int]:
    """Return the key of `"key":` and where its value begins."""
    if text[position : position + 1] != '"':
        raise JSONDecodeError("Expecting a key in double quotes", text, position)
    key, position = _DECODER.raw_decode(text, position)
    position = _skip_space(text, position)
    if text[position : position + 1] != ":":
        raise JSONDecodeError("Expecting ':'", text, position)
    return key, _skip_space(text, position + 1)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _integer(text: str) -> int | float:
    """Python converts no more digits than sys.get_int_max_str_digits(): it takes quadratic time."""
    try:
        return int(text)
    except ValueError:
        return float(text)


_DECODER: Final = json.JSONDecoder(parse_int=_integer)
