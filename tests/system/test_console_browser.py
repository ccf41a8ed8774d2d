"""The console in Chromium, over a real Redis: docs/console.md."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.browser import Browser, Page, axe_core, chromium, running_browser
from support.consoles import Deliveries, add_sessions, console, fill
from support.network import free_port
from support.redis_clients import client_of
from support.redis_servers import DurableRedis, durable_redis
from support.relay import run_relay
from support.services import ServiceProcess, run_service

from service.app.console.local import Local

TOKEN = "a-token-of-the-console"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
LIVE = "document.querySelector('#state').className.includes('on')"
IS_LOST = "document.querySelector('#state').className.includes('off')"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
SAYS_IT_WITHIN = 2.0
"""Seconds; a busy machine gets as much again, twice."""


def need(program: object, missing: str) -> None:
    if not program:
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need(chromium(), "there is no Chromium: for example, `apt-get install chromium`")
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def redis(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DurableRedis]:
    with durable_redis(redis_binary, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def local(redis: DurableRedis) -> Iterator[Local]:
    with console(redis.url) as local:
        yield local


@pytest.fixture
def deliveries(redis: DurableRedis) -> Iterator[Deliveries]:
    with client_of(redis.url) as client:
        client.flushall()
    with run_relay(redis.url) as relay:
        yield Deliveries(relay)


@pytest.fixture(scope="module")
def tab(browser: Browser, local: Local) -> Iterator[Page]:
    with browser.page() as page:
        page.open(local.new_link())
        yield page


@pytest.fixture
def page(tab: Page, local: Local, deliveries: Deliveries) -> Iterator[Page]:
    """A tab that is signed in, and shows the live feed. Nothing that the browser complains of may come of it."""
    tab.size(1280, 800)
    tab.theme("light")
    tab.point(0, 0)
    tab.open(f"{local.origin}/console")
    tab.wait(LIVE)
    tab.events.clear()
    yield tab
    faults = tab.faults()
    tab.evaluate("location.origin === 'null' || localStorage.clear()")
    assert faults == []


@pytest.fixture(scope="module")
def service_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def served(redis: DurableRedis, service_port: int) -> Iterator[Callable[[], ServiceProcess]]:
    """Returns the relay under `serve`, which is started if it does not run."""
    with contextlib.ExitStack() as stack:
        running: list[ServiceProcess] = []

        def start() -> ServiceProcess:
            if not running or running[-1].process.poll() is not None:
                environment = {"PORT": str(service_port), "CONSOLE_TOKEN": TOKEN}
                running.append(stack.enter_context(run_service(redis.url, **environment)))
            return running[-1]

        yield start


def first_cells(page: Page) -> list[str]:
    """Return the sessions in the feed, the newest first."""
    rows: list[str] = page.evaluate("[...document.querySelectorAll('#rows a.open')].map(each => each.textContent)")
    return rows


def test_the_first_sight_says_what_to_do_and_shows_what_comes(page: Page, deliveries: Deliveries) -> None:
    assert "Nothing has come in yet" in page.text("main")
    assert "session-relay send session.created" in page.text("main")
    deliveries.send(id="sess_first", user_id="user_1")
    page.wait("document.querySelector('#rows a.open')?.textContent === 'sess_first'", 2)
    assert "Nothing has come in yet" not in page.text("main")
    page.click("#rows a.open")
    page.wait("document.title.startsWith('sess_first')")
    assert "Live: it is active" in page.text(".why")


def test_what_clerk_sends_is_text(page: Page, deliveries: Deliveries) -> None:
    activity = {"city": HOSTILE, "country": HOSTILE, "browser_name": HOSTILE, "device_type": HOSTILE}
    deliveries.send(id="sess_hostile", user_id="user_1", latest_activity=activity, actor={"sub": HOSTILE})
    page.wait("document.querySelector('#rows .place')?.textContent.includes('<script>')")
    assert page.evaluate("document.querySelectorAll('#rows img, #rows script').length") == 0
    page.open(page.evaluate("document.querySelector('#rows a.open').href"))
    assert HOSTILE in page.evaluate("document.querySelector('main').textContent")
    assert page.evaluate("document.title").startswith("sess_hostile")


def test_the_feed_holds_still_under_the_pointer(page: Page, deliveries: Deliveries) -> None:
    deliveries.send(id="sess_1", user_id="user_1")
    page.wait("document.querySelector('#rows tr')")
    page.point(*page.evaluate("(r => [r.x + 50, r.y + 5])(document.querySelector('#rows tr').getBoundingClientRect())"))
    page.wait("document.querySelector('#state').textContent.startsWith('Held')")
    deliveries.send(id="sess_2", user_id="user_1")
    page.wait("document.querySelector('#state').textContent === 'Held, 1 new'")
    assert first_cells(page) == ["sess_1"]
    page.point(5, 790)
    page.wait("document.querySelector('#rows a.open').textContent === 'sess_2'")


def test_keys_lead_through_the_feed(page: Page, deliveries: Deliveries) -> None:
    for number in range(3):
        deliveries.send(id=f"sess_{number}", user_id="user_1")
    page.wait("document.querySelectorAll('#rows tr').length === 3")
    focused = "document.activeElement.textContent"
    page.press("j", "j")
    assert page.evaluate(focused) == "sess_1"
    page.press("k")
    assert page.evaluate(focused) == "sess_2"
    page.press("p")
    assert page.evaluate("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
    page.press("?")
    assert page.evaluate("document.querySelector('#help').open")
    page.press("Escape")
    page.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.press(*"sess_0", "Enter")
    page.wait("location.pathname === '/console/sessions/sess_0'")


def test_keys_can_be_switched_off(page: Page) -> None:
    page.press("?")
    page.click("#keys-on")
    page.press("Escape")
    page.press("/")
    assert page.evaluate("document.activeElement.id") != "search"


def test_a_burst_is_counted_and_not_all_shown(page: Page, redis: DurableRedis, deliveries: Deliveries) -> None:
    deliveries.send(id="sess_0", user_id="user_1")
    with client_of(redis.url) as client:
        ((_, fields),) = client.xrevrange("{clerk}:events", count=1)
        pipeline = client.pipeline(transaction=False)
        for _ in range(3000):
            pipeline.xadd("{clerk}:events", fields)
        pipeline.execute()
    page.wait("document.querySelector('#rows .skipped')?.textContent.includes('more in this moment')")
    assert page.evaluate("document.querySelectorAll('#rows tr').length") <= 150


def test_it_goes_on_without_a_gap_when_redis_comes_back(
    page: Page, redis: DurableRedis, deliveries: Deliveries
) -> None:
    deliveries.send(id="sess_before", user_id="user_1")
    page.wait("document.querySelector('#rows a.open')?.textContent === 'sess_before'")
    redis.kill()
    began = time.monotonic()
    page.wait(IS_LOST)
    assert time.monotonic() - began < 3 * SAYS_IT_WITHIN
    redis.start()
    with run_relay(redis.url) as relay:
        for number in range(3):
            Deliveries(relay).send(id=f"sess_{number}", user_id="user_1")
    page.wait("document.querySelectorAll('#rows tr').length === 4")
    assert first_cells(page) == ["sess_2", "sess_1", "sess_0", "sess_before"]
    page.wait(LIVE)


@pytest.fixture
def served_page(browser: Browser, served: Callable[[], ServiceProcess], deliveries: Deliveries) -> Iterator[Page]:
    """A tab that is signed in to `serve` by the form, and shows the live feed."""
    origin = f"http://127.0.0.1:{served().port}"
    with browser.page() as page:
        page.open(f"{origin}/console/health")
        page.evaluate(f"document.querySelector('#token').value = {json.dumps(TOKEN)}")
        page.press("Enter")
        page.wait("document.title.startsWith('Health')")
        page.open(f"{origin}/console")
        page.wait(LIVE)
        yield page


def send_and_see(page: Page, deliveries: Deliveries, session_id: str) -> None:
    deliveries.send(id=session_id, user_id="user_1")
    page.wait(f"document.querySelector('#rows a.open')?.textContent === {json.dumps(session_id)}")


def is_told_in_time(page: Page) -> None:
    began = time.monotonic()
    page.wait(IS_LOST)
    assert time.monotonic() - began < 3 * SAYS_IT_WITHIN


def test_a_connection_that_is_silent_counts_as_lost(
    served_page: Page, served: Callable[[], ServiceProcess], deliveries: Deliveries
) -> None:
    send_and_see(served_page, deliveries, "sess_1")
    process = served().process
    os.kill(process.pid, signal.SIGSTOP)  # the connection is there
    try:
        is_told_in_time(served_page)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    served_page.wait(LIVE)
    send_and_see(served_page, deliveries, "sess_2")


def test_it_goes_on_without_a_gap_when_serve_comes_back(
    served_page: Page, served: Callable[[], ServiceProcess], deliveries: Deliveries
) -> None:
    send_and_see(served_page, deliveries, "sess_1")
    assert served().stop() in {0, 143}
    is_told_in_time(served_page)
    deliveries.send(id="sess_2", user_id="user_1")
    served()
    served_page.wait(LIVE, 20)
    send_and_see(served_page, deliveries, "sess_3")
    assert first_cells(served_page) == ["sess_3", "sess_2", "sess_1"]


SEEDED = 20_000
"""Sessions; console_load.py has a million, by hand."""


def test_many_sessions_make_no_page_slow(page: Page, local: Local, redis: DurableRedis, deliveries: Deliveries) -> None:
    deliveries.send(id="sess_0", user_id="user_1")
    with client_of(redis.url) as client:
        add_sessions(client, SEEDED)
    page.open(f"{local.origin}/console")
    assert f"{SEEDED + 1:,} open sessions" in page.text("main")
    for path in ("/search?q=sess_0009", "/sessions/sess_0012000", "/users/user_1", "/health"):
        page.open(f"{local.origin}/console{path}")
        took_ms = page.evaluate("performance.getEntriesByType('navigation')[0].duration")
        assert took_ms < 10_000, path  # 70 ms on a machine that does nothing else
    page.open(f"{local.origin}/console/search?q=sess_001999")
    found = page.evaluate("document.querySelectorAll('main td a').length")
    assert found == 10 or "There may be more" in page.text("main")


@pytest.fixture
def day(page: Page, redis: DurableRedis, deliveries: Deliveries) -> str:
    """The id of a dead letter of a day with something on each page."""
    fill(redis.url, lives=6)
    with client_of(redis.url) as client:
        client.xgroup_create("{clerk}:events", "gateway", "0")
        client.xgroup_createconsumer("{clerk}:events", "gateway", "gateway-1")
        letter = client.hkeys("{clerk}:dead-letters")[0]
    page.call("Page.reload")
    page.wait(f"{LIVE} && document.querySelectorAll('#rows tr').length > 5")
    return letter.decode() if isinstance(letter, bytes) else str(letter)


def paths_of_pages(page: Page, letter: str) -> list[str]:
    """Return each kind of page once, as of a feed that is shown."""
    # A session with several events, and its user.
    links = page.evaluate(
        "[...[...document.querySelectorAll('#rows tr')].find(row => row.innerText.includes('→')).querySelectorAll('a')]"
        ".map(each => each.href)"
    )
    paths = [f"/console/{link.split('/console/')[1]}" for link in links]
    return [
        *paths,
        *("/console", "/console/health", "/console/dead-letters", f"/console/dead-letters/{letter}"),
        *("/console/search?q=sess_2", "/console/sessions/sess_none"),
    ]


def test_all_pages_keep_to_wcag_in_both_themes(page: Page, local: Local, day: str) -> None:
    need(axe_core(), "there is no axe-core: `make test` installs it, where there is npm")
    found = {}
    for path in paths_of_pages(page, day):
        page.open(local.origin + path)
        page.theme("light")
        found[path] = page.axe()
        assert page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
        page.theme("dark")
        found[f"{path}, dark"] = page.axe("color-contrast", "link-in-text-block")  # the others see no colour
        assert page.evaluate(BACKGROUND) == "rgb(15, 18, 23)"
    page.press("?")
    found["help"] = page.axe()
    assert {path: faults for path, faults in found.items() if faults} == {}


def test_no_page_is_wider_than_a_phone(page: Page, local: Local, day: str) -> None:
    page.size(390, 844)
    widths = {}
    for path in paths_of_pages(page, day):
        page.open(local.origin + path)
        widths[path] = page.evaluate("document.documentElement.scrollWidth")
    assert {path: width for path, width in widths.items() if width > 390} == {}


def test_the_form_keeps_to_wcag(page: Page, served: Callable[[], ServiceProcess]) -> None:
    need(axe_core(), "there is no axe-core: `make test` installs it, where there is npm")
    page.open(f"http://127.0.0.1:{served().port}/console")
    page.wait("document.querySelector('#token')")
    assert page.axe() == []


def test_it_works_without_a_script(
    browser: Browser, served: Callable[[], ServiceProcess], deliveries: Deliveries
) -> None:
    with browser.page() as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.call("Page.navigate", url=f"http://127.0.0.1:{served().port}/console")
        page.wait("document.querySelector('#token')")
        page.click("#token")
        page.press(*TOKEN, "Enter")
        page.wait("document.querySelector('#feed')")
        assert "reload to see what is new" in page.text("noscript") or "Nothing has come in yet" in page.text("main")


def test_a_stolen_link_is_worth_nothing_after_its_use(page: Page, browser: Browser, local: Local) -> None:
    link = local.new_link()
    page.open(link)
    page.wait("document.querySelector('#feed')")
    with browser.page() as thief:
        thief.open(link)
        assert "This link was used before" in thief.text()
        thief.open(f"{local.origin}/console")
        assert thief.evaluate("document.querySelector('#feed')") is None


def test_no_other_page_can_show_the_console_in_a_frame(
    browser: Browser, local: Local, page: Page, tmp_path: Path
) -> None:
    around = tmp_path / "around.html"
    around.write_text(f'<iframe src="{local.origin}/console"></iframe>')
    page.call("Page.navigate", url=f"file://{around}")
    page.wait("document.querySelector('iframe')")
    with contextlib.suppress(AssertionError):
        page.wait("false", 0.5)
    assert any("frame-ancestors" in json.dumps(event) or "X-Frame" in json.dumps(event) for event in page.events)
    page.events.clear()  # that is what it was about
