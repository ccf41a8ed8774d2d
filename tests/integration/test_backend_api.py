"""The client of Clerk's Backend API over HTTP, against the stand-in for Clerk."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import orjson
import pytest
from support.fake_clerk import fake_clerk
from support.network import unused_port

from service.clerk.api_sessions import ApiSession, SessionNotFound
from service.clerk.backend_api import OVERLAP, PAGE_SIZE, BackendApi, Instance
from service.clerk.budget import Budget
from service.config import ClerkSettings, load
from service.dev.fake_clerk import FakeClerk
from service.errors import ClerkCursorError, ClerkKeyError, ClerkUnavailableError

__all__ = ["fake_clerk"]

T = TypeVar("T")


async def hurry(seconds: float) -> None:
    """Wait little between attempts; what waits for a moment, waits again."""
    await asyncio.sleep(min(seconds, 0.02))


def using(
    clerk: FakeClerk,
    use: Callable[[BackendApi], Coroutine[Any, Any, T]],
    *,
    budget: tuple[int, float] = (10_000, 10.0),
    **settings: str,
) -> T:
    """Use a client of the stand-in."""

    async def main() -> T:
        values: dict[str, Any] = {"clerk_secret_key": clerk.secret_key, "clerk_api_url": clerk.url, "_env_file": None}
        how = load(ClerkSettings, **values | settings)
        async with BackendApi(how, budget=Budget(*budget, sleep=hurry)) as api:
            return await use(api)

    return asyncio.run(main())


async def all_users(api: BackendApi) -> list[str]:
    ids: list[str] = []
    is_last = False
    while not is_last:
        page = await api.users_page(after=ids[-1] if ids else None)
        ids += page.ids
        is_last = page.is_last
    return ids


def test_an_instance_is_read_whole_whatever_fails(fake_clerk: FakeClerk) -> None:
    users = [fake_clerk.add_user(created_at=number + 1) for number in range(PAGE_SIZE + 100)]
    sessions = {fake_clerk.sign_in(user_id): user_id for user_id in users}
    fake_clerk.errors = 0.02

    async def use(api: BackendApi) -> None:
        assert await api.instance() == Instance(fake_clerk.instance_id, "development")
        assert await all_users(api) == users
        lists = await asyncio.gather(*map(api.sessions_of, users))
        assert {each.id: each.data.user_id for listed in lists for each in listed.sessions} == sessions

    using(fake_clerk, use)
    assert any(request.status >= 500 for request in fake_clerk.requests)


def test_who_signs_up_while_users_are_listed_is_listed_too(fake_clerk: FakeClerk) -> None:
    for number in range(PAGE_SIZE):
        fake_clerk.add_user(created_at=number + 1)
    added = []

    def sign_up(_: str, __: str, query: dict[str, str]) -> None:
        if "starting_after" in query:
            added.append(fake_clerk.add_user())

    fake_clerk.on_request = sign_up
    listed = using(fake_clerk, all_users)
    assert len(listed) == len(set(listed)) == PAGE_SIZE + 1
    assert listed[-1:] == added


def test_users_are_narrowed_by_their_activity(fake_clerk: FakeClerk) -> None:
    idle, active, signed_in = (fake_clerk.add_user() for _ in range(3))
    for user_id, activity, sign_in in ((idle, 5, 5), (active, 50, 5), (signed_in, 50, 50)):
        fake_clerk.set(user_id, last_active_at=activity, last_sign_in_at=sign_in)

    async def use(api: BackendApi) -> None:
        assert set((await api.users_page(after=None, active_after_ms=10)).ids) == {active, signed_in}
        assert set((await api.users_page(after=None, signed_in_after_ms=10)).ids) == {signed_in}

    using(fake_clerk, use)


def test_a_list_goes_on_after_an_earlier_user_if_the_last_one_is_deleted(fake_clerk: FakeClerk) -> None:
    users = [fake_clerk.add_user(created_at=number + 1) for number in range(3)]
    fake_clerk.delete_user(users[1])

    async def use(api: BackendApi) -> None:
        with pytest.raises(ClerkCursorError):
            await api.users_page(after=users[1])
        assert (await api.users_page(after=users[0])).ids == (users[2],)

    using(fake_clerk, use)


def test_sessions_that_vanish_while_they_are_listed_hide_no_others(fake_clerk: FakeClerk) -> None:
    user_id = fake_clerk.add_user()
    sessions = [fake_clerk.sign_in(user_id, created_at=number + 1) for number in range(PAGE_SIZE + 100)]
    newest_first = sessions[::-1]

    def vanish(_: str, __: str, query: dict[str, str]) -> None:
        if query["offset"] != "0":
            for session_id in newest_first[:OVERLAP]:
                fake_clerk.vanish(session_id)

    fake_clerk.on_request = vanish
    listed = using(fake_clerk, lambda api: api.sessions_of(user_id))
    assert [each.id for each in listed.sessions] == newest_first


def test_an_actor_arrives_whole(fake_clerk: FakeClerk) -> None:
    actor = {"sub": "user_admin", "iss": "dashboard", "number": 12_345_678_901_234_567_890_123}
    session_id = fake_clerk.sign_in(fake_clerk.add_user(), actor=actor)
    found = using(fake_clerk, lambda api: api.session(session_id))
    assert isinstance(found, ApiSession)
    assert json.loads(orjson.dumps(found.data.actor)) == actor


def test_the_time_of_an_answer_is_clerk_s(fake_clerk: FakeClerk) -> None:
    session_id = fake_clerk.sign_in(fake_clerk.add_user())
    fake_clerk.clock = lambda: 1_795_097_561.9

    async def use(api: BackendApi) -> None:
        found, gone = await asyncio.gather(api.session(session_id), api.session("sess_gone"))
        assert isinstance(found, ApiSession)
        assert found.answered_at_ms == 1_795_097_561_000
        assert gone == SessionNotFound("sess_gone", 1_795_097_561_000)

    using(fake_clerk, use)


def test_a_session_is_revoked_at_clerk(fake_clerk: FakeClerk) -> None:
    session_id = fake_clerk.sign_in(fake_clerk.add_user())
    found = using(fake_clerk, lambda api: api.revoke(session_id))
    assert isinstance(found, ApiSession)
    assert found.data.status == fake_clerk.get(session_id)["status"] == "revoked"


def test_the_budget_holds_at_clerk_also_when_requests_fail(fake_clerk: FakeClerk) -> None:
    fake_clerk.latency, fake_clerk.errors = 0.01, 0.05

    async def use(api: BackendApi) -> None:
        await asyncio.gather(*(api.session("sess_none") for _ in range(60)))

    using(fake_clerk, use, budget=(10, 0.25))
    assert len(fake_clerk.requests) > 60
    assert fake_clerk.most_in_window(0.25) <= 10


def test_what_clerk_refuses_for_the_rate_is_read_later(fake_clerk: FakeClerk) -> None:
    number = itertools.count()
    fake_clerk.on_request = lambda *_: 429 if 20 <= next(number) < 24 else None

    async def use(api: BackendApi) -> None:
        found = await asyncio.gather(*(api.session(f"sess_{number}") for number in range(40)))
        assert all(isinstance(each, SessionNotFound) for each in found)

    using(fake_clerk, use)
    assert Counter(request.status for request in fake_clerk.requests) == {404: 40, 429: 4}


def test_a_wrong_key_is_refused(fake_clerk: FakeClerk) -> None:
    with pytest.raises(ClerkKeyError, match="CLERK_SECRET_KEY"):
        using(fake_clerk, BackendApi.instance, clerk_secret_key="sk_test_hunter2")
    assert [request.status for request in fake_clerk.requests] == [401]


def test_an_address_where_nobody_listens_is_named(fake_clerk: FakeClerk) -> None:
    with unused_port() as port, pytest.raises(ClerkUnavailableError, match=f"127.0.0.1:{port}"):
        using(fake_clerk, BackendApi.instance, clerk_api_url=f"http://127.0.0.1:{port}/v1")


def test_a_proxy_is_not_asked_for_a_stand_in_here(fake_clerk: FakeClerk, monkeypatch: pytest.MonkeyPatch) -> None:
    with unused_port() as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert using(fake_clerk, BackendApi.instance).id == fake_clerk.instance_id
