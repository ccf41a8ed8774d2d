"""The client of Clerk's Backend API, over a transport that answers in this process, in virtual time."""

import asyncio
import dataclasses
import email.utils
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, TypeVar

import httpx
import orjson
import pytest
from support import virtual_time

from service.clerk import api_requests, backend_api
from service.clerk.api_sessions import ApiSession, SessionNotFound, SessionRefused, UnreadableSession
from service.clerk.backend_api import OVERLAP, PAGE_SIZE, BackendApi, Instance, UsersPage
from service.clerk.budget import Budget
from service.config import ClerkSettings
from service.config import load as load_settings
from service.errors import ClerkCursorError, ClerkError, ClerkKeyError, ClerkUnavailableError

KEY: Final = "sk_test_hunter2"
DATE: Final = "Thu, 19 Nov 2026 14:12:41 GMT"
DATE_MS: Final = 1_795_097_561_000
NOT_FOUND: Final = {"errors": [{"code": "resource_not_found", "message": "not found", "meta": {}}]}
ODD_BODIES: Final = [b"", b"<html>", b"{", b"null", b"17", b'"text"', b'{"data":[]}', b"\xff"]

T = TypeVar("T")
Handler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]
Use = Callable[[BackendApi], Coroutine[Any, Any, T]]


def session(number: int = 1, **fields: Any) -> dict[str, Any]:
    times = dict.fromkeys(("last_active_at", "updated_at", "created_at"), DATE_MS - 1000)
    ids = {"id": f"sess_{number}", "user_id": "user_1", "client_id": "client_1"}
    ends = {"expire_at": DATE_MS + 1000, "abandon_at": DATE_MS + 2000}
    return {"object": "session", **ids, "status": "active", **times, **ends, **fields}


def ok(value: Any, **headers: str) -> httpx.Response:
    return httpx.Response(200, json=value, headers={"Date": DATE, **headers})


def respond(handler: Handler, use: Use[T], requests: int = 1000, url: str = "https://clerk.test/v1") -> T:
    """Use a client whose requests this handler answers."""

    async def main() -> T:
        settings = load_settings(ClerkSettings, clerk_secret_key=KEY, clerk_api_url=url, _env_file=None)
        budget = Budget(requests, clock=asyncio.get_running_loop().time)
        async with BackendApi(settings, budget=budget, transport=httpx.MockTransport(handler)) as api:
            return await use(api)

    return virtual_time.run(main())


def respond_with(responses: list[httpx.Response | Exception], use: Use[T]) -> tuple[T, list[httpx.Request]]:
    """Use a client that gets these responses, one after another; return the requests, too."""
    requests = []
    left = iter(responses)

    async def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        response = next(left)
        if isinstance(response, Exception):
            raise response
        return response

    result = respond(handler, use)
    assert next(left, None) is None
    return result, requests


def fault(response: httpx.Response | Exception, use: Use[Any]) -> ClerkError:
    """Return the error if every response is this one. It never holds the key, or what the body says."""

    async def handler(_: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)

    with pytest.raises(ClerkError) as caught:
        respond(handler, use)
    assert "hunter2" not in str(caught.value)
    assert "secret of the body" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


CALLS: Final[dict[str, Use[Any]]] = {
    "instance": BackendApi.instance,
    "users_page": lambda api: api.users_page(after=None),
    "sessions_of": lambda api: api.sessions_of("user_1"),
    "session": lambda api: api.session("sess_1"),
    "revoke": lambda api: api.revoke("sess_1"),
}
each_call: Final = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


# What is asked.


def test_a_request_has_the_key_the_version_and_our_name() -> None:
    _, [request] = respond_with([ok({"id": "ins_1", "environment_type": "production"})], CALLS["instance"])
    assert str(request.url) == "https://clerk.test/v1/instance"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Clerk-API-Version"] == api_requests.API_VERSION
    assert request.headers["User-Agent"].startswith("clerk-session-relay/")


def test_the_instance_is_told_with_its_environment() -> None:
    found, _ = respond_with([ok({"id": "ins_1", "environment_type": "production", "new": 1})], CALLS["instance"])
    assert found == Instance("ins_1", "production")


def test_users_are_asked_for_from_the_oldest_on() -> None:
    page, [request] = respond_with([ok([{"id": "user_1"}, {"id": "user_2", "banned": True}])], CALLS["users_page"])
    assert page == UsersPage(("user_1", "user_2"), is_last=True)
    assert dict(request.url.params) == {"limit": "500", "order_by": "created_at"}


