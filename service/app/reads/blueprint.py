"""The endpoints of this package, as one blueprint of Flask. It has no hooks: those would close the fast lane."""

from flask import Blueprint

from service.app.reads.access import ReadAccess
from service.app.reads.events import add_events
from service.app.reads.sessions import add_sessions
from service.app.reads.stored import add_stored
from service.config import Settings
from service.store.reader import Reader


def create_reads(settings: Settings, reader: Reader) -> Blueprint:
    """Return the endpoints, each of which needs one of the tokens of READ_TOKEN.

    Args:
        settings: with one token at least.
        reader: asks Redis, and follows it.
    """
    reads = Blueprint("reads", __name__)
    access = ReadAccess(settings.read_tokens)
    add_sessions(reads, access, reader.queries)
    add_stored(reads, access, reader.queries)
    add_events(reads, access, reader, settings.read_tokens)
    return reads
