"""The console under load, by hand: `make console-load`. The figures are in docs/console.md.

CONSOLE_SECONDS, CONSOLE_RATE and CONSOLE_SESSIONS make it shorter, or another one.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.browser import Page, running_browser
from support.consoles import Deliveries, add_sessions, console
from support.redis_clients import client_of
from support.relay import run_relay

from service.app.console.local import Local
from service.dev.embedded import EmbeddedRedis

SECONDS: Final = int(os.environ.get("CONSOLE_SECONDS", "60"))
RATE: Final = int(os.environ.get("CONSOLE_RATE", "1000"))
"""Events a second."""
SESSIONS: Final = int(os.environ.get("CONSOLE_SESSIONS", "1000000"))
LONGEST_FRAME_MS: Final = 200
LARGEST_GROWTH: Final = 1.2
"""Of the heap of the page, from a fifth of the time to the end."""
_WATCH_FRAMES: Final = """
    window.frames_ms = []; window.last = performance.now();
    (function watch(now) {
        window.frames_ms.push(now - window.last); window.last = now; requestAnimationFrame(watch);
    })(window.last)
"""


@pytest.fixture
def local(own_redis: EmbeddedRedis) -> Iterator[Local]:
    with run_relay(own_redis.url) as relay:
        Deliveries(relay).send(id="sess_0", user_id="user_1")
    with console(own_redis.url) as local:
        yield local


@pytest.fixture
def page(local: Local) -> Iterator[Page]:
    with running_browser() as browser, browser.page() as page:
        page.size(1280, 800)
        page.open(local.new_link())
        page.wait("document.querySelector('#state').className.includes('on')")
        yield page


def add_events(url: str, ended: threading.Event) -> None:
    """Add events to the stream, some each twentieth of a second, at RATE."""
    with client_of(url) as client:
        ((_, fields),) = client.xrevrange("{clerk}:events", count=1)
        began, added = time.monotonic(), 0
        while not ended.wait(0.05):
            pipeline = client.pipeline(transaction=False)
            while added < (time.monotonic() - began) * RATE:
                added += 1
                pipeline.xadd("{clerk}:events", fields, maxlen=5000)
            pipeline.execute()


def heap(page: Page) -> tuple[float, int]:
    """Return the size of the page's heap in MB, and how many nodes it has, after a collection of garbage."""
    page.call("HeapProfiler.collectGarbage")
    metrics = metrics_of(page)
    return metrics["JSHeapUsedSize"] / 1e6, int(metrics["Nodes"])


def metrics_of(page: Page) -> dict[str, Any]:
    """Return Chromium's figures of the page; times are of its main thread's CPU, in seconds."""
    page.call("Performance.enable", timeDomain="threadTicks")
    return {each["name"]: each["value"] for each in page.call("Performance.getMetrics")["metrics"]}


def test_no_frame_is_dropped_and_memory_stays_flat(page: Page, own_redis: EmbeddedRedis) -> None:
    ended = threading.Event()
    adding = threading.Thread(target=add_events, args=(own_redis.url, ended))
    adding.start()
    try:
        page.wait("document.querySelectorAll('#rows tr').length === 150")
        time.sleep(SECONDS / 5)
        early = heap(page)
        page.evaluate(_WATCH_FRAMES)
        busy = metrics_of(page)["TaskDuration"]
        time.sleep(SECONDS * 4 / 5)
        busy = (metrics_of(page)["TaskDuration"] - busy) / (SECONDS * 4 / 5)
        frames = page.evaluate("window.frames_ms")
        late = heap(page)
    finally:
        ended.set()
        adding.join()
    rows = page.evaluate("document.querySelectorAll('#rows tr').length")
    print(
        f"\n{RATE} events a second for {SECONDS} s: frames {len(frames)}, median {statistics.median(frames):.1f} ms, "
    )
    print(
        f"longest {max(frames):.0f} ms; heap {early[0]:.1f} MB, then {late[0]:.1f} MB; nodes {early[1]}, then {late[1]}"
    )
    print(f"rate shown: {page.text('#rate')}; rows {rows}; CPU of the main thread {busy:.0%}")
    assert max(frames) < LONGEST_FRAME_MS
    assert late[0] < early[0] * LARGEST_GROWTH
    assert rows == 150


def test_a_million_sessions(page: Page, local: Local, own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    with client_of(own_redis.url) as client:
        add_sessions(client, SESSIONS)
        client.config_resetstat()
    for path in (
        "",
        "/search?q=sess_0999999",
        "/search?q=sess_09999",
        "/sessions/sess_0500000",
        "/users/user_1",
        "/health",
    ):
        took = []
        for _ in range(5):
            page.open(f"{local.origin}/console{path}")
            took.append(page.evaluate("performance.getEntriesByType('navigation')[0].responseEnd"))
        print(f"{SESSIONS:,} sessions: /console{path}: {statistics.median(took):.0f} ms")
        print("   ", page.text(".note").splitlines()[:1])
    with client_of(own_redis.url) as client:
        used = client.info("commandstats")
    assert not {"cmdstat_scan", "cmdstat_keys"} & set(used)
