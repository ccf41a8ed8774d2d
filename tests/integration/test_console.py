"""The console over HTTP: who gets in, what is shown, and what it can't be made to do. docs/console.md."""

import html
import json
import re
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from support.consoles import Deliveries
from support.constants import DAY_MS
from support.relay import make_settings, run_relay
from werkzeug.test import TestResponse

from service.app import RelayFlask, create_app
from service.app.console.actions import Changes
from service.app.console.live import Tab
from service.app.console.rows import Filter
from service.app.console.security import COOKIE, MAX_GUESSES, Gate
from service.app.console.views import ConsoleBlueprint
from service.dev.embedded import EmbeddedRedis

TOKEN, SECOND_TOKEN, THIRD_TOKEN = "first-token-of-the-console", "second-token-of-the-console", "troisième"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def app(real_redis: EmbeddedRedis) -> Iterator[RelayFlask]:
    app = create_app(make_settings(real_redis.url, console_token=f"{TOKEN},{SECOND_TOKEN},{THIRD_TOKEN}"))
    yield app
    assert app.reader is not None
    app.reader.close()
    app.store.close()


@pytest.fixture
def deliveries(real_redis: EmbeddedRedis, real_client: Any) -> Iterator[Deliveries]:
    with run_relay(real_redis.url) as relay:
        yield Deliveries(relay)


@pytest.fixture
def visitor(app: RelayFlask, deliveries: Deliveries) -> FlaskClient:
    """A browser that knows nothing yet."""
    return app.test_client()


def form_token(response: TestResponse) -> str:
    (found, *_) = re.findall(r'name="form_token" value="([^"]*)"', response.text)
    return html.unescape(str(found))


def sign_in(visitor: FlaskClient, token: str = TOKEN) -> TestResponse:
    asked = visitor.get("/console/sign-in")
    return visitor.post("/console/sign-in", data={"token": token, "form_token": form_token(asked)})


@pytest.fixture
def signed_in(visitor: FlaskClient) -> FlaskClient:
    assert sign_in(visitor).status_code == 303
    return visitor


PAGES = ("", "/events", "/search?q=x", "/sessions/sess_1", "/users/user_1", "/dead-letters", "/health", "/sign-in")


# ---- Who gets in


@pytest.mark.parametrize("path", PAGES)
def test_without_a_token_there_is_no_console(real_redis: EmbeddedRedis, path: str) -> None:
    app = create_app(make_settings(real_redis.url))
    response = app.test_client().get(f"/console{path}")
    app.store.close()
    assert response.status_code == 404
    assert response.json is not None
    assert response.json["code"] == "not_found"


@pytest.mark.parametrize("path", PAGES[:-1])
def test_who_is_not_signed_in_gets_the_form_and_nothing_else(visitor: FlaskClient, path: str) -> None:
    response = visitor.get(f"/console{path}")
    assert response.status_code == 401
    assert 'name="token"' in response.text
    assert "redis://" not in response.text


@pytest.mark.parametrize("token", [TOKEN, SECOND_TOKEN, THIRD_TOKEN])
def test_each_token_signs_in(visitor: FlaskClient, token: str) -> None:
    assert sign_in(visitor, token).headers["Location"] == "/console"
    assert visitor.get("/console").status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", f"{TOKEN}x", TOKEN[:-1], "ø" * 40])
def test_another_token_does_not(visitor: FlaskClient, token: str) -> None:
    assert sign_in(visitor, token).status_code == 401
    assert visitor.get("/console").status_code == 401


