"""The commands `revoke` and `forget`."""

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Final

import click
from clerk_session_feed.errors import ConfigurationError

from service.clerk.backend_api import BackendApi
from service.cli import ids
from service.config import LogSettings, ReconcileSettings, StoreSettings, load
from service.dev import view
from service.errors import ClerkError
from service.store import revokes
from service.store.forget import forget_user
from service.store.partitions import refuse_other_partitions
from service.store.revokes import Ended, PendingRevoke
from service.store.sessions import SessionStore
from service.telemetry import log, printable
from service.workers import revoke as worker
from service.workers.revoke import Revoked

PAGE: Final = 500
"""Pending revokes that are read at once."""
MAX_REASONS: Final = 10
"""Different reasons that are shown at most."""
STILL_PENDING: Final = (
    "Clerk has {} still to revoke: `session-relay revoke --pending` lists them. The next `session-relay revoke` and "
    "`session-relay reconcile --every` try again."
)
HERE_ONLY: Final = "This ended sessions here only: Clerk still takes them for live."
OPEN_REMOVED: Final = (
    "{} of the sessions were open, and followers of the feed were not told that they are gone: the next time, "
    "`session-relay revoke --user {}` first."
)
NOT_DELETED: Final = (
    "Clerk has not said that {0} is deleted. Sessions that are still open at Clerk come back with their next "
    "webhook: delete the user at Clerk, or run `session-relay revoke --user {0}`, and forget once more."
)
NOT_REACHED: Final = (
    "Not reached: consumers' own copies; Redis' backups, and its append-only file until it is rewritten; ids in logs; "
    "sessions of others that name the user as actor; Clerk itself. Svix repeats a delivery for 27.6 hours: a late one "
    "brings its session back."
)


@click.command(short_help="End sessions at once, here and at Clerk.")
@click.argument(
    "session_ids", metavar="[SESSION]...", nargs=-1, callback=ids.session_ids("--user {0} ends the user's sessions")
)
@click.option("--user", "user_id", metavar="USER_ID", callback=ids.user_ids(), help="All open sessions of this user.")
@click.option(
    "--except",
    "excepted",
    metavar="SESSION",
    multiple=True,
    callback=ids.session_ids(),
    help="But not this one. Repeatable.",
)
@click.option("--impersonated", is_flag=True, help="All open sessions in which somebody impersonates the user.")
@click.option("--local", is_flag=True, help="Only here. Clerk is not told, and its key is not needed.")
@click.option("--pending", is_flag=True, help="End nothing; list what Clerk has still to revoke.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on each line.")
def revoke(
    session_ids: tuple[str, ...],
    user_id: str | None,
    excepted: tuple[str, ...],
    impersonated: bool,
    local: bool,
    pending: bool,
    as_json: bool,
) -> None:
    """End sessions at once: here first, then at Clerk.

    What Clerk does not take now stays recorded, and is sent again by the next `revoke` and by `reconcile`. The exit
    status is 1 if something is left, or is not known to anybody.
    """
    if [bool(session_ids), user_id is not None, impersonated, pending].count(True) != 1:
        raise click.UsageError("Give the ids of sessions, or one of --user, --impersonated and --pending.")
    if excepted and user_id is None:
        raise click.UsageError("--except goes with --user.")
    if pending and local:
        raise click.UsageError("--local does not go with --pending.")
    settings = load(StoreSettings if local or pending else ReconcileSettings)
    if impersonated and "actor" in settings.omit_fields:
        raise ConfigurationError(
            ["OMIT_FIELDS: leaves out actor, so no stored session tells who impersonates its user"]
        )
    # Each failure is shown here; the log is for the service.
    log.configure(load(LogSettings, log_level="critical", log_format="console"))
    refuse_other_partitions(settings)
    with contextlib.closing(SessionStore(settings, may_mark=not pending)) as store:
        if pending:
            _list_pending(store, as_json)
            return
        ordered = _order(store, session_ids, user_id, excepted, local)
        if isinstance(settings, ReconcileSettings):
            are_new = [each.is_new for each in ordered]
            if not as_json:
                note = "Clerk is told now." if are_new else "No such session is stored as open."
                click.echo(f"Ended here: {sum(are_new)}. {note}", err=True)
            is_done = asyncio.run(_tell_clerk(store, settings, user_id, excepted, _Report(as_json)))
        else:
            is_done = _show_local(ordered, as_json)
    sys.exit(0 if is_done else 1)


def _order(
    store: SessionStore, session_ids: tuple[str, ...], user_id: str | None, excepted: tuple[str, ...], local: bool
) -> Iterator[Ended]:
    """Begin with what was chosen; the sessions end as the iterator goes on."""
    if user_id is not None:
        return worker.order_user(store, user_id, excepted, local=local)
    if session_ids:
        return iter(worker.order(store, session_ids, local=local))
    return worker.order_impersonated(store, local=local)


