"""Logs: one JSON object per line, or readable ones. Values are encoded, so that none can forge a line."""

import contextlib
import json
import logging
import logging.config
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

import orjson
import structlog

from service.config import LogSettings
from service.text import printable


def configure(settings: LogSettings) -> None:
    """Send the service's log lines, and those of its libraries and server, to stderr in one form."""
    logging.config.dictConfig(dict_config(settings))
    structlog.configure(
        # Not by way of `logging`, where a line for each delivery costs ten times as much.
        processors=[_drop_by_level, structlog.processors.add_log_level, _add_name, *_processors(settings)],
        logger_factory=_Stderr,
        cache_logger_on_first_use=True,
    )


def dict_config(settings: LogSettings) -> dict[str, Any]:
    """The same for the server, which configures logging in each of its processes."""
    level = settings.log_level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "default": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [
                    structlog.stdlib.add_log_level,
                    structlog.stdlib.add_logger_name,
                    structlog.stdlib.PositionalArgumentsFormatter(),
                ],
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *_processors(settings),
                ],
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "default"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # Its lines about each request of `send` are noise.
            "httpx": {"level": "WARNING"},
        },
    }


class _Stderr:
    """What structlog writes a line with."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def write(self, line: str) -> None:
        lines = _TOGETHER.get()
        if lines is None:
            _write(f"{line}\n")
        else:
            lines.append(f"{line}\n")

    debug = info = warning = error = critical = exception = write


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # whoever read it may be gone: no reason to stop
        sys.stderr.write(text)


_TOGETHER: Final[ContextVar[list[str] | None]] = ContextVar("together", default=None)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Write the lines in it at once, at its end: each write lets another thread have the interpreter."""
    lines: list[str] = []
    token = _TOGETHER.set(lines)
    try:
        yield
    finally:
        _TOGETHER.reset(token)
        _write("".join(lines))


def _drop_by_level(_: Any, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if structlog.processors.NAME_TO_LEVEL[method] < logging.root.level:
        raise structlog.DropEvent
    return line


def _add_name(logger: _Stderr, _: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    line["logger"] = logger.name
    return line


def _processors(settings: LogSettings) -> list[Any]:
    shared = [
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _time_and_level_first,
    ]
    if settings.log_format == "json":
        return [*shared, structlog.processors.JSONRenderer(_to_json)]
    console = structlog.dev.ConsoleRenderer(
        timestamp_key="time",
        exception_formatter=structlog.dev.plain_traceback,
        colors=sys.stderr.isatty(),
    )
    return [*shared, _harmless, console]


def _to_json(line: structlog.typing.EventDict, default: Callable[[Any], Any]) -> str:
    try:
        quickly = orjson.dumps(line, default)
    except TypeError:  # half a surrogate pair, for one
        quickly = b"\xff"
    # Else what could steer a terminal would stay as it is.
    return quickly.decode() if quickly.isascii() else json.dumps(line, default=default)


def _time_and_level_first(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {"time": line.pop("time"), "level": line.pop("level"), **line}


def _harmless(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A console shows text as it is: escape what would steer it, or look like another line."""
    exception = line.pop("exception", "").splitlines()
    shown = {name: printable(value) if isinstance(value, str) else value for name, value in line.items()}
    return shown | (
        {"exception": "\n".join(f"    {printable(part)}" for part in exception)} if exception else {}
    )
