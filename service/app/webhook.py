"""The webhook's handler: from a request's headers and body to an outcome. Knows no framework.

Flask's view (`factory`) and the fast lane (`fast_lane`) are a few lines around it.
"""

import time
import traceback
from typing import Final, Protocol

from service.clerk.signature import Headers, Verifier
from service.config import Settings
from service.errors import BodyTooLargeError, RelayError, StoreUnavailableError, UnsupportedEncodingError
from service.ingest import Ingest
from service.models import DeliveryInfo, Outcome
from service.store.partitions import WRITE_SECONDS
from service.store.sessions import SessionStore
from service.telemetry.access_log import AccessLog
from service.waiting import Steps, complete, read_body

WEBHOOK_PATH: Final = "/webhooks/clerk"


class Readable(Protocol):
    """The body of a request, as a stream."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end; raise RelayError if the body is unusable."""


class Webhook:
    """Verifies deliveries, turns them into state, and records what became of each."""

    def __init__(self, settings: Settings, store: SessionStore, access_log: AccessLog) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._verifier = Verifier(settings.secrets)
        self._ingest = Ingest(store, publish_http_request=settings.publish_http_request)
        self._access_log = access_log

    def receive(self, headers: Headers, body: Readable) -> Outcome:
        """Process one delivery. When this returns, Redis has what the delivery says.

        Args:
            headers: of the request, decoded as Latin-1.
            body: raw bytes; read only if the headers are acceptable.

        Raises:
            RelayError: The delivery is refused, or Redis did not take it. Any other exception is a bug.
        """
        return complete(self.steps(headers, body), WRITE_SECONDS)

    def steps(self, headers: Headers, body: Readable) -> Steps[Outcome]:
        """Do the same in steps, for who must not block."""
        started = time.perf_counter()
        info = DeliveryInfo()
        try:
            outcome = yield from self._receive(headers, body, info)
        except RelayError as error:
            self._access_log.record(info, time.perf_counter() - started, error)
            raise
        except Exception as error:
            # Error trackers record the local variables of each frame; the body must not be among them.
            traceback.clear_frames(error.__traceback__)
            self._access_log.record(info, time.perf_counter() - started, RelayError())
            raise
        self._access_log.record(info, time.perf_counter() - started, outcome)
        return outcome

    def _receive(self, headers: Headers, body: Readable, info: DeliveryInfo) -> Steps[Outcome]:
        _check_encodings(headers)
        raw = _read(body, headers, self._max_body_bytes)
        try:
            delivery = read_body(raw, self._verifier.verify, headers, raw)
            info.message_id = delivery.id
            return (yield from self._ingest.steps(delivery, info))
        except TimeoutError:
            raise StoreUnavailableError("Too many large bodies wait to be read.") from None


def _check_encodings(headers: Headers) -> None:
    if content_encoding := headers.get("content-encoding"):
        encodings = {encoding.strip(" \t") for encoding in content_encoding.lower().split(",")}
        if encodings - {"", "identity"}:
            raise UnsupportedEncodingError("Send the body as it is, without a Content-Encoding.")
    if (headers.get("transfer-encoding") or "chunked").strip().lower() != "chunked":
        raise UnsupportedEncodingError("Send the body as it is, or chunked.")


def _read(body: Readable, headers: Headers, at_most: int) -> bytes:
    """Return the raw bytes, no more than `at_most`."""
    too_large = f"The body is larger than {at_most} bytes."
    length = headers.get("content-length") or ""
    if length.isdecimal() and int(length) > at_most:
        raise BodyTooLargeError(too_large)
    raw = body.read(at_most + 1)
    if length == str(len(raw)):
        return raw
    while len(raw) <= at_most and (chunk := body.read(at_most + 1 - len(raw))):
        raw += chunk
    if len(raw) > at_most:
        raise BodyTooLargeError(too_large)
    return raw
