"""GET /dead-letters, without bodies; and GET /stats."""

import dataclasses
import re
from typing import Final

import orjson
from flask import Blueprint, Response, request

from service.app.reads.access import ReadAccess
from service.app.reads.answers import answer, page
from service.app.reads.parameters import limit
from service.errors import InvalidParameterError
from service.store.queries import Queries

_AFTER: Final = re.compile(r"0|[1-9][0-9]{0,19}")
_LARGEST: Final = 2**64 - 1
"""Cursors of HSCAN are numbers of 64 bits; Redis refuses others."""


def add_stored(reads: Blueprint, access: ReadAccess, queries: Queries) -> None:
    """Add the endpoints to the blueprint."""

    @reads.get("/dead-letters", provide_automatic_options=False)
    def get_dead_letters() -> Response:
        access.require()
        after = request.args.get("after", "0")
        if _AFTER.fullmatch(after) is None or int(after) > _LARGEST:
            raise InvalidParameterError("after: what this list gave as `next`.")
        summaries, following = queries.dead_letters(after, limit())
        items = [orjson.dumps(dataclasses.asdict(summary)) for summary in summaries]
        return answer(page("dead_letters", items, following))

    @reads.get("/stats", provide_automatic_options=False)
    def get_stats() -> Response:
        access.require()
        return answer(orjson.dumps(queries.stats()))
