"""What `session-relay check` finds."""

from typing import Any

from service.cli.check import run_checks
from service.cli.diagnosis import CheckResult
from support.relay import make_settings


def findings(redis_url: str, **settings: Any) -> list[CheckResult]:
    return list(run_checks(make_settings(redis_url, **settings)))


def problems(found: list[CheckResult]) -> str:
    """Return what is not as it should be, a line for each."""
    return lines(each for each in found if each.level != "ok")


def lines(found: Any) -> str:
    return "\n".join(f"{finding.level} {finding.text}" for finding in found)
