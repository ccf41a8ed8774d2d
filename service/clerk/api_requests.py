"""Sends requests to Clerk's Backend API: within the budget, and again after failures that may pass."""

import asyncio
import contextlib
import datetime
import email.utils
import importlib.metadata
import random
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import httpx

from service.clerk.api_sessions import load
from service.clerk.budget import Budget
from service.config import ClerkSettings
from service.errors import ClerkError, ClerkKeyError, ClerkUnavailableError

API_VERSION: Final = "2026-05-12"
"""https://clerk.com/docs/versioning/available-versions"""
MAX_IN_FLIGHT: Final = 16
"""Requests at a time, and connections: enough for 200 in 10 s even if each takes 0.8 s."""
MAX_RESPONSE_BYTES: Final = 32 * 2**20
"""More than twice of what 500 users with all of their metadata take."""
LARGE_BYTES: Final = 2**18
"""From this size on, a body is parsed in a thread: it would hold up the event loop for milliseconds, or longer."""
MAX_AHEAD: Final = datetime.timedelta(days=1)
"""How far in the future a `Date` may lie, as for the times in webhooks: a later one would outweigh what comes after."""
TIMEOUT_SECONDS: Final = 15
"""For connecting, and for each part of a response."""
ATTEMPT_SECONDS: Final = 60
"""For one whole response."""
BACKOFF_SECONDS: Final = (0.25, 1.0, 3.0, 8.0)
"""Between five attempts; each is shortened by up to a half at random, so that what failed together does not come back
together."""
DEFAULT_RETRY_AFTER_SECONDS: Final = 5.0
"""What a 429 that names no time means."""
MAX_LIMITED_SECONDS: Final = 120
"""A request that gets nothing but 429 is given up after this time."""


_EPOCH: Final = datetime.datetime.fromtimestamp(0, datetime.UTC)


class Response(NamedTuple):
    """A response, whole."""

    status: int
    content_type: str
    size: int
    """Bytes of the body."""
    json: Any
    """The value of the body; None if it is not JSON."""
    answered_at_ms: int
    """The header `Date`, in Unix milliseconds. Without a usable one, when the request began, cut to whole seconds."""
    retry_after: float
    """Seconds that the header `Retry-After` asks for, at least 1."""

    def __repr__(self) -> str:
        """Leave the body out, because error trackers record this, and a body has users' e-mail addresses."""
        return f"status {self.status}, {self.content_type or 'without a type'}, {self.size} bytes"

    def ok_json(self) -> Any:
        """Return the value of the body; None if it is not JSON, or not of a response with status 200."""
        return self.json if self.status == httpx.codes.OK else None

    def is_not_found(self) -> bool:
        """Tell whether it is a 404 of Clerk's own; one by a proxy says nothing about what Clerk has."""
        match self.json if self.status == httpx.codes.NOT_FOUND else None:
            case {"errors": [dict(), *_]}:
                return True
        return False


