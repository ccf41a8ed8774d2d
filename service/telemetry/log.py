"""Logs: one JSON object per line, or text for a console. Values are escaped, so that none can forge a line.

Warnings and errors pass through `logging`, where Sentry and others pick them up. Lower levels, with a line
for each delivery, are written to stderr directly, which halves their cost.
"""

import contextlib
import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

import orjson
import structlog
from structlog.processors import format_exc_info
from structlog.stdlib import filter_by_level, render_to_log_kwargs
from structlog.typing import EventDict

from service.config import LogSettings, misspelt_settings, short_tokens, shown
from service.telemetry import printable, relay_version


def configure(settings: LogSettings) -> None:
    """Write the logs of the service, of libraries and of the server to stderr in one format.

    That is LOG_FORMAT; if it is not set, a terminal gets text. Can be called again. The handlers of others stay, and
    get warnings and errors.
    """
    is_for_people = "log_format" not in settings.model_fields_set and sys.stderr.isatty()
    _STDERR.setFormatter(_Formatter("console" if is_for_people else settings.log_format))
    logging.root.addHandler(_STDERR)
    logging.root.setLevel(settings.log_level.upper())
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request of `send`
    structlog.configure(
        processors=[filter_by_level, _logger_arguments],
        wrapper_class=_Logger,
        logger_factory=logging.getLogger,
        cache_logger_on_first_use=True,
    )


def log_start(settings: LogSettings) -> None:
    """Log which relay starts with which settings, and warn of those that are probably misspelt, or easily guessed."""
    logger = structlog.get_logger(__name__)
    logger.info("starting", version=relay_version(), settings=shown(settings))
    for advice in misspelt_settings(settings):
        logger.warning("setting_misspelt", advice=advice)
    for advice in short_tokens(settings):
        logger.warning("token_short", advice=advice)


def configure_unless_done(settings: LogSettings) -> None:
    """Do the same, unless the process has configured structlog.

    If it has configured `logging` only, all lines go there.
    """
    if structlog.is_configured():
        return
    if not logging.root.handlers:
        configure(settings)
        return
    # No logger is cached, since the process may configure structlog later.
    structlog.configure(
        processors=[filter_by_level, _log_as_text], logger_factory=logging.getLogger, cache_logger_on_first_use=False
    )


@contextlib.contextmanager
def batched() -> Iterator[None]:
    """Write the lines logged inside as one, at the end: each write can cost a switch of threads."""
    lines: list[str] = []
    token = _BATCH.set(lines)
    try:
        yield
    finally:
        _BATCH.reset(token)
        _write("".join(lines))


_BATCH: Final[ContextVar[list[str] | None]] = ContextVar("batch", default=None)


def _write_line(line: str) -> None:
    lines = _BATCH.get()
    if lines is None:
        _write(f"{line}\n")
    else:
        lines.append(f"{line}\n")


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
        sys.stderr.write(text)


def _now() -> str:
    """Return the time in UTC. `datetime` would take as long for it as the rest of the line takes."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_second(seconds)}.{microseconds:06}Z"


@functools.lru_cache(maxsize=1)
def _second(unix_seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_seconds))


_FIRST: Final[EventDict] = {"time": None, "level": None}
"""The fields that each line begins with; their values come later."""


class _Formatter(logging.Formatter):
    """Makes one line of a record of `logging`, or of an event of structlog."""

    def __init__(self, log_format: str) -> None:
        super().__init__()
        self._write = _to_json if log_format == "json" else _for_console()

    def format(self, record: logging.LogRecord) -> str:
        line = {**getattr(record, "event_fields", {}), "event": record.getMessage()}
        if record.exc_info:
            line["exc_info"] = record.exc_info
        return self.line(record.levelname.lower(), record.name, line)

    def line(self, level: str, logger: str, line: EventDict) -> str:
        # uvicorn logs whatever happens as `uvicorn.error`, which looks like a fault.
        name = "service.server" if logger.startswith("uvicorn") else logger
        line = {**_FIRST, **line, "time": _now(), "level": level, "logger": name}
        return self._write(format_exc_info(None, level, line) if "exc_info" in line else line)


class _Handler(logging.Handler):
    formatter: _Formatter

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write_line(self.format(record))
        except Exception:  # noqa: BLE001  # as logging's own handlers do
            self.handleError(record)


_STDERR: Final = _Handler()


class _Logger(structlog.stdlib.BoundLogger):
    """Writes what is no warning without structlog's processors, which cost half as much again as the line itself."""

    def info(self, event: str | None = None, *args: Any, **fields: Any) -> None:
        self._write("info", logging.INFO, event, args, fields)

    def debug(self, event: str | None = None, *args: Any, **fields: Any) -> None:
        self._write("debug", logging.DEBUG, event, args, fields)

    def _write(self, level: str, number: int, event: str | None, args: tuple[Any, ...], fields: EventDict) -> None:
        if self._logger.isEnabledFor(number):
            text = str(event) % args if args else event
            line = {**self._context, **fields, "event": text}
            _write_line(_STDERR.formatter.line(level, self._logger.name, line))


def _log_as_text(logger: logging.Logger, method: str, line: EventDict) -> tuple[tuple[str, str], EventDict]:
    """Put the event's fields into the message: most handlers show nothing else."""
    record = _logger_arguments(logger, method, line)
    fields = " ".join(f"{name}={value!r}" for name, value in record["extra"]["event_fields"].items())
    return (str(record.pop("msg")).replace("%", "%%") + " %s", fields), record


def _logger_arguments(logger: logging.Logger, method: str, line: EventDict) -> EventDict:
    """Return the arguments for a method of `logging.Logger`."""
    record = render_to_log_kwargs(logger, method, line)
    # In one attribute, since their names may be those of a record's own attributes.
    record["extra"] = {"event_fields": record["extra"]}
    record["stacklevel"] = record.get("stacklevel", 1) + 2  # skips structlog's frames
    return record


def _to_json(line: EventDict) -> str:
    try:
        encoded = orjson.dumps(line, repr)
    except TypeError:  # a lone surrogate, for example
        encoded = b"\xff"
    # The slower one escapes what could steer a terminal.
    return encoded.decode() if encoded.isascii() else json.dumps(line, default=repr)


def _for_console() -> Callable[[EventDict], str]:
    """Return what makes text of a line, in colors if a terminal reads it."""
    plain, colors = structlog.dev.plain_traceback, sys.stderr.isatty()
    render = structlog.dev.ConsoleRenderer(
        timestamp_key="time", exception_formatter=plain, colors=colors, sort_keys=False
    )
    return lambda line: str(render(None, line["level"], _escape(_shorten(line))))


def _shorten(line: EventDict) -> EventDict:
    """Leave out what there is not: programs look for a field, people for a value."""
    return {name: value for name, value in line.items() if value is not None}


def _escape(line: EventDict) -> EventDict:
    """Escape what would steer a terminal, or look like another line."""
    exception = line.pop("exception", None)
    shown = {name: printable(value) if isinstance(value, str) else value for name, value in line.items()}
    if exception:
        shown["exception"] = "\n".join(f"    {printable(part)}" for part in exception.splitlines())
    return shown
