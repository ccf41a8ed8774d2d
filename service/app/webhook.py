"""What a delivery means: from its headers and body to its outcome, without a framework.

Flask's view (`app`) and the fast lane (`fast_lane`) both are a few lines around it.
"""

import time
import traceback
from typing import Final, Protocol

from service.clerk.signature import Headers, Verifier
from service.config import Settings
from service.errors import BodyTooLargeError, RelayError, UnsupportedEncodingError
from service.ingest import Ingest, read_body
from service.models import DeliveryInfo, Outcome
from service.store.sessions import SessionStore
from service.telemetry.access_log import AccessLog

WEBHOOK_PATH: Final = "/webhooks/clerk"


class Readable(Protocol):
    """A body, as a stream."""

    def read(self, size: int, /) -> bytes:
        """Return up to that many bytes, none at the end; or raise what of the tree is wrong with it."""


class Webhook:
    """Verifies deliveries, makes state of them, and takes down what became of each."""

    def __init__(self, settings: Settings, store: SessionStore, access_log: AccessLog) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._verifier = Verifier(settings.secrets)
        self._ingest = Ingest(store, publish_http_request=settings.publish_http_request)
        self._access_log = access_log

    def receive(self, headers: Headers, body: Readable) -> Outcome:
        """Take a delivery; when this returns, Redis has what it says.

        Args:
            headers: of the request, decoded as Latin-1.
            body: its raw bytes; they are read only if the headers allow it.

        Raises:
            RelayError: The delivery was refused, or Redis did not take it. Anything else is a defect.

        """
        started = time.perf_counter()
        info = DeliveryInfo()
        try:
            outcome = self._receive(headers, body, info)
        except RelayError as error:
            self._access_log.record(info, time.perf_counter() - started, error)
            raise
        except Exception as error:
            # Error trackers take each frame's local variables along: body and event shall not be among them.
            traceback.clear_frames(error.__traceback__)
            self._access_log.record(info, time.perf_counter() - started, RelayError())
            raise
        self._access_log.record(info, time.perf_counter() - started, outcome)
        return outcome

    def _receive(self, headers: Headers, body: Readable, info: DeliveryInfo) -> Outcome:
        _check_encodings(headers)
        raw = _read(body, headers, self._max_body_bytes)
        delivery = read_body(raw, self._verifier.verify, headers, raw)
        info.message_id = delivery.id
        return self._ingest(delivery, info)


def _check_encodings(headers: Headers) -> None:
    if content_encoding := headers.get("content-encoding"):
        encodings = {encoding.strip(" \t") for encoding in content_encoding.lower().split(",")}
        if encodings - {"", "identity"}:
            raise UnsupportedEncodingError("Send the body as it is, without a Content-Encoding.")
    if (headers.get("transfer-encoding") or "chunked").strip().lower() != "chunked":
        raise UnsupportedEncodingError("Send the body as it is, or chunked.")


def _read(body: Readable, headers: Headers, at_most: int) -> bytes:
    """Return the raw bytes, whatever the content type says."""
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
