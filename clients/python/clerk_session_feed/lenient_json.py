"""JSON text to Python values and back, whatever is in the parts that nobody reads.

Clerk's payload embeds the `user` with metadata that end users write themselves. Fast parsers give up on some valid JSON
(lone surrogates, deep nesting, integers of thousands of digits), and a user who could make the parser give up could
hide the end of a session. So what Python's own parser refuses is read again here, by the same rules (NaN and Infinity
are accepted, the last of duplicate keys wins), without recursion and without a limit on digits.
"""

import json
import re
from collections.abc import Iterator
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


def _loads_without_recursion(text: str) -> Any:  # noqa: C901, PLR0912  # a grammar in one loop
    """Read containers in a loop, with what is open in lists: generators take three times as long, and more memory."""
    containers: list[Any] = []  # those that are open, the innermost last
    keys: list[str] = []  # one for each open object: the key whose value comes next
    value: Any
    position = _skip_space(text, 0)
    while True:
        opening = text[position : position + 1]
        if not opening or opening not in "{[":
            value, position = _DECODER.raw_decode(text, position)
        else:
            value = {} if opening == "{" else []
            position = _skip_space(text, position + 1)
            if text[position : position + 1] != _closing(value):
                containers.append(value)
                if isinstance(value, dict):
                    position = _read_key(text, position, keys)
                continue
            position += 1
        # The value is complete, and with it every container that ends here.
        while containers:
            container = containers[-1]
            if isinstance(container, dict):
                container[keys.pop()] = value
            else:
                container.append(value)
            position = _skip_space(text, position)
            if text[position : position + 1] == ",":
                position = _skip_space(text, position + 1)
                if isinstance(container, dict):
                    position = _read_key(text, position, keys)
                break
            if text[position : position + 1] != _closing(container):
                raise JSONDecodeError(f"Expecting ',' or '{_closing(container)}'", text, position)
            position += 1
            value = containers.pop()
        else:
            if (position := _skip_space(text, position)) != len(text):
                raise JSONDecodeError("Extra data", text, position)
            return value


def _closing(container: Any) -> str:
    return "}" if isinstance(container, dict) else "]"


def _read_key(text: str, position: int, keys: list[str]) -> int:
    """Read `"key":`, append the key, and return where its value begins."""
    if text[position : position + 1] != '"':
        raise JSONDecodeError("Expecting a key in double quotes", text, position)
    key, position = _DECODER.raw_decode(text, position)
    position = _skip_space(text, position)
    if text[position : position + 1] != ":":
        raise JSONDecodeError("Expecting ':'", text, position)
    keys.append(key)
    return _skip_space(text, position + 1)


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
