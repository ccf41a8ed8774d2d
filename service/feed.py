"""`clerk_session_feed`, under the name that it had before it was a package of its own."""

from clerk_session_feed import *  # noqa: F403
from clerk_session_feed import __all__  # noqa: F401
