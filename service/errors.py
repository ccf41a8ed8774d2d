"""The exceptions. Those of HTTP are one tree, and each knows its status and its stable code.

Those of commands are plain: their text is what the command prints.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar


class RelayError(Exception):
    """A request that gets no 2xx. Its text goes to the client and never holds a secret or the body."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    """What programs tell problems by (docs/contract.md, section 3)."""
    title: ClassVar[str] = "Internal server error"
    """What went wrong, for people."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Of the response, besides the usual ones."""

    def __init__(self, text: str = "The service's log says more.") -> None:
        super().__init__(text)


def errors_with_code(base: type[RelayError] = RelayError) -> Iterator[type[RelayError]]:
    """Return the classes below and including `base` that have a code of their own."""
    if "code" in vars(base):
        yield base
    for kind in base.__subclasses__():
        yield from errors_with_code(kind)


class SignatureError(RelayError):
    """The family of everything that `clerk.signature.Verifier.verify` raises."""

    status = 400


class MissingSignatureError(SignatureError):
    code, title = "missing_signature", "Signature headers are missing"


class MalformedSignatureError(SignatureError):
    code, title = "malformed_signature", "A signature header is malformed"


class TimestampOutOfToleranceError(SignatureError):
    code, title = "timestamp_out_of_tolerance", "The signature's timestamp is too far from now"


class InvalidSignatureError(SignatureError):
    code, title = "invalid_signature", "The signature does not match"


class MalformedEventError(RelayError):
    status, code, title = 400, "malformed_event", "The body is not an event"


class BadRequestError(RelayError):
    status, code, title = 400, "bad_request", "The request can't be read"


class InvalidParameterError(RelayError):
    """What is asked for can't be understood. The text begins with the name of the parameter."""

    status, code, title = 400, "invalid_parameter", "A parameter is wrong"


class UnauthorizedError(RelayError):
    status, code, title = 401, "unauthorized", "This needs a token"
    # https://www.rfc-editor.org/rfc/rfc9110#section-15.5.2
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class NotFoundError(RelayError):
    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowedError(RelayError):
    status, code, title = 405, "method_not_allowed", "This method is not allowed here"

    def __init__(self, allowed: Iterable[str]) -> None:
        names = ", ".join(allowed)
        super().__init__(f"Use {names}.")
        self.headers = {"Allow": names}


class RequestTimeoutError(RelayError):
    status, code, title = 408, "request_timeout", "The request did not arrive in time"


class LengthRequiredError(RelayError):
    status, code, title = 411, "length_required", "The request has no Content-Length"


class BodyTooLargeError(RelayError):
    status, code, title = 413, "body_too_large", "The body is too large"


class UnsupportedEncodingError(RelayError):
    status, code, title = 415, "unsupported_encoding", "This content encoding is not supported"


class StoreUnavailableError(RelayError):
    """Redis did not store the event, or did not confirm it in time. The sender will deliver it again."""

    status, code, title = 503, "store_unavailable", "Redis is unavailable"
    # Svix retries a 503 after about 5 s, and a 429 after a minute or more.
    headers = MappingProxyType({"Retry-After": "5"})


class DeadLettersFullError(StoreUnavailableError):
    code, title = "dead_letters_full", "There is no room for another dead letter"


class TooManyStreamsError(RelayError):
    status, code, title = 503, "too_many_streams", "There is no room for another stream"
    headers = MappingProxyType({"Retry-After": "5"})


class CommandError(Exception):
    """A command can't do what was asked. The text says what to do."""


class StartError(CommandError):
    """Something that `session-relay dev` needs does not start. The text may have several lines."""


class ClerkError(Exception):
    """Clerk's Backend API did not do what was asked. The text says what came, and what to do; never the key."""


class ClerkKeyError(ClerkError):
    """Clerk refuses the secret key."""


class ClerkUnavailableError(ClerkError):
    """Clerk can't be reached, or fails, or refuses more requests, after all attempts."""


class ClerkCursorError(ClerkError):
    """Clerk refuses to go on after a user: it may have been deleted since. An earlier one may do."""
