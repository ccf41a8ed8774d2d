"""For development: sample deliveries, their sender, a Redis of its own, and the command `dev`."""

from typing import Final

TRIAL_PATH: Final = "SESSION_RELAY_TRIAL_PATH"
"""Hands the path that only one run of `dev` knows on to the server that it starts."""
