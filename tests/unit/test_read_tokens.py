"""Tokens with which a browser follows events: what they show, and for how long."""

from typing import Final
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer
from support.constants import NOW_MS
from support.strategies import patient

from service.app.reads import tokens
from service.app.reads.tokens import EventTokens, Grant

OLD: Final = "an-old-token-to-read-with"
NEW: Final = "a-new-token-to-read-with"
GRANT: Final = Grant(None, "sess_1", NOW_MS + 1000)


@pytest.fixture(autouse=True)
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "now_ms", lambda: NOW_MS)


@pytest.mark.parametrize("grant", [GRANT, Grant("user_1", None, NOW_MS + 1), Grant("u" * 128, None, 10**14)])
def test_a_token_shows_what_it_was_made_for(grant: Grant) -> None:
    token = EventTokens([OLD]).make(grant)

    assert EventTokens([OLD]).read(token) == grant
    assert len(token) < 400
    assert token.replace("-", "").replace("_", "").replace(".", "").isalnum()


def test_it_holds_nothing_of_the_read_token() -> None:
    assert OLD not in EventTokens([OLD]).make(GRANT)


def test_the_first_of_several_signs_and_any_is_taken() -> None:
    during = EventTokens([NEW, OLD])

    assert during.read(EventTokens([OLD]).make(GRANT)) == GRANT
    assert EventTokens([NEW]).read(during.make(GRANT)) == GRANT
    assert EventTokens([OLD]).read(during.make(GRANT)) is None


def test_an_expired_one_shows_nothing() -> None:
    made = EventTokens([OLD])
    token = made.make(GRANT)
    with mock.patch.object(tokens, "now_ms", return_value=NOW_MS + 1000):
        assert made.read(token) is None


@patient
@given(st.text())
def test_what_was_not_made_here_shows_nothing(text: str) -> None:
    assert EventTokens([OLD]).read(text) is None


@pytest.mark.parametrize("position", range(0, 80, 7))
def test_one_with_another_letter_shows_nothing(position: int) -> None:
    token = EventTokens([OLD]).make(GRANT)
    position %= len(token) - 1  # of the last letter, not all bits count
    other = "A" if token[position] != "A" else "B"

    assert EventTokens([OLD]).read(token[:position] + other + token[position + 1 :]) is None


@pytest.mark.parametrize("salt", ["itsdangerous", "cookie-session", "clerk-session-relay: console 1"])
def test_what_the_same_key_signs_for_another_purpose_shows_nothing(salt: str) -> None:
    other = URLSafeSerializer(OLD, salt=salt).dumps(list(GRANT))

    assert EventTokens([OLD]).read(str(other)) is None


def test_a_long_one_is_not_looked_at() -> None:
    assert EventTokens([OLD]).read("a" * 10**6) is None
