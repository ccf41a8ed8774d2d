"""What the relay reports of itself: logs, metrics, traces, and a line for each delivery."""

import importlib.metadata


def relay_version() -> str:
    """Return the version of the relay that is installed."""
    try:
        return importlib.metadata.version("clerk-session-relay")
    except importlib.metadata.PackageNotFoundError:  # run from a folder
        return "unknown"


def printable(text: str) -> str:
    """Escape what is not plain text, so that it can't steer a terminal or look like another line."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
