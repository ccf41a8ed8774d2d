"""The command `session-relay`, and its commands `serve`, `dev`, `expire` and `schema`.

Each command imports only what it needs: all of it together takes most of a second.
"""
# ruff: noqa: PLC0415

import contextlib
import importlib
import json
import signal
from collections.abc import Iterator
from typing import Any, Final

import click
from clerk_session_feed.errors import ConfigurationError, FeedError

from service.config import DevSettings, Settings, WorkerSettings, load
from service.errors import ClerkError, CommandError, StartError, StoreUnavailableError
from service.telemetry import printable

_MODULES: Final = {
    "check": "service.cli.check",
    "console": "service.cli.console",
    "dead-letters": "service.cli.dead_letters",
    "forget": "service.cli.revoke",
    "revoke": "service.cli.revoke",
    "reconcile": "service.cli.reconcile",
    "repartition": "service.cli.repartition",
    "send": "service.cli.send",
    "session": "service.cli.sessions",
    "sessions": "service.cli.sessions",
    "tail": "service.cli.sessions",
}
"""Where the other commands are."""


def _redis_errors() -> tuple[type[Exception], ...]:
    import redis

    return redis.RedisError, StoreUnavailableError


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_MODULES])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(_MODULES[cmd_name])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. The exit status is 2 if a setting is wrong, and 1 for any other known failure."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            for fault in error.faults:
                click.echo(printable(fault), err=True)
            ctx.exit(2)
        except (FeedError, CommandError, ClerkError) as error:
            lines = str(error).split("\n") if isinstance(error, StartError) else [str(error)]
            click.echo("\n".join(map(printable, lines)), err=True)
            ctx.exit(1)
        except _redis_errors() as error:
            from service.cli.diagnosis import explain

            click.echo(f"Redis: {printable(explain(error.__cause__ or error))}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="clerk-session-relay")
def main() -> None:
    """Keep the state of every Clerk session in Redis, from Clerk's webhooks.

    Settings come from the environment and from .env in the working directory.
    """
    # Shells start what is to run in the background with SIGINT ignored; whoever sends it means it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _naming(options: dict[str, str]) -> Iterator[None]:
    """Let faults of settings that come from options name the option, by variable."""
    try:
        yield
    except ConfigurationError as error:
        split = (fault.partition(": ") for fault in error.faults)
        raise ConfigurationError([f"{options.get(name, name)}{colon}{said}" for name, colon, said in split]) from None


@main.command()
@click.option(
    "--app",
    "factory",
    metavar="MODULE:FACTORY",
    help="Serve your own application, which FACTORY builds on create_app().",
)
@click.option("--host", help="Where to listen, instead of HOST.")
@click.option("--port", help="Where to listen, instead of PORT.")
@click.option("--workers", "web_concurrency", help="How many worker processes to run, instead of WEB_CONCURRENCY.")
def serve(factory: str | None, **options: str | None) -> None:
    """Run the service for production."""
    given = {name: value for name, value in options.items() if value}
    with _naming({name.upper(): "--workers" if name == "web_concurrency" else f"--{name}" for name in given}):
        settings = load(Settings, **given)
    from service.server import processes
    from service.telemetry import log

    log.configure(settings)
    processes.serve(settings, factory or processes.DEFAULT_FACTORY)


@main.command(short_help="Run the service with nothing set up.")
@click.option("--simulate/--no-simulate", default=True, help="Send sample deliveries first.")
@click.option("--reconcile", is_flag=True, help="Run a stand-in for Clerk's API as well, and reconcile with it.")
@click.option("--redis-url", metavar="URL", help="Use this Redis, whatever REDIS_URL says.")
@click.option("--own-redis", is_flag=True, help="Start a Redis, even if REDIS_URL is set. --redis-url wins over it.")
@click.option("--own-secret", is_flag=True, help="Make up a signing secret, even if one is set.")
def dev(simulate: bool, reconcile: bool, redis_url: str | None, own_redis: bool, own_secret: bool) -> None:
    """Run the service with nothing set up, and show what subscribers get.

    It starts a Redis of its own unless REDIS_URL is set, and makes up a signing secret if none is set. With
    --reconcile, some webhooks of a stand-in for Clerk get lost, and it shows what `reconcile` mends.
    """
    # Set to None, they count as not set, in the environment and in .env.
    chosen = {"redis_url": redis_url} if redis_url or own_redis else {}
    unset = {"clerk_webhook_signing_secret": None} if own_secret else {}
    with _naming({"REDIS_URL": "--redis-url"} if redis_url else {}):
        settings = load(DevSettings, **chosen, **unset)
    from service.dev import run, view

    run.run(
        settings,
        simulate=simulate,
        reconcile=reconcile,
        console=view.console(),
        redis_option="--redis-url" if redis_url else None,
    )


@main.command(short_help="End the sessions that have expired.")
@click.option("--once", is_flag=True, help="End those that have expired by now, and stop.")
@click.option("--json", "as_json", is_flag=True, help="With --once: print the counts as JSON.")
def expire(once: bool, as_json: bool) -> None:
    """End the sessions that have expired: Clerk sends no event for them.

    Any number of processes may run it at the same time.
    """
    if as_json and not once:
        raise click.UsageError("--json needs --once. Without it nothing is printed; LOG_FORMAT=json is for the log.")
    settings = load(WorkerSettings)
    from service.store.partitions import refuse_other_partitions
    from service.telemetry import log
    from service.workers.expiry import ExpiryWorker

    log.configure(settings)
    refuse_other_partitions(settings)
    with contextlib.closing(ExpiryWorker(settings)) as worker:
        if not once:
            log.log_start(settings)
            worker.run_until_signal()
            return
        expired, unreadable = worker.run_once()
    click.echo(json.dumps({"expired": expired, "unreadable": unreadable}) if as_json else f"{expired} expired.")
    if unreadable:
        raise click.ClickException(f"{unreadable} can't be read, and stay as they are.")


@main.command()
@click.argument("which", type=click.Choice(["json-schema", "asyncapi", "openapi"]), default="json-schema")
def schema(which: str) -> None:
    """Print a schema of what is published and what is served.

    json-schema: the published message. asyncapi: channels and stream. openapi: the HTTP endpoints.
    """
    from service.schema import asyncapi, json_schema, openapi

    documents = {"json-schema": json_schema.document, "asyncapi": asyncapi.document, "openapi": openapi.document}
    click.echo(json.dumps(documents[which](), indent=2, ensure_ascii=False))
