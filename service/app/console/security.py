"""Who may look at the console: the token, the cookie of a visit, the tokens of forms, and what browsers are told.

A page of another origin can neither read a page of the console (no CORS, no frames) nor send a form to it: the cookie
is SameSite=Strict, each form has a token that belongs to the visit, and browsers say where a request comes from. A name
that an attacker points at this server (DNS rebinding) has no cookie of the console's, since cookies belong to a name.
On loopback, only loopback's own names are served. docs/console.md has the whole list.
"""

import dataclasses
import functools
import hashlib
import hmac
import secrets
import time
from typing import Final
from urllib.parse import urlsplit

from flask import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer

COOKIE: Final = "session-relay-console"
PATH: Final = "/console"
VISIT_SECONDS: Final = 12 * 3600
"""Seconds that a visit lasts after its token was given."""
LINK_SECONDS: Final = 600
"""Seconds in which a link that signs in can be opened."""
MAX_LINKS: Final = 16
"""Links that can be open at the same time; the oldest is forgotten for another one."""
MAX_GUESSES: Final = 20
"""Wrong tokens that a process takes at once; one more for each second that has passed."""

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}
"""Of each response. Trusted Types leave no way to make markup of text, not even by a mistake in our own script."""


class RefusedError(Exception):
    """The request is not for this console, or not from its pages. The text says why, and what to do."""

    def __init__(self, status: int, text: str, title: str = "Not for this console") -> None:
        super().__init__(text)
        self.status, self.title = status, title


@dataclasses.dataclass(frozen=True, slots=True)
class Visit:
    """What is known of whoever asks."""

    id: str
    """Random; it ties forms to the cookie."""
    who: str = ""
    """For the log; empty if nobody is signed in."""
    has_header: bool = False
    """Signed in by a header, which no page of another origin can send: forms need no token."""
    is_new: bool = False
    """The browser does not have the cookie yet."""
    ends_at: float = 0.0
    """In Unix seconds."""

    @property
    def is_signed_in(self) -> bool:
        """Whether the pages may be shown."""
        return bool(self.who)


class Links:
    """Addresses that sign in once, for whoever opens them first: a stolen one is worth nothing after its use."""

    def __init__(self) -> None:
        self._ends_at: dict[str, float] = {}

    def add(self, token: str) -> None:
        """Let this token, which nobody else knows, sign in once."""
        while len(self._ends_at) >= MAX_LINKS:
            self._ends_at.pop(next(iter(self._ends_at)), None)
        self._ends_at[_digest(token)] = time.time() + LINK_SECONDS

    def take(self, token: str) -> bool:
        """Use a token up; tell whether it was there, and in time."""
        return self._ends_at.pop(_digest(token), 0.0) > time.time()


class Guesses:
    """Bounds how many tokens can be tried: a few at once, then one a second, whoever tries them.

    Whoever tries more keeps others from signing in by a token, too, but ends no visit, and stops no link.
    """

    def __init__(self) -> None:
        self._used, self._at = 0.0, time.monotonic()

    def check(self) -> None:
        """Raise RefusedError if too many were wrong of late."""
        now = time.monotonic()
        self._used, self._at = max(0.0, self._used - (now - self._at)), now
        if self._used > MAX_GUESSES - 1:
            text = "Too many wrong tokens were sent: wait for a few seconds, and try again."
            raise RefusedError(429, text, "Too many tries")

    def add(self) -> None:
        """Count a wrong one."""
        self._used += 1


