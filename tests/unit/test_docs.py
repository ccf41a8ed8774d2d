"""What the documents say of settings, commands and files is so."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
from clerk_session_feed.keys import Keys
from pydantic import SecretStr
from support.constants import ROOT, SECRET
from support.documents import CONTRACT, DOCUMENTS, README, broken_links, fenced, table

from service.clerk.budget import WINDOW_SECONDS, Budget
from service.cli import main
from service.config import ClerkSettings, Settings, load
from service.models import RANKS, Reason
from service.workers.report import Drift

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
RECONCILE = ROOT / "docs/reconcile.md"
CONTEXT = click.Context(main)


def documented_defaults() -> Iterator[tuple[str, str]]:
    for name, default, _ in table(CONTRACT, "2. Settings"):
        yield name.strip("`"), default.strip("`")


def real_defaults() -> dict[str, str]:
    settings = load(Settings, _env_file=None, clerk_webhook_signing_secret=SECRET, redis_url="redis://x")
    defaults = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if field.is_required():
            defaults[name.upper()] = "required"
        elif isinstance(value, bool):
            defaults[name.upper()] = str(value).lower()
        elif isinstance(value, frozenset | tuple | SecretStr):
            assert not value
            defaults[name.upper()] = "none"
        elif isinstance(value, float):
            defaults[name.upper()] = f"{value:g}"
        else:
            defaults[name.upper()] = str(value)
    # Nothing needs the key but the commands that use it.
    return defaults | {"CLERK_SECRET_KEY": "none", "CLERK_API_URL": ClerkSettings.model_fields["clerk_api_url"].default}


def test_every_setting_is_in_the_contract_with_its_default() -> None:
    assert dict(documented_defaults()) == real_defaults()


def test_every_setting_is_in_the_contract_once() -> None:
    names = [name for name, _ in documented_defaults()]
    assert sorted(names) == sorted(set(names))


def test_the_readme_lists_the_required_settings() -> None:
    required = {name for name, default in real_defaults().items() if default == "required"}
    assert {name.strip("`") for name, _ in table(README, "Configure")} == required


def test_every_key_is_in_the_contract() -> None:
    keys = Keys()
    real = {
        *(keys.session("<session id>"), keys.events, keys.expiry, keys.dead_letters, keys.revokes),
        *(each("<user id>") for each in (keys.user_sessions, keys.user_pending, keys.user_gone)),
        *(keys.layout, keys.reconcile, keys.reconcile_lock, keys.reconcile + ":spent"),
        *(keys.reconcile_run("<mode>"), keys.reconcile_run("<mode>") + ":visited"),
    }
    assert set(re.findall(r"^\| `(\{clerk\}:.*?)` \|", CONTRACT.read_text(), re.MULTILINE)) == real


def test_every_command_is_in_the_contract() -> None:
    documented = [command.strip("`").removeprefix("session-relay ") for command, _ in table(CONTRACT, "8. Commands")]
    assert sorted(documented) == sorted(main.list_commands(CONTEXT))


def test_every_reason_of_a_dead_letter_is_in_the_contract_in_order_of_precedence() -> None:
    (sentence,) = re.findall(r"one of these reasons: (.*?)\.", CONTRACT.read_text(), re.DOTALL)
    assert tuple(re.findall(r"`(\w+)`", sentence)) == Reason.__args__  # type: ignore[attr-defined]


def test_the_ranks_of_statuses_are_in_the_contract() -> None:
    (ranks,) = re.findall(r"the rank of the status: (.*);", CONTRACT.read_text())
    assert tuple(ranks.split(" < ")) == RANKS


def test_every_kind_of_drift_is_in_the_document_of_reconcile() -> None:
    assert tuple(kind.strip("`") for kind, _ in table(RECONCILE, "Output")) == get_args(Drift)


def test_the_duration_of_a_reconcile_is_what_the_budget_makes_it() -> None:
    units = {"min": 60, "h": 3600, "days": 86_400}
    for users, *durations in table(RECONCILE, "How long it takes"):
        for key, duration in zip(("sk_live_x", "sk_test_x"), durations, strict=True):
            number, unit = duration.split()
            seconds = int(users.replace(",", "")) / Budget.of_key(key).requests * WINDOW_SECONDS
            assert seconds == pytest.approx(float(number) * units[unit], rel=0.2)


def test_the_code_refers_to_sections_of_the_contract_that_are_there() -> None:
    there = set(re.findall(r"^## (\d+)\.", CONTRACT.read_text(), re.MULTILINE))
    sources = [path for folder in ("service", "clients", "tests") for path in (ROOT / folder).rglob("*.py")]
    text = "".join(path.read_text() for path in sources)
    named = re.findall(r"docs/contract\.md,\s+sections?\s+([\d, and]+)", text)

    assert set(re.findall(r"\d+", " ".join(named))) <= there


def command_lines(document: Path) -> str:
    return "\n".join([*fenced(document, "sh"), *re.findall(r"`(session-relay [^`]+)`", document.read_text())])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestEachDocument:
    def test_names_commands_that_are_there(self, document: Path) -> None:
        named = set(re.findall(r"session-relay ([a-z][a-z-]+)", command_lines(document)))
        assert named <= {*main.list_commands(CONTEXT)}

    def test_names_options_that_are_there(self, document: Path) -> None:
        for name in main.list_commands(CONTEXT):
            command = main.get_command(CONTEXT, name)
            assert command is not None
            options = {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }
            for line in command_lines(document).splitlines():
                if f"session-relay {name} " in line:
                    assert set(re.findall(r"--[a-z-]+", line)) <= options, line

    def test_names_targets_of_make_that_are_there(self, document: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        text = document.read_text()
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        code = "\n".join([*(block for language, block in blocks if language in {"", "sh"}),
                          *re.findall(r"`(make [^`]+)`", text)])  # fmt: skip
        assert set(re.findall(r"\bmake ([a-z-]+)\b", code)) <= targets

    def test_links_to_what_is_there(self, document: Path) -> None:
        assert broken_links(document) == []

    def test_has_no_prose_beyond_120_characters(self, document: Path) -> None:
        """Code, rows of tables, and images can't be broken; the figures of `make bench` are a program's."""
        generated = r"^```.*?^```$|^<!-- (\w+): generated -->.*?<!-- \1: end -->$"
        prose = re.sub(generated, "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))] == []


def test_the_comments_on_commands_are_in_one_column() -> None:
    (commands,) = [
        block for block in re.findall(r"```\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL) if "make run" in block
    ]
    assert len({line.index("  #") for line in commands.splitlines()}) == 1