def test_a_bearer_token_needs_no_cookie(visitor: FlaskClient) -> None:
    assert visitor.get("/console", headers=BEARER).status_code == 200
    as_sent = THIRD_TOKEN.encode().decode("latin-1")  # what a server makes of the bytes
    assert visitor.get("/console", headers={"Authorization": f"Bearer {as_sent}"}).status_code == 200
    assert visitor.get("/console", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_tokens_can_not_be_tried_as_fast_as_one_likes(
    app: RelayFlask, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("service.app.console.security.time.monotonic", lambda: now)
    gate = Gate((TOKEN,))
    visitor, owner = (local_app(app, gate) for _ in range(2))
    assert sign_in(owner).status_code == 303
    wrong = {"Authorization": "Bearer wrong"}
    tried = [visitor.get("/console", headers=wrong).status_code for _ in range(MAX_GUESSES + 1)]
    assert tried == [401] * MAX_GUESSES + [429]
    refused = visitor.get("/console", headers=BEARER)  # whoever is in does not get to know, either
    assert refused.status_code == 429
    assert refused.headers["Retry-After"]
    assert owner.get("/console").status_code == 200
    now += 1
    assert visitor.get("/console", headers=BEARER).status_code == 200


def test_who_is_in_stays_in_while_tokens_are_tried(app: RelayFlask, deliveries: Deliveries) -> None:
    gate = Gate((TOKEN,))
    owner = local_app(app, gate)
    assert sign_in(owner).status_code == 303
    for _ in range(2 * MAX_GUESSES):
        owner.application.test_client().get("/console", headers={"Authorization": "Bearer wrong"})
    assert owner.get("/console").status_code == 200


@pytest.mark.parametrize("has_length", [True, False])
def test_a_large_form_is_not_read(app: RelayFlask, visitor: FlaskClient, has_length: bool) -> None:
    body = b"a=1&" * 20_000
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    if has_length:
        assert visitor.post("/console/sign-in", data=body, headers=headers).status_code == 413
    else:
        environ = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
        response = visitor.post(
            "/console/sign-in", input_stream=BytesIO(body), headers=headers, environ_overrides=environ
        )
        assert response.status_code in {403, 413}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_cookie_is_for_the_console_alone(app: RelayFlask, visitor: FlaskClient, scheme: str) -> None:
    asked = visitor.get("/console/sign-in", headers={"X-Forwarded-Proto": scheme})
    cookie = asked.headers["Set-Cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/console"):
        assert f"; {attribute}" in cookie
    assert ("; Secure" in cookie) == (scheme == "https")


def test_signing_in_makes_a_new_visit(visitor: FlaskClient) -> None:
    before = visitor.get("/console").headers["Set-Cookie"]
    assert sign_in(visitor).headers["Set-Cookie"] != before


def test_a_forged_cookie_is_none(visitor: FlaskClient) -> None:
    visitor.set_cookie(COOKIE, "WyIxIiwieCJd.aaaaaa.AAAAAAAAAAAAAAAAAAAAAAAAAAA", path="/console")
    assert visitor.get("/console").status_code == 401


def test_signing_out_ends_the_visit(signed_in: FlaskClient) -> None:
    token = form_token(signed_in.get("/console"))
    assert signed_in.post("/console/sign-out", data={"form_token": token}).status_code == 303
    assert signed_in.get("/console").status_code == 401


def test_one_goes_on_where_the_form_was_in_the_way(visitor: FlaskClient) -> None:
    asked = visitor.get("/console/sessions/sess_1")
    assert 'name="following" value="/console/sessions/sess_1"' in asked.text
    data = {"token": TOKEN, "form_token": form_token(asked), "following": "/console/sessions/sess_1"}
    assert visitor.post("/console/sign-in", data=data).headers["Location"] == "/console/sessions/sess_1"


@pytest.mark.parametrize(
    "following",
    ["https://evil.example/", "//evil.example", "/console//evil.example", "/console/\\evil", "/console/a\r\nX: y"],
)
def test_the_form_leads_to_no_other_site(visitor: FlaskClient, following: str) -> None:
    data = {"token": TOKEN, "form_token": form_token(visitor.get("/console")), "following": following}
    assert visitor.post("/console/sign-in", data=data).headers["Location"] == "/console"


def test_who_comes_from_another_site_is_told_why_the_form_is_there(visitor: FlaskClient) -> None:
    asked = visitor.get("/console/health", headers={"Sec-Fetch-Site": "cross-site"})
    assert '<a href="/console/health">Go on</a>' in asked.text


# ---- What other pages can't do


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out", "/dead-letters/msg_1"])
def test_a_form_of_another_page_is_refused(signed_in: FlaskClient, path: str) -> None:
    assert signed_in.post(f"/console{path}", data={"token": TOKEN}).status_code == 403


def test_the_token_of_a_form_is_for_one_visit(app: RelayFlask, signed_in: FlaskClient) -> None:
    other = app.test_client()
    sign_in(other)
    data = {"form_token": form_token(other.get("/console"))}
    assert signed_in.post("/console/sign-out", data=data).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:81"},
    ],
)
def test_a_foreign_origin_is_refused(signed_in: FlaskClient, headers: dict[str, str]) -> None:
    data = {"form_token": form_token(signed_in.get("/console"))}
    assert signed_in.post("/console/sign-out", data=data, headers=headers).status_code == 403
    assert signed_in.get("/console/events", headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["", "/static/console.css", "/nothing/here", "/sessions/sess_0", "/health"])
