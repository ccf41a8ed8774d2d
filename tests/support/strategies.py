"""Strategies and settings for hypothesis."""

from typing import Final

from hypothesis import settings
from hypothesis import strategies as st

patient: Final = settings(deadline=None)
"""For hypothesis: a slow machine is no failure."""

# Whatever comes in.
json_values: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
