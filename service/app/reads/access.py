"""Who may read: whoever sends one of the tokens of READ_TOKEN."""

import hmac
from collections.abc import Sequence

from flask import request

from service.errors import UnauthorizedError


class ReadAccess:
    """Compares the token of a request with those that open."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [token.encode() for token in tokens]

    def require(self) -> None:
        """Raise UnauthorizedError unless the request has one of the tokens.

        All are compared, each in the same time, so that how long it takes tells nothing of them.
        """
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        found = [hmac.compare_digest(sent.strip(" ").encode("latin-1"), token) for token in self._tokens]
        if scheme.lower() != "bearer" or not any(found):
            raise UnauthorizedError("Send READ_TOKEN as a Bearer token.")
