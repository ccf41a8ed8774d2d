"""Both readers agree with the standard library's `json`, and read on where fast parsers give up."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from clerk_session_feed.lenient_json import _loads_without_recursion, dumps, loads
from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import patient

Reader = Callable[[str], Any]


def _loads(text: str) -> Any:
    return loads(text.encode())


READERS: Final = (pytest.param(_loads, id="loads"), pytest.param(_loads_without_recursion, id="without recursion"))
MAX_DIGITS: Final = 4300
DEEP: Final = 3_000
"""Levels; more than Python's limit on recursion, 1,000. tests/integration has as many as a body allows."""


def reading(reader: Reader, text: str) -> str:
    """Return the value in a form that tells 1 from 1.0 and True, 0.0 from -0.0, and equates NaN with NaN."""
    try:
        return repr(reader(text))
    except ValueError:
        return "refused"


def assert_all_agree(text: str) -> None:
    expected = reading(json.loads, text)
    assert reading(_loads, text) == expected
    assert reading(_loads_without_recursion, text) == expected


_space = st.text(" \t\n\r", max_size=2)
_strings = st.one_of(
    st.text(max_size=6).map(json.dumps),
    st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.text(st.characters(categories=["Cs"]), max_size=2).map(json.dumps),  # lone surrogates
    st.sampled_from(['"a"', '"\\u00E6\\/\\b\\f\\n\\r\\t\\"\\\\"', '"\\ud83d\\ude00"', '"\x7f"', '""']),
)
_numbers = st.one_of(
    st.integers(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["-0", "-0.0", "1E5", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity"]),
).map(lambda number: number if isinstance(number, str) else json.dumps(number))


@st.composite
def _containers(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    """Write an array or an object, its keys as they come: also twice."""

    def spaced(text: str) -> str:
        return draw(_space) + text + draw(_space)

    items = draw(st.lists(values, max_size=4))
    if draw(st.booleans()):
        return f"[{','.join(spaced(item) for item in items) or draw(_space)}]"
    pairs = (f"{spaced(draw(_strings))}:{spaced(item)}" for item in items)
    return f"{{{','.join(pairs) or draw(_space)}}}"


json_texts: Final = st.recursive(
    _strings | _numbers | st.sampled_from(["true", "false", "null"]), _containers, max_leaves=12
)


@patient
@given(json_texts)
@example('{"a":1,"b":2,"a":3}')
@example('[[],{},"",{"":[]}]')
def test_what_is_json_reads_as_the_standard_library_reads_it(text: str) -> None:
    assert reading(json.loads, text) != "refused"
    assert_all_agree(text)


@patient
@given(json_texts, st.data())
def test_json_with_a_character_changed_is_refused_by_all_or_by_none(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 1))
    put = data.draw(st.text('{}[]",:.eE+-01a\\u \n\x00\x1f\x0b\xa0\ufeff', max_size=2))
    assert_all_agree(text[:at] + put + text[at + cut :])


_tokens = st.sampled_from(
    [
        *('{}[],:"\\-+.eE01'),
        *('"k":', '"v"', " ", "\n", "\t", "\x0b", "\x00", "\x1f", "\xa0", "\ufeff", "\u2028"),
        *("12", "01", "-0", "1.5", "1e5", "1. ", "0.e1", "true", "tru", "null", "NaN", "Infinity", "-Infinity"),
        *("-N", "I", "\\u00e9", "\\ud800", "\\udc00", "\\u12", "\\x", "'a'", "//", "/**/"),
    ]
)


@patient
@given(st.lists(_tokens, max_size=7).map("".join))
@example("1.\n")
@example("0.e1")
def test_what_is_no_json_is_refused_by_all(text: str) -> None:
    assert_all_agree(text)


# Python's own matching of possessive groups had a defect until 3.11.5 that let these through.
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ["1. ", "[1.]", '{"a":0.e1}', "-0.\n", "[1.,2]", "1e", "1e+ ", "[1e]", "1.5e"])
def test_a_number_cut_short_is_refused(reader: Reader, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        reader(text)


NO_JSON: Final = (
    *("", " ", "\ufeff{}", "{} {}", "[1,]", '{"a":1,}', "{1:2}", "{'a':1}", '{"a" 1}', '{"a":}', "[", "{", '"'),
    *("]", "[}", '{"a":1]', "[1 2]", "nan", "True", "-", "+1", ".5", "01", "0x1", '"\n"', '"\\x"', '"\\u12"'),
    *("\u0663", "[1]//", "-NaN", "\xa01", "1\x0b", '{"\n":1}', '{"a"\x0b:1}', '{"a":\xa01}', "[1,\f2]"),
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", NO_JSON, ids=ascii)
def test_other_text_that_is_no_json_is_refused(reader: Reader, text: str) -> None:
    assert reading(json.loads, text) == "refused"
    assert reading(reader, text) == "refused"


@pytest.mark.parametrize(
    "body", [b"\xff", b'"\xed\xa0\x80"', b'["\xc0\x80"]', "{}".encode("utf-16"), b"\xef\xbb\xbf{}"]
)
def test_bytes_that_are_not_plain_utf8_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(body)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("digits", [19, 20, 309, MAX_DIGITS - 1, MAX_DIGITS])
@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_of_up_to_4300_digits_is_exact(reader: Reader, digits: int, sign: str) -> None:
    text = sign + "9" * digits
    assert reader(text) == int(text)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("digits", [MAX_DIGITS + 1, 5000, 1_000_000])
def test_a_longer_integer_costs_only_its_exactness(reader: Reader, digits: int) -> None:
    assert reader(f"[-{'9' * digits}, 1, {'9' * digits}]") == [float("-inf"), 1, float("inf")]


@pytest.mark.parametrize("reader", READERS)
def test_a_number_with_thousands_of_digits_after_its_point_is_read(reader: Reader) -> None:
    assert reader(f"[0.{'1' * 100_000}, 1e{'0' * 5000}1, 1]") == [1 / 9, 10.0, 1]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"\\ud800"', "\ud800"),
        ('{"\\udc00": "\\ude00\\ud83d"}', {"\udc00": "\ude00\ud83d"}),
        ('"\\ud800\\ud83d\\ude00"', "\ud800😀"),
    ],
)
def test_lone_surrogates_are_read(reader: Reader, text: str, value: object) -> None:
    assert reader(text) == value


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), (' [0, {"a": ', " }, 1] ")])
def test_nesting_however_deep_is_read_and_written(reader: Reader, opening: str, closing: str) -> None:
    depth = DEEP // len(opening.split())
    text = f'{opening * depth}"deep"{closing * depth}'
    value = reader(f'[{text}, "after"]')
    assert value[1] == "after"
    assert dumps(value[0]) == text.replace(" ", "")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "[" * DEEP + "]" * (DEEP - 1)], ids=["[", "{", "[]"])
def test_deep_nesting_that_is_not_closed_is_refused(reader: Reader, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        reader(text)


def written(writer: Callable[[Any], str], value: Any) -> str:
    try:
        return writer(value)
    except ValueError:
        return "refused"


@patient
@given(json_texts)
@example('{"b":[{}],"a":[[],""],"c":{"d":1,"e":2}}')
def test_a_value_is_written_as_the_standard_library_writes_it_compactly(text: str) -> None:
    value = json.loads(text)
    compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    assert written(dumps, value) == written(compact.encode, value)
