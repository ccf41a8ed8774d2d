"""Commands in this process, as a user types them."""

import os
from collections.abc import Mapping

from click.testing import CliRunner, Result

from service.cli import main

Environment = Mapping[str, str | None]


def run(*arguments: str | bytes, environment: Environment | None = None, stdin: bytes | None = None) -> Result:
    """Run a command; a traceback fails the test. environment: None as a value is a variable that is not set."""
    result = CliRunner().invoke(main, [*map(os.fsdecode, arguments)], input=stdin, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
