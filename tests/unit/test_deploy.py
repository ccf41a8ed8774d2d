"""That the files for platforms name commands and settings that there are."""

import json
import re
import tomllib
from pathlib import Path
from typing import Final

import click
import pytest
import yaml  # type: ignore[import-untyped]  # of openapi-spec-validator, which requires it
from support.constants import ROOT
from support.documents import README, fenced

from service.cli import main
from service.config import Settings, misspelt

DEPLOY: Final = ROOT / "docs" / "deploy.md"
DOCS: Final = DEPLOY.read_text()
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
    assert named - {"REDIS_HOST_PORT"} <= {name.upper() for name in Settings.model_fields}


def test_compose_lets_nobody_but_this_machine_reach_redis() -> None:
    redis = COMPOSE.partition("\n  redis:\n")[2]
    assert re.findall(r"ports: (.*)", redis) == ['["127.0.0.1:${REDIS_HOST_PORT:-6380}:6379"]']
    assert "redis://127.0.0.1:6380/0" in redis


def test_the_port_of_redis_on_the_host_is_taken_for_no_misspelt_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """In .env, it reaches the service, too."""
    monkeypatch.setenv("REDIS_HOST_PORT", "6380")
    assert [name for name in Settings.model_fields if misspelt(name) == "REDIS_HOST_PORT"] == []


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


@pytest.mark.parametrize("text", [*fenced(DEPLOY, "yaml"), COMPOSE])
def test_every_file_in_yaml_can_be_read(text: str) -> None:
    assert isinstance(yaml.safe_load(text), dict)


def test_kubernetes_runs_the_image_as_it_is_built() -> None:
    (deployment,) = (document for text in fenced(DEPLOY, "yaml") if "kind" in (document := yaml.safe_load(text)))
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)

    assert container["args"] == PROCFILE["web"].split()
    assert [each["containerPort"] for each in container["ports"]] == [int(port)]
    for probe in (container["startupProbe"], container["livenessProbe"]):
        assert probe["httpGet"] == {"path": "/healthz", "port": int(port)}
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]


@pytest.mark.parametrize("path", [README, DEPLOY, ROOT / "app.json"], ids=lambda path: path.name)
def test_what_the_smallest_plan_does_not_do_is_said_where_it_is_taken(path: Path) -> None:
    text = path.read_text()

    assert [each["plan"] for each in APP["addons"]] == ["heroku-redis:mini"]
    assert "no persistence" in text
    assert "8,000" in text
    assert "premium-0" in text