def test_the_next_users_are_those_after_the_last_one() -> None:
    first = [{"id": f"user_{number}"} for number in range(PAGE_SIZE)]

    async def use(api: BackendApi) -> tuple[UsersPage, UsersPage]:
        page = await api.users_page(after=None, active_after_ms=5)
        return page, await api.users_page(after=page.ids[-1], active_after_ms=5)

    (page, next_page), [_, request] = respond_with([ok(first), ok([])], use)
    assert (len(page.ids), page.is_last) == (PAGE_SIZE, False)
    assert next_page == UsersPage((), is_last=True)
    assert request.url.params["starting_after"] == f"user_{PAGE_SIZE - 1}"
    assert request.url.params["last_active_at_after"] == "5"


def test_users_are_narrowed_to_who_signed_in() -> None:
    _, [request] = respond_with([ok([])], lambda api: api.users_page(after=None, signed_in_after_ms=7))
    assert request.url.params["last_sign_in_at_after"] == "7"


def test_users_are_counted_within_the_same_bounds() -> None:
    count, [request] = respond_with(
        [ok({"object": "total_count", "total_count": 17})], lambda api: api.users_count(active_after_ms=5)
    )
    assert count == 17
    assert request.url.path == "/v1/users/count"
    assert dict(request.url.params) == {"last_active_at_after": "5"}


@pytest.mark.parametrize(
    "response",
    [httpx.Response(422, json=NOT_FOUND), ok({}), ok([]), ok({"total_count": "many"}), ok({"total_count": -1})],
)
def test_a_count_that_clerk_does_not_tell_is_none(response: httpx.Response) -> None:
    count, _ = respond_with([response], lambda api: api.users_count())
    assert count is None


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_user_after_whom_no_list_goes_on_is_an_error_of_its_own(status: int) -> None:
    error = fault(httpx.Response(status, json=NOT_FOUND), lambda api: api.users_page(after="user_gone"))
    assert isinstance(error, ClerkCursorError)
    assert "user_gone" in str(error)


def test_sessions_of_a_user_are_asked_for_whatever_their_status() -> None:
    listed, [request] = respond_with([ok([session(1), session(2, status="ended")])], CALLS["sessions_of"])
    assert dict(request.url.params) == {"user_id": "user_1", "limit": "500", "offset": "0"}
    assert [(each.id, each.data.status) for each in listed.sessions] == [("sess_1", "active"), ("sess_2", "ended")]
    assert {each.answered_at_ms for each in listed.sessions} == {DATE_MS}


def test_a_user_that_clerk_does_not_know_has_no_sessions() -> None:
    listed, _ = respond_with([httpx.Response(404, json=NOT_FOUND)], CALLS["sessions_of"])
    assert (listed.sessions, listed.unreadable) == ((), ())


def _list_of(stored: list[dict[str, Any]], before_each: Callable[[], object]) -> Handler:
    async def handler(request: httpx.Request) -> httpx.Response:
        before_each()
        offset, limit = (int(request.url.params[name]) for name in ("offset", "limit"))
        return ok(stored[offset : offset + limit])

    return handler


@pytest.mark.parametrize("count", [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE])
def test_every_session_is_returned_once(count: int) -> None:
    stored = [session(number) for number in range(count)]
    listed = respond(_list_of(stored, lambda: None), CALLS["sessions_of"])
    assert [each.id for each in listed.sessions] == [each["id"] for each in stored]


def test_sessions_that_vanish_meanwhile_hide_no_others() -> None:
    stored = [session(number) for number in range(3 * PAGE_SIZE)]
    stays = {each["id"] for each in stored[2 * OVERLAP :]}

    def vanish() -> None:
        del stored[: min(OVERLAP, len(stored) - len(stays))]

    listed = respond(_list_of(stored, vanish), CALLS["sessions_of"])
    assert stays <= {each.id for each in listed.sessions}


def test_a_list_with_its_total_is_read_like_a_bare_one() -> None:
    items = [session(1, actor={"sub": "user_2", "n": 2**70}), session(2)]

    found, _ = respond_with([ok({"data": items, "total_count": 2})], CALLS["sessions_of"])

    assert [each.id for each in found.sessions] == ["sess_1", "sess_2"]
    assert str(2**70) in orjson.dumps(found.sessions[0].data.actor).decode()


