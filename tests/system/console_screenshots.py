"""The screenshots of docs/console.md: `make screenshots`."""

from collections.abc import Iterator

import pytest
from support.browser import Page, running_browser
from support.consoles import console, fill
from support.constants import ROOT

from service.dev.embedded import EmbeddedRedis

VIEWS = {
    "console-live": ("light", "/console", "#state.on"),
    "console-session": ("dark", "tr.revoked a.open", ".timeline"),
    "console-health": ("light", "/console/health", ".checks"),
}


@pytest.fixture
def page(own_redis: EmbeddedRedis) -> Iterator[Page]:
    fill(own_redis.url)
    with console(own_redis.url) as local, running_browser() as browser, browser.page() as page:
        page.size(1280, 760)
        page.open(local.new_link())
        page.wait("document.querySelector('#state').className.includes('on')")
        yield page


def test_views_are_shown_as_they_are(page: Page) -> None:
    for name, (scheme, where, awaited) in VIEWS.items():
        page.theme(scheme)
        address = where if where.startswith("/") else page.evaluate(f"document.querySelector('{where}').href")
        page.open(page.evaluate(f"new URL('{address}', location.href).href"))
        page.wait(f"document.querySelector('{awaited}')")
        page.screenshot(ROOT / "docs" / f"{name}.png")
        page.open(page.evaluate("new URL('/console', location.href).href"))
