"""Commands in this process, as a user types them."""

import logging
import os
from collections.abc import Mapping

from click.testing import CliRunner, Result

from service.cli import main

Environment = Mapping[str, str | None]


def run(*arguments: str | bytes, environment: Environment | None = None, stdin: bytes | None = None) -> Result:
    """Run a command; a traceback fails the test. environment: None as a value is a variable that is not set."""
    level, handlers = logging.root.level, [*logging.root.handlers]
    try:
        result = CliRunner().invoke(main, [*map(os.fsdecode, arguments)], input=stdin, env=environment)
    finally:  # what a command sets up for its process would stay for the tests after this one
        logging.root.setLevel(level)
        logging.root.handlers[:] = handlers
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
