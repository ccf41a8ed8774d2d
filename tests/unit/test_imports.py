"""The direction of imports: the contracts are in pyproject.toml, [tool.importlinter]."""

import ast

import pytest
from importlinter.cli import lint_imports
from support.constants import ROOT

READERS_OF_THE_ENVIRONMENT = {
    "clients/python/clerk_session_feed/settings.py",  # SessionFeed.from_env
    "service/dev/run.py",  # hands its own on to the server that it starts
    "service/dev/trial_app.py",  # gets a path from `dev`
    "service/server/probe.py",  # would take ten times as long with pydantic-settings
    "service/server/processes.py",  # sets PROMETHEUS_MULTIPROC_DIR, and what its workers read
    "service/server/system.py",  # reads that, as the user set it
    "service/telemetry/metrics.py",  # reads that, as prometheus_client asks
}
"""Besides config, which leaves the reading to pydantic-settings."""


def test_the_import_contracts_are_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)  # it would silence all loggers that there are

    status = lint_imports(config_filename="pyproject.toml", no_cache=True)

    assert status == 0, capsys.readouterr().out


def test_the_environment_is_touched_by_named_modules_only() -> None:
    touching = {
        path.relative_to(ROOT).as_posix()
        for folder in ("service", "clients/python/clerk_session_feed")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if {"environ", "environb", "getenv", "putenv"} & set(_names(node))
    }

    assert touching <= READERS_OF_THE_ENVIRONMENT


def _names(node: ast.AST) -> list[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            return [name]
        case ast.ImportFrom(module="os", names=aliases):
            return [alias.name for alias in aliases]
        case _:
            return []
