"""Logs: one JSON object per line, or readable ones. Values are encoded, so that none can forge a line."""

import logging
import logging.config
import sys
from typing import Any

import structlog

from service.config import LogSettings
from service.text import printable


def configure(settings: LogSettings) -> None:
    """Send the service's log lines, and those of its libraries and server, to stderr in one form."""
    logging.config.dictConfig(dict_config(settings))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
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
                "foreign_pre_chain": _SHARED,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    _time_and_level_first,
                    *_renderers(settings),
                ],
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "default"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "_granian": {"handlers": ["stderr"], "level": level, "propagate": False},
            "granian.access": {"handlers": [], "propagate": False},
            # Its lines about each request of `send` are noise.
            "httpx": {"level": "WARNING"},
        },
    }


_SHARED: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
]


def _time_and_level_first(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {"time": line.pop("time"), "level": line.pop("level"), **line}


def _renderers(settings: LogSettings) -> list[Any]:
    if settings.log_format == "json":
        return [structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(
        timestamp_key="time",
        exception_formatter=structlog.dev.plain_traceback,
        colors=sys.stderr.isatty(),
    )
    return [_harmless, console]


def _harmless(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A console shows text as it is: escape what would steer it, or look like another line."""
    exception = line.pop("exception", "").splitlines()
    shown = {name: printable(value) if isinstance(value, str) else value for name, value in line.items()}
    return shown | (
        {"exception": "\n".join(f"    {printable(part)}" for part in exception)} if exception else {}
    )
