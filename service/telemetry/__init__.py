"""What the relay reports of itself: logs, metrics, traces, and a line for each delivery."""


def printable(text: str) -> str:
    """Escape what is not plain text, so that it can't steer a terminal or look like another line."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
