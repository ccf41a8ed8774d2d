"""That the files for platforms name commands and settings that there are."""

import json
import re
import tomllib
from typing import Final

import click
from support.constants import ROOT

from service.cli import main
from service.config import Settings

DOCS: Final = (ROOT / "docs" / "deploy.md").read_text()
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
COMPOSE: Final = (ROOT / "compose.yaml").read_text()
APP: Final = json.loads((ROOT / "app.json").read_text())
PROCFILE: Final = dict(line.split(": ") for line in (ROOT / "Procfile").read_text().splitlines())


def test_every_variable_that_is_set_is_a_setting() -> None:
    blocks = "\n".join(re.findall(r"^```.*?^```", DOCS, re.MULTILINE | re.DOTALL))
    named = {
        *APP["env"],
        *re.findall(r"^ +([A-Z_]+): ", COMPOSE, re.MULTILINE),
        *re.findall(r"\$\{([A-Z_]+)", COMPOSE),
        *re.findall(r"\bkey: ([A-Z_]+)", blocks),
        *re.findall(r"\b([A-Z_]{4,})=(?!$)", blocks, re.MULTILINE),
    }

    assert {"CLERK_WEBHOOK_SIGNING_SECRET", "REDIS_URL", "PORT", "WEB_CONCURRENCY"} <= named
    assert named <= {name.upper() for name in Settings.model_fields}


def test_every_command_is_there() -> None:
    named = re.findall(r"session-relay[\", ]+([a-z-]+)", DOCKERFILE + COMPOSE + DOCS)

    assert {"serve", "expire", "check"} <= set(named)
    assert set(named) <= {*main.list_commands(click.Context(main))}


def test_the_button_makes_what_the_procfile_names() -> None:
    assert APP["formation"].keys() == PROCFILE.keys()
    assert APP["env"]["CLERK_WEBHOOK_SIGNING_SECRET"]["required"]
    assert APP["env"]["REDIS_TLS_VERIFY"]["value"] == "false"


def test_the_image_is_built_from_what_is_not_ignored() -> None:
    ignored, *others = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    kept = {line.removeprefix("!") for line in others if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}

    assert ignored == "*"
    assert copied == kept
    assert all((ROOT / name).exists() for name in kept)


def test_fly_runs_what_the_procfile_names() -> None:
    (fly,) = re.findall(r"^```toml\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)

    assert tomllib.loads(fly)["processes"] == PROCFILE
