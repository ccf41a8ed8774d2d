"""The command `console`: the pages on this machine, for whoever starts it."""

import asyncio
import contextlib
import getpass
import signal
import sys
import threading
import webbrowser

import click
from clerk_session_feed.errors import ConfigurationError

from service.app.console.local import Local, serving
from service.clerk.backend_api import BackendApi
from service.config import ClerkSettings, LogSettings, ReconcileSettings, StoreSettings, load
from service.errors import ClerkError
from service.ingest import Ingest
from service.store.dead_letters import DeadLetters, ReplayStore
from service.store.partitions import refuse_other_partitions
from service.store.sessions import SessionStore
from service.telemetry import log, printable
from service.workers import revoke as worker
from service.workers.revoke import Revoked


@click.command(short_help="Open the console, a page to look at.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="a free one", help="Where to listen.")
@click.option("--open/--no-open", "opens", default=True, help="Open the browser.")
@click.option("--allow-changes", is_flag=True, help="Offer to replay and drop dead letters, and to revoke sessions.")
def console(port: int, opens: bool, allow_changes: bool) -> None:
    """Serve a page on this machine: what comes in, who is signed in and why, dead letters, health.

    It needs REDIS_URL alone. Nobody but you gets in: the link that it prints works once, within ten minutes.
    """
    settings = load(StoreSettings)
    log.configure(load(LogSettings, **({} if _is_set("log_format") else {"log_format": "console"})))
    refuse_other_partitions(settings)
    who = _who()
    with contextlib.ExitStack() as stack:
        changes = stack.enter_context(contextlib.closing(ConsoleChanges(settings, who))) if allow_changes else None
        local = stack.enter_context(serving(settings, port, who=who, changes=changes))
        link = local.new_link()
        click.echo(f"Console: {local.origin}/console")
        click.echo(f"Sign in: {link}  (works once)")
        click.echo(
            "Changes are allowed, and logged." if allow_changes else "Read-only; --allow-changes offers changes."
        )
        if opens:
            # In a thread: a browser in the terminal blocks.
            threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()
        _serve_until_signal(local)


def _is_set(name: str) -> bool:
    return name in load(LogSettings).model_fields_set


def _who() -> str:
    try:
        return printable(getpass.getuser())
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return "local user"


def _serve_until_signal(local: Local) -> None:
    """Print another link for each Enter, until Ctrl-C, SIGTERM or SIGHUP."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    if sys.stdin.isatty():
        click.echo("Enter prints another link; Ctrl-C stops.")
        threading.Thread(target=_print_links, args=(local,), daemon=True).start()
    else:
        click.echo("Ctrl-C stops.")
    stop.wait()


def _print_links(local: Local) -> None:
    while sys.stdin.readline():
        click.echo(f"Sign in: {local.new_link()}  (works once)")


class ConsoleChanges:
    """What `--allow-changes` allows: what the commands `dead-letters` and `revoke` do."""

    def __init__(self, settings: StoreSettings, who: str) -> None:
        self._settings, self._who = settings, who
        self._store = ReplayStore(settings)
        self._letters = DeadLetters(settings)
        self._ingest = Ingest(self._store, publish_http_request=settings.publish_http_request)
        self._clerk = _clerk_settings()

    def close(self) -> None:
        """Disconnect."""
        self._letters.close()
        self._store.close()

    def replay(self, message_id: str) -> str:
        """Process a dead letter once more."""
        result = self._letters.replay(message_id, self._ingest)
        if result.outcome in {"kept", "missing"}:
            return f"It is not replayed: {result.detail}"
        return f"{result.outcome}: {result.detail}. It is removed from the dead letters."

    def drop(self, message_id: str) -> str:
        """Remove a dead letter for good."""
        return "It is removed." if self._letters.drop(message_id) else "It was not stored any more."

    def revoke_means(self) -> str:
        """Return what `revoke` will do."""
        text = "It ends at once, here, for good: nothing brings it back."
        if self._clerk is None:
            return f"{text} Clerk is not told, since CLERK_SECRET_KEY is not set: Clerk still takes it for live."
        return f"{text} Then Clerk is told to revoke it."

    def revoke(self, session_id: str) -> str:
        """End a session at once, here and, with CLERK_SECRET_KEY, at Clerk."""
        (ended,) = worker.order(self._store, [session_id], local=self._clerk is None)
        here = f"Here: {ended.fault or ended.status or 'not stored'}."
        if self._clerk is None:
            return f"{here} Clerk was not told."
        return f"{here} {asyncio.run(_tell_clerk(self._store, self._clerk, session_id))}"


def _clerk_settings() -> ReconcileSettings | None:
    try:
        load(ClerkSettings)
    except ConfigurationError:
        return None
    return load(ReconcileSettings)


async def _tell_clerk(store: SessionStore, settings: ReconcileSettings, session_id: str) -> str:
    """Let Clerk revoke what it has still to revoke; return what became of one of these."""
    told: dict[str, Revoked] = {}
    async with BackendApi(settings) as api:
        try:
            instance_id = (await api.instance()).id
            await worker.retry_pending(
                store, api, instance_id, report=lambda each: told.update({each.session_id: each})
            )
        except ClerkError as error:
            return f"At Clerk: pending, since {error}. `session-relay revoke` tries again."
    result = told.get(session_id)
    if result is None or result.clerk == "pending":
        return f"At Clerk: pending{f', since {result.detail}' if result and result.detail else ''}."
    return f"At Clerk: {result.clerk.replace('_', ' ')}."
