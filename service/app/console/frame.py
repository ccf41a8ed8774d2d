"""What is around each page: who may see it, the headers of the response, and what is shown when something fails."""

import functools
from collections.abc import Callable
from typing import Any, Final

from flask import Response, redirect, request
from werkzeug import exceptions

from service.app.console import pages
from service.app.console.security import PATH, Gate, RefusedError, Visit
from service.config import StoreSettings, redis_address
from service.errors import RelayError
from service.telemetry import printable

MAX_FORM_BYTES: Final = 16 * 1024
"""Bytes of the largest form. The longest of ours has an address of the console and a token."""

View = Callable[..., str | Response | tuple[str, int]]


def open_to_all(view: View) -> View:
    """Mark a view that whoever is not signed in may see."""
    view.is_open_to_all = True  # type: ignore[attr-defined]
    return view


class Frame:
    """Puts views behind the gate, and pages into their frame.

    Args:
        gate: lets requests in.
        settings: what the pages say about where Redis is.
        may_change: whether the pages offer changes.
    """

    def __init__(self, gate: Gate, settings: StoreSettings, *, may_change: bool) -> None:
        self.gate: Final = gate
        self._settings, self._may_change = settings, may_change

    def guarded(self, view: View) -> Callable[..., Response]:
        """Return a view that lets in who may see it, and whose every response has the headers."""

        @functools.wraps(view)
        def guarded(**values: str) -> Response:
            visit: Visit | None = None
            try:
                visit = self.gate.visit(request)
                if request.method == "POST":
                    # Before anybody is signed in: to read a megabyte of short fields holds up the event loop.
                    if (request.content_length or 0) > MAX_FORM_BYTES:
                        raise exceptions.RequestEntityTooLarge
                    request.max_content_length = MAX_FORM_BYTES
                    self.gate.check_form(request, visit)
                if visit.is_signed_in or getattr(view, "is_open_to_all", False):
                    made = view(visit, **values)
                else:
                    made = self.ask_for_token(visit)
            except RefusedError as refused:
                made = self._problem(visit, refused.status, refused.title, str(refused))
            except RelayError as error:
                made = self._problem(visit, error.status, error.title, str(error))
            except exceptions.HTTPException as error:
                made = self._problem(visit, error.code or 500, error.name, error.description or "")
            response = made if isinstance(made, Response) else _html(made)
            if response.status_code == 401:  # noqa: PLR2004
                response.headers["WWW-Authenticate"] = "Bearer"
            if response.status_code in {429, 503}:
                response.headers["Retry-After"] = "5"
            return self.gate.dress(response, request, visit)

        return guarded

    def page(self, template: str, visit: Visit | None, active: str = "", **values: Any) -> str:
        """Return a page with what all of them show."""
        is_in = visit is not None and visit.is_signed_in
        return pages.render(
            template,
            active=active,
            visit=visit if is_in else None,
            form_token=self.gate.form_token(visit) if visit else "",
            where=redis_address(self._settings.redis_url.get_secret_value()) if is_in else "",
            key_prefix=self._settings.redis_key_prefix if is_in else "",
            may_change=self._may_change,
            **values,
        )

    def _problem(self, visit: Visit | None, status: int, title: str, text: str) -> tuple[str, int]:
        return self.page("problem.html", visit, title=title, text=printable(text)), status

    def ask_for_token(self, visit: Visit, fault: str = "", status: int = 401) -> tuple[str, int]:
        """Return the form for a token, and its status."""
        # From a page of another site, the browser does not send the cookie. A click here does.
        is_elsewhere = request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method == "GET"
        following = request.path if request.path.startswith(f"{PATH}/") and "/sign-" not in request.path else PATH
        return self.page(
            "sign_in.html",
            visit,
            fault=fault,
            takes_tokens=self.gate.takes_tokens,
            following=following,
            is_elsewhere=is_elsewhere,
        ), status


def _html(made: str | tuple[str, int]) -> Response:
    text, status = (made, 200) if isinstance(made, str) else made
    return Response(text, status, content_type="text/html; charset=utf-8")


def redirect_to(path: str) -> Response:
    """Return a redirect to a page, which is asked for by GET."""
    response = redirect(path, 303)
    assert isinstance(response, Response)  # noqa: S101  # for mypy: it is, unless another class is asked for
    return response