class Requests:
    """A client of HTTP for one run, in one event loop; any number of calls may wait at once."""

    def __init__(
        self, settings: ClerkSettings, budget: Budget, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Take the key and the address, the budget, and what sends requests (the network, if left out).

        Raises:
            ClerkError: The environment names a host, a proxy or certificates that can't be used.
        """
        self._budget = budget
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        try:
            self._url = httpx.URL(settings.clerk_api_url)
            self._client = httpx.AsyncClient(
                base_url=self._url,
                headers={
                    "Authorization": f"Bearer {settings.clerk_secret_key.get_secret_value()}",
                    "Accept": "application/json",
                    "Clerk-API-Version": API_VERSION,
                    "User-Agent": _user_agent(),
                },
                timeout=TIMEOUT_SECONDS,
                limits=httpx.Limits(max_connections=MAX_IN_FLIGHT, max_keepalive_connections=MAX_IN_FLIGHT),
                transport=transport,
                # A company's proxy and certificates (HTTPS_PROXY, SSL_CERT_FILE) may be the only way to Clerk. They are
                # not the way to a stand-in for Clerk on this machine.
                trust_env=self._url.host not in {"127.0.0.1", "localhost", "::1"},
            )
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            # The text of the error is left out, because a proxy's address may have a password.
            raise ClerkError(
                f"Clerk's API can't be called ({type(error).__name__}): check CLERK_API_URL, HTTPS_PROXY, ALL_PROXY, "
                "SSL_CERT_FILE and SSL_CERT_DIR."
            ) from None

    async def close(self) -> None:
        await self._client.aclose()

    async def send(self, method: str, path: str, parameters: Mapping[str, str | int | None] | None = None) -> Response:
        """Return the response to a request, which is sent up to five times.

        Args:
            method: of HTTP. A POST is repeated, too, so what it does has to be the same if done twice.
            path: below the API's address, without a slash at its start.
            parameters: of the query; those that are None are left out.

        Returns:
            A response with a status of 200 to 499, other than 401, 403 and 429.

        Raises:
            ClerkKeyError: Clerk refuses the key.
            ClerkUnavailableError: No such response came.
            ClerkError: The response can't be read.
        """
        query = {name: value for name, value in (parameters or {}).items() if value is not None}
        waits = iter(BACKOFF_SECONDS)
        limited_until: float | None = None
        while True:
            try:
                response = await self._send_once(method, path, query)
            except (httpx.TransportError, TimeoutError) as error:
                fault = f"{type(error).__name__}: {error}".removesuffix(": ")
            except httpx.HTTPError as error:
                raise ClerkError(f"A response from {self._url} can't be read ({type(error).__name__}).") from None
            else:
                if response.status == httpx.codes.TOO_MANY_REQUESTS:
                    limited_until = self._wait_for_limit(response, limited_until)
                    continue
                if response.status < httpx.codes.INTERNAL_SERVER_ERROR:
                    return self._check_key(response)
                fault = f"status {response.status}"
            wait = next(waits, None)
            if wait is None:
                raise ClerkUnavailableError(
                    f"Clerk's API at {self._url} does not respond ({fault}; {len(BACKOFF_SECONDS) + 1} attempts). "
                    "Check the network and CLERK_API_URL, or try again later."
                )
            await self._budget.sleep(wait * random.uniform(0.5, 1))  # noqa: S311  # nothing secret

    async def _send_once(self, method: str, path: str, query: dict[str, str | int]) -> Response:
        # First the turn, then the slot: a slot that waited for a connection would be lost to the others.
        async with self._in_flight, self._budget.slot(), asyncio.timeout(ATTEMPT_SECONDS):
            began = datetime.datetime.now(datetime.UTC)
            async with self._client.stream(method, path, params=query) as response:
                size, value = await _read(response)
        if size > MAX_RESPONSE_BYTES:
            raise ClerkError(f"A response from {self._url} has more than {MAX_RESPONSE_BYTES} bytes.")
        date = _read_date(response.headers.get("Date"))
        if date is None or not _EPOCH <= date <= began + MAX_AHEAD:
            date = began
        return Response(
            response.status_code,
            "".join(filter(str.isprintable, response.headers.get("Content-Type", "").partition(";")[0][:100])),
            size,
            value,
            int(date.timestamp()) * 1000,
            _read_retry_after(response.headers.get("Retry-After"), date),
        )

    def _wait_for_limit(self, response: Response, limited_until: float | None) -> float:
        """Let all requests wait as long as a 429 says; return when the request is to be given up."""
        now = self._budget.clock()
        limited_until = limited_until or now + MAX_LIMITED_SECONDS
        if now + response.retry_after > limited_until:
            raise ClerkUnavailableError(
                f"Clerk takes no more requests (status 429, for {MAX_LIMITED_SECONDS} s or more): something else "
                "uses up the instance's limit. Try again later."
            )
        self._budget.pause(response.retry_after)
        return limited_until

    def _check_key(self, response: Response) -> Response:
        if response.status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise ClerkKeyError(
                f"Clerk's API at {self._url} refuses CLERK_SECRET_KEY (status {response.status}): copy the secret key "
                "from Clerk's Dashboard, API keys."
            )
        return response


def _user_agent() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a folder
        return f"clerk-session-relay/{importlib.metadata.version('clerk-session-relay')}"
    return "clerk-session-relay"


async def _read(response: httpx.Response) -> tuple[int, Any]:
    """Return the size and the value of a body; None for one that is too large to be read, or no JSON.

    Apart from what raises errors, because error trackers record the local variables of those.
    """
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            return len(body), None
    return len(body), _load(bytes(body)) if len(body) < LARGE_BYTES else await asyncio.to_thread(_load, bytes(body))


def _load(body: bytes) -> Any:
    try:
        return load(body)
    except ValueError:
        return None


def _read_date(text: str | None) -> datetime.datetime | None:
    """Read a date of HTTP (RFC 9110, section 5.6.7)."""
    try:
        return email.utils.parsedate_to_datetime(text or "").replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        return None


def _read_retry_after(text: str | None, date: datetime.datetime) -> float:
    """Read `Retry-After`: seconds, or a date. To wait less than a second would ask too often."""
    try:
        return max(1.0, float(text or DEFAULT_RETRY_AFTER_SECONDS))
    except ValueError:
        until = _read_date(text)
    return max(1.0, (until - date).total_seconds()) if until else DEFAULT_RETRY_AFTER_SECONDS
