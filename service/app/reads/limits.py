"""How much a reader may ask for at once; the OpenAPI document says so, too."""

from typing import Final

DEFAULT_LIMIT: Final = 100
"""Items in a page, unless `limit` says otherwise."""
LARGEST_LIMIT: Final = 500
MAX_STREAMS: Final = 10_000
"""Streams of one process."""
DEFAULT_SECONDS: Final = 300
"""Seconds that a token for events lasts, unless the request says otherwise."""
LONGEST_SECONDS: Final = 3_600
"""Seconds that it lasts at most."""