class Gate:
    """Lets requests in, and dresses the responses.

    Args:
        tokens: any of them signs in; the first one signs cookies.
        hosts: the only values of the Host header that are served; None for any.
        cookie: its name. Cookies are the same for all ports of a host.
        who: whom the log names for a visit by a link.
    """

    def __init__(
        self, tokens: tuple[str, ...], *, hosts: frozenset[str] | None = None, cookie: str = COOKIE, who: str = "a link"
    ) -> None:
        self.links: Final = Links()
        self.takes_tokens: Final = bool(tokens)
        """Whether a token can be typed in; else only a link signs in."""
        self._tokens, self._hosts, self._cookie, self._who = tokens, hosts, cookie, who
        self._guesses = Guesses()
        # The last one signs. Without tokens, visits end with the process.
        keys = [_key(token) for token in reversed(tokens or (secrets.token_urlsafe(32),))]
        serializer = functools.partial(URLSafeTimedSerializer, keys, signer_kwargs={"digest_method": hashlib.sha256})
        self._visits, self._forms = serializer(salt="console visit"), serializer(salt="console form")

    def visit(self, request: Request) -> Visit:
        """Return who asks.

        Raises:
            RefusedError: The Host is not this console's, or a token was sent that is none of its.
        """
        if self._hosts is not None and request.headers.get("Host", "").lower() not in self._hosts:
            raise RefusedError(421, "This console answers on its own address only: open the one that it printed.")
        if authorization := request.headers.get("Authorization"):
            scheme, _, token = authorization.partition(" ")
            sent = token.strip(" ").encode("latin-1").decode(errors="surrogateescape")  # a header is bytes (PEP 3333)
            who = self.who_has(sent) if scheme.lower() == "bearer" else ""
            if not who:
                raise RefusedError(401, "Send CONSOLE_TOKEN as a Bearer token.")
            return Visit("header", who, has_header=True, ends_at=time.time() + VISIT_SECONDS)
        try:
            (visit_id, who), made_at = self._visits.loads(
                request.cookies.get(self._cookie, ""), max_age=VISIT_SECONDS, return_timestamp=True
            )
            return Visit(str(visit_id), str(who), ends_at=made_at.timestamp() + VISIT_SECONDS)
        except (BadData, TypeError, ValueError):
            return self.new_visit()

    def who_has(self, token: str) -> str:
        """Return for the log whose token this is; empty if it is nobody's. It takes as long for any of that length.

        Raises:
            RefusedError: Too many wrong ones came of late: this one is not looked at.
        """
        self._guesses.check()
        sent = token.encode(errors="surrogateescape")
        are_equal = [hmac.compare_digest(sent, each.encode()) for each in self._tokens]
        if any(are_equal):
            return f"CONSOLE_TOKEN {are_equal.index(True) + 1}"
        self._guesses.add()
        return ""

    def new_visit(self, who: str = "") -> Visit:
        """Return a visit that the browser learns of by `dress`."""
        return Visit(secrets.token_hex(8), who, is_new=True, ends_at=time.time() + VISIT_SECONDS)

    def open_link(self, token: str) -> Visit | None:
        """Return a visit for the token of a link; None if it was used, or is too old."""
        return self.new_visit(self._who) if self.links.take(token) else None

    def form_token(self, visit: Visit) -> str:
        """Return what each form of this visit sends along."""
        return str(self._forms.dumps(visit.id))

    def check_form(self, request: Request, visit: Visit) -> None:
        """Raise RefusedError if a form is from no page of this visit."""
        check_origin(request)
        if visit.has_header:
            return
        try:
            is_ours = self._forms.loads(request.form.get("form_token", ""), max_age=VISIT_SECONDS) == visit.id
        except BadData:
            is_ours = False
        if not is_ours:
            raise RefusedError(
                403, "This form is too old, or is not from this console: go back, reload, and try again."
            )

    def dress(self, response: Response, request: Request, visit: Visit | None) -> Response:
        """Add the headers and, of a new visit, the cookie."""
        response.headers.update(HEADERS)
        if visit is not None and visit.is_new and "Set-Cookie" not in response.headers:
            response.set_cookie(
                self._cookie,
                str(self._visits.dumps([visit.id, visit.who])),
                max_age=VISIT_SECONDS,
                path=PATH,
                secure=_is_https(request),
                httponly=True,
                samesite="Strict",
            )
        return response

    def forget(self, response: Response, request: Request) -> None:
        """Sign the browser out."""
        response.delete_cookie(self._cookie, path=PATH, secure=_is_https(request), httponly=True, samesite="Strict")


def check_origin(request: Request) -> None:
    """Raise RefusedError if the browser says that a request comes from a page of another origin."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin", "null")
    # Our own pages send no Referer, and so `Origin: null`.
    is_foreign = site not in {"same-origin", "none"} if site else origin not in {"null", _origin(request, origin)}
    if is_foreign:
        raise RefusedError(403, "This request comes from a page that is none of the console's.")


def _origin(request: Request, like: str) -> str:
    # A proxy may have ended TLS, so the scheme is not known here.
    return f"{urlsplit(like).scheme}://{request.headers.get('Host', '')}"


def _is_https(request: Request) -> bool:
    # Whoever forges this header only keeps his own browser from sending the cookie.
    return request.scheme == "https" or request.headers.get("X-Forwarded-Proto", "").startswith("https")


def _key(token: str) -> bytes:
    return hmac.digest(token.encode(), b"clerk-session-relay: cookies and forms of the console", "sha256")


def _digest(token: str) -> str:
    # Looked up by its digest, how long that takes tells nothing about the token.
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
