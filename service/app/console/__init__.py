"""The console: pages that show what comes in, who is signed in, and why; read-only unless it is told otherwise."""

from service.app.console.views import ConsoleBlueprint, create_console

__all__ = ["ConsoleBlueprint", "create_console"]
