"""JSON text to Python values and back, whatever is in the parts that nobody reads.

Clerk's payload embeds the `user` with metadata that end users write themselves. Fast parsers give up on
some valid JSON (lone surrogates, deep nesting, integers of thousands of digits), and a user who could make
the parser give up could hide the end of a session. So what Python's own parser refuses is read again here,
by the same rules (NaN and Infinity are taken, the last of duplicate keys wins), without recursion and
without a limit on digits.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
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
    """Parse UTF-8 JSON.

    Raises ValueError if it is none.
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
    """Write compact JSON; Python's own encoder would give up on deep nesting.

    at_most: characters.
    Raises ValueError for more of them, and for NaN and Infinity, which JSON does not have.
    """
    written: list[str] = []
    size = 0
    # What each container that is open still has to write.
    open_containers: list[Iterator[str | _Member]] = [iter([_Member(value)])]
    while open_containers:
        part = next(open_containers[-1], None)
        if part is None:
            open_containers.pop()
            continue
        if isinstance(part, _Member):
            if isinstance(part.value, dict | list):
                open_containers.append(_parts(part.value))
                continue
            part = json.dumps(part.value, ensure_ascii=False, allow_nan=False)
        written.append(part)
        size += len(part)
        if at_most is not None and size > at_most:
            raise ValueError(f"more than {at_most} characters of JSON")
    return "".join(written)


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    value: Any


def _parts(container: dict[str, Any] | list[Any]) -> Iterator[str | _Member]:
    comma = ""
    if isinstance(container, dict):
        yield "{"
        for key, value in container.items():
            yield f"{comma}{json.dumps(key, ensure_ascii=False)}:"
            yield _Member(value)
            comma = ","
        yield "}"
    else:
        yield "["
        for value in container:
            yield comma
            yield _Member(value)
            comma = ","
        yield "]"


def is_unicode(text: str) -> bool:
    """Tell whether UTF-8 can hold it: JSON's escapes can name half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _loads_without_recursion(text: str) -> Any:  # noqa: C901, PLR0912  # a grammar in one loop
    position = _skip_space(text, 0)
    open_containers: list[dict[str, Any] | list[Any]] = []
    open_keys: list[str] = []  # one for each open object: the key whose value comes next
    while True:
        value: Any
        character = text[position : position + 1]
        if character == "{":
            position = _skip_space(text, position + 1)
            if text[position : position + 1] != "}":
                open_containers.append({})
                position = _read_key(text, position, open_keys)
                continue
            value, position = {}, position + 1
        elif character == "[":
            position = _skip_space(text, position + 1)
            if text[position : position + 1] != "]":
                open_containers.append([])
                continue
            value, position = [], position + 1
        elif character == '"':
            value, position = scanstring(text, position + 1, True)
        else:
            value, position = _read_scalar(text, position)

        # A value is complete: put it where it belongs, and close what it completes.
        while True:
            position = _skip_space(text, position)
            character = text[position : position + 1]
            if not open_containers:
                if character:
                    raise JSONDecodeError("Extra data", text, position)
                return value
            container = open_containers[-1]
            position += 1
            if isinstance(container, dict):
                container[open_keys.pop()] = value
                if character == ",":
                    position = _read_key(text, _skip_space(text, position), open_keys)
                    break
                closing = "}"
            else:
                container.append(value)
                if character == ",":
                    position = _skip_space(text, position)
                    break
                closing = "]"
            if character != closing:
                raise JSONDecodeError(f"Expecting ',' or '{closing}'", text, position - 1)
            value = open_containers.pop()


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _read_key(text: str, position: int, open_keys: list[str]) -> int:
    """Read `"key":`, keep the key, and return where its value begins."""
    if text[position : position + 1] != '"':
        raise JSONDecodeError("Expecting a key in double quotes", text, position)
    key, position = scanstring(text, position + 1, True)
    colon = _COLON.match(text, position)
    if not colon:
        raise JSONDecodeError("Expecting ':'", text, position)
    open_keys.append(key)
    return _skip_space(text, colon.end())


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