def _show_local(ordered: Iterator[Ended], as_json: bool) -> bool:
    """Show what ended here only; return whether all did."""
    are_over = True
    for each in ordered:
        is_over = each.status is not None and each.fault is None
        are_over = are_over and is_over
        fields = {"session_id": each.session_id, "user_id": each.user_id, "status": each.status, "detail": each.fault}
        line = f"{each.session_id}  {each.user_id or '-'}  here: {each.fault or each.status or 'not stored'}"
        click.echo(json.dumps(fields) if as_json else printable(line), err=not is_over and not as_json)
    if not as_json:
        click.echo(HERE_ONLY, err=True)
    return are_over


class _Report:
    """Shows what became of each session."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._reasons: dict[str, None] = {}
        """Why sessions are pending, each once."""
        self.are_right = True
        """Whether nothing was wrong so far."""

    def show(self, each: Revoked) -> None:
        self.are_right = self.are_right and each.detail is None
        if self._as_json:
            click.echo(json.dumps(dataclasses.asdict(each)))
            return
        clerk = {"over": "over before", "not_found": "not found"}.get(each.clerk, each.clerk)
        line = f"{each.session_id}  {each.user_id or '-'}  here: {each.status or 'not stored'}  at Clerk: {clerk}"
        if each.clerk == "pending":
            line += f" since {view.utc(each.since_ms)}"
            self.add_reason(str(each.detail))
        elif each.detail is not None:
            line += f"  ({each.detail})"
        click.echo(printable(line), err=each.detail is not None)

    def add_reason(self, reason: str) -> None:
        if len(self._reasons) < MAX_REASONS:
            self._reasons[reason] = None

    def end(self, left: int) -> None:
        for reason in self._reasons:
            click.echo(printable(reason), err=True)
        if left:
            click.echo(STILL_PENDING.format(left), err=True)


async def _tell_clerk(
    store: SessionStore, settings: ReconcileSettings, user_id: str | None, excepted: tuple[str, ...], report: _Report
) -> bool:
    """Let Clerk revoke all that it has still to revoke; return whether nothing is left, and nothing was wrong."""
    instance_id, unavailable = "", None
    async with BackendApi(settings) as api:
        try:
            instance_id = (await api.instance()).id
            if user_id is not None:
                listed = await worker.open_at_clerk(api, user_id, excepted)
                worker.order(store, listed)
                if not listed:
                    click.echo(f"Clerk lists no such session of {user_id}.", err=True)
        except ClerkError as error:
            unavailable = str(error)
            report.add_reason(unavailable)
        _, left = await worker.retry_pending(store, api, instance_id, unavailable=unavailable, report=report.show)
    report.end(left)
    return report.are_right and not left and unavailable is None


def _list_pending(store: SessionStore, as_json: bool) -> None:
    found = False
    for session_id, since_ms in _all_pending(store):
        found = True
        line = printable(f"{session_id}  since {view.utc(since_ms)}")
        click.echo(json.dumps({"session_id": session_id, "since_ms": since_ms}) if as_json else line)
    if not found and not as_json:
        click.echo("Clerk has nothing left to revoke.", err=True)


def _all_pending(store: SessionStore) -> Iterator[PendingRevoke]:
    for partition in store.partitions:
        start = 0
        while page := revokes.pending(partition, start, PAGE):
            yield from page
            start += len(page)


@click.command(short_help="Remove what is stored of a user.")
@click.argument("user_id", metavar="USER_ID", callback=ids.user_ids())
def forget(user_id: str) -> None:
    """Remove what is stored of a user: sessions, indexes, stream entries and dead letters.

    The mark that the user is deleted stays: an id and a time. Without it, a late event would bring sessions back.
    """
    settings = load(StoreSettings)
    log.configure(load(LogSettings, log_level="critical", log_format="console"))
    refuse_other_partitions(settings)
    forgotten = forget_user(settings, user_id)
    click.echo(
        f"Removed of {user_id}: sessions: {forgotten.sessions} (open: {forgotten.open_sessions}), "
        f"stream entries: {forgotten.entries}, dead letters: {forgotten.dead_letters}."
    )
    for key in sorted(forgotten.wrong_type):
        click.echo(printable(f"{key} is not a hash, and stays."), err=True)
    if forgotten.open_sessions:
        click.echo(OPEN_REMOVED.format(forgotten.open_sessions, user_id), err=True)
    if not forgotten.is_deleted:
        click.echo(NOT_DELETED.format(user_id), err=True)
    click.echo(NOT_REACHED, err=True)
    sys.exit(1 if forgotten.wrong_type else 0)
