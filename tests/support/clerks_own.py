"""Clerk's own examples and schemas. They are not part of this repository: tests are skipped where they are missing."""

import json
from typing import Any, Final

import pytest

from support.constants import ROOT

_FOLDER: Final = ROOT.parent / "shared" / "clerk"

needs_clerks_own: Final = pytest.mark.skipif(
    not _FOLDER.is_dir(), reason="needs Clerk's own examples and schemas, which are not part of this repository"
)


def examples() -> dict[str, dict[str, Any]]:
    """Return the bodies of Clerk's example deliveries, by type."""
    bodies = json.loads((_FOLDER / "webhooks-openapi-sessions.json").read_bytes())["examples"].values()
    return {body["type"]: body for body in bodies}


def schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas of what Clerk's Backend API returns, by name."""
    found: dict[str, dict[str, Any]] = json.loads((_FOLDER / "backend-api-session.json").read_bytes())["schemas"]
    return found
