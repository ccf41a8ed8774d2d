"""What `dev --reconcile` adds: a stand-in for Clerk, changes there of which no webhook tells, and a reconcile.

Apart from `run`, which needs neither Clerk nor a feed.
"""

import contextlib
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Final

from clerk_session_feed import SessionFeed
from clerk_session_feed.settings import KeySettings
from rich.console import Console
from rich.table import Table

from service.config import DevSettings
from service.dev import sender, simulator, view
from service.dev.fake_clerk import FakeClerk
from service.dev.sender import OutgoingDelivery

_DAY_MS: Final = 86_400_000


@contextlib.contextmanager
def running_clerk(webhook_url: str, secret: str) -> Iterator[FakeClerk]:
    """Run a stand-in for Clerk that sends its webhooks to the relay."""

    def deliver(event: dict[str, object]) -> None:
        delivery = OutgoingDelivery(simulator.encode(event), str(event["type"]))
        list(sender.send([delivery], url=webhook_url, secret=secret))

    # The instance that the sample deliveries name: a key of another one would be refused.
    with FakeClerk(instance_id=simulator.sample()["instance_id"], on_webhook=deliver) as clerk:
        yield clerk


def environment_of(clerk: FakeClerk) -> dict[str, str]:
    """Return the settings by which commands use the stand-in."""
    return {"CLERK_API_URL": clerk.url, "CLERK_SECRET_KEY": clerk.secret_key}


def introduce(console: Console, clerk: FakeClerk, session_id: str, redis_url: str, program: str) -> None:
    """Say where the stand-in is, and what to try."""
    environment = environment_of(clerk) | {"REDIS_URL": redis_url}
    exported = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    console.print(
        "A stand-in for Clerk's Backend API runs, too. Try, in another terminal:",
        f"  export {exported}",
        f"  {program} check --clerk",
        f"  {program} reconcile --full",
        f"  {program} revoke {session_id}\n",
        sep="\n",
        markup=False,
    )


def make_changes(clerk: FakeClerk) -> dict[str, str]:
    """Let users sign in at Clerk, and things happen; return the ids of the sessions by what happened."""
    signed_out, abandoned, extended, vanished, told = (clerk.sign_in(clerk.add_user()) for _ in range(5))
    with clerk.webhooks_lost():
        signed_in = clerk.sign_in(clerk.add_user())
        clerk.end(signed_out)
        clerk.end(abandoned, "abandoned")
        clerk.extend(extended, clerk.get(extended)["expire_at"] + 30 * _DAY_MS)
        clerk.vanish(vanished)
    return {
        "signed in, webhook lost": signed_in,
        "signed out, webhook lost": signed_out,
        "abandoned (no webhook)": abandoned,
        "extended (no webhook)": extended,
        "cleaned up (no webhook)": vanished,
        "signed in, webhook arrived": told,
    }


def reconcile(
    console: Console,
    settings: DevSettings,
    environment: dict[str, str],
    sessions: dict[str, str],
    stop: threading.Event,
) -> None:
    """Run `reconcile --full`, and show what is stored of these sessions before and after.

    Args:
        console: where to show it.
        settings: how keys are named.
        environment: of the command; with REDIS_URL.
        sessions: what `make_changes` returned.
        stop: ends the command.
    """
    keys = settings.model_dump(include=set(KeySettings.model_fields))
    with SessionFeed.from_url(environment["REDIS_URL"], **keys) as feed:
        before = {happened: _stored(feed, session_id) for happened, session_id in sessions.items()}
        console.print("Reconciling: session-relay reconcile --full …", style="dim", markup=False)
        if not _run_command(environment, stop):
            return
        table = Table("at Clerk", "stored before", "after", box=None, pad_edge=False)
        for happened, session_id in sessions.items():
            table.add_row(happened, before[happened], _stored(feed, session_id))
    console.print(table)
    console.print()


def _stored(feed: SessionFeed, session_id: str) -> str:
    if (update := feed.get(session_id)) is None:
        return "nothing"
    session = update.session
    if not update.is_live or session.expire_at is None:
        return str(session.status)
    return f"{session.status} until {view.utc(session.expire_at).split()[0]}"


def _run_command(environment: dict[str, str], stop: threading.Event) -> bool:
    """Tell whether it succeeded. What it says goes where this process' own output goes."""
    command = [sys.executable, "-m", "service", "reconcile", "--full"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:  # noqa: S603
        while process.poll() is None:
            if stop.wait(0.05):
                process.terminate()
    return process.returncode == 0
