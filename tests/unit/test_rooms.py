"""The rooms of the house: docs/architecture.md describes them, pyproject.toml has the direction of their imports."""

import ast
import tomllib
from pathlib import Path

import pytest
from support.constants import ROOT

SERVICE = ROOT / "service"
MODULES = sorted([*SERVICE.rglob("*.py"), *(ROOT / "clients" / "python" / "clerk_session_feed").glob("*.py")])


def test_the_service_has_at_most_eighteen_names() -> None:
    assert len([path for path in SERVICE.iterdir() if path.name != "__pycache__"]) <= 18


def test_imports_have_at_most_nine_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert all(len(contract["layers"]) <= 9 for contract in contracts if contract["type"] == "layers")


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=lambda path: path.parent)
def test_each_package_says_what_it_holds(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_long_module_says_why(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 250 or "A long module" in str(ast.get_docstring(ast.parse(text)))
