"""What `dev` says at its start: where things are, and what to try. It shows no secret but one that `dev` made."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import httpx
from rich.console import Console

from service.dev.sender import WEBHOOK_PATH

_EVENTS = "all of session.*, user.updated and user.deleted"
_HARMLESS = re.compile(
    r"db|database|defaultdatabase|dbindex|(use)?(tls|ssl)(mode|certreqs|cacerts|capath|certfile|keyfile|checkhostname"
    r"|serverhostname|minversion|excludeverifyflags)?|clientname|healthcheckinterval|socketkeepalive|socketreadsize"
)
"""Options of a REDIS_URL whose values may be shown. Of all others it is not known what they are."""


def introduce(
    console: Console,
    origin: httpx.URL,
    *,
    redis_name: str,
    redis_url: str,
    redis_option: str,
    channel: str,
    console_link: str,
    made_token: str | None,
    made_secret: str | None,
    names_secret: bool,
    preferred_port: int,
    preferred_is_taken: bool,
) -> None:
    """Say where the service and its Redis are, and what to try.

    Args:
        console: where to say it.
        origin: the address of the service, without a path.
        redis_name: what Redis this is, for people.
        redis_url: where it is.
        redis_option: the option that makes another `dev` use such a Redis; empty if settings do.
        channel: REDIS_CHANNEL.
        console_link: the address that signs in to the console, once.
        made_token: CONSOLE_TOKEN, if `dev` made it; None if it was given.
        made_secret: the signing secret, if `dev` made it; None if it was given.
        names_secret: commands in another terminal need to be told the secret.
        preferred_port: where another `dev` listens if PORT is not set.
        preferred_is_taken: this one listens elsewhere for that reason.
    """
    port = origin.port or 80
    url = str(origin.join(WEBHOOK_PATH))
    shown_url = without_password(redis_url)
    quoted_url = shlex.quote(shown_url)
    with_secret = f"CLERK_WEBHOOK_SIGNING_SECRET={made_secret or 'whsec_…'} " if names_secret else ""
    console.print(
        *([f"Port {preferred_port} is taken; this uses {port}.\n"] if preferred_is_taken else []),
        f"{'webhooks':<10}{url}",
        f"{'console':<10}{console_link}  (open it: what comes in, live)",
        f"{'':<10}It signs in once. Later: {origin.join('/console')}, token {made_token or 'as in CONSOLE_TOKEN'}",
        f"{'secret':<10}{made_secret or 'the one of CLERK_WEBHOOK_SIGNING_SECRET'}",
        f"{'Redis':<10}{shown_url}  ({redis_name})",
        "\nTry, in another terminal:",
        f"  {with_secret}{program()} send session.revoked --url {url}",
        f"  REDIS_URL={quoted_url} {program()} tail --from start",
        f"  redis-cli -u {quoted_url} subscribe {shlex.quote(channel)}",
        "\nFor Clerk's own webhooks, start a tunnel, with one of:",
        f"  cloudflared tunnel --url {origin}",
        f"  ngrok http {port if origin.host == '127.0.0.1' else origin}",
        f"  clerk webhooks listen --forward-to {url}",
        f"Each prints a public address. Append {WEBHOOK_PATH} to it (not with `clerk`: its address is complete).",
        f"Add it in Clerk's Dashboard (Webhooks, Add Endpoint), and subscribe to {_EVENTS}.",
        *_last_step(made_secret, f"PORT={port} " if port != preferred_port else "", redis_option),
        "",
        sep="\n",
        markup=False,
    )


def _last_step(made_secret: str | None, with_port: str, redis_option: str) -> list[str]:
    if made_secret is None:
        return [
            "This uses the secret of CLERK_WEBHOOK_SIGNING_SECRET. If that endpoint has another one, set it, and start",
            "again.",
        ]
    options = f"{redis_option} --no-simulate".lstrip()
    return [
        "Then stop this, and start it with the Signing Secret of that endpoint:",
        f"  {with_port}CLERK_WEBHOOK_SIGNING_SECRET=whsec_… {program()} dev {options}",
    ]


def program() -> str:
    """Return the words that call this program from the working directory."""
    called = Path(sys.argv[0]).absolute()
    if called.name != "session-relay":
        return f"{shlex.quote(sys.executable)} -m service"
    return called.name if shutil.which(called.name) == str(called) else shlex.quote(os.path.relpath(called))


def without_password(url: str) -> str:
    """Return a REDIS_URL as it may be shown."""
    head, at, tail = url.rpartition("@")
    shown = f"{head.partition('://')[0]}://…@{tail}" if at else url
    address, mark, query = shown.partition("?")
    return address + mark + "&".join(map(_without_secret, query.split("&")))


def _without_secret(option: str) -> str:
    name, is_set, value = option.partition("=")
    # Behind another separator than &, the value may hold further options.
    is_one_value = not re.search("[,;].*=", unquote(value))
    is_harmless = is_one_value and _HARMLESS.fullmatch(re.sub(r"[\W_]", "", unquote(name).lower()))
    return option if is_harmless or not is_set else f"{name}=…"
