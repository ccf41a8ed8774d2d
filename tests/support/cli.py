"""Commands in this process, as a user types them."""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from unittest import mock

from click.testing import CliRunner, Result

from service.cli import main

Environment = Mapping[str, str | None]


def run(*arguments: str | bytes, environment: Environment | None = None, stdin: bytes | None = None) -> Result:
    """Run a command; a traceback fails the test. environment: None as a value is a variable that is not set."""
    level, handlers, path = logging.root.level, [*logging.root.handlers], [*sys.path]
    on_signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with mock.patch.dict(os.environ):
            result = CliRunner().invoke(main, [*map(os.fsdecode, arguments)], input=stdin, env=environment)
    finally:  # what a command sets up for its process would stay for the tests after this one
        logging.root.setLevel(level)
        logging.root.handlers[:] = handlers
        sys.path[:] = path
        for number, handler in on_signals.items():
            signal.signal(number, handler)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