def test_of_a_session_that_is_listed_twice_the_later_reading_counts() -> None:
    first = [session(number) for number in range(PAGE_SIZE)]
    again = [session(PAGE_SIZE - 1, status="ended")]
    listed, _ = respond_with([ok(first), ok(again, Date="Thu, 19 Nov 2026 14:12:42 GMT")], CALLS["sessions_of"])
    last = listed.sessions[-1]
    assert (len(listed.sessions), last.data.status, last.answered_at_ms) == (PAGE_SIZE, "ended", DATE_MS + 1000)


def test_a_session_that_is_listed_as_over_stays_so() -> None:
    listed, _ = respond_with([ok([session(1, status="ended"), session(1)])], CALLS["sessions_of"])
    assert [each.data.status for each in listed.sessions] == ["ended"]


# How a session is read.


def read(**fields: Any) -> ApiSession | UnreadableSession:
    """Return the session with these fields, from a list that has another one as well."""
    listed, _ = respond_with([ok([session(1, **fields), session(2)])], CALLS["sessions_of"])
    found: list[ApiSession | UnreadableSession] = [*listed.sessions, *listed.unreadable]
    assert {each.id for each in found} >= {"sess_2"}
    [one] = [each for each in found if each.id != "sess_2"]
    return one


def test_an_actor_is_kept_as_it_came() -> None:
    actor = {"sub": "user_admin", "iss": "https://admin.test", "number": 12_345_678_901_234_567_890_123, "x": {"y": []}}
    one = read(actor=actor)
    assert isinstance(one, ApiSession)
    assert json.loads(orjson.dumps(one.data.actor)) == actor


def test_a_metadata_field_that_is_odd_costs_itself_alone() -> None:
    one = read(latest_activity={"id": "act_1", "is_mobile": "perhaps", "city": "Oslo"}, client_id=17)
    assert isinstance(one, ApiSession)
    assert one.data.latest_activity is not None
    assert (one.data.latest_activity.is_mobile, one.data.latest_activity.city) == (None, "Oslo")
    assert one.data.client_id is None


def test_json_that_fast_parsers_refuse_is_read() -> None:
    deep = "[" * 2000 + "]" * 2000
    extra = rf'"odd": "\ud800", "long": {"9" * 5000}, "deep": {deep}, '
    body = "[" + json.dumps(session(1)).replace("{", "{" + extra, 1) + "]"
    response = httpx.Response(200, content=body.encode(), headers={"Date": DATE})
    listed, _ = respond_with([response], CALLS["sessions_of"])
    assert [each.id for each in listed.sessions] == ["sess_1"]


def test_a_status_that_is_not_known_is_named_and_costs_no_other_session() -> None:
    one = read(status="frozen")
    assert isinstance(one, UnreadableSession)
    assert (one.id, one.unknown_status) == ("sess_1", "frozen")


@pytest.mark.parametrize("status", ["", "two words", "x" * 65, "\x1b[31m", 17, None, ["active"]])
def test_a_status_that_is_no_word_is_not_repeated(status: object) -> None:
    one = read(status=status)
    assert isinstance(one, UnreadableSession)
    assert one.unknown_status is None
    assert one.detail.startswith("status: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [("object", "client"), ("user_id", None), ("expire_at", "soon"), ("updated_at", -1), ("actor", "admin")],
)
def test_a_session_that_can_not_be_read_says_which_field_and_not_its_value(field: str, value: object) -> None:
    one = read(**{field: value})
    assert isinstance(one, UnreadableSession)
    assert one.unknown_status is None
    assert one.detail.startswith(f"{field}: ")
    assert value is None or str(value) not in one.detail


@pytest.mark.parametrize("item", [None, 17, "sess_1", [], {}, {"id": "../users"}, {"id": 17}])
def test_what_is_no_session_is_unreadable_without_an_id(item: object) -> None:
    listed, _ = respond_with([ok([item, session(2), item])], CALLS["sessions_of"])
    assert [each.id for each in listed.sessions] == ["sess_2"]
    assert [each.id for each in listed.unreadable] == [None, None]


# One session.


def test_a_session_is_asked_for_by_its_id() -> None:
    found, [request] = respond_with([ok(session(1, status="replaced"))], CALLS["session"])
    assert isinstance(found, ApiSession)
    assert (found.id, found.data.status, found.answered_at_ms) == ("sess_1", "replaced", DATE_MS)
    assert (request.method, request.url.path) == ("GET", "/v1/sessions/sess_1")


