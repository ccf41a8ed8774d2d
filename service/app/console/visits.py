"""Signing in: by a token in a form, or by an address that works once; and signing out."""

import structlog
from flask import Request, Response, request
from werkzeug import exceptions

from service.app.console.frame import Frame, View, open_to_all, redirect_to
from service.app.console.security import PATH, Visit

log = structlog.get_logger(__name__)


class Visits:
    """The views by which a visit begins and ends."""

    def __init__(self, frame: Frame) -> None:
        self._frame, self._gate = frame, frame.gate

    def views(self) -> dict[str, tuple[View, tuple[str, ...]]]:
        """Return the views by their rules."""
        return {
            "/sign-in": (self.sign_in, ("GET", "POST")),
            "/sign-out": (self.sign_out, ("POST",)),
            "/open/<token>": (self.open_link, ("GET",)),
        }

    @open_to_all
    def sign_in(self, visit: Visit) -> str | Response | tuple[str, int]:
        """Take a token, and begin a visit."""
        if request.method == "GET":
            return redirect_to(PATH) if visit.is_signed_in else self._frame.ask_for_token(visit)
        who = self._gate.who_has(request.form.get("token", "").strip())
        if not who:
            log.warning("console_sign_in_refused")
            return self._frame.ask_for_token(visit, "That is not a token of CONSOLE_TOKEN.")
        return self._begin(self._gate.new_visit(who), _own_path(request))

    @open_to_all
    def open_link(self, visit: Visit, token: str) -> str | Response | tuple[str, int]:
        """Begin a visit by an address that works once."""
        if request.method == "HEAD":  # of something that looks at links
            raise exceptions.MethodNotAllowed(["GET"])
        if (new := self._gate.open_link(token)) is not None:
            return self._begin(new, PATH)
        if visit.is_signed_in:  # who opens it twice
            return redirect_to(PATH)
        return self._frame.ask_for_token(visit, "This link was used before, or is too old.")

    def _begin(self, visit: Visit, following: str) -> Response:
        log.info("console_signed_in", who=visit.who, visit=visit.id)
        return self._gate.dress(redirect_to(following), request, visit)

    def sign_out(self, visit: Visit) -> Response:
        """End the visit in this browser."""
        log.info("console_signed_out", who=visit.who, visit=visit.id)
        response = redirect_to(PATH)
        self._gate.forget(response, request)
        return response


def _own_path(request: Request) -> str:
    """Return where to go after signing in: a page of the console, whatever the form says."""
    path = request.form.get("following", "")
    is_ours = path.startswith(f"{PATH}/") and not set("\\\r\n?#") & set(path) and "//" not in path
    return path if is_ours else PATH
