"""The exceptions. Those of HTTP are one tree, and each knows its status and its stable code."""

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
    code = "missing_signature"
    title = "Signature headers are missing"


class MalformedSignatureError(SignatureError):
    code = "malformed_signature"
    title = "A signature header is malformed"


class TimestampOutOfToleranceError(SignatureError):
    code = "timestamp_out_of_tolerance"
    title = "The signature's timestamp is too far from now"


class InvalidSignatureError(SignatureError):
    code = "invalid_signature"
    title = "The signature does not match"


class MalformedEventError(RelayError):
    status = 400
    code = "malformed_event"
    title = "The body is not an event"


class BadRequestError(RelayError):
    status = 400
    code = "bad_request"
    title = "The request can't be read"


class UnauthorizedError(RelayError):
    status = 401
    code = "unauthorized"
    title = "This needs a token"
    # https://www.rfc-editor.org/rfc/rfc9110#section-15.5.2
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class NotFoundError(RelayError):
    status = 404
    code = "not_found"
    title = "Not found"


class MethodNotAllowedError(RelayError):
    status = 405
    code = "method_not_allowed"
    title = "This method is not allowed here"

    def __init__(self, allowed: Iterable[str]) -> None:
        names = ", ".join(allowed)
        super().__init__(f"Use {names}.")
        self.headers = {"Allow": names}


class RequestTimeoutError(RelayError):
    status = 408
    code = "request_timeout"
    title = "The request did not arrive in time"


class LengthRequiredError(RelayError):
    status = 411
    code = "length_required"
    title = "The request has no Content-Length"


class BodyTooLargeError(RelayError):
    status = 413
    code = "body_too_large"
    title = "The body is too large"


class UnsupportedEncodingError(RelayError):
    status = 415
    code = "unsupported_encoding"
    title = "This content encoding is not supported"


class StoreUnavailableError(RelayError):
    """Redis did not store the event, or did not confirm it in time. The sender will deliver it again."""

    status = 503
    code = "store_unavailable"
    title = "The event can't be stored now"
    # Svix retries a 503 after about 5 s, and a 429 after a minute or more.
    headers = MappingProxyType({"Retry-After": "5"})


class DeadLettersFullError(StoreUnavailableError):
    code = "dead_letters_full"
    title = "There is no room for another dead letter"


class StartError(Exception):
    """Something that `session-relay dev` needs does not start. The text says what to do."""