def test_a_revoked_session_is_returned() -> None:
    found, [request] = respond_with([ok(session(1, status="revoked"))], CALLS["revoke"])
    assert isinstance(found, ApiSession)
    assert found.data.status == "revoked"
    assert (request.method, request.url.path, request.content) == ("POST", "/v1/sessions/sess_1/revoke", b"")


@pytest.mark.parametrize("name", ["session", "revoke"])
def test_a_session_that_clerk_does_not_have_is_told_with_the_time(name: str) -> None:
    found, _ = respond_with([httpx.Response(404, json=NOT_FOUND, headers={"Date": DATE})], CALLS[name])
    assert found == SessionNotFound("sess_1", DATE_MS)


@pytest.mark.parametrize("name", ["session", "revoke"])
@pytest.mark.parametrize("content", [*ODD_BODIES, b'{"message":"no route"}', b'{"errors":"none"}', b'{"errors":[]}'])
def test_a_404_that_is_not_clerk_s_says_nothing_about_the_session(name: str, content: bytes) -> None:
    found, _ = respond_with([httpx.Response(404, content=content, headers={"Date": DATE})], CALLS[name])
    assert found == SessionRefused("sess_1", 404)


@pytest.mark.parametrize("status", [400, 409, 410, 422])
def test_a_refusal_tells_nothing_but_its_status(status: int) -> None:
    found, _ = respond_with([httpx.Response(status, json=NOT_FOUND, headers={"Date": DATE})], CALLS["revoke"])
    assert found == SessionRefused("sess_1", status)


def test_another_session_than_the_one_asked_for_is_an_error() -> None:
    assert "unexpected" in str(fault(ok(session(2)), CALLS["session"]))


@pytest.mark.parametrize("name", ["session", "revoke"])
def test_what_is_no_id_is_not_asked_for(name: str) -> None:
    async def use(api: BackendApi) -> None:
        with pytest.raises(ValueError, match="not an id"):
            await getattr(api, name)("../users/user_1")

    respond_with([], use)


# The time of an answer.


# The last three are of clocks that can't be right: before times count, and later than all that is to come.
UNUSABLE_DATES: Final = [
    *(None, "", "soon", "Thu, 99 Nov 2026 14:12:41 GMT"),
    *("Mon, 01 Jan 1900 00:00:00 GMT", "Thu, 01 Jan 2099 00:00:00 GMT", "Mon, 01 Jan 999999999999 00:00:00 GMT"),
]


@pytest.mark.parametrize("date", UNUSABLE_DATES)
def test_without_a_usable_date_the_time_when_the_request_began_counts(date: str | None) -> None:
    response = httpx.Response(200, json=session(1), headers={} if date is None else {"Date": date})
    before = int(time.time()) * 1000
    found, _ = respond_with([response], CALLS["session"])
    assert before <= found.answered_at_ms <= time.time() * 1000
    assert found.answered_at_ms % 1000 == 0


# Failures that may pass.

FAILURES: Final = [
    *(httpx.Response(status) for status in (500, 502, 503, 504, 529)),
    httpx.ConnectError("refused"),
    httpx.ReadTimeout(""),
    httpx.RemoteProtocolError("cut off"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("call", [CALLS["session"], CALLS["revoke"]], ids=["session", "revoke"])
def test_a_request_that_failed_is_sent_up_to_five_times(failure: Any, call: Use[Any]) -> None:
    found, requests = respond_with([failure] * 4 + [ok(session(1))], call)
    assert found.id == "sess_1"
    assert len(requests) == 5


@each_call
@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_after_five_failures_clerk_is_unavailable(failure: Any, call: Use[Any]) -> None:
    error = fault(failure, call)
    assert isinstance(error, ClerkUnavailableError)
    assert "https://clerk.test/v1" in str(error)


def test_between_attempts_it_waits_longer_each_time() -> None:
    at: list[float] = []

    async def handler(_: httpx.Request) -> httpx.Response:
        at.append(asyncio.get_running_loop().time())
        return httpx.Response(500)

    with pytest.raises(ClerkUnavailableError):
        respond(handler, CALLS["instance"])
    waits = [later - earlier for earlier, later in itertools.pairwise(at)]
    for wait, longest in zip(waits, (0.25, 1, 3, 8), strict=True):
        assert longest / 2 <= wait <= longest + 0.001


def test_a_response_that_never_ends_is_given_up() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(10)
            yield b" "

    async def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=trickle())

    with pytest.raises(ClerkUnavailableError, match="TimeoutError"):
        respond(handler, CALLS["instance"])


# 429.


def limited(retry_after: str | None) -> httpx.Response:
    headers = {"Date": DATE} if retry_after is None else {"Date": DATE, "Retry-After": retry_after}
    return httpx.Response(429, headers=headers)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("3", 3),
        ("0", 1),
        ("-5", 1),
        ("1.5", 1.5),
        (None, 5),
        ("soon", 5),
        (email.utils.formatdate(DATE_MS / 1000 + 20, usegmt=True), 20),
        (email.utils.formatdate(DATE_MS / 1000 - 20, usegmt=True), 1),
    ],
)
def test_after_429_it_waits_as_long_as_clerk_says(retry_after: str | None, seconds: float) -> None:
    async def use(api: BackendApi) -> float:
        await api.session("sess_1")
        return asyncio.get_running_loop().time()

    took, requests = respond_with([limited(retry_after), ok(session(1))], use)
    assert took == pytest.approx(seconds)
    assert len(requests) == 2