def test_browsers_are_told_to_be_strict(signed_in: FlaskClient, path: str) -> None:
    response = signed_in.get(f"/console{path}")
    if path == "/nothing/here":  # no page of the console's
        assert response.status_code == 404
        return
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("name", ["../views.py", "%2e%2e/views.py", "console.js.map", "console.css%00"])
def test_only_the_files_of_the_pages_are_sent(signed_in: FlaskClient, name: str) -> None:
    assert signed_in.get(f"/console/static/{name}").status_code == 404


def test_no_page_has_a_script_or_a_style_in_it(signed_in: FlaskClient, deliveries: Deliveries) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    for path in ("", "/sessions/sess_1", "/users/user_1", "/health", "/search?q=sess"):
        text = signed_in.get(f"/console{path}").text
        assert not re.search(r"<style|\bstyle=|\bon[a-z]+=|javascript:", text)
        assert re.findall(r"<script(?! src=\"/console/static/)", text) == []


# ---- What is shown


def test_what_clerk_sends_is_text(signed_in: FlaskClient, deliveries: Deliveries) -> None:
    activity = {"city": HOSTILE, "country": HOSTILE, "browser_name": HOSTILE, "device_type": HOSTILE}
    deliveries.send(
        id="sess_1", user_id="user_1", latest_activity=activity, actor={"sub": HOSTILE}, tasks=[{"key": HOSTILE}]
    )
    deliveries.send("session.pending", id="sess_2", user_id="user_1", tasks=[{"key": HOSTILE}])
    for path in ("", "/sessions/sess_1", "/sessions/sess_2", "/users/user_1"):
        text = signed_in.get(f"/console{path}").text
        assert "<script>alert" not in text
        assert "<img" not in text
        assert "&lt;script&gt;alert(1)" in text


def test_a_session_says_why_and_what_changed(signed_in: FlaskClient, deliveries: Deliveries) -> None:
    now = time.time_ns() // 1_000_000
    deliveries.send(id="sess_1", user_id="user_1", updated_at=now - 5000, client_id="client_1")
    deliveries.send("session.ended", id="sess_1", user_id="user_1", updated_at=now - 1000, client_id="client_2")
    deliveries.send(id="sess_1", user_id="user_1", updated_at=now - 4000, client_id="client_1")
    text = signed_in.get("/console/sessions/sess_1").text
    assert "Not live: Clerk reported session.ended" in text
    assert "<del>client_1</del></td><td><ins>client_2</ins>" in text
    assert "came too late to change anything" in text
    assert "as far back as the stream goes" in text


def test_a_user_has_sessions_and_devices(signed_in: FlaskClient, deliveries: Deliveries) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    deliveries.send("session.pending", id="sess_2", user_id="user_1")
    text = signed_in.get("/console/users/user_1").text
    assert "2 open sessions" in text
    assert "Firefox 145 · Bergen, NO" in text


@pytest.mark.parametrize(
    "path", ["/sessions/sess_none", "/users/user_none", "/dead-letters/msg_none", "/sessions/a%0d%0ab"]
)
def test_what_is_not_stored_is_not_found(signed_in: FlaskClient, path: str) -> None:
    assert signed_in.get(f"/console{path}").status_code == 404


def test_the_feed_is_narrowed(signed_in: FlaskClient, deliveries: Deliveries) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    deliveries.send("session.ended", id="sess_2", user_id="user_2")
    assert "sess_2" not in signed_in.get("/console?user=user_1").text
    assert "sess_1" not in signed_in.get("/console?type=session.ended").text
    assert "No such event" in signed_in.get("/console?outcome=stale").text


def test_a_whole_id_leads_to_its_page(signed_in: FlaskClient, deliveries: Deliveries) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    assert signed_in.get("/console/search?q=sess_1").headers["Location"] == "/console/sessions/sess_1"
    assert signed_in.get("/console/search?q=user_1").headers["Location"] == "/console/users/user_1"


def test_the_beginning_of_an_id_is_found_without_looking_at_all_keys(
    signed_in: FlaskClient, deliveries: Deliveries, real_client: Any
) -> None:
    deliveries.send(id="sess_alpha1", user_id="user_1")
    deliveries.send(id="sess_alpha2", user_id="user_alpha")
    real_client.delete("{clerk}:events")  # as if it was trimmed: open sessions are found all the same
    real_client.config_resetstat()
    text = signed_in.get("/console/search?q=sess_alpha").text
    assert {"sess_alpha1", "sess_alpha2"} <= set(re.findall(r"sess_alpha\d", text))
    assert "2 of 2 open sessions" in text
    assert not {"cmdstat_scan", "cmdstat_keys"} & set(real_client.info("commandstats"))


