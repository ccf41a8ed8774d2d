"""The command `check`: can this configuration work, and what is to be done if not?"""

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Final

import click
import redis
from clerk_session_feed.errors import ConfigurationError
from clerk_session_feed.redis_url import RedisUrl

from service.cli.check_channel import check_channel
from service.cli.check_data import check_dead_letters, check_expiry, check_received, check_types
from service.cli.check_rights import ask_rights
from service.cli.check_servers import check_servers
from service.cli.check_trial import check_writing
from service.cli.diagnosis import CheckResult, explain
from service.cli.in_thread import END, in_thread
from service.config import DevSettings, ReconcileSettings, Settings, load, misspelt_settings, short_tokens
from service.dev import simulator
from service.server.system import metrics_directory
from service.store.partitions import refuse_other_partitions
from service.store.rights import is_missing_right
from service.store.wrong_types import is_wrong_type
from service.telemetry import log, printable


@click.command(short_help="Tell whether this configuration can work.")
@click.option("--clerk", "with_clerk", is_flag=True, help="Also ask Clerk's Backend API; it needs CLERK_SECRET_KEY.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON document.")
def check(*, with_clerk: bool, as_json: bool) -> None:
    """Tell whether this configuration can work, and what to do if not.

    With --clerk, it also compares up to 50 of the sessions that are stored as open with Clerk's, and needs no
    signing secret. It writes a test event, and deletes it.

    The exit status is 1 if the service can't work, and 2 if a setting is wrong or missing.
    """
    try:
        clerk = load(ReconcileSettings) if with_clerk else None
        # Where only `reconcile` and `revoke` run, there may be no secret.
        has_secret = clerk is None or load(DevSettings).clerk_webhook_signing_secret is not None
        settings = load(Settings) if has_secret else load(Settings, clerk_webhook_signing_secret=simulator.new_secret())
    except ConfigurationError as error:
        if as_json:
            _print_json([CheckResult("error", fault) for fault in error.faults])
        raise
    log.configure(settings.model_copy(update={"log_level": "critical"}))
    results = []
    checks = itertools.chain(run_checks(settings, has_secret=has_secret), _clerk_checks(clerk))
    with in_thread() as call:
        while (result := call(next, checks, END)) is not END:
            results.append(result)
            if not as_json:
                click.echo(f"{result.level:<9}{printable(result.text)}")
    if as_json:
        _print_json(results)
    sys.exit(not _can_work(results))


def _can_work(results: list[CheckResult]) -> bool:
    return all(result.level != "error" for result in results)


def _print_json(results: list[CheckResult]) -> None:
    click.echo(json.dumps({"can_work": _can_work(results), "results": [result._asdict() for result in results]}))


def _clerk_checks(settings: ReconcileSettings | None) -> Iterator[CheckResult]:
    if settings is not None:
        from service.cli.check_clerk import run_clerk_checks  # noqa: PLC0415  # it loads all of reconcile

        yield from run_clerk_checks(settings)


def run_checks(settings: Settings, *, has_secret: bool = True) -> Iterator[CheckResult]:
    """Check one thing after the other. If one result is an `error`, the service can't work."""
    if has_secret:
        yield CheckResult("ok", f"signing secrets: {len(settings.secrets)}, well-formed")
    else:
        yield CheckResult("warning", "CLERK_WEBHOOK_SIGNING_SECRET is not set: serve does not start without it")
    for advice in (*misspelt_settings(settings), *short_tokens(settings)):
        yield CheckResult("warning", advice)
    yield from _check_metrics_directory(settings)
    yield from _check_url(settings)
    writing = [*_check_rights_and_writing(settings)]
    yield from writing
    try:
        for check_one in _CHECKS:
            yield from _unless_named(check_one(settings))
    except redis.RedisError as error:
        if all(each.level != "error" for each in writing):
            yield CheckResult("warning", f"the other checks can't be done: {explain(error)}")


def _check_rights_and_writing(settings: Settings) -> Iterator[CheckResult]:
    try:
        rights = ask_rights(settings)
    except (redis.ConnectionError, redis.TimeoutError) as error:  # the test deliveries would not wait as long for it
        yield CheckResult("error", f"Redis takes no deliveries: {explain(error)}")
        return
    except redis.RedisError:  # the test deliveries say it
        yield check_writing(settings)
        return
    yield from rights.results()
    if rights.suffice_for_trial:
        yield check_writing(settings)


def _unless_named(results: Iterator[CheckResult]) -> Iterator[CheckResult]:
    """Yield results until a right is missing, or a key has another type: `ask_rights` and `check_types` name these."""
    try:
        yield from results
    except redis.ResponseError as error:
        if not (is_missing_right(error) or is_wrong_type(error)):
            raise


def _check_metrics_directory(settings: Settings) -> Iterator[CheckResult]:
    try:
        with metrics_directory(settings.web_concurrency):
            pass
    except ConfigurationError as error:
        yield CheckResult("error", f"serve does not start: {'; '.join(error.faults)}")


def _check_url(settings: Settings) -> Iterator[CheckResult]:
    target = RedisUrl.parse(settings.redis_url.get_secret_value())
    url = target.server_url
    if target.passed_over:
        names = ", ".join(target.passed_over)
        yield CheckResult("ok", f"REDIS_URL has options that mean nothing here, and are passed over: {names}")
    if not url.startswith("rediss:"):
        yield CheckResult("ok", "TLS: off; use rediss:// across any network that is not your own")
    elif not settings.redis_tls_verify or "ssl_cert_reqs=none" in url:
        yield CheckResult("ok", "TLS: on; the certificate is not checked, as configured")
    elif "ssl_check_hostname=false" in url:
        yield CheckResult("ok", "TLS: on; who signed the certificate is checked, not for which host, as configured")
    else:
        yield CheckResult("ok", "TLS: on; the certificate is checked")


def _check_partitions(settings: Settings) -> Iterator[CheckResult]:
    """Compare PARTITIONS with what is stored, as whatever writes does at its start."""
    try:
        refuse_other_partitions(settings)
    except ConfigurationError as error:
        yield CheckResult("error", str(error))
        return
    yield CheckResult("ok", f"PARTITIONS={settings.partitions} fits the data")


def _check_data(settings: Settings) -> Iterator[CheckResult]:
    """Check what is stored, unless it is of another number of partitions: then it is looked for in the wrong place."""
    fits = [*_unless_named(_check_partitions(settings))]
    if all(each.level != "error" for each in fits):
        for check_one in (check_received, check_dead_letters, check_expiry):
            yield from _unless_named(check_one(settings))
    yield from fits


_CHECKS: Final = (check_servers, check_channel, check_types, _check_data)