def test_after_429_nothing_else_is_asked_either() -> None:
    at: list[tuple[float, str]] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        at.append((asyncio.get_running_loop().time(), request.url.path[-1]))
        return limited("30") if len(at) == 1 else ok(session(int(request.url.path[-1])))

    async def use(api: BackendApi) -> None:
        first = asyncio.create_task(api.session("sess_1"))
        await asyncio.sleep(1)
        await asyncio.gather(first, *(api.session(f"sess_{number}") for number in (2, 3)))

    respond(handler, use)
    assert [moment for moment, _ in at] == [0, *[pytest.approx(30)] * 3]


def test_429_is_no_failed_attempt() -> None:
    found, requests = respond_with(
        [*[limited("2")] * 20, *[httpx.Response(500)] * 4, limited("2"), ok(session(1))], CALLS["session"]
    )
    assert found.id == "sess_1"
    assert len(requests) == 26


@each_call
@pytest.mark.parametrize("retry_after", ["1", "50", "121", "inf", "nan", "1e400"])
def test_after_two_minutes_of_429_clerk_is_unavailable(retry_after: str, call: Use[Any]) -> None:
    async def timed(api: BackendApi) -> None:
        try:
            await call(api)
        finally:
            assert asyncio.get_running_loop().time() <= 120

    error = fault(limited(retry_after), timed)
    assert isinstance(error, ClerkUnavailableError)
    assert "429" in str(error)


# Answers that are none.


@each_call
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_clerk_refuses_is_an_error_of_its_own(status: int, call: Use[Any]) -> None:
    error = fault(httpx.Response(status, json={"errors": [{"message": "secret of the body"}]}), call)
    assert isinstance(error, ClerkKeyError)
    assert "CLERK_SECRET_KEY" in str(error)


@each_call
@pytest.mark.parametrize("content", ODD_BODIES, ids=repr)
def test_what_is_no_answer_of_clerk_s_is_an_error(content: bytes, call: Use[Any]) -> None:
    error = fault(httpx.Response(200, content=content, headers={"Content-Type": "text/html; charset=utf-8"}), call)
    assert not isinstance(error, ClerkUnavailableError | ClerkKeyError)
    assert "status 200, text/html" in str(error)


@each_call
@pytest.mark.parametrize("status", [204, 301, 302, 308])
def test_a_redirect_is_not_followed(status: int, call: Use[Any]) -> None:
    error = fault(httpx.Response(status, headers={"Location": "https://elsewhere.test/"}), call)
    assert f"status {status}" in str(error)


@pytest.mark.parametrize("call", [CALLS["instance"], CALLS["users_page"], CALLS["sessions_of"]])
@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refused_list_is_an_error(status: int, call: Use[Any]) -> None:
    assert f"status {status}" in str(fault(httpx.Response(status, content=b"secret of the body"), call))


@pytest.mark.parametrize("users", [[{"id": 17}], [{}], ["user_1"], [{"id": "../x"}], [{"id": "user_1"}, None]])
def test_users_without_ids_are_an_error(users: object) -> None:
    assert "GET /users" in str(fault(ok(users), CALLS["users_page"]))


def test_users_that_begin_again_after_the_last_one_are_an_error() -> None:
    again = ok([{"id": "user_1"}, {"id": "user_2"}])
    assert "GET /users" in str(fault(again, lambda api: api.users_page(after="user_2")))