@pytest.mark.parametrize("prefix", ["sunniva@example.com", "a b", "*", "x" * 129, "[a-z]"])
def test_what_is_no_id_is_not_looked_for(signed_in: FlaskClient, prefix: str) -> None:
    assert "can&#39;t be an id" in signed_in.get("/console/search", query_string={"q": prefix}).text.replace(
        "'", "&#39;"
    )


def test_health_names_what_is_wrong(signed_in: FlaskClient, deliveries: Deliveries, real_client: Any) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    real_client.xgroup_create("{clerk}:events", "gateway", "0")
    real_client.xreadgroup("gateway", "gateway-<1>", {"{clerk}:events": ">"})
    real_client.zadd("{clerk}:expiry", {"sess_1": time.time() * 1000 - DAY_MS})
    real_client.hset("{clerk}:reconcile", mapping={"last_success_at": int(time.time() * 1000), "drift_gone": 3})
    text = signed_in.get("/console/health").text
    for expected in ("behind by 1 d", "gateway", "noeviction", "1 of about 5,000 entries", "gone 3", "Trim horizon"):
        assert expected in text
    assert re.search(r"<td>gateway-&lt;1&gt;</td><td>gateway</td><td[^>]*>1</td>", text)
    assert re.search(r'class="error"><dt>Expiry worker', text)


def test_health_of_an_empty_redis_logs_no_fault(
    signed_in: FlaskClient, real_client: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "Nothing was received yet" in signed_in.get("/console/health").text
    assert "redis_failed" not in capfd.readouterr().err


def dead_letter(deliveries: Deliveries) -> str:
    deliveries.send(id="sess_1", user_id="user_1", status="dormant", latest_activity={"city": HOSTILE})
    return deliveries.last_id


def test_a_dead_letter_is_masked_until_it_is_asked_for(signed_in: FlaskClient, deliveries: Deliveries) -> None:
    path = f"/console/dead-letters/{dead_letter(deliveries)}"
    listed, shown = signed_in.get("/console/dead-letters").text, signed_in.get(path)
    assert "invalid_status" in listed
    assert "sunniva@example.com" not in listed + shown.text
    assert "dormant" in shown.text
    whole = signed_in.post(path, data={"form_token": form_token(shown)}).text
    assert "sunniva@example.com" in whole
    assert "<script>alert" not in whole


def test_omitted_fields_are_nowhere(real_redis: EmbeddedRedis, real_client: Any) -> None:
    settings = make_settings(real_redis.url, omit_fields="latest_activity.city", console_token=TOKEN)
    app = create_app(settings)
    with run_relay(real_redis.url, omit_fields="latest_activity.city") as relay:
        Deliveries(relay).send(id="sess_1", user_id="user_1")
    texts = [
        app.test_client().get(f"/console{path}", headers=BEARER).text
        for path in ("", "/sessions/sess_1", "/users/user_1")
    ]
    app.store.close()
    assert all("Bergen" not in text and "Firefox" in text for text in texts)


def test_the_embedded_user_is_nowhere(signed_in: FlaskClient, deliveries: Deliveries) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    for path in ("", "/sessions/sess_1", "/users/user_1"):
        assert "Sunniva" not in signed_in.get(f"/console{path}").text


def test_deliveries_take_the_fast_lane_beside_the_console(app: RelayFlask) -> None:
    assert app.fast_lane.closed_by() == ""


@pytest.mark.parametrize("path", [*PAGES[:-1], "/dead-letters/msg_1"])
def test_each_page_says_that_redis_is_away(path: str) -> None:
    app = create_app(make_settings("redis://127.0.0.1:1/0", console_token=TOKEN))
    response = app.test_client().get(f"/console{path}", headers=BEARER)
    app.store.close()
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert "Redis is unavailable" in response.text


# ---- The live feed


def parsed(data: bytes) -> list[tuple[str, Any]]:
    """Return the events of some data: their names, and what they say."""
    found = []
    for block in filter(None, data.decode().split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], json.loads(fields["data"]) | {"id": fields.get("id")}))
    return found


