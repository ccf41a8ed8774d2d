"""The templates, and the few files beside them. All text is escaped; a name that is not given is an error."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service.app.console.words import span, utc
from service.telemetry import printable

_FOLDER: Final = Path(__file__).parent
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Static(NamedTuple):
    """A file that the pages load."""

    content: bytes
    content_type: str


@functools.cache
def static_files() -> Mapping[str, Static]:
    """Return the files by name, read once: no path of a request ever reaches the disk."""
    paths = sorted((_FOLDER / "static").iterdir())
    return {path.name: Static(path.read_bytes(), f"{_TYPES[path.suffix]}; charset=utf-8") for path in paths}


@functools.cache
def _environment() -> Environment:
    # Not Flask's, so that neither templates nor context processors of an application around this one change a page.
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = hashlib.sha256(b"".join(each.content for each in static_files().values()))
    environment.globals |= {"assets": digest.hexdigest()[:8]}
    environment.filters |= {"utc": utc, "span": span}
    return environment


def load() -> None:
    """Read the files and compile the templates now, and not with the first page, which would hold up the event loop."""
    for name in _environment().list_templates():
        _environment().get_template(name)


def render(template: str, **values: Any) -> str:
    """Return a page."""
    return _environment().get_template(template).render(**values)


def indented(body: str) -> str:
    """Return JSON with one value on each line; what Python can't read as JSON stays as it is."""
    with contextlib.suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    return "\n".join(map(printable, body.split("\n")))
