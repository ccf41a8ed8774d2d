"""For development: sample deliveries, their sender, a Redis of its own, and the command `dev`."""

from typing import Final

CONSOLE_LINK: Final = "SESSION_RELAY_CONSOLE_LINK"
"""Hands the token of an address that signs in to the console, once, to the server that one run of `dev` starts."""
TRIAL_PATH: Final = "SESSION_RELAY_TRIAL_PATH"
"""Hands the path that only one run of `dev` knows on to the server that it starts."""