@pytest.fixture
def open_tab(app: RelayFlask, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tab]:
    """Opens a tab, each step of which asks Redis."""
    monkeypatch.setattr("service.app.console.live.SHARED_SECONDS", 0)
    console = app.blueprints["console"]
    assert isinstance(console, ConsoleBlueprint)

    def open_tab(after: str | None = None, wanted: Filter | None = None, ends_at: float = 1e12) -> Tab:
        cursors = {0: after} if after else console.store.newest()
        return console._live.open(cursors, wanted or Filter(), ends_at)

    return open_tab


def rows(tab: Tab) -> list[dict[str, Any]]:
    """Return the rows of what comes next; nothing if it is a sign of life."""
    return [row for name, data in parsed(tab._step()) if name == "rows" for row in data["rows"]]


def test_what_comes_is_told_once_and_in_order(deliveries: Deliveries, open_tab: Callable[..., Tab]) -> None:
    deliveries.send(id="sess_0", user_id="user_1")
    tab = open_tab()
    for number in range(1, 4):
        deliveries.send(id=f"sess_{number}", user_id="user_1")
    assert [row["session"] for row in rows(tab)] == ["sess_1", "sess_2", "sess_3"]
    assert rows(tab) == []


def test_many_events_are_one_message_with_their_count(deliveries: Deliveries, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    for number in range(60):
        deliveries.send(id=f"sess_{number}", user_id="user_1")
    ((name, data),) = parsed(tab._step())
    assert (name, data["count"], len(data["rows"])) == ("rows", 60, 25)
    assert data["rows"][-1]["session"] == "sess_59"


def test_a_tab_goes_on_behind_the_last_id(deliveries: Deliveries, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    deliveries.send(id="sess_1", user_id="user_1")
    ((_, data),) = parsed(tab._step())
    deliveries.send(id="sess_2", user_id="user_1")
    assert [row["session"] for row in rows(open_tab(data["id"]))] == ["sess_2"]


def test_what_is_trimmed_is_not_skipped_silently(
    deliveries: Deliveries, open_tab: Callable[..., Tab], real_client: Any
) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    tab = open_tab()
    deliveries.send(id="sess_2", user_id="user_1")
    deliveries.send(id="sess_3", user_id="user_1")
    real_client.xtrim("{clerk}:events", maxlen=1, approximate=False)
    assert [name for name, _ in parsed(tab._step())] == ["resync", "rows"]
    assert rows(tab) == []


@pytest.mark.parametrize("after", ["garbage", "0:1-0,1:1-0"])
def test_a_tab_whose_place_is_not_known_is_told_so(signed_in: FlaskClient, deliveries: Deliveries, after: str) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    response = signed_in.get(f"/console/events?after={after}", buffered=False)
    assert [name for name, _ in parsed(next(iter(response.response)))] == ["resync", "rows"]  # type: ignore[arg-type]
    response.close()


def test_tabs_without_news_share_one_look(
    deliveries: Deliveries, open_tab: Callable[..., Tab], real_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    first, *others = [open_tab() for _ in range(10)]
    assert rows(first) == []
    monkeypatch.setattr("service.app.console.live.SHARED_SECONDS", 60)
    real_client.config_resetstat()
    for tab in others:
        assert rows(tab) == []
    assert not {"cmdstat_xread", "cmdstat_xrevrange"} & set(real_client.info("commandstats"))


def test_a_feed_of_one_user_has_no_other(deliveries: Deliveries, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(wanted=Filter(user="user_2"))
    deliveries.send(id="sess_1", user_id="user_1")
    deliveries.send(id="sess_2", user_id="user_2")
    assert [row["session"] for row in rows(tab)] == ["sess_2"]


def test_a_feed_ends_with_the_visit(app: RelayFlask, open_tab: Callable[..., Tab], real_client: Any) -> None:
    assert [name for name, _ in parsed(b"".join(open_tab(ends_at=time.time() - 1)))] == ["bye"]


def test_there_is_an_end_to_the_number_of_tabs(
    app: RelayFlask, signed_in: FlaskClient, open_tab: Callable[..., Tab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app.console.live.MAX_TABS", 0)
    assert signed_in.get("/console/events").status_code == 503


# ---- Links, hosts and changes: `session-relay console`


class Recorded:
    """Changes that are noted, and not made."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def replay(self, message_id: str) -> str:
        self.made.append(("replay", message_id))
        return "applied"

    def drop(self, message_id: str) -> str:
        self.made.append(("drop", message_id))
        return "removed"

    def revoke(self, session_id: str) -> str:
        self.made.append(("revoke", session_id))
        return "revoked"

    def revoke_means(self) -> str:
        return "It ends."


def local_app(app: RelayFlask, gate: Gate, changes: Changes | None = None) -> FlaskClient:
    assert app.reader is not None
    around = Flask("around", static_folder=None)
    around.register_blueprint(ConsoleBlueprint(app.settings, gate, app.reader.queries, changes=changes))
    return around.test_client()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:81", "127.0.0.1", "localhost.evil.example:80", ""])
def test_another_host_is_refused(app: RelayFlask, host: str) -> None:
    visitor = local_app(app, Gate((), hosts=frozenset({"127.0.0.1:8001", "localhost:8001"})))
    for path in ("", "/static/console.js", "/open/x", "/sign-in"):
        response = visitor.get(f"/console{path}", headers={"Host": host})
        assert response.status_code == 421
        assert "Set-Cookie" not in response.headers
    assert visitor.get("/console", headers={"Host": "127.0.0.1:8001"}).status_code == 401


def test_a_link_signs_in_once(app: RelayFlask, deliveries: Deliveries) -> None:
    gate = Gate((), who="tester")
    gate.links.add("one-time")
    visitor = local_app(app, gate)
    assert visitor.head("/console/open/one-time").status_code == 405
    assert visitor.get("/console/open/one-time").status_code == 303
    assert visitor.get("/console").status_code == 200
    thief = visitor.application.test_client()
    assert thief.get("/console/open/one-time").status_code == 401
    assert thief.get("/console").status_code == 401


def test_a_link_ends_by_itself(app: RelayFlask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.app.console.security.LINK_SECONDS", -1)
    gate = Gate((), who="tester")
    gate.links.add("one-time")
    assert local_app(app, gate).get("/console/open/one-time").status_code == 401


@pytest.fixture
def changing(app: RelayFlask, deliveries: Deliveries) -> tuple[FlaskClient, Recorded]:
    gate, changes = Gate((TOKEN,)), Recorded()
    visitor = local_app(app, gate, changes)
    sign_in(visitor)
    return visitor, changes


@pytest.mark.parametrize("action", ["replay", "drop"])
def test_a_change_is_asked_once_more_and_logged(
    changing: tuple[FlaskClient, Recorded], deliveries: Deliveries, action: str, capfd: pytest.CaptureFixture[str]
) -> None:
    visitor, changes = changing
    message_id = dead_letter(deliveries)
    path = f"/console/dead-letters/{message_id}"
    assert f"{path}/{action}" in visitor.get(path).text
    asked = visitor.post(f"{path}/{action}", data={"form_token": form_token(visitor.get(path))})
    assert changes.made == []
    assert "It is logged" in asked.text
    done = visitor.post(f"{path}/{action}", data={"form_token": form_token(asked), "confirmed": "yes"})
    assert done.status_code == 200
    assert changes.made == [(action, message_id)]
    logged = capfd.readouterr().err
    assert '"event":"console_change"' in logged
    assert '"who":"CONSOLE_TOKEN 1"' in logged


def test_a_session_is_revoked_by_the_same_way(changing: tuple[FlaskClient, Recorded], deliveries: Deliveries) -> None:
    visitor, changes = changing
    deliveries.send(id="sess_1", user_id="user_1")
    path = "/console/sessions/sess_1"
    asked = visitor.post(f"{path}/revoke", data={"form_token": form_token(visitor.get(path))})
    assert "It ends." in asked.text
    visitor.post(f"{path}/revoke", data={"form_token": form_token(asked), "confirmed": "yes"})
    assert changes.made == [("revoke", "sess_1")]


@pytest.mark.parametrize("path", ["/dead-letters/msg_1/replay", "/dead-letters/msg_1/drop", "/sessions/sess_1/revoke"])
def test_nothing_can_be_changed_under_serve(signed_in: FlaskClient, deliveries: Deliveries, path: str) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    token = form_token(signed_in.get("/console"))
    assert signed_in.post(f"/console{path}", data={"form_token": token, "confirmed": "yes"}).status_code == 404
    assert "revoke" not in signed_in.get("/console/sessions/sess_1").text.lower().replace("revoked", "")


def test_a_change_needs_the_token_of_the_form(changing: tuple[FlaskClient, Recorded], deliveries: Deliveries) -> None:
    visitor, changes = changing
    deliveries.send(id="sess_1", user_id="user_1")
    assert visitor.post("/console/sessions/sess_1/revoke", data={"confirmed": "yes"}).status_code == 403
    assert changes.made == []
