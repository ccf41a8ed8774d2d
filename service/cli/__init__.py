"""The commands of `session-relay`, a file for each group; nothing imports this package."""

from service.cli.commands import main

__all__ = ["main"]