@pytest.mark.parametrize("name", ["users_page", "sessions_of"])
def test_a_list_with_more_than_was_asked_for_is_an_error(name: str) -> None:
    items = [session(number) for number in range(PAGE_SIZE + 1)]
    assert "unexpected" in str(fault(ok(items), CALLS[name]))


def test_a_list_that_repeats_itself_is_an_error() -> None:
    items = [session(number) for number in range(PAGE_SIZE)]
    assert "user_1 again and again" in str(fault(ok(items), CALLS["sessions_of"]))


def test_a_list_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_api, "MAX_PAGES", 3)

    async def handler(request: httpx.Request) -> httpx.Response:
        offset = int(request.url.params["offset"])
        return ok([session(number) for number in range(offset, offset + PAGE_SIZE)])

    with pytest.raises(ClerkError, match=f"more sessions of user_1 than can be read .{3 * PAGE_SIZE - 2 * OVERLAP}"):
        respond(handler, CALLS["sessions_of"])


def test_a_large_body_is_parsed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_requests, "LARGE_BYTES", 100)
    threads = set()

    def load(body: bytes) -> Any:
        threads.add(threading.current_thread())
        return orjson.loads(body)

    async def main() -> None:
        settings = load_settings(ClerkSettings, clerk_secret_key=KEY, _env_file=None)
        transport = httpx.MockTransport(lambda _: ok(session(1)))
        async with BackendApi(settings, transport=transport) as api:
            await api.session("sess_1")

    monkeypatch.setattr(api_requests, "load", load)
    asyncio.run(main())  # in real time: threads know no other
    assert threads
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("found", [{}, {"id": "ins_1"}, {"id": 1, "environment_type": "x"}, {"environment_type": "x"}])
def test_an_instance_without_id_or_environment_is_an_error(found: object) -> None:
    assert "GET /instance" in str(fault(ok(found), CALLS["instance"]))


@each_call
def test_a_response_that_is_too_large_is_an_error(call: Use[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_requests, "MAX_RESPONSE_BYTES", 1000)
    assert "1000 bytes" in str(fault(httpx.Response(200, content=b" " * 1001), call))


def test_a_response_that_is_compressed_wrongly_is_an_error() -> None:
    async def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=_Stream(b"no gzip"), headers={"Content-Encoding": "gzip"})

    with pytest.raises(ClerkError, match="can't be read"):
        respond(handler, CALLS["instance"])


@dataclasses.dataclass
class _Stream(httpx.AsyncByteStream):
    content: bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content


def test_the_repr_of_a_response_hides_its_body() -> None:
    response = api_requests.Response(200, "application/json", 18, "secret of the body", DATE_MS, 1)
    assert repr(response) == "status 200, application/json, 18 bytes"


# Several at once.


def test_no_more_than_sixteen_requests_are_under_way() -> None:
    under_way = most = 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(1)
        under_way -= 1
        return ok(session(int(request.url.path.rpartition("_")[2])))

    async def use(api: BackendApi) -> None:
        await asyncio.gather(*(api.session(f"sess_{number}") for number in range(100)))

    respond(handler, use)
    assert most == 16


def test_every_attempt_is_within_the_budget() -> None:
    at: list[float] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        at.append(asyncio.get_running_loop().time())
        return httpx.Response(500) if len(at) % 3 == 0 else ok(session(int(request.url.path.rpartition("_")[2])))

    async def use(api: BackendApi) -> None:
        await asyncio.gather(*(api.session(f"sess_{number}") for number in range(100)))

    respond(handler, use, requests=10)
    assert len(at) > 100
    assert max(sum(first <= each <= first + 10 for each in at) for first in at) == 10


def test_the_budget_is_that_of_the_key_unless_told_otherwise() -> None:
    async def main() -> int:
        settings = load_settings(ClerkSettings, clerk_secret_key="sk_live_x", _env_file=None)
        async with BackendApi(settings, transport=httpx.MockTransport(lambda _: ok([]))) as api:
            return api.budget.requests

    assert virtual_time.run(main()) == 200


# The environment.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "http://relay:hunter2@proxy:port"),
        ("HTTPS_PROXY", "gopher://relay:hunter2@proxy"),
        ("SSL_CERT_FILE", "/nowhere/hunter2"),
    ],
)
def test_a_proxy_that_can_not_be_used_is_told_without_its_password(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    settings = load_settings(ClerkSettings, clerk_secret_key=KEY, _env_file=None)
    with pytest.raises(ClerkError, match=name) as caught:
        BackendApi(settings)
    assert "hunter2" not in str(caught.value)
